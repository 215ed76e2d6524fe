"""Faults of one equation of the derivative's program: those of `reference.mutation`, and an epsilon too many."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.elsewhere.faulty.kinds import BIT, KINDS, TINY, Fault, Kind, Place
from benchmarks.elsewhere.faulty.linear_map import Map, Subject, shapes
from reference.mutation import mutants
from reference.mutation.program import Program, Site

EPSILON = 1e-3
_DROPPED = ("dropped", "not divided", "identity for", "taken always", "not clamped")
_MOVED = {"div": 1, "rsqrt": 0, "sqrt": 0, "log": 0}  # where: to this operand


def _traced(subject: Subject, args: tuple[Any, ...], given: Any) -> tuple[Program, tuple[Site, ...]]:
    leaves, structure = jax.tree.flatten(shapes((args, given)))
    return _program(subject, structure, tuple(leaves), jax.config.jax_enable_x64)


@lru_cache(maxsize=16)
def _program(subject: Subject, structure: Any, leaves: tuple[Any, ...], wide: bool) -> tuple[Program, tuple[Site, ...]]:
    """The program of the right derivative in this precision, and every fault that it can have."""
    program = Program(subject.right, *jax.tree.unflatten(structure, leaves))
    found = [site for site in program.sites(BIT, seed=0) if "while" not in site.where]  # a broken loop may not end
    tiny = [site for site in program.sites(TINY, seed=0) if "while" not in site.where and _times(TINY)(site.fault.what)]
    return program, (*found, *tiny, *(_with_epsilon(site) for site in found if _divides(site)))


def _times(size: float) -> Callable[[str], bool]:
    return lambda what: f"times 1 + {size:.3g}" in what


def _divides(site: Site) -> bool:
    return site.primitive in _MOVED and site.fault.what == "sign flipped"  # which every equation has, once


def _with_epsilon(site: Site) -> Site:
    operand = _MOVED[site.primitive]

    def apply(right: Callable[[Any], Any], inputs: list[Any]) -> Any:
        moved = inputs[operand] + jnp.asarray(EPSILON, inputs[operand].dtype)
        return right([moved if i == operand else value for i, value in enumerate(inputs)])

    return replace(site, fault=mutants.Fault(f"an epsilon of {EPSILON} added", apply))


def _key(site: Site) -> tuple[str, str]:
    return site.where, site.fault.what


def _sites(place: Place) -> tuple[Site, ...]:
    """Every fault of every equation; none where float64 has other equations, in which it would be another fault."""
    enters = place.subject.enters(place.args)
    narrow = _traced(place.subject, place.args, enters)[1]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float64), (place.args, enters))
        same = [_key(site) for site in _traced(place.subject, *wide)[1]] == [_key(site) for site in narrow]
    return narrow if same else ()


def broken(subject: Subject, key: tuple[str, str]) -> Map:
    """The derivative with one equation broken; in each precision it is traced anew."""

    def wrong(args: tuple[Any, ...], given: Any) -> Any:
        program, sites = _traced(subject, args, given)
        return program.run(next(site for site in sites if _key(site) == key))(args, given)

    return wrong


def _one(suits: Callable[[str], bool]) -> Kind:
    """One of the faults whose words suit."""

    def kind(place: Place) -> Fault | None:
        found = [site for site in _sites(place) if suits(site.fault.what)]
        if not found:
            return None
        site = found[int(place.draw.integers(len(found)))]
        return Fault(f"{site.where}: {site.fault.what}", broken(place.subject, _key(site)))

    return kind


ALL: dict[str, Kind] = KINDS | {
    "an equation 1e-3 off": _one(_times(BIT)),
    "an equation 1e-5 off": _one(_times(TINY)),
    "a term or factor dropped": _one(lambda what: any(words in what for words in _DROPPED)),
    "a sum without its last term": _one(lambda what: "left out" in what),
    "a product transposed": _one(lambda what: "operand transposed" in what),
    "an element of an equation zero": _one(lambda what: what.endswith("zeroed") and "element" in what),
    "an epsilon added": _one(lambda what: what.startswith("an epsilon")),
}
"""Every kind of fault, by what it is called in the table."""


def drawn(subject: Subject, args: tuple[Any, ...], seed: tuple[int, ...]) -> Iterator[tuple[str, Fault]]:
    """A fault of every kind that fits, with the name of its kind, in an order that is drawn."""
    draw = np.random.default_rng(seed)
    place = Place(subject, args, draw)
    for name in draw.permutation(list(ALL)):
        if (fault := ALL[name](place)) is not None:
            yield str(name), fault
