"""The values that a graph shows as lines of notes: parameters, and with a batch the results of the sweeps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import numpy as np

from manual_backprop import validate
from manual_backprop.drawing import typed
from manual_backprop.losses import Loss
from manual_backprop.objective import Objective, Step, backprop
from manual_backprop.types import Tree


@dataclass(frozen=True)
class Values:
    """The known values of a node: its parameters or their shapes, and the rest where a batch was given."""

    params: Tree
    trace: Tree | None = None
    deltas: Tree | None = None
    gradients: Tree | None = None

    def at(self, i: int) -> "Values":
        """The values of node `i` of a composite that has several."""
        trees = (getattr(self, field.name) for field in fields(self))
        return Values(*(None if tree is None else tree[i] for tree in trees))


def values_of(objective: Objective, params: Tree, x: Any, y: Any, key: Any) -> tuple[Values, Step | None]:
    """The values for a graph: shapes of parameters, or with a batch every value, with the key's draws in it.

    Raises:
        TypeError: a key that is none.
        ValueError: some of params, x and y, but not all; a key without these; or values that are being traced by JAX,
            or that other processes hold.
    """
    given = [name for name, value in (("params", params), ("x", x), ("y", y)) if value is not None]
    if not given:
        if key is not None:
            raise ValueError("a key draws values, and a graph has none without a batch: give it params, x and y too")
        return Values(jax.eval_shape(lambda: objective.net.init(jax.random.key(0)))), None
    if len(given) < 3:
        raise ValueError(f"a graph with values needs params, x and y, got only {' and '.join(given)}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, x, y, key))):
        raise ValueError("a graph shows values, which are not known under jit, vmap or grad; draw it outside of them")
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves((params, x, y))):
        raise ValueError(
            "a graph shows values of whole arrays, and a part of these lies on devices of other processes: gather them"
            " first, in every process, by jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        )
    params = validate.params(objective.net, params)
    if key is not None:
        key = typed(key)
    step = jax.jit(partial(backprop, objective))(params, x, y, key=key)
    return Values(params, step.trace, step.deltas, step.gradients), step


def opening(objective: Objective, opened: bool | int) -> bool | int:
    """Return how many levels to open, after checking both arguments.

    Raises:
        TypeError: no `Objective`, or levels that are no number.
        ValueError: levels below 0.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"a graph is drawn of an Objective, got {type(objective).__name__}; Objective(net, loss) makes one"
        )
    if not isinstance(opened, int | np.integer):
        raise TypeError(f"opened must be True, False or a number of levels, got {opened!r}")
    if opened < 0:
        raise ValueError(f"opened must be 0 or more levels, got {opened}")
    return opened if isinstance(opened, bool) else int(opened)


def entering(objective: Objective, x: Any) -> tuple[Any, ...]:
    """The arrays that enter a network; without a batch, None for each input that the first layer names."""
    return tuple(parts(x)) if x is not None else (None,) * len(next(objective.net.layers()).inputs)


def words(loss: Loss) -> tuple[str, ...]:
    """The name of a loss, one word a line."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+[^A-Z_]*|[^A-Z_]+", type(loss).__name__))


def notes(value: Any) -> tuple[str, ...]:
    """Shape and Frobenius norm of an array, or the value of a scalar; () for None or a bare shape."""
    if value is None or isinstance(value, jax.ShapeDtypeStruct):
        return ()
    numbers = np.asarray(value)
    if numbers.ndim == 0:
        return (f"{float(numbers):.4g}",)
    shape = "×".join(map(str, numbers.shape))
    if np.issubdtype(numbers.dtype, np.integer):
        return (shape,)
    return (shape, f"‖·‖ {np.linalg.norm(numbers.astype(np.float64)):.3g}")


def parts(flow: Any) -> Iterator[Any]:
    """Yield the arrays of a flow, which may be nested tuples; None stays None."""
    if isinstance(flow, tuple):
        for part in flow:
            yield from parts(part)
    else:
        yield flow
