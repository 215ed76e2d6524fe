"""One of several processes that train together: how it joins the others, and what all of them must agree on."""

import atexit
import hashlib
import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from reference.cli.files import BadInput

VARIABLES = {
    "coordinator": "MANUAL_BACKPROP_COORDINATOR",
    "process_count": "MANUAL_BACKPROP_PROCESS_COUNT",
    "process_id": "MANUAL_BACKPROP_PROCESS_ID",
}
JOIN_TIMEOUT = 300  # seconds
LEAVE_TIMEOUT = 86400  # seconds that the others wait in the end for process 0, which alone prints, writes and samples
HEARTBEAT = 10  # seconds without a sign of life after which a process counts as dead, and all others stop
PACKAGES = ("manual_backprop", "reference")
Result = TypeVar("Result")


class Agreed(BadInput):
    """Input that all processes refuse together, so that all of them leave in good order."""


@contextmanager
def joined(arguments: Namespace) -> Iterator[None]:
    """Be one of the processes that the arguments or the environment name, and leave with the others; else alone.

    What others than process 0 print goes nowhere.

    Raises:
        BadInput: an address, a count and a number that do not go together.
    """
    if not _named(arguments):
        yield
        return
    with ExitStack() as quiet:
        nowhere = _apart_from_noise(quiet, arguments.process_id == 0)
        _meet(arguments)
        if not first():
            quiet.enter_context(redirect_stderr(nowhere))
        try:
            yield
        except Agreed:
            jax.distributed.shutdown()
            raise
        except BaseException as error:  # the others know nothing of it, so there is no leaving together
            atexit.register(_leave, {BadInput: 2, KeyboardInterrupt: 130}.get(type(error), 1))
            if isinstance(error, jax.errors.JaxRuntimeError) and "Gloo" in str(error):
                raise BadInput(
                    f"process {arguments.process_id} of {arguments.process_count} has lost another one, which died or"
                    " cannot be reached: start all of them again, with --resume where there are checkpoints"
                ) from error
            raise
        jax.distributed.shutdown()


def _apart_from_noise(stack: ExitStack, prints: bool) -> TextIO:
    """Keep standard output for what Python prints, or for nobody: the library that connects processes writes there too.

    Returns the stream that goes nowhere. All is undone as the stack is left.
    """
    nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sys.stdout.flush()
    own = os.dup(1)
    stack.callback(os.dup2, own, 1)
    os.dup2(nowhere.fileno(), 1)
    if prints:
        encoding, errors = getattr(sys.stdout, "encoding", None), getattr(sys.stdout, "errors", None)
        out = stack.enter_context(os.fdopen(own, "w", 1, encoding, errors, closefd=False))
        stack.enter_context(redirect_stdout(out))
    else:
        stack.enter_context(redirect_stdout(nowhere))
    return nowhere


def _leave(status: int) -> None:
    """End at once, as JAX's own way out waits for the others, who may be waiting for this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def how_many() -> str:
    """The processes and devices that take part, in words."""
    several = f"in {jax.process_count()} processes, " if jax.process_count() > 1 else ""
    return f"{several}on {jax.device_count()} device{'s' if jax.device_count() > 1 else ''}"


def first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def together(work: Callable[[], Result]) -> Result:
    """Do the same in all processes; what one of them refuses, all refuse.

    Raises:
        Agreed: says what was refused, and by which process where that is not the first.
    """
    try:
        result, refused = work(), ""
    except BadInput as error:
        if jax.process_count() == 1:
            raise
        refused = str(error)
    said = gathered(refused)
    for number, text in enumerate(said):
        if text:
            raise Agreed(f"process {number} of {len(said)}: {text}" if number else text)
    return result


def require_same(described: Mapping[str, Any]) -> None:
    """Refuse to train together where a process has other arguments, other data or other code.

    Raises:
        Agreed: says what differs between process 0 and which other.
    """
    mine = {"the code": _code(), **{name: version(name) for name in ("manual-backprop", "jax")}, **described}
    zeroth, *others = (json.loads(text) for text in gathered(json.dumps(mine)))
    for number, other in enumerate(others, 1):
        found = differing(zeroth, other, "in process 0", f"in process {number}")
        if found:
            raise Agreed(f"the processes must train the same, but {found}; start all by one command, from one version")


def differing(left: Mapping[str, Any], right: Mapping[str, Any], here: str, there: str) -> str:
    """Say in words where two runs differ; "" where they do not."""
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return ", ".join(f"{name} is {left.get(name)} {here} and {right.get(name)} {there}" for name in names)


def gathered(text: str) -> list[str]:
    """The text of every process, in every process."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(own.size, np.int32))
    rows = multihost_utils.process_allgather(np.pad(own, (0, 1 + int(max(sizes)) - own.size)))
    return [bytes(row[:size]).decode() for row, size in zip(np.asarray(rows), sizes, strict=True)]


def _code() -> str:
    """A digest of both packages' files."""
    found = hashlib.sha256()
    folder = Path(__file__).parent.parent.parent
    for file in sorted(file for package in PACKAGES for file in (folder / package).rglob("*.py")):
        found.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _named(arguments: Namespace) -> bool:
    """Whether the process is one of several; what is not among the arguments is taken from the environment."""
    for name, variable in VARIABLES.items():
        if getattr(arguments, name) is None and os.environ.get(variable):
            setattr(arguments, name, os.environ[variable])
    given = {name: getattr(arguments, name) for name in VARIABLES}
    if all(value is None for value in given.values()):
        return False
    flags = {name: f"--{name.replace('_', '-')} or {variable}" for name, variable in VARIABLES.items()}
    for name, value in given.items():
        if value is None:
            raise BadInput(f"{flags[name]} is missing: one of several processes needs {', '.join(flags.values())}")
    host, _, port = str(arguments.coordinator).rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        raise BadInput(f"{flags['coordinator']} must be HOST:PORT of process 0, got {arguments.coordinator!r}")
    for name, least in (("process_count", 1), ("process_id", 0)):
        if not str(given[name]).isdigit() or int(given[name]) < least:
            raise BadInput(f"{flags[name]} must be a whole number from {least}, got {given[name]!r}")
        setattr(arguments, name, int(given[name]))
    if arguments.process_id >= arguments.process_count:
        raise BadInput(
            f"process {arguments.process_id} of {arguments.process_count}: the processes are numbered from 0 to"
            f" {arguments.process_count - 1}"
        )
    return True


def _meet(arguments: Namespace) -> None:
    """Wait for all processes; where they do not come in time, say so and end this one.

    JAX ends the process itself when its own limit is over, without a word on what to do, so ours comes before.
    """
    limit = arguments.join_timeout or JOIN_TIMEOUT
    number, count = arguments.process_id, arguments.process_count

    def late() -> None:
        print(
            f"manual-backprop train: process {number} of {count} has waited {limit} seconds for the others at"
            f" {arguments.coordinator}: see that all {count} were started, each with a number of its own, and that"
            " this address is process 0's and can be reached; --join-timeout sets the limit",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    clock = threading.Timer(limit, late)
    clock.daemon = True
    clock.start()
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            arguments.coordinator,
            count,
            number,
            initialization_timeout=limit + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LEAVE_TIMEOUT,
        )
        jax.process_count()  # the devices of all processes are known from here on
    finally:
        clock.cancel()
