"""Rules and functions of libraries: a file for each library, with a table of its cases."""

import importlib
import pkgutil

from benchmarks.elsewhere.cases import Case


def names() -> list[str]:
    """The libraries that have cases."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def cases(library: str) -> dict[str, Case]:
    """Its cases by name.

    Raises:
        ImportError, AttributeError: it is not installed, or does not go with this JAX.
    """
    return importlib.import_module(f"{__name__}.{library}").CASES
