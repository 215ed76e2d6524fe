"""Write files so that nothing is lost or left half-written, and read arrays so that nothing is executed."""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


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


def read_arrays(path: Path, such_as: str) -> "dict[str, np.ndarray]":
    """The arrays of an .npz file; nothing is unpickled.

    Args:
        path: of the file.
        such_as: what writes such a file, for the errors.

    Raises:
        BadInput: no such file, or none of arrays of numbers or text.
    """
    import numpy as np

    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput(f"{path} is a single array; it must be an .npz file")
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # NumPy would have the user unpickle it
        raise BadInput(f"{path} is no .npz file of numbers or text, such as {such_as} writes") from error


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write an .npz file as `write_atomically` does.

    Raises:
        BadInput: the file cannot be written.
    """
    import numpy as np

    def write(file: IO[bytes]) -> None:
        np.savez(file, allow_pickle=False, **arrays)

    write_atomically(path, write)
