"""Write files so that nothing is lost or left half-written."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


class BadInput(RuntimeError):  # noqa: N818
    """Input from the command line that cannot be used; the text says what it is and what to do."""


def require_writable(path: Path) -> None:
    """Check before the work that a file can be written.

    Raises:
        BadInput: its folder does not exist or cannot be written, or it is a folder itself.
    """
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise BadInput(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"cannot write {path}: no permission in {path.parent}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Raises:
        BadInput: the file cannot be written.
    """
    require_writable(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes it private; the user expects an ordinary file
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
