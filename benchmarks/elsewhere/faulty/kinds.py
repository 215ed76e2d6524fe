"""The kinds of fault, each in words and as code.

A kind is a function from a `Place` to the wrong derivative, or to None where the derivative has no place for it. To add
one, write it here or in `of_equations` and append it to `KINDS` there or here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.elsewhere.faulty.linear_map import Map, Side, Subject

BIT, TINY = 1e-3, 1e-5  # by how much what is a little wrong is wrong


@dataclass(frozen=True)
class Place:
    """Where a fault goes.

    Attributes:
        subject: whose derivative is broken.
        args: its arguments, in float32.
        draw: chooses the entry, the leaf, or the equation.
    """

    subject: Subject
    args: tuple[Any, ...]
    draw: np.random.Generator

    def leaves(self, side: Side) -> list[Any]:
        """The arrays on that side, as shapes and dtypes."""
        return jax.tree.leaves(self.args if side == "arguments" else jax.eval_shape(self.subject.function, *self.args))

    def one_of(self, side: Side, fits: Callable[[Any], bool] = lambda leaf: True) -> int | None:
        """The number of one of the arrays on that side."""
        found = [k for k, leaf in enumerate(self.leaves(side)) if leaf.size and fits(leaf)]
        return int(self.draw.choice(found)) if found else None

    def entry(self, side: Side, k: int) -> int:
        """The flat index of one of its entries."""
        return int(self.draw.integers(self.leaves(side)[k].size))


@dataclass(frozen=True)
class Fault:
    """One wrong derivative.

    Attributes:
        what: the fault in words.
        derivative: the map with the fault in it.
    """

    what: str
    derivative: Map


Kind = Callable[[Place], Fault | None]


def changed(subject: Subject, side: Side, k: int, change: Callable[..., Any]) -> Map:
    """The right map with one array on one side changed, by `change(array, args)`, on its way in or out."""

    def applied(tree: Any, args: tuple[Any, ...]) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        leaves[k] = change(leaves[k], args)
        return jax.tree.unflatten(structure, leaves)

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        if subject.enters_at(side):
            return subject.right(args, applied(given, args))
        return applied(subject.right(args, given), args)

    return wrong


def at(leaf: Any, flat: int) -> Any:
    """True at that entry alone."""
    return (jnp.arange(leaf.size) == flat).reshape(leaf.shape)


def scaled(leaf: Any, where: Any, factor: float) -> Any:
    """Times `factor` there."""
    return jnp.where(where, jnp.asarray(factor, leaf.dtype) * leaf, leaf)


def _at_an_entry(words: str, factor: float) -> Kind:
    def kind(place: Place) -> Fault | None:
        k = place.one_of("arguments")
        if k is None:
            return None
        flat = place.entry("arguments", k)
        wrong = changed(place.subject, "arguments", k, lambda leaf, args: scaled(leaf, at(leaf, flat), factor))
        return Fault(f"argument {k}, entry {flat}: {words}", wrong)

    return kind


def a_row_is_off(place: Place) -> Fault | None:
    """A row of an argument's derivative, times 1.001."""
    k = place.one_of("arguments", lambda leaf: leaf.ndim > 1)
    if k is None:
        return None
    row = int(place.draw.integers(place.leaves("arguments")[k].shape[0]))

    def off(leaf: Any, args: Any) -> Any:
        here = (jnp.arange(leaf.shape[0]) == row).reshape(-1, *[1] * (leaf.ndim - 1))
        return scaled(leaf, here, 1 + BIT)

    return Fault(f"argument {k}, row {row}: times {1 + BIT}", changed(place.subject, "arguments", k, off))


def the_last_is_missing(place: Place) -> Fault | None:
    """The last entry along the last axis of an output is taken for one that does not count."""
    k = place.one_of("outputs", lambda leaf: leaf.ndim > 0 and leaf.shape[-1] > 1)
    if k is None:
        return None

    def without(leaf: Any, args: Any) -> Any:
        return scaled(leaf, jnp.arange(leaf.shape[-1]) == leaf.shape[-1] - 1, 0.0)

    return Fault(f"output {k}: the last index is left out", changed(place.subject, "outputs", k, without))


