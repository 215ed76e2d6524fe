"""Rules other than W^T: how well they learn, and how their error terms align with backpropagation's."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

import manual_backprop as mb
from benchmarks.experiments.claims import Bound, Finding, Seeds, claim, least_mean
from benchmarks.experiments.digits import (
    BATCH,
    NET,
    OBJECTIVE,
    RATE,
    TRAIN,
    Tree,
    accuracy,
    at,
    compiled,
    drawn,
    keys,
    relative,
    split,
    trained,
)
from manual_backprop.sweep import Rule

# On seeds 0 to 4, with pixels of unit variance, backprop itself was less than 4 points above readout only; with
# feedback as small as W, FA was 3 points above. Hence pixels in [0, 1] and SPREAD, both chosen without the seeds here.
SEEDS = (5, 6, 7, 8, 9)
# Points above readout only differ by seed, 3.5 to 8.3 for FA; the mean of five seeds less two standard errors was 3.9.
# So there are ten seeds, none of which had been used when this was decided.
TEN_SEEDS = tuple(range(15, 25))
EPOCHS = 30
SPREAD = 0.3  # deviation of feedback for every rule, that of uniform numbers in [-0.5, 0.5]
DECAY = 1e-3  # lambda of Kolen-Pollack
DECAYING = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(DECAY))
SOURCES = {
    "FA": "Lillicrap et al. 2016, doi:10.1038/ncomms13276",
    "DFA": "Nokland 2016, arXiv:1609.01596",
    "uSF": "Liao et al. 2015, arXiv:1510.05067",
    "frSF": "Liao et al. 2015, arXiv:1510.05067",
    "KP": "Akrout et al. 2019, arXiv:1904.05391",
}
WORDS = {
    "FA": "feedback alignment",
    "DFA": "direct feedback alignment",
    "uSF": "uniform sign-symmetry",
    "frSF": "sign-symmetry, frozen magnitudes",
    "KP": "Kolen-Pollack",
}


def make_rule(name: str, key: PRNGKeyArray) -> Rule:
    """A rule with feedback drawn from the key."""
    if name == "DFA":  # its own deviation, sqrt(1/10), is SPREAD already
        return mb.rules.DirectFeedbackAlignment(mb.rules.direct_feedback(NET, key))
    if name == "uSF":
        return mb.rules.SignSymmetry(scale=SPREAD)
    if name == "readout":  # the control: nothing below the last layer learns
        return mb.rules.on_delta((mb.edits.freeze, mb.edits.freeze, None))
    kind = {"FA": mb.rules.FeedbackAlignment, "KP": mb.rules.KolenPollack, "frSF": mb.rules.SignSymmetry}[name]
    return kind(feedback_like_params(key))


def feedback_like_params(key: PRNGKeyArray) -> Tree:
    """B of deviation SPREAD for every W; biases are not used."""
    return tuple(mb.Affine(p.W * (SPREAD / jnp.std(p.W)), p.b) for p in NET.init(key))


@partial(compiled, static_argnums=(0, 6))
def kolen_pollack(
    objective: mb.Objective, params: Tree, feedback: Tree, key: PRNGKeyArray, x: Array, y: Array, epochs: int
) -> tuple[Tree, Tree]:
    """(W, B) after each epoch of SGD on both, epochs in front of every leaf."""
    optimizer = optax.sgd(RATE)
    step = mb.training.make_kolen_pollack_step(objective, optimizer)

    def one(carry: Tree, rows: Array) -> tuple[Tree, None]:
        return step(*carry, x[rows], y[rows])[:3], None

    def epoch(carry: Tree, key: PRNGKeyArray) -> tuple[Tree, Tree]:
        order = jax.random.permutation(key, x.shape[0]).reshape(-1, BATCH)
        carry, _ = jax.lax.scan(one, carry, order)
        return carry, carry[:2]

    start = (params, feedback, optimizer.init((params, feedback)))
    return jax.lax.scan(epoch, start, jax.random.split(key, epochs))[1]


@cache
def run(name: str, seed: int, epochs: int, zero: bool = False) -> tuple[Tree, Tree, Rule, Rule]:
    """(parameters at the start, at every epoch, rule at the start, rule at the end) of one training."""
    digits = split(seed)
    of_params, of_rule, of_order = keys(seed, 3)
    params = NET.init(of_params)
    if zero:
        params = jax.tree.map(jnp.zeros_like, params)
    rule: Any = mb.rules.backprop if name == "BP" else make_rule(name, of_rule)
    if name == "KP":
        history, feedback = kolen_pollack(DECAYING, params, rule.feedback, of_order, digits.x, digits.y, epochs)
        return params, history, rule, mb.rules.KolenPollack(at(feedback, -1))
    return params, trained(OBJECTIVE, params, rule, of_order, digits.x, digits.y, epochs), rule, rule


@compiled
def hidden_angles(params: Tree, rule: Rule, x: Array, y: Array) -> Array:
    """Degrees between the rule's delta and backpropagation's on one trace, the mean for each hidden layer."""
    ours = mb.backprop(OBJECTIVE, params, x, y, rule=rule).deltas[:-1]
    true = mb.backprop(OBJECTIVE, params, x, y).deltas[:-1]
    return jnp.stack([jnp.nanmean(layer) for layer in mb.rules.angle(ours, true)])


def test_accuracy(name: str, seed: int, epochs: int, zero: bool = False) -> float:
    """Accuracy on the held-out images after the last epoch, in per cent."""
    digits = split(seed)
    return float(accuracy(NET, at(run(name, seed, epochs, zero)[1], -1), digits.x_test, digits.y_test))


def aligns(name: str, seeds: Seeds = SEEDS, epochs: int = EPOCHS) -> Finding:
    """Angle after training; control: the angle with feedback drawn anew, on the same trained network."""
    ends, starts, others = [], [], []
    for seed in seeds:
        params, history, first, last = run(name, seed, epochs)
        digits, end = split(seed), at(history, -1)
        other = stranger(name, seed)
        starts.append(hidden_angles(params, first, digits.x_test, digits.y_test))
        ends.append(hidden_angles(end, last, digits.x_test, digits.y_test))
        others.append(hidden_angles(end, other, digits.x_test, digits.y_test))
    worst, begun, least = jnp.stack(ends).max(axis=0), jnp.stack(starts).mean(axis=0), jnp.stack(others).min()
    note = f"layers 1, 2: mean at the start {_degrees(begun)}, worst at the end {_degrees(worst)}"
    return Finding(
        Bound("worst angle to backprop's delta, degrees", float(worst.max()), "<=", 80.0),
        Bound("least angle of feedback drawn anew", float(least), ">=", 80.0),
        seeds,
        note,
    )


def stranger(name: str, seed: int) -> Rule:
    """The rule with feedback that the network was not trained with: drawn anew, or signs of other weights."""
    (key,) = keys(1000 + seed, 1)
    if name in ("uSF", "frSF"):
        signs = jax.tree.map(jnp.sign, NET.init(key))
        return mb.rules.FeedbackAlignment(signs)
    return make_rule(name, key)


def learns(name: str, seeds: Seeds = TEN_SEEDS, epochs: int = EPOCHS) -> Finding:
    """Points of accuracy below backprop's; control: points above a network whose hidden layers do not learn.

    The first is that of the worst seed. The control uses the mean over seeds; the note has the mean and the worst.
    """
    own, true, frozen = ([test_accuracy(n, seed, epochs) for seed in seeds] for n in (name, "BP", "readout"))
    behind = max(t - o for t, o in zip(true, own, strict=True))
    ahead = [o - f for o, f in zip(own, frozen, strict=True)]
    return Finding(
        Bound("most points below backprop", behind, "<=", 2.0),
        Bound("points above readout only, mean - 2 standard errors", least_mean(ahead), ">=", 4.0),
        seeds,
        f"above readout only: mean {np.mean(ahead):.1f}, worst {min(ahead):.1f}; worst accuracy {min(own):.1f} %,"
        f" backprop {min(true):.1f} %, readout only {min(frozen):.1f} %",
    )


def _degrees(angles: Array) -> str:
    return "/".join(f"{float(angle):.0f}" for angle in angles)


for _name, _source in SOURCES.items():
    claim(f"{_name}-aligns", f"{WORDS[_name]}: delta within 90 degrees of backprop's", _source)(partial(aligns, _name))
    claim(f"{_name}-learns", f"{WORDS[_name]}: learns as well as backprop", _source)(partial(learns, _name))


@claim("zero-start", "DFA learns from all weights zero, where backprop cannot", SOURCES["DFA"])
def zero_start(seeds: Seeds = SEEDS, epochs: int = EPOCHS) -> Finding:
    """Accuracy from W = 0 and b = 0; control: backprop's, which gives every image the same answer."""
    direct, true = ([test_accuracy(name, seed, epochs, True) for seed in seeds] for name in ("DFA", "BP"))
    return Finding(
        Bound("least accuracy of DFA, per cent", min(direct), ">=", 90.0),
        Bound("most accuracy of backprop, chance is 10", max(true), "<=", 15.0),
        seeds,
    )


