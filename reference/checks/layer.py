"""The check of one new layer: its methods against each other, against autodiff of its own forward, and the reference.

jax.jvp and jax.vjp differentiate the layer's own `net_input`, so the derivatives of a new family are checked without
any registration. Its forward is checked only if the family is registered on `reference.model.apply`. Then the layer
runs in the sweeps, as it would in a network.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.layers import AffineLayer, Factor, Layer
from manual_backprop.node import Node, shape_of
from manual_backprop.types import came
from reference import masks as masks  # registers the forward of a dropout with its key
from reference import model
from reference.checks import layer_quantities as quantities
from reference.checks import layer_witness as witness
from reference.checks.layer_rows import Rows, StoppedError, balance, described, same, unlike, unlike_values
from reference.report import Report
from reference.witnesses.points import is_float, wide
from reference.xla import quick

Tree = Any


def check_layer(layer: Layer, params: Tree, a_in: Any, *, seed: int = 0) -> Report:
    """Check a layer's methods in float64, every entry, along seeded directions and deltas.

    In order: the shapes, dtypes and structures of the methods' results, `net_input` against `reference.model.apply`,
    `pushforward` against jax.jvp of `net_input`, `transport` and `factor` against jax.vjp of `net_input`, `change`
    against jax.jvp of that vjp, the transposes against `pushforward`, linearity, the factor's readings against each
    other, and jit against eager. Then the sweeps at the layer, with its activation, against autodiff of both together.

    Args:
        layer: a subclass of `manual_backprop.layers.Layer`.
        params: its parameters; choose generic ones, since a fault times zero does not show.
        a_in: its input, with two or more examples on the first axis: floats, integers if the layer takes them, or
            a tuple of these if it has several inputs.
        seed: of the directions.

    Returns:
        A report. The `path` of its first failing row begins with the method at fault, and `cause` says why.

    Raises:
        TypeError: `layer` is no layer.
        ValueError: a_in is not a batch of two or more examples that the layer takes.
    """
    if not isinstance(layer, Layer):
        told = "; a network is proven by reference.check(mb.Objective(net, loss), params, x, y)"
        hint = told if isinstance(layer, Node) else ""
        raise TypeError(f"check_layer checks one layer, an instance of a subclass of Layer, got {came(layer)}{hint}")
    a_in = _examples(layer, a_in)
    params = jax.tree.map(wide, params)
    run, notes = _Run(layer, Rows()), _zeros(params)
    with jax.enable_x64(True):
        params, a_in = jax.tree.map(jnp.asarray, (params, a_in))
        try:
            draws = run.contract(params, a_in, seed)
            notes += run.unknown()
            run.methods(params, a_in, draws)
            run.sweeps(params, a_in, draws)
        except StoppedError:
            notes.append("what comes after the first method that failed its contract was not checked")
    return Report(tuple(run.rows.found), "float64", str(layer), model.examples(a_in), notes=tuple(notes))


def _examples(layer: Layer, a_in: Any) -> Any:
    """The input as NumPy arrays, with floats in float64."""
    a_in = tuple(map(wide, a_in)) if isinstance(a_in, tuple) else wide(a_in)
    kinds = "floats, integers or booleans" if layer.takes_integers else "floats"
    leaves = jax.tree.leaves(a_in)
    for leaf in leaves:
        exact = any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.integer, jnp.bool_))
        taken = is_float(leaf) or (layer.takes_integers and exact)
        if leaf.ndim < 1 or leaf.shape[0] < 2 or not taken:
            raise ValueError(f"a_in must hold {kinds} of two examples or more, got {described(a_in)}")
    if len({len(leaf) for leaf in leaves}) != 1:
        raise ValueError(f"a_in must hold {kinds} of two examples or more, as many in every part: {described(a_in)}")
    return a_in


def _zeros(params: Tree) -> list[str]:
    return [
        f"params{jax.tree_util.keystr(path)} is zero throughout: a fault that multiplies it does not show"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.size and not leaf.any()
    ]


@dataclass(frozen=True)
class _Run:
    layer: Layer
    rows: Rows

    def contract(self, params: Tree, a_in: Tree, seed: int) -> witness.Draws:
        """Check each method's result by itself; raise StoppedError at the first that cannot be used further."""
        rows, layer = self.rows, self.layer
        z, saved = self.entered(params, a_in)
        for dtype in ("float64", "float32"):
            drawn = rows.call("init", jax.eval_shape, lambda d=dtype: layer.init(jax.random.key(0), d))
            rows.say("init", unlike(drawn, jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), params), "params"))
        rows.call("activation", lambda: layer.f)
        rows.say("net_input.saved", self.saved_amiss(saved, params, a_in, seed))
        draws = witness.draws(params, a_in, z, seed)
        d_a = rows.call("transport", layer.transport, params, saved, draws.delta)
        rows.say("transport", unlike(d_a, witness.floats(a_in), "a_in"))
        factor, other = (rows.call("factor", layer.factor, saved, delta) for delta in (draws.delta, draws.other))
        self.factor(params, factor, other, len(z))
        dz = rows.call("pushforward", layer.pushforward, params, saved, draws.dparams, draws.da_in)
        rows.say("pushforward", unlike(dz, z, "z"))
        dz = rows.call("pushforward_params", layer.pushforward_params, params, a_in, saved, draws.dparams)
        rows.say("pushforward_params", unlike(dz, z, "z"))
        if quantities.has_change(layer):
            self.change(params, a_in, saved, draws)
        return draws

    def entered(self, params: Tree, a_in: Tree) -> tuple[Any, Tree]:
        """Check `net_input` and `out_shape`, and return z and saved."""
        rows, layer, n = self.rows, self.layer, model.examples(a_in)
        returned = rows.call("net_input", layer.net_input, params, a_in)
        pair = isinstance(returned, tuple) and len(returned) == 2
        rows.say("net_input", "" if pair else f"net_input must return (z, saved), got {described(returned)}")
        z, saved = returned
        right = isinstance(z, jax.Array) and z.dtype == jnp.float64 and z.shape[:1] == (n,)
        rows.say("net_input.z", "" if right else f"z must be float64 with {n} examples first, got {described(z)}")
        out = rows.call("out_shape", lambda: tuple(layer.out_shape(shape_of(a_in))))
        same_shape = out == z.shape[1:]
        rows.say("out_shape", "" if same_shape else f"out_shape is {out}, but one example of z is {z.shape[1:]}")
        return z, saved

    def saved_amiss(self, saved: Tree, params: Tree, a_in: Tree, seed: int) -> str:
        """The fault in `saved`: a leaf of parameters alone, or an affine layer's `saved` other than a_in; or ""."""
        if isinstance(self.layer, AffineLayer):
            differs = unlike(saved, a_in, "a_in") or ("other values" if unlike_values(saved, a_in) else "")
            told = f"an AffineLayer saves what entered, a_in; got {described(saved)}: {differs}"
            return told if differs else ""
        other, changed = witness.another(a_in, seed + 5), witness.like(params, seed + 6)
        if not unlike_values(other, a_in):
            return ""
        of_input = self.rows.call("net_input", self.layer.net_input, params, other)[1]
        of_params = self.rows.call("net_input", self.layer.net_input, changed, a_in)[1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved):
            if np.array_equal(leaf, _at(of_input, path)) and not np.array_equal(leaf, _at(of_params, path)):
                name = f"saved{jax.tree_util.keystr(path)}"
                return f"{name} is made of parameters alone; transport and pushforward are given those, keep them out"
        return ""

    def factor(self, params: Tree, factor: Any, other: Any, n: int) -> None:
        """Check that a factor has the examples on the first axis, and that every reading has its shape."""
        self.rows.say("factor", self.no_factor(factor, n))
        each = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape)), params)
        readings: dict[str, tuple[Any, Tree, str]] = {
            "weighted_sum": (lambda: factor.weighted_sum(jnp.ones(n)), params, "params"),
            "total": (factor.total, params, "params"),
            "per_example": (factor.per_example, each, "params with the examples first"),
            "squared_norms": (factor.squared_norms, jnp.zeros(n), "weights"),
            "squared_sum": (lambda: factor.squared_sum(jnp.ones(n)), params, "params"),
            "gram": (lambda: factor.gram(other), jnp.zeros((n, n)), "products of two batches"),
            "tied": (
                lambda: quantities.stacked(factor, other).tied().per_example(),
                each,
                "params with the examples first",
            ),
        }
        for name, (reading, expected, like) in readings.items():
            path = f"factor.{name}"
            self.rows.say(path, unlike(self.rows.call(path, jax.eval_shape, reading), expected, like))

    def no_factor(self, factor: Any, n: int) -> str:
        """Why `factor` is not a factor of n examples, or ""."""
        if not isinstance(factor, Factor):
            return f"a Factor expected, got {type(factor).__name__}"
        leaves = jax.tree.leaves(factor)
        if not leaves:
            return "a Factor needs a leaf with the examples first, as NoParameters(delta) has"
        first = [leaf.shape[:1] == (n,) for leaf in leaves]
        return "" if all(first) else f"every leaf of a Factor needs the {n} examples first"

    def change(self, params: Tree, a_in: Tree, saved: Tree, draws: witness.Draws) -> None:
        """Check the result of `change`."""
        rows = self.rows
        returned = rows.call("change", self.layer.change, params, saved, draws.dparams, draws.da_in, draws.delta)
        pair = isinstance(returned, tuple) and len(returned) == 2
        told = f"change must return (the change of transport, a Factor or None), got {described(returned)}"
        rows.say("change", "" if pair else told)
        bent, moved = returned
        rows.say("change[0]", unlike(bent, witness.floats(a_in), "a_in"))
        if moved is not None:
            rows.say("change[1]", self.no_factor(moved, len(draws.weights)))
            total = rows.call("change[1].weighted_sum", moved.weighted_sum, draws.weights)
            rows.say("change[1].weighted_sum", unlike(total, params, "params"))
        if isinstance(self.layer, AffineLayer):
            rows.call("change, da_in None", self.layer.change, params, saved, draws.dparams, None, draws.delta)

    def unknown(self) -> list[str]:
        """Notes on values that are not checked, and on methods that the layer does not offer."""
        family, f = type(self.layer).__name__, self.layer.f
        known = model.apply.dispatch(type(self.layer)) is not model.apply.dispatch(object)
        offered = {
            f"{family} is not registered on reference.model.apply: its z is taken as is": known,
            f"{f.name} is not in reference.model.ACTIVATIONS: its values are taken as is": f.name in model.ACTIVATIONS,
            f"{family} has no method `change`: Hessian-vector products refuse it": quantities.has_change(self.layer),
            f"{f.name} has no d2f: Hessian-vector products refuse it": f.d2f is not None,
        }
        return [note for note, there in offered.items() if not there]

    def methods(self, params: Tree, a_in: Tree, draws: witness.Draws) -> None:
        """Add the rows that compare the methods' results."""
        layer, rows, curved = self.layer, self.rows, quantities.has_change(self.layer)
        if model.apply.dispatch(type(layer)) is not model.apply.dispatch(object):
            z, cause = layer.net_input(params, a_in)[0], "z is not what the reference computes"
            rows.compare("net_input.z", z, model.apply(layer, params, a_in), "reference.model", cause)

        def hand(params: Tree, a_in: Tree) -> witness.Found:
            return quantities.by_hand(layer, params, a_in, draws)

        def both(params: Tree, a_in: Tree) -> tuple[witness.Found, witness.Found]:
            return hand(params, a_in), witness.by_autodiff(layer, params, a_in, draws, curved=curved)

        eager = rows.call("eager", hand, params, a_in)
        compiled, auto = rows.call("jit", jax.jit(both, compiler_options=quick()), params, a_in)
        self.derivatives(eager, auto, quantities.products(eager, draws))
        self.compiled(eager, compiled)

    def derivatives(self, hand: witness.Found, auto: witness.Found, products: dict[str, Any]) -> None:
        """Add the rows against autodiff and against the transposes."""
        self.blame_net_input(hand, auto, products)
        for path, name, cause in quantities.DERIVATIVES:
            self.rows.compare(path, hand[name], auto[name], quantities.autodiff_of(path), cause)
        for path, (left, right, cause) in products.items():
            self.rows.product(path, left, right, cause)
        for path, ours, theirs, cause in quantities.CONSISTENCY:
            self.rows.compare(path, hand[ours], hand[theirs], "its own definition", cause)
        for path, cause in quantities.CHANGES.items():  # after all that `change` may be made of
            if path in hand:
                self.rows.compare(path, hand[path], auto[path], "jax.jvp of the transposes", cause)

    def blame_net_input(self, hand: witness.Found, auto: witness.Found, products: dict[str, Any]) -> None:
        """Add a first row for net_input if the other methods agree with each other but not with it."""
        for tangent, cotangent, product in quantities.PARTS:
            wrong = not same(hand[tangent], auto[tangent]) and not same(hand[cotangent], auto[cotangent])
            left, right, _ = products[product]
            if wrong and abs(left.sum() - right.sum()) <= balance(left, right):
                others = "pushforward and its transposes"
                cause = f"net_input's z or saved is not what {others} belong to: these agree with each other"
                self.rows.compare("net_input", auto[tangent], hand[tangent], others, cause)

    def sweeps(self, params: Tree, a_in: Tree, draws: witness.Draws) -> None:
        """Add the rows that compare the sweeps' results at the layer, with its activation."""
        curved = quantities.has_change(self.layer) and self.layer.f.d2f is not None
        each = quantities.sweeps(self.layer, curved)

        def hand(params: Tree, a_in: Tree) -> witness.Found:
            found = (sweep(self.layer, params, a_in, draws) for sweep in each.values())
            return {path: value for part in found for path, value in part.items()}

        def auto(params: Tree, a_in: Tree) -> Any:
            return witness.sweeps_by_autodiff(self.layer, params, a_in, draws)

        theirs, sizes = self.rows.call("autodiff", jax.jit(auto, compiler_options=quick()), params, a_in)
        found: witness.Found = {}
        for method, sweep in each.items():
            ours = self.rows.call(method, sweep, self.layer, params, a_in, draws)
            found |= ours
            for path, value in ours.items():
                size, cause = float(sizes.get(path, 0.0)), quantities.SWEEPS[path]
                self.rows.compare(path, value, theirs[path], "autodiff of f(net_input)", cause, size)
        self.compiled(found, self.rows.call("jit", jax.jit(hand, compiler_options=quick()), params, a_in), sizes)

    def compiled(self, eager: witness.Found, compiled: witness.Found, sizes: dict[str, Any] | None = None) -> None:
        """Add the rows under jit."""
        for name, value in eager.items():
            size, cause = float((sizes or {}).get(name, 0.0)), f"{name} differs under jit"
            self.rows.compare(f"{name}, jit", compiled[name], value, "eager", cause, size)


def _at(tree: Tree, path: Any) -> Any:
    return dict(jax.tree_util.tree_leaves_with_path(tree)).get(path)
