"""Networks, data and comparisons that several test files share."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop import losses
from manual_backprop.layers import Layer
from reference import xla

N = 7
OPTIMISED = xla.known({"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True})  # as users compile
FUSED = xla.known({"xla_cpu_use_fusion_emitters": True})  # enough where memory is counted: LLVM comes after it
TOLERANCE = 1e-12  # relative to the largest entry of a leaf, float64
METHODS = ("net_input", "transport", "factor", "pushforward", "pushforward_params", "change")  # of a family of layers
READINGS = ("weighted_sum", "total", "per_example", "squared_norms", "squared_sum", "gram", "tied")  # of a factor


def in_its_own_process(code: str) -> subprocess.CompletedProcess:
    """Python on `code`, with x64 as JAX has it of itself."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def by_operation() -> AbstractContextManager[Any]:
    """`jax.jit` leaves functions as they are: single operations are compiled, once for all tests that use them."""
    return mock.patch.object(jax, "jit", lambda function, **options: function)


@contextmanager
def by_method(*families: type) -> Iterator[None]:
    """Every method of these layers, and every reading of these factors, is one program; all else is `by_operation`."""
    with ExitStack() as patches:
        for family in families:
            own = [name for name in METHODS if getattr(family, name, None) is not getattr(Layer, name)]
            names, static = (own, 0) if issubclass(family, Layer) else (READINGS, ())
            for name in names:
                compiled = jax.jit(getattr(family, name), static_argnums=static)
                patches.enter_context(mock.patch.object(family, name, compiled))
        patches.enter_context(by_operation())
        yield


@contextmanager
def as_a_user() -> Iterator[None]:
    """JAX as it is where nobody has made it strict."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def every_time(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Cases of a test, of which those that are not chosen are a part of the evidence."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.evidence)

    return [case if case in chosen else marked(case) for case in cases]


def small_gpt(batch: int) -> list[str]:
    """Options of `train --text` for a network of one block and nine steps."""
    sizes = {"width": 8, "heads": 2, "layers": 1, "length": 8, "batch": batch, "steps": 9, "sample": 0}
    return [word for name, size in sizes.items() for word in (f"--{name}", str(size))]


def array(values: np.ndarray, dtype: Any = "float64") -> jax.Array:
    """On the device; unlike jnp.asarray, this compiles no program for each shape."""
    return jax.device_put(values.astype(jnp.dtype(dtype)))


def generic(net: Any, seed: int = 0, dtype: Any = "float64", scale: float = 1.0) -> Any:
    """Parameters without a zero or a symmetry for a fault to hide behind."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    return jax.tree.map(lambda s: array(scale * rng.normal(0, 0.6, s.shape), dtype), shapes)


def batch(features: int, n: int = N, seed: int = 1, dtype: Any = "float64") -> jax.Array:
    return array(np.random.default_rng(seed).normal(size=(n, features)), dtype)


def targets(loss: mb.Loss, outputs: int, n: int = N, seed: int = 2, dtype: Any = "float64") -> jax.Array:
    rng = np.random.default_rng(seed)
    if isinstance(loss, losses.SoftmaxCrossEntropy):
        return jax.device_put(rng.integers(0, outputs, n))
    if isinstance(loss, losses.SigmoidBinaryCrossEntropy | losses.BinaryCrossEntropy):
        return array(rng.uniform(size=(n, outputs)), dtype)
    return array(rng.normal(size=(n, outputs)), dtype)


def assert_close(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
    """Trees of one structure whose leaves agree to `tolerance` of their largest entry."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, jax.tree_util.keystr(path)
        error = np.abs(a - b).max(initial=0)
        allowed = tolerance * np.abs(b).max(initial=0)
        assert error <= allowed, f"{jax.tree_util.keystr(path)}: error {error:.3g}, allowed {allowed:.3g}"


def nested() -> mb.Serial:
    """Every composite, inside one another."""
    inner = mb.Repeat(mb.Dense(4, 4, "sigmoid"), 2)
    return mb.Serial(
        (
            mb.Dense(6, 5, "tanh"),
            mb.Residual(mb.Dense(5, 5, "gelu")),
            mb.Repeat(mb.Residual(mb.Serial((mb.Dense(5, 4, "silu"), inner, mb.Dense(4, 5, "elu")))), 3),
            mb.Dense(5, 4),
        )
    )


NETWORKS = {
    "mlp": mb.mlp((6, 5, 5, 4)),
    "one layer": mb.mlp((6, 4), output_activation="tanh"),
    "width 1": mb.mlp((1, 1, 1, 1), "sigmoid"),
    "per layer": mb.mlp((6, 5, 4, 3, 4), ("relu", "gelu", "selu"), "softsign"),
    "nested": nested(),
    "leaf": mb.Dense(6, 4, "tanh"),
    "kept": mb.Repeat(mb.Dense(6, 6, "tanh"), 3, recompute=False),
}


def sizes(net: Any) -> tuple[int, int]:
    """(inputs, outputs)."""
    if isinstance(net, mb.Repeat | mb.Residual | mb.Tied):
        return sizes(net.block)
    if isinstance(net, mb.Serial):
        return sizes(net.nodes[0])[0], sizes(net.nodes[-1])[1]
    return net.d_in, net.d_out


def problem(name: str, loss: mb.Loss = mb.squared_error, lam: float | None = 0.1, n: int = N) -> tuple:
    """(objective, params, x, y) of one of NETWORKS."""
    net = NETWORKS[name]
    d_in, d_out = sizes(net)
    objective = mb.Objective(net, loss, None if lam is None else mb.Frobenius(lam))
    return objective, generic(net), batch(d_in, n), targets(loss, d_out, n)
