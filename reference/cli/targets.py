"""Find objects given as `module:name` on the command line, first in the current folder."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from reference.cli.files import BadInput


@contextmanager
def current_folder_first() -> Iterator[None]:
    """A context in which modules in the current folder are found before others of the same name."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def named(name: str) -> Any:
    """Return the object named by `module:dotted.name`.

    Raises:
        BadInput: a name not of that form, no such object, or a module that raises when imported.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path or not all(part.isidentifier() for part in path.split(".")):
        raise BadInput(f"expected module:name, as in mymodule:my_function, got {name!r}")
    found = module(module_name)
    at = module_name
    for part in path.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [known for known in dir(found) if not known.startswith("__")])
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise BadInput(f"{at} has no name {part!r}{hint}")
        found = getattr(found, part)
        at = f"{at}.{part}"
    return found


def module(name: str) -> Any:
    """Import the module of that dotted name.

    Raises:
        BadInput: there is none, or it raises when imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise BadInput(f"expected the dotted name of a module, as in mypackage.mymodule, got {name!r}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise BadInput(
                f"there is no module {missing!r} in {sys.path[0]} (where Python looks first) or elsewhere"
            ) from error
        raise BadInput(f"importing {name} raised {told(error)}") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"importing {name} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in one line."""
    from reference.checks.faults import one_line

    return one_line(error)
