"""The second, independent program: the same quantities by jax.grad, and the checks that compare.

The names of `reference.api` are loaded on first use, so that the command line answers `--help` without importing JAX.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference.api import *  # noqa: F403


def __dir__() -> list[str]:
    """The public names and the modules that are loaded, not what this file imports for itself."""
    modules = {name for name, value in globals().items() if getattr(value, "__name__", "") == f"reference.{name}"}
    return sorted({name for name in globals() if name.startswith("__")} | modules | {*__getattr__("__all__")})


def __getattr__(name: str) -> Any:
    # Names that Python looks up on any module, and our own modules: `from reference import causes` asks here first.
    if (name.startswith("__") and name != "__all__") or find_spec(f"reference.{name}"):
        raise AttributeError(f"module 'reference' has no attribute {name!r}")
    api = vars(import_module("reference.api"))
    names = [key for key in api if key[0] != "_"]
    if name != "__all__" and name not in names:
        raise AttributeError(f"module 'reference' has no attribute {name!r}; there are {', '.join(names)}")
    return names if name == "__all__" else api[name]
