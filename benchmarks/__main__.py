"""Hand-written gradients against jax.grad: eager, traced, built and scanned ones, in one table of interleaved ratios.

    python -m benchmarks [--quick] [--only GROUP]

Compiled gradients have a table of their own, `python -m benchmarks.costs`; here is what the matrix products alone take
of jax.grad's time there. jax.grad differentiates J as its users write it, under scan with a scan.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import manual_backprop as mb
from benchmarks.interleaved import ratios
from benchmarks.networks import NETS, arguments_of, objective_of, plain_objective
from reference import model
from reference.report import plain_table

PRODUCTS = {
    "64-128-128-10": 128,
    "784-512-512-10": 128,
    "784-1024x4-10": 256,
    "256x256 depth 64": 64,
}
"""The batch that each network's matrix products are timed at."""
LAM = 1e-4


def problem(net: Any, d_in: int, d_out: int, n: int) -> tuple[mb.Objective, Any, jax.Array, jax.Array]:
    """(objective, params, x, y), float32."""
    return objective_of(net, LAM), *arguments_of(net, d_in, d_out, n)


def gemms(params: Any, x: jax.Array, delta: jax.Array) -> list[jax.Array]:
    """The matrix products of one gradient and nothing else: L forward, L for dW, L - 1 for delta."""
    activations = [x]
    for layer in params:
        activations.append(activations[-1] @ layer.W.T)
    products = [activations.pop()]
    for index in reversed(range(len(params))):
        products.append(delta.T @ activations[index])
        if index:
            delta = delta @ params[index].W
    return products


def products(quick: bool) -> Iterator[tuple[str, str, str]]:
    """The compiled matrix products alone against compiled jax.value_and_grad."""
    for name, n in PRODUCTS.items():
        sizes = NETS[name]
        for activation in ("relu", "tanh", "gelu"):
            objective, *args = problem(mb.mlp(sizes, activation), sizes[0], sizes[-1], n)
            params, x, y = args
            by_grad, alone = jax.jit(jax.value_and_grad(plain_objective(objective))), jax.jit(gemms)
            delta = objective.loss.derivative(mb.forward(objective.net, params, x)[0], y)
            measured = ratios(
                {
                    "grad": lambda f=by_grad, a=args: f(*a),
                    "gemm": lambda f=alone, p=params, x=x, d=delta: f(p, x, d),
                },
                "grad",
                rounds=7 if quick else 25,
            )
            yield f"the GEMMs alone, {name}, batch {n}, {activation}", "time", f"{measured['gemm']:.2f}"


def eager(quick: bool) -> Iterator[tuple[str, str, str]]:
    """Gradients without jit, as when trying something in a notebook."""
    sizes, n = NETS["64-128-128-10"], 128
    for activation in ("relu", "tanh", "gelu"):
        objective, *args = problem(mb.mlp(sizes, activation), sizes[0], sizes[-1], n)
        by_hand, by_grad = mb.value_and_grad(objective), jax.value_and_grad(plain_objective(objective))
        measured = ratios(
            {"hand": lambda f=by_hand, a=args: f(*a), "grad": lambda f=by_grad, a=args: f(*a)},
            "grad",
            rounds=5 if quick else 15,
        )
        yield f"eager, 64-128-128-10, batch 128, {activation}", "time", f"{measured['hand']:.2f}"


def tracing(quick: bool) -> Iterator[tuple[str, str, str]]:
    """Time to trace an unrolled network, the best of a few; all of it is Python."""
    for depth in (64,) if quick else (64, 256):
        objective, *args = problem(mb.mlp((64,) * (depth + 1)), 64, 64, 32)
        sources = {"hand": mb.value_and_grad(objective), "grad": jax.value_and_grad(plain_objective(objective))}
        best = {name: float("inf") for name in sources}
        for _ in range(5):
            for name, function in sources.items():
                jax.clear_caches()
                started = time.perf_counter()
                jax.jit(lambda *a, f=function: f(*a)).trace(*args)
                best[name] = min(best[name], time.perf_counter() - started)
        yield f"tracing {depth} layers", "time", f"{best['hand'] / best['grad']:.2f}"


