"""Mutation testing of the library's own gradients: `manual_backprop.backprop` broken everywhere, on a few networks.

Together the networks use every activation, loss, family of layers, composite and form of lambda and of weights, so
each formula of `manual_backprop` is broken at least once. A user's own family or composite is included as soon as it
is registered (`reference.catalogue.networks`).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from manual_backprop.layers import LayerTrace
from manual_backprop.node import Branches, Node, Wrapper
from reference import autodiff
from reference.catalogue import broken_sequences, networks
from reference.compare import each_compared
from reference.model import LayerValues
from reference.mutation.report import MutationScore
from reference.mutation.score import mutation_score
from reference.tolerance.rounding import measure

Tree = Any
EXAMPLES = 5
WIDTH = 4
QUICK = 120  # mutants of each network

_EVEN = "the slopes of sigmoid and tanh are even: e / (1 + e)^2 is the same for 1 / e"
_SHIFT = "the same number added to all outputs of an example changes neither softmax nor log sum exp minus one of them"
_SCALE = "softmax is a quotient: the same factor in every exponential cancels"
_BOTH = "away from 0 a quotient and erf both give Phi: which is taken is a matter of rounding"
_MAXIMUM = "jnp.max(o"
EQUIVALENT: dict[tuple[str, ...], str] = {
    ("_logistic_slope", "abs: sign flipped"): _EVEN,
    ("_logistic_slope", "identity for abs"): _EVEN,
    ("_logistic_slope", "neg: sign flipped"): _EVEN,
    ("apart = jnp.abs(z)", "abs: sign flipped"): _BOTH,
    ("apart = jnp.abs(z)", "identity for abs"): _BOTH,
    ("return jnp.where(apart", "select_n: case 0 taken always"): _BOTH,
    (_MAXIMUM, "reduce_max: "): _SHIFT,
    (_MAXIMUM, "broadcast_in_dim: "): _SHIFT,
    (_MAXIMUM, "subtrahend dropped"): _SHIFT,
    (_MAXIMUM, "exp: times"): _SCALE,
    (_MAXIMUM, "exp: sign flipped"): _SCALE,
}
"""Equivalent mutants, with the reason, as `accept` of `mutation_score` takes them. They may differ by rounding."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One objective, with arguments on which a fault can show.

    Attributes:
        objective: the function to differentiate.
        params: generic parameters: no zero, no symmetry.
        x: a batch.
        y: its targets.
        given: lam and weights, if they are given at the call.
        lean: whether `value_and_grad` is broken, whose sweep keeps less, and not `backprop`.
    """

    objective: mb.Objective
    params: Tree
    x: Tree
    y: jax.Array
    given: dict[str, jax.Array]
    lean: bool = False


def catalogue_mutation(
    quick: bool,
    seed: int,
    advance: Callable[[str], None] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, MutationScore]:
    """Break `manual_backprop.backprop` everywhere, and compare every number of the step with `jax.grad`'s.

    z and a of every layer, loss, penalty, J, every delta and gradient, dL/dx and ds/dlam are compared in float64
    with the reference's, entry by entry, each within its measured tolerance.

    Args:
        quick: judge a sample of `QUICK` mutants for each network instead of all.
        seed: draws parameters, data, the sample, and the elements that are zeroed.
        advance: called after each network with its score in words.
        names: of the networks to break; None breaks all of them.

    Returns:
        The score of each network by its name. After an interrupt from the keyboard, the scores so far, the last one
        partial.
    """
    scores: dict[str, MutationScore] = {}
    with jax.enable_x64(True):
        for name, subject in subjects(seed).items():
            if names is not None and name not in names:
                continue
            args = (subject.params, subject.x, subject.y, subject.given)
            scores[name] = mutation_score(
                step_by_hand(subject),
                step_check(subject),
                *args,
                seed=seed,
                limit=QUICK if quick else None,
                accept=EQUIVALENT | broken_sequences.EQUIVALENT.get(name, {}),
            )
            if advance is not None:
                advance(f"{name}: {scores[name].headline()}")
            if scores[name].partial:
                break
    return scores


def step_by_hand(subject: Subject) -> Callable[..., Any]:
    """The step under test as a function of (params, x, y, given); its trace has only z and a of each layer.

    Of a lean subject it is the value with the gradient.
    """
    objective = subject.objective

    def step(params: Tree, x: Tree, y: jax.Array, given: dict[str, Any]) -> mb.Step:
        full = mb.backprop(objective, params, x, y, **given)
        values = jax.tree.map(
            lambda layer: LayerValues(layer.z, layer.a), full.trace, is_leaf=lambda node: isinstance(node, LayerTrace)
        )
        return replace(full, trace=values)

    def lean(params: Tree, x: Tree, y: jax.Array, given: dict[str, Any]) -> Any:
        return mb.value_and_grad(objective)(params, x, y, **given)

    return lean if subject.lean else step


def step_check(subject: Subject) -> Callable[[Callable[..., Any]], bool]:
    """A check of `step_by_hand`: False if any number of the result on the subject differs from the reference's."""

    def by_autodiff(params: Tree, x: Tree, y: jax.Array, given: dict[str, jax.Array]) -> Any:
        step = autodiff.backprop(subject.objective, params, x, y, **given)
        return (step.value, step.gradients) if subject.lean else step

    args = (subject.params, subject.x, subject.y, subject.given)
    witness = measure(by_autodiff, *args, dtype="float64")

    def check(step: Callable[..., Any]) -> bool:
        by_hand = jax.device_get(step(*args))
        rows = each_compared("step", by_hand, witness.value, witness.tolerance, cause=lambda *_: ("", ""))
        return all(row.verdict == "pass" for row in rows)

    return check


