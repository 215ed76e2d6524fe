"""What a reading of one sweep costs, beside one plain gradient and beside how it is done without the sweep.

    python -m benchmarks.readings [--quick] [--only NAME] [--check] [--json FILE]

784-512-512-10, tanh, softmax cross-entropy, no regulariser, float32; every reading is one compiled function of
(params, x, y, more) that returns what it is asked for and nothing else. Times are medians over rounds of the ratio to
one compiled jax.grad of the same batch in the same round (benchmarks.interleaved), so that other jobs on the machine
cancel; memory is XLA's count of temporary buffers and flops are XLA's count. A peer is the usual way by automatic
differentiation: vmap(grad) for what concerns each example, jvp of grad for the Hessian. By probes is a way that fewer
know: a zero added to every z, whose gradient is delta, brings jax.grad to the same contractions.

Other jobs still make single numbers wander by a tenth; the two rounds of vmap(grad) at batch 512, which take
seconds, tell its order of magnitude.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_backprop as mb
from benchmarks.interleaved import ratios
from manual_backprop.rules import FeedbackAlignment
from reference.report import plain_table

SIZES = (784, 512, 512, 10)
BATCHES = (32, 128, 512)
MIB = 2**20
MAX_NORM = 30.0  # of examples' gradients; about half are longer
THRESHOLD = 0.01  # of |f'|, below which `diagnose` calls an entry saturated
APART = 1e-3  # a peer whose float32 numbers differ by more, relative to the largest of a leaf, times something else

Tree = Any
Calculation = Callable[[Tree, jax.Array, jax.Array, Tree], Any]
"""(params, x, y, more) -> result; `more` is a tree like params: the direction v, or the feedback B."""


@dataclass(frozen=True)
class Reading:
    """One row: a quantity by hand and by its peer.

    Attributes:
        name: what is computed.
        by_hand: by manual_backprop.
        peer: the usual way to the same numbers.
        way: what that way is called.
        heavy: whether the peer costs many gradients, and so is measured in a few rounds of its own.
    """

    name: str
    by_hand: Calculation
    peer: Calculation
    way: str
    heavy: bool = False


@dataclass(frozen=True)
class Cost:
    """What one way costs: time and flops in plain gradients of the same batch, memory in bytes."""

    time: float
    flops: float
    temp: int
    out: int


@dataclass(frozen=True)
class Measured:
    """A row at one batch size; `apart` is the largest relative difference of the two ways' numbers."""

    name: str
    batch: int
    hand: Cost
    peer: Cost
    way: str
    apart: float


# The peers: nothing of manual_backprop in them but the parameters' class.


def outputs(params: Tree, x: jax.Array, probes: Tree = None) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """(o, what enters each layer and o, z of each layer); probes are added to z."""
    activations, net_inputs = [x], []
    for index, layer in enumerate(params):
        z = activations[-1] @ layer.W.T + layer.b
        z = z if probes is None else z + probes[index]
        net_inputs.append(z)
        activations.append(z if index == len(params) - 1 else jnp.tanh(z))
    return activations[-1], activations, net_inputs


def loss_of(o: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(o, y))


def plain(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    """J as a user of jax.grad writes it."""
    return loss_of(outputs(params, x)[0], y)


def one_gradient(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Tree:
    """The unit of time and flops."""
    return jax.grad(plain)(params, x, y)


def of_examples(use: Callable[[list[jax.Array]], Any]) -> Calculation:
    """`use` of vmap(grad)'s leaves, each with the examples in front."""

    def calculation(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
        one = jax.grad(lambda p, x, y: plain(p, x[None], y[None]))
        return use(jax.tree.leaves(jax.vmap(one, (None, 0, 0))(params, x, y)))

    return calculation


def products_of(gradients: list[jax.Array]) -> jax.Array:
    """(N, N): the inner products of every two examples' gradients."""
    rows = (g.reshape(g.shape[0], -1) for g in gradients)
    return sum(g @ g.T for g in rows)


def squares_of(gradients: list[jax.Array]) -> jax.Array:
    """The squared norm of every example's gradient."""
    return sum(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))) for g in gradients)