def building(quick: bool) -> Iterator[tuple[str, str, str]]:
    """Time to trace, lower and compile an unrolled gradient and Hessian-vector product, the best of a few."""
    depth = 64 if quick else 256
    objective, *args = problem(mb.mlp((64,) * (depth + 1)), 64, 64, 32)
    J, direction = plain_objective(objective), args[0]
    pairs = {
        "gradient": (mb.value_and_grad(objective), jax.value_and_grad(J), args),
        "Hessian-vector product": (
            lambda params, x, y, v: mb.hessian_vector_product(objective, params, x, y, v),
            lambda params, x, y, v: jax.jvp(lambda p: jax.grad(J)(p, x, y), (params,), (v,))[1],
            [*args, direction],
        ),
    }
    for name, (by_hand, by_jax, given) in pairs.items():
        best = [float("inf")] * 2
        for _ in range(3):
            for i, function in enumerate((by_hand, by_jax)):
                jax.clear_caches()
                started = time.perf_counter()
                jax.jit(lambda *a, f=function: f(*a)).lower(*given).compile()
                best[i] = min(best[i], time.perf_counter() - started)
        yield f"tracing and compiling {depth} layers, {name}", "time", f"{best[0] / best[1]:.2f}"


def scanned(quick: bool) -> Iterator[tuple[str, str, str]]:
    """64 scanned layers of 256 and a head, batch 1024: XLA's own count of temporary memory, and time."""
    for activation in ("tanh", "gelu", "relu", "sigmoid"):
        for recompute, segments in ((True, None), (False, None), (True, 8), (False, 12)):
            block = mb.Repeat(mb.Dense(256, 256, activation), 64, recompute, segments)
            objective, *args = problem(mb.Serial((block, mb.Dense(256, 10))), 256, 10, 1024)
            f = model.ACTIVATIONS[activation]

            def J(params: Any, x: jax.Array, y: jax.Array, f: Any = f, loss: Any = objective.loss) -> jax.Array:
                stacked, head = params
                x, _ = jax.lax.scan(lambda a, layer: (f(a @ layer.W.T + layer.b), None), x, stacked)
                squares = jnp.sum(jnp.square(stacked.W)) + jnp.sum(jnp.square(head.W))
                return jnp.mean(model.losses(loss, x @ head.W.T + head.b, y)) + LAM / 2 * squares

            by_hand, by_grad = jax.jit(mb.value_and_grad(objective)), jax.jit(jax.value_and_grad(J))
            temporary = [g.lower(*args).compile().memory_analysis().temp_size_in_bytes for g in (by_hand, by_grad)]
            measured = ratios(
                {"hand": lambda g=by_hand, a=args: g(*a), "grad": lambda g=by_grad, a=args: g(*a)},
                "grad",
                rounds=3 if quick else 9,
            )
            how = f"recompute={recompute}" + (f", segments={segments}" if segments else "")
            name = f"Repeat({how}), 64 scanned layers, {activation}"
            yield name, "temp memory", f"{temporary[0] / temporary[1]:.2f}"
            yield f"  {name}", "time", f"{measured['hand']:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less certain")
    parser.add_argument("--only", default="", help="products, eager, tracing, building or scanned")
    arguments = parser.parse_args()
    rows = []
    for group in (products, eager, tracing, building, scanned):
        if arguments.only in group.__name__:
            for row in group(arguments.quick):
                rows.append(row)
                print("  ".join(row), flush=True)
    device = jax.devices()[0].device_kind
    print(f"\njax {jax.__version__} on {device}; hand-written relative to jax.grad = 1, medians\n")
    print(plain_table(("what", "measured", "ratio"), rows))


if __name__ == "__main__":
    main()
