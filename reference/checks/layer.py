"""The check of one new layer: its methods against each other, autodiff of its own forward, and the reference.

jax.jvp and jax.vjp differentiate the layer's own `net_input`, so a new family needs nothing registered to have
its derivatives checked; its forward is checked only where `reference.model.apply` knows the family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from manual_backprop.layers import Factor, Layer
from reference import model
from reference.checks import layer_quantities as quantities
from reference.compare import compare_leaf, compare_trees
from reference.report import Report, Row
from reference.witnesses.points import is_float, wide
from reference.xla import quick

Tree = Any
TOLERANCE = 1e-12
"""Relative to the magnitudes summed, or to the largest entry of a leaf: thousands of roundings in float64."""


def check_layer(layer: Layer, params: Tree, a_in: Any, *, seed: int = 0) -> Report:
    """Check a layer's methods; everything in float64, every entry compared, directions and deltas seeded.

    In order: what the methods return (shapes, dtypes, structures), `net_input` against `reference.model.apply`,
    `pushforward` against jax.jvp of `net_input`, `transport` and `factor` against its jax.vjp, the transposes
    against `pushforward`, linearity, the factor's readings against each other, and jit against eager.

    Args:
        layer: a subclass of `manual_backprop.layers.Layer`.
        params: its parameters; generic ones: a fault times a zero does not show.
        a_in: what enters it, floats, two examples or more on the first axis.
        seed: of the directions.

    Returns:
        A report; the `path` of its first failing row begins with the method at fault, and `cause` says why.

    Raises:
        ValueError: a_in is not a batch of two or more examples of floats.
    """
    a_in = wide(a_in)
    if a_in.ndim < 1 or a_in.shape[0] < 2 or not is_float(a_in):
        raise ValueError(f"a_in must hold floats of two examples or more, got {a_in.dtype}{list(a_in.shape)}")
    run = _Run(layer, [])
    params = jax.tree.map(wide, params)
    notes = [
        f"params{jax.tree_util.keystr(path)} is zero throughout: a fault that multiplies it does not show"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.size and not leaf.any()
    ]
    with jax.enable_x64(True):
        params, a_in = jax.tree.map(jnp.asarray, (params, a_in))
        try:
            run.contract(params, a_in, seed)
            notes += run.values(params, a_in, seed)
        except _StoppedError:
            notes.append("what comes after the first method that failed its contract was not checked")
    return Report(tuple(run.rows), "float64", str(layer), len(a_in), notes=tuple(notes))


class _StoppedError(Exception):
    """A method gave nothing to go on with; its row is written."""


@dataclass(frozen=True)
class _Run:
    layer: Layer
    rows: list[Row]

    def contract(self, params: Tree, a_in: Array, seed: int) -> None:
        """What each method returns, by itself; raises _StoppedError at the first that is no use."""
        layer = self.layer
        returned = self.call("net_input", layer.net_input, params, a_in)
        pair = isinstance(returned, tuple) and len(returned) == 2
        self.say("net_input", "" if pair else f"net_input must return (z, saved), got {type(returned).__name__}")
        z, saved = returned
        n = a_in.shape[0]
        right = _described(z) is not None and z.dtype == jnp.float64 and z.shape[:1] == (n,)
        self.say("net_input.z", "" if right else f"z must be float64 with {n} examples first, got {_described(z) or z}")
        out = self.call("out_shape", layer.out_shape, a_in.shape[1:])
        same = tuple(out) == z.shape[1:]
        self.say("out_shape", "" if same else f"out_shape is {tuple(out)}, but one example of z is {z.shape[1:]}")
        for dtype in ("float64", "float32"):
            drawn = self.call("init", jax.eval_shape, lambda d=dtype: layer.init(jax.random.key(0), d))
            self.say("init", _unlike(drawn, jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), params), "params"))
        self.say("net_input.saved", self.parameters_in(saved, params, a_in, seed))
        delta, dparams = quantities.like(z, seed), quantities.like(params, seed + 1)
        d_a = self.call("transport", layer.transport, params, saved, delta)
        self.say("transport", _unlike(d_a, a_in, "a_in"))
        factor = self.call("factor", layer.factor, saved, delta)
        self.say("factor", "" if isinstance(factor, Factor) else f"a Factor expected, got {type(factor).__name__}")
        first = [leaf.shape[:1] == (n,) for leaf in jax.tree.leaves(factor)]
        self.say("factor", "" if all(first) else f"every leaf of a Factor needs the {n} examples first")
        if jax.tree.leaves(params):
            self.say(
                "factor.per_example",
                _unlike(
                    self.call("factor.per_example", factor.per_example),
                    jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape)), params),
                    "params with the examples first",
                ),
            )
            norms = self.call("factor.squared_norms", factor.squared_norms)
            self.say("factor.squared_norms", _unlike(norms, jnp.zeros(n), "weights"))
        total = self.call("factor.weighted_sum", factor.weighted_sum, jnp.ones(n))
        self.say("factor.weighted_sum", _unlike(total, params, "params"))
        dz = self.call("pushforward", layer.pushforward, params, saved, dparams, quantities.like(a_in, seed + 2))
        self.say("pushforward", _unlike(dz, z, "z"))

    def parameters_in(self, saved: Tree, params: Tree, a_in: Array, seed: int) -> str:
        """Which leaf of `saved` is made of parameters alone, or ""."""
        of_input = self.call("net_input", self.layer.net_input, params, quantities.like(a_in, seed + 5))[1]
        of_params = self.call("net_input", self.layer.net_input, quantities.like(params, seed + 6), a_in)[1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved):
            other, changed = _at(of_input, path), _at(of_params, path)
            if np.array_equal(leaf, other) and not np.array_equal(leaf, changed):
                name = f"saved{jax.tree_util.keystr(path)}"
                return f"{name} is made of parameters alone; transport and pushforward are given those, keep them out"
        return ""

    def call(self, method: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a method returns; a row and _StoppedError where it raises."""
        try:
            return function(*args)
        except Exception as error:
            first = str(error).strip().splitlines()
            self.say(method, f"{method} raised {type(error).__name__}: {first[0] if first else ''}")

    def say(self, method: str, fault: str) -> None:
        """A contract row: passed, or failed for `fault`, and then nothing can follow."""
        verdict: Any = "fail" if fault else "pass"
        bad = float("inf") if fault else 0.0
        nan = float("nan") if fault else 0.0
        self.rows.append(
            Row(method, (), bad, 0.0, 0.0, bad, 0.0, (), nan, nan, verdict, "contract", witness="Layer", cause=fault)
        )
        if fault:
            raise _StoppedError

    def values(self, params: Tree, a_in: Array, seed: int) -> list[str]:
        """The rows that compare numbers; returns notes."""
        notes = []
        if model.apply.dispatch(type(self.layer)) is model.apply.dispatch(object):
            notes.append(
                f"{type(self.layer).__name__} is not registered on reference.model.apply: its z is taken as is"
            )
        else:
            z = self.call("net_input", self.layer.net_input, params, a_in)[0]
            witness = model.apply(self.layer, params, a_in, model.zero_probes(self.layer, params, a_in))[1].z
            self.compare("net_input.z", z, witness, "reference.model", "z is not what the reference computes")

        def by_hand(params: Tree, a_in: Array) -> dict[str, Tree]:
            return quantities.by_hand(self.layer, params, a_in, seed)

        def everything(params: Tree, a_in: Array) -> tuple[dict[str, Tree], dict[str, Tree]]:
            return by_hand(params, a_in), quantities.by_autodiff(self.layer, params, a_in, seed)

        hand = self.call("eager", by_hand, params, a_in)
        compiled, auto = self.call("jit", jax.jit(everything, compiler_options=quick()), params, a_in)
        products = quantities.products(params, a_in, hand, seed)
        self.blame_net_input(hand, auto, products)
        for path, name, cause in quantities.DERIVATIVES:
            self.compare(path, hand[name], auto[name], quantities.autodiff_of(path), cause)
        for path, (left, right, cause) in products.items():
            self.product(path, left, right, cause)
        for path, ours, theirs, cause in quantities.CONSISTENCY:
            self.compare(path, hand[ours], hand[theirs], "its own definition", cause)
        for name, value in hand.items():
            self.compare(f"{name}, jit", compiled[name], value, "eager", f"{name} differs under jit")
        return notes

    def blame_net_input(self, hand: dict[str, Tree], auto: dict[str, Tree], products: dict[str, Any]) -> None:
        """A first row for net_input where the other methods agree with each other and not with it."""
        for tangent, cotangent, product in quantities.PARTS:
            wrong = not _same(hand[tangent], auto[tangent]) and not _same(hand[cotangent], auto[cotangent])
            left, right, _ = products[product]
            if wrong and abs(left.sum() - right.sum()) <= TOLERANCE * (np.abs(left).sum() + np.abs(right).sum()):
                others = "pushforward and its transposes"
                cause = f"net_input's z or saved is not what {others} belong to: these agree with each other"
                self.compare("net_input", auto[tangent], hand[tangent], others, cause)

    def compare(self, path: str, ours: Tree, theirs: Tree, witness: str, cause: str) -> None:
        """A row for every leaf, to TOLERANCE of its largest entry."""
        allowed = jax.tree.map(_allowed, theirs)
        self.rows.extend(
            compare_trees(path, ours, theirs, allowed, kind="contract", witness=witness, cause=lambda *_: ("", cause))
        )

    def product(self, path: str, left: np.ndarray, right: np.ndarray, cause: str) -> None:
        """A row for two sums of products, to TOLERANCE of the magnitudes summed."""
        allowed = TOLERANCE * float(np.abs(left).sum() + np.abs(right).sum())
        self.rows.append(
            compare_leaf(
                path, left.sum(), right.sum(), allowed, kind="contract", witness="the transpose",
                cause=lambda *_: ("", cause),
            )
        )  # fmt: skip


def _described(leaf: Any) -> str | None:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else None


def _unlike(got: Tree, expected: Tree, name: str) -> str:
    """How `got` differs from `expected` in structure, shape or dtype, or ""."""
    there: Any = jax.tree.structure(got)
    wanted: Any = jax.tree.structure(expected)
    if there != wanted:
        return f"expected the structure of {name}, {wanted}, got {there}"
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if _described(leaf) != _described(like):
            at = jax.tree_util.keystr(path)
            return f"expected {_described(like)} as {name}{at} has, got {_described(leaf) or type(leaf).__name__}"
    return ""


def _at(tree: Tree, path: Any) -> Any:
    return dict(jax.tree_util.tree_leaves_with_path(tree)).get(path)


def _allowed(leaf: Any) -> np.ndarray:
    return np.full(np.shape(leaf), TOLERANCE * float(np.max(np.abs(leaf), initial=0)))


def _same(a: Tree, b: Tree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool((np.abs(np.asarray(x) - np.asarray(y)) <= _allowed(y)).all()) for x, y in pairs)