def grad_and_norms(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> tuple[Tree, jax.Array]:
    """The gradient by itself: averaging vmap(grad)'s would keep XLA from fusing the norms, and costs far more."""
    return one_gradient(params, x, y, more), of_examples(squares_of)(params, x, y, more)


def noise(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """S, |G|^2 and their quotient."""
    gradient, norms = grad_and_norms(params, x, y, more)
    n, of_one = norms.size, jnp.mean(norms)
    of_mean = optax.tree.norm(gradient, squared=True)
    spread, squared = n / (n - 1) * (of_one - of_mean), (n * of_mean - of_one) / (n - 1)
    return spread, squared, spread / squared


def probed(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, list[Any], list[Any], list[Any]]:
    """(gradient, z, a, deltas) by one jax.grad with respect to params and a zero added to each z."""

    def J(params: Tree, probes: list[jax.Array]) -> tuple[jax.Array, Any]:
        o, activations, net_inputs = outputs(params, x, probes)
        return loss_of(o, y), (activations, net_inputs)

    zeros = [jnp.zeros((x.shape[0], layer.b.size), x.dtype) for layer in params]
    (gradient, probes), (activations, net_inputs) = jax.grad(J, (0, 1), has_aux=True)(params, zeros)
    return gradient, net_inputs, activations, [x.shape[0] * probe for probe in probes]


def probed_norms(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> jax.Array:
    """|delta|^2 (|a|^2 + 1), summed over layers."""
    _, _, activations, deltas = probed(params, x, y)
    pairs = zip(activations[:-1], deltas, strict=True)
    return sum(jnp.sum(jnp.square(d), axis=1) * (jnp.sum(jnp.square(a), axis=1) + 1) for a, d in pairs)


def clipped_by_two(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Tree:
    """Ghost clipping: the norms by one gradient, then another one of the losses with the clipping as weights."""
    norm = jnp.sqrt(probed_norms(params, x, y, more))
    clip = jnp.minimum(1, MAX_NORM / norm)

    def J(params: Tree) -> jax.Array:
        o = outputs(params, x)[0]
        return jnp.sum(clip * optax.losses.softmax_cross_entropy_with_integer_labels(o, y))

    return jax.grad(J)(params)


def kronecker(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
    """(A, G) of every layer."""
    _, _, activations, deltas = probed(params, x, y)
    n, factors = x.shape[0], []
    for a, delta in zip(activations[:-1], deltas, strict=True):
        a = jnp.concatenate([a, jnp.ones((n, 1), a.dtype)], axis=1)
        factors.append((a.T @ a / n, delta.T @ delta / n))
    return factors


def diagnosed(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
    """The gradient, and the numbers of `diagnose` by jnp."""
    gradient, net_inputs, activations, deltas = probed(params, x, y)
    functions = [jnp.tanh] * (len(params) - 1) + [lambda z: z]

    def signal(v: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.sqrt(jnp.sum(jnp.square(v)) / v.shape[0]), jnp.mean(v), jnp.std(v), jnp.mean(v == 0)

    def health(f: Any, z: jax.Array, a: jax.Array, delta: jax.Array) -> Any:
        flat = jnp.abs(jax.vmap(jax.vmap(jax.grad(f)))(z)) < THRESHOLD
        return signal(z), signal(a), signal(delta), jnp.mean(flat), jnp.mean(jnp.all(flat, axis=0))

    return gradient, list(map(health, functions, net_inputs, activations[1:], deltas))


@jax.custom_vjp
def _aligned(W: jax.Array, b: jax.Array, B: jax.Array, a: jax.Array) -> jax.Array:
    return a @ W.T + b


def _aligned_forward(W: Any, b: Any, B: Any, a: Any) -> Any:
    return _aligned(W, b, B, a), (B, a)


def _aligned_backward(kept: Any, delta: Any) -> Any:
    B, a = kept
    return delta.T @ a, jnp.sum(delta, axis=0), jnp.zeros_like(B), delta @ B


_aligned.defvjp(_aligned_forward, _aligned_backward)


def feedback_aligned(params: Tree, x: jax.Array, y: jax.Array, feedback: Tree) -> Tree:
    """jax.grad through layers whose custom_vjp sends B^T delta down."""

    def J(params: Tree) -> jax.Array:
        a = x
        for index, (layer, B) in enumerate(zip(params, feedback, strict=True)):
            z = _aligned(layer.W, layer.b, B.W, a)
            a = z if index == len(params) - 1 else jnp.tanh(z)
        return loss_of(a, y)

    return jax.grad(J)(params)


def hessian_product(params: Tree, x: jax.Array, y: jax.Array, v: Tree) -> Tree:
    """Forward over reverse."""
    return jax.jvp(lambda p: jax.grad(plain)(p, x, y), (params,), (v,))[1]


def gauss_newton_product(params: Tree, x: jax.Array, y: jax.Array, v: Tree) -> Tree:
    """J^T (H (J v)) by jvp, jvp of grad, and vjp."""

    def o_of(p: Tree) -> jax.Array:
        return outputs(p, x)[0]

    o, back = jax.vjp(o_of, params)
    d_o = jax.jvp(o_of, (params,), (v,))[1]
    return back(jax.jvp(jax.grad(lambda o: loss_of(o, y)), (o,), (d_o,))[1])[0]


def readings(objective: mb.Objective) -> list[Reading]:
    """Every row of the table."""

    def swept(read: Callable[[Any, Tree, Tree], Any]) -> Calculation:
        def calculation(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
            step = mb.backprop(objective, params, x, y)
            return read(objective.net, step.trace, step.deltas)

        return calculation

    def with_gradient(read: Callable[[Any, Tree, Tree], Any]) -> Calculation:
        return swept(lambda *sweep: (mb.gradients(*sweep), read(*sweep)))

    def aligned(params: Tree, x: jax.Array, y: jax.Array, feedback: Tree) -> Tree:
        return mb.value_and_grad(objective)(params, x, y, rule=FeedbackAlignment(feedback))[1]

    def products(product: Any) -> Calculation:
        return lambda params, x, y, v: product(objective, params, x, y, v)

    def squares(gradients: list[jax.Array]) -> list[jax.Array]:
        return [jnp.mean(jnp.square(g), axis=0) for g in gradients]

    each = "vmap(grad)"
    clipped = swept(lambda net, trace, deltas: mb.clipped_gradients(net, trace, deltas, MAX_NORM))
    return [
        Reading("gradient", swept(mb.gradients), one_gradient, "grad"),
        Reading("squared_norms", swept(mb.squared_norms), of_examples(squares_of), f"{each}, norms", True),
        Reading(
            "gradient + squared_norms",
            with_gradient(mb.squared_norms),
            grad_and_norms,
            f"grad; {each}, norms",
            True,
        ),
        Reading(
            "clipped_gradients",
            clipped,
            of_examples(lambda g: optax.per_example_global_norm_clip(g, MAX_NORM)[0]),
            f"{each}, optax.per_example_global_norm_clip",
            True,
        ),
        Reading(
            "second_moment",
            swept(mb.second_moment),
            of_examples(squares),
            f"{each}, squares, mean",
            True,
        ),
        Reading("gram", swept(mb.gram), of_examples(products_of), f"{each}, g g^T", True),
        Reading("noise_scale", swept(mb.noise_scale), noise, f"grad; {each}, norms", True),
        Reading("per_example_gradients", swept(mb.per_example_gradients), of_examples(lambda g: g), each, True),
        Reading("squared_norms, by probes", swept(mb.squared_norms), probed_norms, "grad by probes"),
        Reading("clipped_gradients, by probes", clipped, clipped_by_two, "grad by probes, then grad of clip * loss"),
        Reading("kronecker_factors", swept(mb.kronecker_factors), kronecker, "grad by probes, a a^T, delta delta^T"),
        Reading(
            "gradient + diagnose",
            with_gradient(lambda *sweep: mb.diagnose(*sweep, threshold=THRESHOLD)),
            diagnosed,
            "grad by params and probes, jnp",
        ),
        Reading("feedback alignment", aligned, feedback_aligned, "grad, custom_vjp layers"),
        Reading("hessian_vector_product", products(mb.hessian_vector_product), hessian_product, "jvp(grad)"),
        Reading(
            "gauss_newton_vector_product",
            products(mb.gauss_newton_vector_product),
            gauss_newton_product,
            "jvp, jvp(grad of loss), vjp",
        ),
    ]


def problem(n: int) -> tuple[mb.Objective, tuple[Any, ...]]:
    """(objective, (params, x, y, more)), float32; biases are not zero."""
    net = mb.mlp(SIZES, "tanh")
    shaken = net.init(jax.random.key(0), jnp.float32)
    more = net.init(jax.random.key(1), jnp.float32)
    params = tuple(mb.Affine(layer.W, 0.1 * jnp.cos(jnp.arange(layer.b.size, dtype=jnp.float32))) for layer in shaken)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, SIZES[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, SIZES[-1], n), jnp.int32)
    return mb.Objective(net, mb.softmax_cross_entropy), (params, x, y, more)


def apart(hand: Any, peer: Any) -> float:
    """The largest difference of two results, each leaf's relative to the largest magnitude in the peer's leaf.

    Or relative to a thousandth of the largest in any leaf: the mean of a delta, say, is 0 but for rounding.
    """
    ours, theirs = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)] for result in (hand, peer))
    largest = [np.max(np.abs(leaf)) for leaf in theirs]
    worst = []
    for a, b, scale in zip(ours, theirs, largest, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"a leaf is {list(a.shape)} by hand and {list(b.shape)} by its peer")
        worst.append(np.max(np.abs(a - b)) / max(scale, max(largest) / 1000))
    return float(np.max(worst))


def flops_of(compiled: Any) -> float:
    """XLA's own count; a list of one in some versions."""
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def measure(reading: Reading, args: tuple[Any, ...], gradient: Any, rounds: int, heavy_rounds: int) -> Measured:
    """One row at one batch size."""
    hand, peer = (jax.jit(way).lower(*args).compile() for way in (reading.by_hand, reading.peer))
    difference = apart(hand(*args), peer(*args))
    contestants = {"grad": lambda: gradient(*args), "hand": lambda: hand(*args)}
    if reading.heavy:
        times = ratios(contestants, "grad", rounds=rounds)
        del contestants["hand"]
        contestants["peer"] = lambda: peer(*args)
        times["peer"] = ratios(contestants, "grad", rounds=heavy_rounds)["peer"]
    else:
        contestants["peer"] = lambda: peer(*args)
        times = ratios(contestants, "grad", rounds=rounds)

    def cost(name: str, compiled: Any) -> Cost:
        memory = compiled.memory_analysis()
        flops = flops_of(compiled) / flops_of(gradient)
        return Cost(times[name], flops, memory.temp_size_in_bytes, memory.output_size_in_bytes)

    return Measured(reading.name, args[1].shape[0], cost("hand", hand), cost("peer", peer), reading.way, difference)


def measured(batches: Iterable[int], only: str, rounds: int) -> Iterator[Measured]:
    """Every row whose name contains `only`, batch by batch."""
    for n in batches:
        objective, args = problem(n)
        gradient = jax.jit(one_gradient).lower(*args).compile()
        for reading in readings(objective):
            if only in reading.name:
                yield measure(reading, args, gradient, rounds, heavy_rounds=7 if n <= 128 else 2)


HEADER = ("reading", "batch", "time", "peer", "temp MiB", "peer", "flops", "peer", "apart", "the peer's way")


def line(row: Measured) -> tuple[str, ...]:
    """A row of the table."""
    hand, peer = row.hand, row.peer
    return (
        row.name,
        str(row.batch),
        f"{hand.time:.2f}",
        f"{peer.time:.3g}" if peer.time >= 10 else f"{peer.time:.2f}",
        f"{hand.temp / MIB:.2f}",
        f"{peer.temp / MIB:.2f}",
        f"{hand.flops:.2f}",
        f"{peer.flops:.2f}",
        f"{row.apart:.0e}",
        row.way,
    )


@dataclass(frozen=True)
class Expectation:
    """What a row is held to: `of` it is at most (or at least) `bound` at each of the batches."""

    what: str
    row: str
    of: Callable[[Measured], float]
    bound: float
    at_least: bool = False
    batches: tuple[int, ...] = BATCHES

    def verdict(self, rows: list[Measured]) -> tuple[str, str]:
        """("ok" | "MISSED" | "ok in part" | "not measured", the line); in part where a batch was not measured."""
        found = {row.batch: self.of(row) for row in rows if row.name == self.row and row.batch in self.batches}
        met = [value >= self.bound if self.at_least else value <= self.bound for value in found.values()]
        whole = "ok" if len(found) == len(self.batches) else "ok in part" if found else "not measured"
        values = ", ".join(f"{found[n]:.4g}" if n in found else "-" for n in self.batches)
        sign, at = ">=" if self.at_least else "<=", ", ".join(map(str, self.batches))
        return whole if all(met) else "MISSED", f"{self.what} {sign} {self.bound:g} at batch {at}: {values}"


def _time(row: Measured) -> float:
    return row.hand.time


EXPECTATIONS = (
    Expectation("squared_norms, gradients", "squared_norms", _time, 0.9),
    Expectation("gradient + squared_norms, gradients", "gradient + squared_norms", _time, 1.25),
    Expectation("clipped_gradients, gradients", "clipped_gradients", _time, 1.25),
    Expectation(
        "clipped_gradients, times as fast as vmap(grad)",
        "clipped_gradients",
        lambda row: row.peer.time / row.hand.time,
        50,
        at_least=True,
        batches=(128,),
    ),
    Expectation(
        "clipped_gradients, vmap(grad)'s temporary memory over ours",
        "clipped_gradients",
        lambda row: row.peer.temp / row.hand.temp,
        300,
        at_least=True,
        batches=(128,),
    ),
    Expectation("hessian_vector_product, gradients' flops", "hessian_vector_product", lambda row: row.hand.flops, 2.1),
)


def main() -> int:
    """Print the table and the verdicts; 1 if --check and an expectation is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="batch 128 alone, fewer rounds, less certain")
    parser.add_argument("--only", default="", metavar="NAME", help="rows whose name contains NAME")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an expectation is missed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = [reading.name for reading in readings(problem(1)[0])]
    if not any(arguments.only in name for name in names):
        parser.error(f"--only {arguments.only!r} is in no row's name; there are {', '.join(names)}")

    rows = []
    for row in measured((128,) if arguments.quick else BATCHES, arguments.only, 7 if arguments.quick else 15):
        rows.append(row)
        print("  ".join(line(row)), file=sys.stderr, flush=True)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores.")
    print("Time and flops in plain gradients of the same batch; time is the median of interleaved ratios.\n")
    print(plain_table(HEADER, [line(row) for row in rows]) + "\n")

    verdicts = [expectation.verdict(rows) for expectation in EXPECTATIONS]
    strangers = [row.name for row in rows if not row.apart <= APART]
    alike = f"numbers by hand and by peer differ by <= {APART:g}: {np.max([row.apart for row in rows]):.1g}"
    verdicts.append(("MISSED" if strangers else "ok", alike + "".join(f", {name}" for name in strangers)))
    for verdict, text in verdicts:
        print(f"{verdict}: {text}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "verdicts": verdicts}, default=vars, indent=1))
    return int(arguments.check and any(verdict == "MISSED" for verdict, _ in verdicts))


if __name__ == "__main__":
    sys.exit(main())
