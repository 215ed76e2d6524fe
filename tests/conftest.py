"""Strict everywhere: x64 on, no implicit promotion of dtypes or ranks, annotations enforced at run time."""

import argparse
import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import pytest

from reference import xla

pytest_plugins = "pytester"

# The tests compile much and run little; `helpers.OPTIMISED` undoes it. Those of several devices find eight, all of them
# this processor; every other test uses the first. Workers and processes that they start inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    eight = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {eight} {xla.flags()}"
    os.environ["NPROC"] = xla.THREADS

# They compile the same programs again and again: in other tests, in other workers, in the processes that they start.
# What one has compiled is kept for all, and for the next run.
COMPILED = Path(__file__).parent.parent / ".jax_cache"
MOST_COMPILED = 300_000_000  # bytes; a run makes some 30 MB
CACHE = {
    "jax_compilation_cache_dir": str(COMPILED),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for option, value in CACHE.items():
    os.environ[option.upper()] = str(value)
    jax.config.update(option, value)

# JAX makes a context of MLIR's for every program that it lowers, which would take a fifth of the time. All share one.
# The function is private; where a version of JAX has none of its name, the tests are as right and slower.
with contextlib.suppress(ImportError, AttributeError):
    from jax._src.interpreters import mlir

    setattr(mlir, "make_ir_context", functools.cache(mlir.make_ir_context))  # noqa: B010 - mypy wants no assignment

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start with an empty cache where changes to the code have filled it."""
    first = not hasattr(session.config, "workerinput")
    if first and sum(file.stat().st_size for file in COMPILED.glob("*")) > MOST_COMPILED:
        shutil.rmtree(COMPILED)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=part, metavar="K/N", help="run every N-th of the tests, from the K-th on")


def part(text: str) -> str:
    """As it came, since the workers get it as text."""
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, such as 2/8, got {text!r}")
    return text


def of_part(text: str, items: list[Any]) -> list[Any]:
    first, step = map(int, text.split("/"))
    return items[first - 1 :: step]


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if config.option.part is None else f"part: {config.option.part} of the tests"


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest, so that no worker is left alone with them in the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    if config.option.part is not None:
        due = of_part(config.option.part, items)
        config.hook.pytest_deselected(items=[item for item in items if item not in due])
        items[:] = due


@pytest.fixture
def without_hook() -> Iterator[None]:
    """Run-time annotation checks off, as for a user: what is left is the library's own refusal."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
