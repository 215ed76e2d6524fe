"""Code that nobody here wrote, and that is right: every function of JAX must pass a check against itself.

    python -m benchmarks.elsewhere                      all, in float32
    python -m benchmarks.elsewhere --dtype bfloat16     in another precision
    python -m benchmarks.elsewhere sort svd             some

`check_vjp(f, x, raw=f)` compares JAX with JAX: with float64, whose answer is the better one. So a failure is a false
alarm of the harness, and what cannot be checked is named with its reason.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import linalg, special

import reference

KEY = jax.random.key(0)
IDS = (0, 0, 1, 0, 2, 0)


@dataclass(frozen=True)
class Case:
    """A function of one array, and the array: `draw` of the shape."""

    function: Callable[[Any], Any]
    draw: str
    shape: tuple[int, ...] = (6, 5)

    def point(self) -> np.ndarray:
        """The array, in float32, always the same."""
        rng = np.random.default_rng(0)
        match self.draw:
            case "positive":
                x = rng.uniform(0.3, 2, self.shape)
            case "definite":
                a = rng.normal(size=self.shape)
                x = a @ a.T / len(a) + np.eye(len(a))
            case "normal":
                x = rng.normal(size=self.shape)
            case condition:  # a matrix with that condition number
                (q, _), (r, _) = (np.linalg.qr(rng.normal(size=self.shape)) for _ in range(2))
                x = q * np.geomspace(1, 1 / float(condition), len(q)) @ r
        return x.astype("float32")


def normal(function: Callable[[Any], Any], *shape: int) -> Case:
    """At normal numbers."""
    return Case(function, "normal", shape or (6, 5))


def positive(function: Callable[[Any], Any], *shape: int) -> Case:
    """At positive numbers."""
    return Case(function, "positive", shape or (8,))


def square(function: Callable[[Any], Any], draw: str) -> Case:
    """At a matrix."""
    return Case(function, draw, (5, 5))


def _solved(A: Any) -> Any:
    return jnp.linalg.solve(A, jnp.arange(1, 6, dtype=A.dtype))


def _called(x: Any) -> Any:
    still = lax.stop_gradient(x)
    return jnp.sin(x) + jax.pure_callback(lambda v: np.cos(v).astype(v.dtype), jax.typeof(still), still)


def _while(x: Any) -> Any:
    return lax.fori_loop(0, 4, lambda i, x: jnp.sin(x) + x / (i + 1), x)


CASES: dict[str, Case] = {
    # Draws, bits, and programs that ask for their own dtype.
    "bernoulli": normal(lambda x: jnp.where(jax.random.bernoulli(KEY, 0.7, x.shape), x / 0.7, 0) * x),
    "bitcast_convert_type": normal(
        lambda x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}"), x.dtype) * x
    ),
    "dtype": normal(lambda x: x * {2: 2, 4: 3, 8: 5}[x.dtype.itemsize]),
    "finfo": normal(lambda x: jnp.log(x**2 + jnp.finfo(x.dtype).eps)),
    "frexp": normal(lambda x: jnp.frexp(x)[0] ** 2),
    "gumbel": normal(lambda x: jax.nn.softmax(x + jax.random.gumbel(KEY, x.shape, x.dtype))),
    "normal": normal(lambda x: x * jax.random.normal(KEY, x.shape, x.dtype) + x**2),
    "permutation": normal(lambda x: jnp.sin(x)[jax.random.permutation(KEY, 6)]),
    "uniform": normal(lambda x: x * jax.random.uniform(KEY, x.shape, x.dtype)),
    # Control flow and calls.
    "associative_scan": positive(lambda x: lax.associative_scan(jnp.multiply, x), 30),
    "fori_loop": normal(_while),
    "pure_callback": normal(_called),
    "vmap of a while": positive(special.expi),
    # Sums, running sums, windows, gathers and scatters.
    "avg_pool": normal(lambda x: lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (3,), (1,), "SAME"), 20),
    "convolve": normal(lambda x: jnp.convolve(x, jnp.asarray([1.0, 2.0, 0.5], x.dtype)), 20),
    "cumlogsumexp": normal(lax.cumlogsumexp, 30),
    "cummax": normal(lax.cummax, 30),
    "cumprod": positive(jnp.cumprod, 12),
    "cumsum": normal(jnp.cumsum, 300),
    "gather": normal(lambda x: x[jnp.asarray([0, 0, 1, 0, 2, 0, 0, 0, 1])]),
    "interp": normal(lambda x: jnp.interp(x, jnp.linspace(-3, 3, 7, dtype=x.dtype), jnp.arange(7, dtype=x.dtype)), 10),
    "max_pool": normal(lambda x: lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, (3,), (1,), "SAME"), 20),
    "median": normal(jnp.median, 9),
    "norm": normal(jnp.linalg.norm),
    "scatter max": normal(lambda x: jnp.zeros((3, 5), x.dtype).at[jnp.asarray(IDS)].max(x)),
    "segment_sum": normal(lambda x: jax.ops.segment_sum(x, jnp.asarray(IDS), 3)),
    "sort": normal(jnp.sort, 20),
    "var": normal(lambda x: jnp.var(x, 0)),
    # Activations and their relatives.
    "gelu": normal(jax.nn.gelu),
    "logaddexp": normal(lambda x: jnp.logaddexp(x, 0.25 * x)),
    "logsumexp": normal(jax.nn.logsumexp),
    "relu": normal(jax.nn.relu),
    "softmax": normal(jax.nn.softmax),
    # Special functions.
    "betainc": positive(lambda x: special.betainc(*jnp.asarray([2.0, 3.0], x.dtype), x / 3), 20),
    "digamma": positive(lambda x: lax.digamma(3 * x), 50),
    "erf_inv": normal(lambda x: lax.erf_inv(x / 4), 20),
    "gammainc": positive(lambda x: special.gammainc(jnp.asarray(2.0, x.dtype), x), 20),
    "i0": normal(special.i0, 10),
    "lgamma": positive(lambda x: lax.lgamma(3 * x), 50),
    "log_ndtr": normal(special.log_ndtr, 20),
    "polygamma": positive(lambda x: special.polygamma(1, x), 5),
    "zeta": positive(lambda x: special.zeta(x + 1, jnp.asarray(2.0, x.dtype)), 5),
    # Linear algebra.
    "cholesky": square(jnp.linalg.cholesky, "definite"),
    "eigvalsh": square(lambda A: jnp.linalg.eigvalsh((A + A.T) / 2), "normal"),
    "expm": square(lambda A: linalg.expm(A / 2), "normal"),
    "fft": normal(lambda x: jnp.abs(jnp.fft.fft(x)) ** 2, 32),
    "inv, condition 1e3": square(jnp.linalg.inv, "1e3"),
    "qr": square(jnp.linalg.qr, "normal"),
    "slogdet, condition 1e3": square(lambda A: jnp.linalg.slogdet(A)[1], "1e3"),
    "solve, condition 1e2": square(_solved, "1e2"),
    "solve, condition 1e4": square(_solved, "1e4"),
    "svd": square(lambda A: jnp.linalg.svd(A, compute_uv=False), "normal"),
}


def judged(case: Case, dtype: str = "float32") -> tuple[str, str]:
    """(verdict, reason where it is no pass): pass, fail, inconclusive, or "not checked" where JAX refuses."""
    # A callback has no batching rule of its own.
    ways = ("eager", "jit") if case.function is _called else ("eager", "jit", "vmap")
    try:
        report = reference.check_vjp(case.function, case.point(), raw=case.function, dtype=dtype, transforms=ways)
    except reference.CallFailed as error:
        return "not checked", str(error)[:160]
    if report.verdict == "pass":
        return "pass", ""
    row = next(row for row in report.rows if row.verdict == report.verdict)
    return report.verdict, f"{row.path}: {row.used:.3g} tolerances"


def main() -> int:
    """Print the table; 1 where a right function failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", choices=[[], *CASES], metavar="name", help="some functions; all without any"
    )
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"))
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for name in given.names or CASES:
        started = time.perf_counter()
        verdict, reason = judged(CASES[name], given.dtype)
        counts[verdict] += 1
        print(f"{name:24} {verdict:13} {time.perf_counter() - started:5.1f} s  {reason}", flush=True)
    print(f"\n{given.dtype}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return int(counts["fail"] > 0)


if __name__ == "__main__":
    sys.exit(main())
