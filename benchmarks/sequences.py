"""Gradients on sequences against jax.grad of the same model as a user writes it: `python -m benchmarks.sequences`.

Every row is one interleaved run. Time and temporary memory are relative to `jax.value_and_grad` of the plain model, and
to that of the plain model with `jax.checkpoint` on its block.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import manual_backprop as mb
from benchmarks.interleaved import turns

CHECKPOINTED = "jax.checkpoint on the block"
HEADS = 4


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: in the table.
        ours: by hand, a function of `arguments`.
        theirs: the baselines by name; "jax.grad" is the first.
        arguments: arrays.
    """

    name: str
    ours: Callable[..., Any]
    theirs: dict[str, Callable[..., Any]]
    arguments: tuple[Any, ...]


# ---- the models, plainly -----------------------------------------------------------------------------------------


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """RMS norm over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """(N, T, d) each. jax.nn.dot_product_attention takes longer on a CPU."""
    n, length, d = q.shape
    q, k, v = (x.reshape(n, length, heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = jnp.einsum("nhtd,nhsd->nhts", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    return jnp.einsum("nhts,nhsd->nhtd", jax.nn.softmax(scores, -1), v).transpose(0, 2, 1, 3).reshape(n, length, d)


def plain_gpt(heads: int, checkpointed: bool, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over examples of the cross-entropy of `mb.gpt` with its default choices."""
    embedding, positions, blocks, last, readout = params

    def block(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        (norm_1, (q, k, v), _, out), (norm_2, (gate, up), _, down) = own
        entered = rms_norm(x, norm_1.gain)
        x = x + attention(entered @ q.W.T, entered @ k.W.T, entered @ v.W.T, heads) @ out.W.T
        entered = rms_norm(x, norm_2.gain)
        return x + (jax.nn.silu(entered @ gate.W.T) * (entered @ up.W.T)) @ down.W.T, None

    a = embedding.W[x] + positions.P[: x.shape[1]]
    a, _ = jax.lax.scan(jax.checkpoint(block) if checkpointed else block, a, blocks)
    logits = rms_norm(a, last.gain) @ readout.W.T
    return jnp.mean(jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, y), 1))


def plain_readout(W: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over rows of the cross-entropy of W x + b."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(x @ W.T + b, y))


# ---- the rows ----------------------------------------------------------------------------------------------------


def of_gpt(
    name: str, d: int, layers: int, length: int, n: int, vocab: int, chunk: int | None = None, **choices: Any
) -> Row:
    """A language model's objective."""
    net = mb.gpt(vocab, d, HEADS, layers, length, **choices)
    params = net.init(jax.random.key(0), jnp.float32)
    x, y = jax.random.randint(jax.random.key(1), (2, n, length), 0, vocab)
    plain = {
        name: jax.value_and_grad(partial(plain_gpt, HEADS, checkpointed))
        for name, checkpointed in (("jax.grad", False), (CHECKPOINTED, True))
    }
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk))
    return Row(name, mb.value_and_grad(objective), plain, (params, x, y))


