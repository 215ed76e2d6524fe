"""The rows of a layer's check: promises that are kept or broken, and numbers that agree or not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from reference.checks import faults
from reference.compare import as_float64, compare_leaf, compare_trees
from reference.report import Row

Tree = Any
TOLERANCE = 1e-12
"""Relative to the summed magnitudes, or to the largest entry of a leaf; thousands of roundings in float64."""


class StoppedError(Exception):
    """A method's result cannot be used further; its row is written."""


@dataclass(frozen=True)
class Rows:
    """The rows so far, in the order of computation."""

    found: list[Row] = field(default_factory=list)

    def call(self, method: str, function: Callable[..., Any], *args: Any) -> Any:
        """Return a method's result; if it raises, add a row and raise StoppedError."""
        try:
            return function(*args)
        except Exception as error:
            first = str(error).strip().splitlines()
            self.say(method, f"{method} raised {type(error).__name__}: {first[0] if first else ''}")

    def say(self, method: str, fault: str) -> None:
        """Add a row on a promise. If it is broken, as `fault` says, raise StoppedError."""
        self.found.append(faults.contract(method, fault))
        if fault:
            raise StoppedError

    def compare(self, path: str, ours: Tree, theirs: Tree, witness: str, cause: str, size: float = 0.0) -> None:
        """Add a row for every leaf, to TOLERANCE times its largest entry, or times `size` if that is more."""
        fault = unlike(ours, theirs, witness)
        if fault:
            self.found.append(faults.contract(path, f"{cause}: {fault}"))
            return
        allowed = jax.tree.map(lambda leaf: _allowed(leaf, size), theirs)
        self.found.extend(
            compare_trees(path, ours, theirs, allowed, kind="contract", witness=witness, cause=lambda *_: ("", cause))
        )

    def product(self, path: str, left: np.ndarray, right: np.ndarray, cause: str) -> None:
        """Add a row for two sums of products, to TOLERANCE times the summed magnitudes."""
        allowed, told = balance(left, right), ("", cause)
        self.found.append(
            compare_leaf(
                path, left.sum(), right.sum(), allowed, kind="contract", witness="the transpose", cause=lambda *_: told
            )
        )


def balance(left: np.ndarray, right: np.ndarray) -> float:
    """The largest difference of two sums that rounding explains."""
    return TOLERANCE * float(np.abs(left).sum() + np.abs(right).sum())


def described(tree: Any) -> str:
    """Shapes and dtypes of a tree, or the type of anything that is no array."""
    if hasattr(tree, "dtype") and hasattr(tree, "shape"):
        return f"{tree.dtype}{list(tree.shape)}"
    if isinstance(tree, tuple):
        return f"({', '.join(map(described, tree))})"
    return type(tree).__name__


def unlike(got: Tree, expected: Tree, name: str) -> str:
    """How `got` differs from `expected` in structure, shape or dtype, or ""."""
    there: Any = jax.tree.structure(got)
    wanted: Any = jax.tree.structure(expected)
    if there != wanted:
        return f"expected the structure of {name}, {wanted}, got {there}"
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if described(leaf) != described(like):
            return f"expected {described(like)} as {name}{jax.tree_util.keystr(path)} has, got {described(leaf)}"
    return ""


def unlike_values(got: Tree, expected: Tree) -> bool:
    """Whether trees of one structure differ in any bit."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def same(ours: Tree, theirs: Tree) -> bool:
    """Whether `Rows.compare` would pass."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(bool((np.abs(as_float64(a) - as_float64(b)) <= _allowed(b, 0.0)).all()) for a, b in pairs)


def _allowed(leaf: Any, size: float) -> np.ndarray:
    return np.full(np.shape(leaf), TOLERANCE * max(_largest(leaf), size))


def _largest(tree: Tree) -> float:
    """The largest magnitude in a tree; 0 without entries."""
    return max((float(np.max(np.abs(as_float64(leaf)), initial=0)) for leaf in jax.tree.leaves(tree)), default=0.0)
