"""Faults that a check cannot see at the values it is given, in sentences, and parameters moved to where it can.

A fault that multiplies a parameter is no fault at zero; a transpose too many is none at a symmetric matrix. So
`reference.check` moves such a parameter to seeded values near it. What depends on the caller's batch, N = 1 or equal
weights, stays and is said.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Tree = Any
SMALL = 0.1
"""How far a leaf is moved: of its own values, or of 1 where it is zero."""
NAMED = 4  # leaves that a note names


@dataclass(frozen=True)
class Degeneracy:
    """One way in which a leaf hides faults.

    Attributes:
        holds: whether float64 values, at least one, are of this kind.
        one: the kind, of one leaf.
        several: the kind, of several leaves.
        hidden: the faults that cannot show; `{it}` stands for the leaf or leaves.
    """

    holds: Callable[[np.ndarray], bool]
    one: str
    several: str
    hidden: str

    def sentence(self, names: list[str]) -> str:
        """Which leaves are of this kind, and what cannot show there."""
        single = len(names) == 1
        hidden = self.hidden.format(it="it" if single else "them")
        return f"{_listed(names)} {self.one if single else self.several}, where {hidden} cannot show"


def _symmetric(values: np.ndarray) -> bool:
    square = values.ndim > 1 and values.shape[-1] == values.shape[-2] > 1
    return square and np.array_equal(values, np.swapaxes(values, -1, -2))


DEGENERACIES = (
    Degeneracy(lambda v: not v.any(), "is all zeros", "are all zeros", "a fault that multiplies {it}"),
    Degeneracy(lambda v: bool((v == 1).all()), "is all ones", "are all ones", "a factor of {it} missing or too many"),
    Degeneracy(
        lambda v: v.size > 1 and bool((v == v.flat[0]).all()),
        "has equal entries",
        "have equal entries",
        "entries of {it} in another order",
    ),
    Degeneracy(_symmetric, "is its own transpose", "are their own transposes", "a transpose missing or too many"),
)
"""The kinds in the order of trial; a leaf is of the first that holds."""


def degenerate_leaves(params: Tree) -> dict[str, Degeneracy]:
    """The kind of every leaf that hides faults, by its name."""
    return {name: kind for name, leaf in _named(params) if (kind := _kind(leaf))}


def moved(params: Tree, seed: int) -> Tree:
    """Leaves that hide faults at seeded values near them, in their own dtype; the others as they are.

    A zero becomes small, and smaller in wide matrices, so that no layer saturates. Any other value is scaled, so it
    keeps its sign: a scale that must be positive still is.
    """
    random = np.random.default_rng(seed)

    def near(leaf: np.ndarray) -> np.ndarray:
        if not _kind(leaf):
            return leaf
        wide = leaf.astype(np.float64)
        small = min(SMALL, leaf.shape[-1] ** -0.5) if leaf.ndim > 1 else SMALL
        noise = random.normal(size=leaf.shape)
        # A symmetric matrix may hold zeros beside other values, so each entry is moved by what it is.
        return np.where(wide == 0, small * noise, wide * (1 + SMALL * np.clip(noise, -5, 5))).astype(leaf.dtype)

    return jax.tree.map(near, params)


def of_parameters(found: dict[str, Degeneracy], generic: bool) -> Iterator[str]:
    """A note for every kind among the degenerate leaves, which were moved if `generic`."""
    for kind in DEGENERACIES:
        names = [name for name, its in found.items() if its is kind]
        if names:
            it = "it" if len(names) == 1 else "them"
            told = f": checked at seeded values near {it}; generic=False keeps yours"
            kept = f"; generic=True checks at seeded values near {it}"
            yield kind.sentence(names) + (told if generic else kept)


def of_batch(n: int, weights: np.ndarray | None, lam: float | None) -> Iterator[str]:
    """Notes on N examples, their weights if given, and lambda, None without a regulariser."""
    if weights is None and n == 1:
        yield "N = 1: a missing or wrong 1/N cannot show; check with two examples or more"
    if weights is not None and (weights == weights[0]).all():
        ignored = " and weights that are ignored" if np.isclose(weights[0] * n, 1, rtol=1e-6) else ""
        hint = "two examples or more whose weights differ" if n == 1 else "weights that differ"
        yield f"the weights are all equal: a weight of another example{ignored} cannot show; check with {hint}"
    if lam == 0:
        yield "lam = 0: a fault in the regulariser's part of the gradients cannot show; check with lam above 0"


def _kind(leaf: np.ndarray) -> Degeneracy | None:
    values = leaf.astype(np.float64)
    return next((kind for kind in DEGENERACIES if values.size and kind.holds(values)), None)


def _named(params: Tree) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield f"params{jax.tree_util.keystr(path)}", leaf


def _listed(names: list[str]) -> str:
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
