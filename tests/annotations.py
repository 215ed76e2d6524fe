"""How annotations are enforced while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def enforced(function: Any) -> Callable[..., Any]:
    """Check what goes in and out of a function of a module or a class.

    One that stands inside another is made anew at each call, and to wrap it takes longer than most of them run. What it
    takes and returns passes through the functions around it.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)
