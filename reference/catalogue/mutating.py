"""Mutation testing of the library's own gradients: each of `subject.FUNCTIONS` broken everywhere, on a few networks.

Together the networks use every activation, loss, family of layers, composite and form of lambda and of weights, so
each formula of `manual_backprop` is broken at least once. A user's own family or composite is included as soon as it
is registered (`reference.catalogue.networks`).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import manual_backprop as mb
from manual_backprop.node import Branches, Node, Wrapper
from reference.catalogue import broken_curvature, broken_sequences, networks
from reference.catalogue.subject import Subject, step_check
from reference.mutation.report import MutationScore
from reference.mutation.score import mutation_score

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


def catalogue_mutation(
    quick: bool,
    seed: int,
    advance: Callable[[str], None] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, MutationScore]:
    """Break the function of every subject everywhere, and compare every number of its result with `jax.grad`'s.

    z and a of every layer, loss, penalty, J, every delta and gradient, dL/dx and ds/dlam of `backprop`, the value and
    gradients of `value_and_grad`, and Hessian-vector products are compared in float64 with the reference's, entry by
    entry, each within its measured tolerance.

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
            scores[name] = mutation_score(
                subject.by_hand,
                step_check(subject),
                *subject.args,
                seed=seed,
                limit=QUICK if quick else None,
                accept=EQUIVALENT | broken_sequences.EQUIVALENT.get(name, {}),
            )
            if advance is not None:
                advance(f"{name}: {scores[name].headline()}")
            if scores[name].partial:
                break
    return scores


def subjects(seed: int) -> dict[str, Subject]:
    """Small objectives that together use every row of every table, with arguments to break them at."""
    objectives = _objectives()
    met = set().union(*(_kinds(objective.net) for objective in objectives.values()))
    made: dict[str, Subject] = {}
    for i, (name, objective) in enumerate([*objectives.items(), *_of_others(met)]):
        rng = np.random.default_rng((seed, i))
        x = rng.normal(size=(EXAMPLES, WIDTH))
        outputs = objective.net.out_shape((WIDTH,))[0]
        given: dict[str, Any] = {}
        if name == "residual":
            given["lam"] = 0.3
        if name == "kinks":
            given["weights"] = rng.uniform(0.1, 1, EXAMPLES)
        params = networks.draw_params(objective.net, 1.0, rng)
        made[name] = Subject(objective, params, x, _targets(objective.loss, outputs, name == "residual", rng), given)
    rng = np.random.default_rng((seed, len(made)))
    made |= [*broken_sequences.subjects(row, rng), *broken_curvature.subjects(row, rng)]
    return {name: subject.placed() for name, subject in made.items()}


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
    functions: dict[str, Any] = {of: getattr(compiled, of) for of in ("f", "df", "d2f", "bend")}
    return replace(compiled, **{of: getattr(each, "__wrapped__", each) for of, each in functions.items()})


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
