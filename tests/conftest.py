"""Strict everywhere: x64 on, no implicit promotion of dtypes or ranks, annotations enforced at run time."""

import os
from collections.abc import Iterator

import jax
import jaxtyping
import pytest

from reference import xla

pytest_plugins = "pytester"

# The tests compile much and run little. Processes that they start inherit the variable; `helpers.OPTIMISED` undoes it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags()}"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def without_hook() -> Iterator[None]:
    """Run-time annotation checks off, as for a user: what is left is the library's own refusal."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
