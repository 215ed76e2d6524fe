"""Split a user's arguments into float leaves to differentiate by, other arrays, and fixed leaves.

Any pytree will do. A leaf that is no array (a function in a model, a name, a Python number that is not
differentiated) stays as it is and is never traced, so a function may branch on it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from reference.checks.inputs import require_whole
from reference.tolerance.formats import require_floats

Tree = Any
Kind = Literal["moving", "data", "fixed"]


@dataclass(frozen=True)
class Arguments:
    """A tuple of arguments, flat.

    Attributes:
        leaves: every leaf, as the caller gave it.
        paths: the name of each leaf, `args[0]['W']`.
        kinds: "moving" (differentiated), "data" (another array), or "fixed" (anything else).
        treedef: the structure that leaves are put back into.
        dtype: to cast float leaves to, or None to leave each as it is.
    """

    leaves: tuple[Any, ...]
    paths: tuple[str, ...]
    kinds: tuple[Kind, ...]
    treedef: Any
    dtype: np.dtype | None

    @property
    def moving_paths(self) -> list[str]:
        """Names of the leaves that are differentiated, in order."""
        return [path for path, kind in zip(self.paths, self.kinds, strict=True) if kind == "moving"]

    @property
    def working(self) -> np.dtype:
        """The narrowest precision among the float arrays, differentiated or not: what reads one rounds as it does."""
        return max(self._precisions(), key=lambda dtype: float(jnp.finfo(dtype).eps))

    def _precisions(self) -> set[np.dtype]:
        """Those of the float arrays; of scalars only where there is no array, since a weak type decides nothing."""
        floats = [leaf for leaf in (*self.fresh("moving"), *self.fresh("data")) if _is_float(leaf)]
        return {jnp.dtype(leaf.dtype) for leaf in floats if not getattr(leaf, "weak_type", False)} or {
            jnp.dtype(leaf.dtype) for leaf in floats
        }

    def notes(self) -> list[str]:
        """A note if the float arrays have several precisions."""
        if len(self._precisions()) == 1:
            return []
        return [f"float arguments of several dtypes; tolerances are those of {self.working}"]

    def require_finite(self) -> None:
        """Refuse to differentiate where there is no point.

        Raises:
            ValueError: names the leaf and its first entry that is nan or inf.
        """
        require_whole(self.leaves)
        for path, leaf in zip(self.moving_paths, self.fresh("moving"), strict=True):
            bad = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))
            if len(bad):
                at = f"[{', '.join(map(str, bad[0]))}]" if np.ndim(leaf) else ""
                number = float(np.asarray(leaf, np.float64)[tuple(bad[0])])
                raise ValueError(f"{path}{at} is {number}: give a finite point to differentiate at")

    def fresh(self, kind: Kind) -> list[Any]:
        """Copies of the leaves of one kind, cast, so that the caller's own stay unchanged."""
        return [self._copy(leaf) for leaf, its in zip(self.leaves, self.kinds, strict=True) if its == kind]

    def build(self, moving: Sequence[Any], data: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with these values in place of their own; containers are new."""
        values = {"moving": iter(moving), "data": iter(data)}
        pairs = zip(self.leaves, self.kinds, strict=True)
        leaves = [_apart(leaf) if kind == "fixed" else next(values[kind]) for leaf, kind in pairs]
        return jax.tree.unflatten(self.treedef, leaves)

    def moved(self, moving: Sequence[Any]) -> "Arguments":
        """These arguments with other values for what is differentiated."""
        values = iter(moving)
        pairs = zip(self.leaves, self.kinds, strict=True)
        return replace(self, leaves=tuple(next(values) if kind == "moving" else leaf for leaf, kind in pairs))

    def _copy(self, leaf: Any) -> Any:
        """A copy of a leaf, in the dtype that JAX would give it.

        A NumPy array stays one, to detect code that writes into its arguments. A Python float beside arrays stays weak.
        """
        with self.precision():
            if _is_python_float(leaf) and self._any_array:
                return jnp.asarray(float(leaf))
            dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))
            if self.dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                dtype = self.dtype
            if isinstance(leaf, np.ndarray) and dtype.kind != "V":  # NumPy's own arithmetic does not keep bfloat16
                return np.array(leaf, dtype)
            return jnp.array(np.asarray(leaf), dtype)

    @property
    def _any_array(self) -> bool:
        pairs = zip(self.leaves, self.kinds, strict=True)
        return any(
            kind != "fixed" and isinstance(leaf, np.ndarray | jax.Array) and _is_float(leaf) for leaf, kind in pairs
        )

    def precision(self) -> AbstractContextManager[Any]:
        """A context with the caller's x64 setting, or with x64 if what is differentiated would be cut short without.

        Data in float64 beside arguments in float32 is what JAX makes of it under the caller's own setting. So is a
        NumPy scalar beside arrays.
        """
        if self.dtype is not None:
            double = self.dtype == np.float64
        else:
            scalar = np.generic if self._any_array else ()
            moving = [leaf for leaf, kind in zip(self.leaves, self.kinds, strict=True) if kind == "moving"]
            double = any(getattr(leaf, "dtype", None) == np.float64 and not isinstance(leaf, scalar) for leaf in moving)
        return jax.enable_x64(True) if double else nullcontext()


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _is_python_float(leaf: Any) -> bool:
    return isinstance(leaf, float) and not isinstance(leaf, np.generic)


def _apart(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def take_apart(
    args: tuple[Any, ...], argnums: Sequence[int], dtype: DTypeLike | None, fixed: Sequence[int] = ()
) -> Arguments:
    """Flatten arguments; the float leaves of those numbered `argnums` will be differentiated.

    The arguments numbered `fixed` stay unchanged: they are neither cast nor traced.

    Raises:
        TypeError: there is no float leaf to differentiate by, or one is complex, or JAX is tracing a leaf.
        ValueError: `dtype` is not a floating-point type, or a leaf is on a device that is not the default.
    """
    if dtype is not None:
        require_floats(dtype)
    wanted = None if dtype is None else jnp.dtype(dtype)
    found, treedef = jax.tree_util.tree_flatten_with_path(args)
    kinds = ["fixed" if path[0].idx in fixed else _kind(leaf, path[0].idx in argnums) for path, leaf in found]
    names = ["args" + jax.tree_util.keystr(path) for path, _ in found]
    leaves = [leaf for _, leaf in found]
    for name, leaf, kind in zip(names, leaves, kinds, strict=True):
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(f"{name} is traced: a check compares numbers, so call it outside jax.jit, vmap and grad")
        if kind == "moving" and jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"{name} is complex: pass its real and imaginary parts as two arguments")
    if "moving" not in kinds:
        which = ", ".join(f"args[{i}]" for i in argnums)
        raise TypeError(f"{which} has no float leaf to differentiate by; got {describe(args)}")
    _require_default_device(names, leaves)
    return Arguments(tuple(leaves), tuple(names), tuple(kinds), treedef, wanted)


def _kind(leaf: Any, differentiated: bool) -> Kind:
    if _is_python_float(leaf):
        return "moving" if differentiated else "fixed"
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
        return "fixed"
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return "moving" if differentiated else "data"
    plain = jnp.issubdtype(leaf.dtype, jnp.integer) or jnp.issubdtype(leaf.dtype, jnp.bool_)
    return "data" if plain else "fixed"


def _require_default_device(names: Sequence[str], leaves: Sequence[Any]) -> None:
    default = getattr(jax.config, "jax_default_device")  # noqa: B009 - a flag that type checkers do not know
    if not isinstance(default, jax.Device):
        default = jax.local_devices(backend=default)[0]
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(leaf, jax.Array) and leaf.devices() != {default}:
            there = ", ".join(sorted(map(str, leaf.devices())))
            raise ValueError(
                f"{name} is on {there}, but the default device is {default}, where the reference runs:"
                f" move it with jax.device_put, or check inside `with jax.default_device(...)`"
            )


def chosen(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """`argnums` as a tuple of numbers from 0.

    Raises:
        TypeError: not integers.
        ValueError: out of range, twice the same, or none; or there are no arguments.
    """
    if count == 0:
        raise ValueError(
            "there are no arguments to differentiate by: give them, the point to check at, after the functions"
        )
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers or not all(isinstance(i, int) and not isinstance(i, bool) for i in numbers):
        raise TypeError(f"argnums is an integer or a sequence of them, got {argnums!r}")
    for i in numbers:
        if not -count <= i < count:
            raise ValueError(f"argnums names argument {i}, but there are {count} arguments")
    numbers = tuple(i % count for i in numbers)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"argnums names an argument twice: {argnums!r}")
    return numbers


def structure(tree: Tree) -> Any:
    """The structure of a tree, without its leaves."""
    return jax.tree.structure(tree)


def describe(args: Tree) -> str:
    """Every leaf with its type and shape, for an error's text."""
    found = jax.tree_util.tree_leaves_with_path(args)
    return ", ".join(f"args{jax.tree_util.keystr(path)}: {kind_of(leaf)}" for path, leaf in found) or "no arguments"


def kind_of(leaf: Any) -> str:
    """`float32[3,4]` for an array, the type and value for anything else."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    text = repr(leaf)
    return f"{type(leaf).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