@compiled
def gradients_along(history: Tree, x: Array, y: Array) -> Tree:
    """Backpropagation's gradient at every epoch."""
    return jax.lax.map(lambda params: mb.backprop(OBJECTIVE, params, x, y).gradients, history)


@claim("zero-gradient", "from W = 0, b = 0 backprop's dW is exactly 0 in every layer, at every epoch", SOURCES["DFA"])
def zero_gradient(seeds: Seeds = SEEDS, epochs: int = EPOCHS) -> Finding:
    """Largest |W| and |dW| of backprop: with W = 0 and b = 0 below, a = 0 and W^T delta = 0, so b^(L) alone learns.

    Control: DFA's dW^(1) at the first step, whose delta needs no W.
    """
    largest, first = [], []
    for seed in seeds:
        digits = split(seed)
        start, history, _, _ = run("BP", seed, epochs, True)
        everywhere = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, history)
        gradients = gradients_along(everywhere, digits.x[:200], digits.y[:200])
        largest += [float(jnp.abs(layer.W).max()) for tree in (everywhere, gradients) for layer in tree]
        rule = run("DFA", seed, epochs, True)[2]
        direct = mb.backprop(OBJECTIVE, start, digits.x, digits.y, rule=rule).gradients
        first.append(float(jnp.abs(direct[0].W).max()))
    return Finding(
        Bound("largest |W|, |dW| of layers 1, 2, 3 by backprop", max(largest), "<=", 0.0),
        Bound("least of the largest |dW| of layer 1 by DFA", min(first), ">=", 1e-2),
        seeds,
    )


