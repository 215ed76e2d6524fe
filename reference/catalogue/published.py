"""Published worked examples, copied as data with their source, against the hand-written sweep.

A figure passes if ours rounds to the printed digits: the tolerance is half a unit in the last of them, taken from
the text of the file. The source's own rounding adds to it in two ways: a figure printed to 17 digits was itself
computed in double precision, and one source went on computing with its printed, rounded delta.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb

_DOUBLE = 16 * float(np.finfo(float).eps)  # relative, since the sources computed in double precision too
# The dead-unit example prints dW2 = a delta from its delta of 12 printed digits, with a = 2.28.
_UNITS = {"dW2_in_out": 0.5 + 0.5 * 2.28}


@dataclass(frozen=True, eq=False)
class Example:
    """One published example.

    Attributes:
        name: of its file.
        source: who published it.
        objective: the network, loss and regulariser.
        params: its parameters, float64.
        x: its inputs, one example a row.
        y: its targets.
        published: the contents of the file, with numbers as printed text.
    """

    name: str
    source: str
    objective: mb.Objective
    params: Any
    x: np.ndarray
    y: np.ndarray
    published: dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One printed number, and ours."""

    name: str
    printed: str
    ours: float
    units: float = 0.5

    @property
    def tolerance(self) -> float:
        """`units` of the last printed digit, plus the rounding of the source's own double precision."""
        exponent = Decimal(self.printed).as_tuple().exponent
        return self.units * float(Decimal(1).scaleb(int(exponent))) + _DOUBLE * abs(float(self.printed))

    @property
    def error(self) -> float:
        """The distance of ours from the printed number."""
        return abs(self.ours - float(self.printed))

    @property
    def passed(self) -> bool:
        """Whether ours rounds to the printed number."""
        return self.error <= self.tolerance


def examples() -> list[Example]:
    """The three examples; this needs x64."""
    return [_mazur(), _coursera(), _dead_unit()]


def figures(example: Example) -> list[Figure]:
    """Every number that the source prints, with ours."""
    by_hand = jax.jit(mb.backprop, static_argnums=0)
    step = jax.device_get(by_hand(example.objective, example.params, example.x, example.y))
    ours = {"mazur-2015": _mazur_values, "coursera-ml-ex4-lambda3": _coursera_values}.get(
        example.name, _dead_unit_values
    )(example, step)
    return [
        figure for key, value in ours.items() for figure in _compare(key, example.published[key], np.asarray(value))
    ]


def _compare(key: str, printed: Any, ours: np.ndarray) -> Iterator[Figure]:
    texts = np.asarray(printed)
    if texts.shape != ours.shape:
        raise ValueError(f"{key} is printed as {list(texts.shape)} but ours is {list(ours.shape)}")
    for index in np.ndindex(texts.shape):
        at = f"[{', '.join(map(str, index))}]" if index else ""
        yield Figure(key + at, str(texts[index]), float(ours[index]), _UNITS.get(key, 0.5))


def _read(name: str) -> dict[str, Any]:
    text = files("reference.catalogue").joinpath("golden", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text, parse_float=str, parse_int=str)


def _numbers(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _mazur() -> Example:
    data = _read("mazur-2015")
    objective = mb.Objective(mb.mlp((2, 2, 2), "sigmoid", "sigmoid"), mb.squared_error)
    params = tuple(mb.Affine(_numbers(data[f"W{i}"]), _numbers(data[f"b{i}"])) for i in (1, 2))
    x, y = _numbers(data["x"])[None], _numbers(data["y"])[None]
    return Example("mazur-2015", data["source"], objective, params, x, y, data)


def _mazur_values(example: Example, step: mb.Step) -> dict[str, Any]:
    first, second = step.trace
    rate = 0.5
    return {
        "z1": first.z[0],
        "a1": first.a[0],
        "z2": second.z[0],
        "a2": second.a[0],
        "loss_per_output": mb.squared_error.value(jnp.asarray(step.output.T), jnp.asarray(example.y.T)),
        "loss": step.loss,
        "delta2": step.deltas[1][0],
        "dE_da1_of_h1": (step.deltas[1] @ example.params[1].W)[0, 0],
        "delta1_40_digit_recomputation": step.deltas[0][0],
        "dW2": step.gradients[1].W,
        "dW1": step.gradients[0].W,
        "W1_after_step": example.params[0].W - rate * step.gradients[0].W,
        "W2_after_step": example.params[1].W - rate * step.gradients[1].W,
    }


def _coursera() -> Example:
    data = _read("coursera-ml-ex4-lambda3")
    m = 5

    def sines(rows: int, columns: int) -> np.ndarray:
        return np.sin(np.arange(1, rows * columns + 1, dtype=float)).reshape(columns, rows).T / 10

    thetas = sines(5, 4), sines(3, 6)
    params = tuple(mb.Affine(theta[:, 1:], theta[:, 0]) for theta in thetas)
    labels = np.asarray(data["y"], int) - 1
    # Its penalty has the factor lambda/(2m), which is ours with lambda/m.
    regularizer = mb.Frobenius(float(data["lambda"]) / m)
    objective = mb.Objective(mb.mlp((3, 5, 3), "sigmoid", "sigmoid"), mb.binary_cross_entropy, regularizer)
    return Example("coursera-ml-ex4-lambda3", data["source"], objective, params, sines(m, 3), np.eye(3)[labels], data)


def _coursera_values(example: Example, step: mb.Step) -> dict[str, Any]:
    thetas = [np.concatenate([layer.b[:, None], layer.W], axis=1) for layer in step.gradients]
    return {"gradient": np.concatenate([theta.T.ravel() for theta in thetas])}


def _dead_unit() -> Example:
    data = _read("relu-softmax-dead-unit")
    objective = mb.Objective(mb.mlp((2, 2, 3), "relu"), mb.softmax_cross_entropy)
    weights = _numbers(data["W1_in_out"]).T, _numbers(data["W2_in_out"]).T
    params = tuple(mb.Affine(W, np.zeros(W.shape[0])) for W in weights)
    x, y = _numbers(data["x"])[None], np.asarray([int(data["y"])])
    return Example("relu-softmax-dead-unit", data["source"], objective, params, x, y, data)


def _dead_unit_values(example: Example, step: mb.Step) -> dict[str, Any]:
    return {
        "z1": step.trace[0].z[0],
        "logits": step.output[0],
        "loss": step.loss,
        "delta2": step.deltas[1][0],
        "dW2_in_out": step.gradients[1].W.T,
    }