def of_norms(
    name: str, d: int, layers: int, length: int, n: int, vocab: int, chunk: int | None = None, *, lean: bool = True
) -> Row:
    """Every example's squared gradient norm, against one gradient and against the norms of vmap(jax.grad)."""
    made = of_gpt(name, d, layers, length, n, vocab)
    net = mb.gpt(vocab, d, HEADS, layers, length)
    objective = mb.Objective(net, mb.SoftmaxCrossEntropy(chunk=chunk))
    in_one_sweep = mb.value_and_reading(objective, lambda factor: factor.squared_norms())

    def ours(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        if lean:
            return mb.over_layers(in_one_sweep(params, x, y)[1])
        step = mb.backprop(objective, params, x, y)
        return mb.squared_norms(net, step.trace, step.deltas)

    def one_by_one(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        each = jax.vmap(jax.grad(partial(plain_gpt, HEADS, False)), (None, 0, 0))(params, x[:, None], y[:, None])
        return sum(jnp.sum(jnp.square(leaf.reshape(n, -1)), 1) for leaf in jax.tree.leaves(each))

    theirs = {"jax.grad": made.theirs["jax.grad"], "vmap(jax.grad)": one_by_one}
    return Row(name, ours, theirs, made.arguments)


def of_attention(n: int, heads: int, length: int, size: int, block: int | None) -> Row:
    """Attention alone, from one error term at its output."""
    layer = mb.Attention(heads, block=block)
    signals = tuple(jax.random.normal(key, (n, length, heads * size)) for key in jax.random.split(jax.random.key(0), 4))

    def ours(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
        o, saved = layer.net_input((), (q, k, v))
        return jnp.sum(o * g), layer.transport((), saved, g)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.sum(attention(q, k, v, heads) * g)

    how = "whole" if block is None else f"blocks of {block}"
    return Row(
        f"attention, T = {length}, {n} x {heads} heads of {size}, {how}",
        ours,
        {"jax.grad": jax.value_and_grad(plain, (0, 1, 2))},
        signals,
    )


def of_readout(rows: int, d: int, classes: int, chunk: int) -> Row:
    """The last layer and its loss alone."""
    keys = jax.random.split(jax.random.key(0), 3)
    W, b = jax.random.normal(keys[0], (classes, d)) / d**0.5, jnp.zeros(classes)
    x, y = jax.random.normal(keys[1], (rows, d)), jax.random.randint(keys[2], (rows,), 0, classes)
    objective = mb.Objective(mb.Dense(d, classes), mb.SoftmaxCrossEntropy(chunk=chunk))

    def ours(W: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return mb.value_and_grad(objective, (0, 1))(mb.Affine(W, b), x, y)

    plain = jax.value_and_grad(plain_readout, (0, 1, 2))
    return Row(f"readout {rows} x {d} -> {classes}, chunks of {chunk}", ours, {"jax.grad": plain}, (W, b, x, y))


ROWS: dict[str, list[Callable[[], Row]]] = {
    "gpt": [
        partial(of_gpt, "GPT 6 x 128, T = 256, N = 4", 128, 6, 256, 4, 64),
        partial(of_gpt, "GPT 4 x 256, T = 1024, N = 1", 256, 4, 1024, 1, 64),
        partial(of_gpt, "the same, attention in blocks of 128", 256, 4, 1024, 1, 64, block=128),
        partial(of_gpt, "GPT 4 x 128, T = 256, N = 4, vocabulary 8192", 128, 4, 256, 4, 8192),
        partial(of_gpt, "the same, readout in chunks of 256", 128, 4, 256, 4, 8192, 256),
    ],
    "norms": [
        partial(of_norms, "norms of 4 examples, GPT 6 x 128, T = 256, of a trace", 128, 6, 256, 4, 64, lean=False),
        partial(of_norms, "the same in one lean sweep", 128, 6, 256, 4, 64),
        partial(of_norms, "norms of 4 examples, GPT 4 x 128, T = 256, vocabulary 8192", 128, 4, 256, 4, 8192),
        partial(of_norms, "the same, readout in chunks of 256", 128, 4, 256, 4, 8192, 256),
    ],
    "attention": [
        partial(of_attention, n, heads, length, size, block)
        for n, heads, length, size in ((4, 4, 256, 32), (1, 8, 1024, 64), (1, 4, 2048, 64))
        for block in (None, 64, 128)
    ],
    "readout": [partial(of_readout, 4096, 256, 8192, 128), partial(of_readout, 2048, 512, 32000, 128)],
}


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Callable[[], Any], int]:
    """The function as a call without arguments, and its temporary memory in bytes."""
    program = jax.jit(function).lower(*arguments).compile()
    return partial(program, *arguments), program.memory_analysis().temp_size_in_bytes


def measured(row: Row, rounds: int, at_most: float) -> dict[str, tuple[float, float, float]]:
    """By baseline: (median time ratio, half the range of its middle half, memory ratio), ours to theirs."""
    ours, memory = compiled(row.ours, row.arguments)
    theirs = {name: compiled(f, row.arguments) for name, f in row.theirs.items()}
    times = turns({"ours": ours, **{n: c for n, (c, _) in theirs.items()}}, rounds=rounds, at_most=at_most)
    found = {}
    for name, (_, their_memory) in theirs.items():
        ratios = [a / b for a, b in zip(times["ours"], times[name], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        found[name] = median, (high - low) / 2, memory / their_memory
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=ROWS, nargs="*", default=list(ROWS), help="which tables")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved runs of every row, by default 31")
    parser.add_argument("--seconds", type=float, default=60, help="the most that a row takes, by default 60")
    given = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float32; ours / theirs")
    print("| | time / jax.grad | memory / jax.grad | time / checkpointed | memory / checkpointed |")
    print("|---|---|---|---|---|")
    for name in given.only:
        for make in ROWS[name]:
            row = make()
            cells = []
            for time, spread, memory in measured(row, given.rounds, given.seconds).values():
                cells += [f"{time:.2f} ± {spread:.2f}", f"{memory:.3f}"]
            print(f"| {row.name} | {' | '.join([*cells, '', ''][:4])} |", flush=True)


if __name__ == "__main__":
    main()
