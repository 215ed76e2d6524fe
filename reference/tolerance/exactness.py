"""Which operations are exact though floats enter them, and which of a program's own numbers XLA may round anew."""

import math
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from reference.jaxprs import Values
from reference.tolerance.side_by_side import is_narrow


def is_exact(x: Any) -> bool:
    """Whether a value is of the program alone, or one number that is not rounded yet, such as the end of a solver."""
    return is_narrow([x]) or x.shape == (1,)


def changes_nothing(name: str, inputs: Values) -> bool:
    """Whether an operation is exact: it multiplies or divides by one number that is 1 or -1, or adds one that is 0."""
    numbers = [x for x in (inputs[1:] if name == "div" else inputs) if x.shape == (1,)]
    match name:
        case "mul" | "div":
            return any(abs(x[0]) == 1 for x in numbers)
        case "add" | "add_any" | "sub":
            return any(x[0] == 0 for x in numbers)
    return False


def by_a_reciprocal(equation: JaxprEqn, inputs: Values) -> bool:
    """Whether XLA may turn a quotient of the program's own numbers into a product with 1 / divisor, which is rounded.

    Such as 30 percent, 30 / 100, or the points of a linspace, which are then other numbers than where the quotients are
    computed while tracing.
    """
    if equation.primitive.name != "div" or not is_narrow(inputs) or not isinstance(equation.invars[1], Literal):
        return False
    if np.iscomplexobj(inputs[1]):
        return False
    divisor = np.unique(inputs[1].astype("float64"))
    return len(divisor) == 1 and math.frexp(float(divisor[0]))[0] not in (0.5, -0.5)