def subjects(seed: int) -> dict[str, Subject]:
    """Small objectives that together use every row of every table, with arguments to break them at."""
    objectives = _objectives()
    met = set().union(*(_kinds(objective.net) for objective in objectives.values()))
    made = {}
    for i, (name, objective) in enumerate([*objectives.items(), *_of_others(met)]):
        rng = np.random.default_rng((seed, i))
        x = rng.normal(size=(EXAMPLES, WIDTH))
        outputs = objective.net.out_shape((WIDTH,))[0]
        given: dict[str, Any] = {}
        if name == "residual":
            given["lam"] = 0.3
        if name == "kinks":
            given["weights"] = rng.uniform(0.1, 1, EXAMPLES)
        made[name] = Subject(
            objective,
            jax.tree.map(jnp.asarray, networks.draw_params(objective.net, 1.0, rng)),
            jnp.asarray(x),
            jnp.asarray(_targets(objective.loss, outputs, name == "residual", rng)),
            {key: jnp.asarray(value) for key, value in given.items()},
        )
    rng = np.random.default_rng((seed, len(made)))
    for name, objective, x, y, lean in broken_sequences.objectives(row, rng):
        params = networks.draw_params(objective.net, 1.0, rng)
        given = {"weights": rng.uniform(0.1, 1, len(y))} if lean else {}
        params, x, y, given = jax.tree.map(jnp.asarray, (params, x, y, given))
        made[name] = Subject(objective, params, x, y, given, lean)
    return made


def _objectives() -> dict[str, mb.Objective]:
    """Objectives that together use everything built in."""
    small = mb.Frobenius(0.1)
    block = mb.Serial((dense(4, 3, "gelu"), dense(3, 4, "silu")))
    repeated = mb.Repeat(mb.Residual(dense(4, 4, "softplus")), 3)
    smooth = (mb.Repeat(dense(4, 4, "gelu_tanh"), 2), dense(4, 4, "softsign"), dense(4, 3))
    mlp = (dense(4, 5, "tanh"), dense(5, 5, "sigmoid"), dense(5, 3))
    kinks = (dense(4, 4, "relu"), dense(4, 4, "leaky_relu"), dense(4, 4, "elu"), dense(4, 3, "selu"))
    probabilities = mb.Serial((dense(4, 4, "tanh"), dense(4, 2, "sigmoid")))
    value = replace(dense(4, 5), bias=False)
    gated = (mb.Parallel((dense(4, 5, "silu"), value)), mb.Product(row("tanh")), dense(5, 3))
    return {
        "mlp": mb.Objective(mb.Serial(mlp), mb.softmax_cross_entropy, small),
        "residual": mb.Objective(mb.Serial((mb.Residual(block), dense(4, 3))), mb.softmax_cross_entropy, small),
        "repeated residual": mb.Objective(mb.Serial((repeated, dense(4, 2))), mb.sigmoid_binary_cross_entropy, small),
        "repeat": mb.Objective(mb.Serial(smooth), mb.huber, small),
        "kinks": mb.Objective(mb.Serial(kinks), mb.squared_error, small),
        "probabilities": mb.Objective(probabilities, mb.binary_cross_entropy),
        "tied": mb.Objective(mb.Serial((mb.Tied(dense(4, 4, "tanh"), 2), dense(4, 3))), mb.squared_error, small),
        "gated": mb.Objective(mb.Serial(gated), mb.squared_error, small),
    }


def _of_others(met: set[type]) -> Iterator[tuple[str, mb.Objective]]:
    """One objective for each family and composite of the catalogue that is not used yet."""
    last, small = dense(WIDTH, 3), mb.Frobenius(0.1)
    for name, family in networks.families().items():
        if family not in met:
            body = networks.block(family, WIDTH, row("tanh"))
            yield name, mb.Objective(mb.Serial((body, last)), mb.squared_error, small)
    for name, composite in networks.composites().items():
        if composite not in met:
            body = networks.composed(name, dense(WIDTH, WIDTH, "tanh"), 2, WIDTH)
            yield name, mb.Objective(mb.Serial((body, last)), mb.squared_error, small)


def _kinds(node: Node) -> set[type]:
    """The kinds of all layers and composites that a network is made of."""
    inner: tuple[Node, ...] = (node.block,) if isinstance(node, Wrapper) else ()
    if isinstance(node, Branches | mb.TiedReadout):
        inner = node.nodes if isinstance(node, Branches) else node.parts
    return {type(node)}.union(*map(_kinds, inner))


def row(name: str) -> mb.Activation:
    """An activation without inline compilation, so that each of its equations keeps its own source line."""
    compiled = mb.activations.get(name)
    f: Any = getattr(compiled.f, "__wrapped__", compiled.f)
    df: Any = getattr(compiled.df, "__wrapped__", compiled.df)
    return replace(compiled, f=f, df=df)


def dense(d_in: int, d_out: int, activation: str = "identity") -> mb.Dense:
    """A dense layer with an activation from `row`."""
    return mb.Dense(d_in, d_out, row(activation))


def _targets(loss: mb.Loss, outputs: int, distributions: bool, rng: np.random.Generator) -> np.ndarray:
    """Labels or numbers that fit the loss; distributions do not sum to 1, so that the sum is needed."""
    if loss is mb.softmax_cross_entropy:
        return rng.uniform(size=(EXAMPLES, outputs)) if distributions else rng.integers(0, outputs, EXAMPLES)
    if loss in (mb.sigmoid_binary_cross_entropy, mb.binary_cross_entropy):
        return rng.uniform(size=(EXAMPLES, outputs))
    return rng.normal(0, 2, size=(EXAMPLES, outputs))