@claim("KP-law", "Kolen-Pollack: W - B is (1 - rate lambda)^t times what it was", SOURCES["KP"])
def kolen_pollack_law(seeds: Seeds = SEEDS, steps: int = 100, lam: float = 0.05) -> Finding:
    """Relative error of the law over the weights; control: B without decay."""
    objective, optimizer = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(lam)), optax.sgd(RATE)
    ours, fixed = [], []
    step = mb.training.make_kolen_pollack_step(objective, optimizer)
    for seed in seeds:
        digits = split(seed)
        of_params, of_feedback, of_biases = keys(seed, 3)
        params, feedback = drawn(NET, of_params, of_biases), NET.init(of_feedback)
        law = [(1 - RATE * lam) ** steps * np.subtract(p.W, B.W) for p, B in zip(params, feedback, strict=True)]
        B0 = [np.array(B.W) for B in feedback]
        carry = jax.tree.map(jnp.copy, (params, feedback, optimizer.init((params, feedback))))
        for i in range(steps):
            here = slice(i * BATCH % TRAIN, i * BATCH % TRAIN + BATCH)
            *carry, _ = step(*carry, digits.x[here], digits.y[here])
        W, B = ([layer.W for layer in tree] for tree in carry[:2])
        ours.append(relative(jax.tree.map(np.subtract, W, B), law))
        fixed.append(relative(jax.tree.map(np.subtract, W, B0), law))
    return Finding(
        Bound(f"worst relative error after {steps} steps", max(ours), "<=", 1e-12),
        Bound("least, had B stayed as drawn", min(fixed), ">=", 0.1),
        seeds,
    )