def an_output_is_forgotten(place: Place) -> Fault | None:
    """One output of several does not count."""
    k = place.one_of("outputs") if len(place.leaves("outputs")) > 1 else None
    if k is None:
        return None
    wrong = changed(place.subject, "outputs", k, lambda leaf, args: jnp.zeros_like(leaf))
    return Fault(f"output {k} is forgotten", wrong)


def a_stopped_gradient(place: Place) -> Fault | None:
    """A `stop_gradient` on one argument of several."""
    k = place.one_of("arguments") if len(place.leaves("arguments")) > 1 else None
    if k is None:
        return None
    wrong = changed(place.subject, "arguments", k, lambda leaf, args: jnp.zeros_like(leaf))
    return Fault(f"argument {k}: stop_gradient", wrong)


def transposed(place: Place) -> Fault | None:
    """The derivative by a square matrix, transposed."""
    k = place.one_of("arguments", lambda leaf: leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] > 1)
    if k is None:
        return None
    return Fault(
        f"argument {k}: transposed", changed(place.subject, "arguments", k, lambda leaf, args: jnp.transpose(leaf))
    )


def off_below_zero(place: Place) -> Fault | None:
    """A hundredth off where the argument is negative, as a branch with a wrong constant is."""
    k = place.one_of("arguments")
    if k is None:
        return None

    def off(leaf: Any, args: tuple[Any, ...]) -> Any:
        return scaled(leaf, jax.tree.leaves(args)[k] < 0, 1.01)

    return Fault(f"argument {k}: times 1.01 where it is below 0", changed(place.subject, "arguments", k, off))


def clipped(place: Place) -> Fault | None:
    """What goes in, clipped to [-1, 1]."""
    subject = place.subject

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        return subject.right(args, jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), given))

    return Fault("what goes in is clipped to [-1, 1]", wrong)


def from_rounded_residuals(place: Place) -> Fault | None:
    """The arguments are kept in bfloat16 for the way back."""
    subject = place.subject

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        kept = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), args)
        return subject.right(kept, given)

    return Fault("the residuals are kept in bfloat16", wrong)


def from_another_point(place: Place) -> Fault | None:
    """One entry of the residuals is of a point beside."""
    k = place.one_of("arguments")
    if k is None:
        return None
    subject, flat = place.subject, place.entry("arguments", k)

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        leaves[k] = scaled(leaves[k], at(leaves[k], flat), 1 + BIT)
        return subject.right(jax.tree.unflatten(structure, leaves), given)

    return Fault(f"the residual of argument {k}, entry {flat}, is {1 + BIT} times what it was", wrong)


def averaged_in_a_batch(place: Place) -> Fault | None:
    """Right for one example, and under vmap divided by how many there are."""
    subject = place.subject
    if subject.mode != "vjp":  # JAX pushes nothing forward through a custom_vmap
        return None

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        single = jax.custom_batching.custom_vmap(subject.right)

        @single.def_vmap
        def batch(size: int, batched: Any, args: Any, given: Any) -> Any:
            axes = jax.tree.map(lambda one: 0 if one else None, batched)
            out = jax.vmap(subject.right, tuple(axes))(args, given)
            return jax.tree.map(lambda leaf: leaf / size, out), jax.tree.map(lambda leaf: True, out)

        return single(args, given)

    return Fault("under vmap: a mean where no sum is due", wrong)


KINDS: dict[str, Kind] = {
    "an entry 1e-3 off": _at_an_entry(f"times {1 + BIT}", 1 + BIT),
    "an entry 1e-5 off": _at_an_entry(f"times {1 + TINY}", 1 + TINY),
    "the sign of an entry": _at_an_entry("the other sign", -1.0),
    "an entry doubled": _at_an_entry("times 2", 2.0),
    "a row 1e-3 off": a_row_is_off,
    "wrong at the last index": the_last_is_missing,
    "an output forgotten": an_output_is_forgotten,
    "stop_gradient": a_stopped_gradient,
    "transposed": transposed,
    "wrong branch below 0": off_below_zero,
    "clipped": clipped,
    "rounded residuals": from_rounded_residuals,
    "residual of another point": from_another_point,
    "right unbatched only": averaged_in_a_batch,
}
"""Faults of the whole derivative, by what they are called in the table."""
