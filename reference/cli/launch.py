"""`train --processes N`: the same command in N processes of this machine, and an eye on all of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from reference.cli.flags import refuse

OF_ONE = ("coordinator", "process_count", "process_id")
GRACE = 5.0  # seconds that all processes have to end after one has refused its input
BEGIN = "import sys; from reference.cli.command import begin; sys.exit(begin(sys.argv[1]))"


def run(arguments: Namespace) -> int:
    """Run the command in several processes, and return the exit status of the first.

    The first prints. Where one dies, all are stopped at once, and the status is that of the dead: 128 more than the
    signal where one has killed it.

    Raises:
        BadInput: a flag that is for one process of a launcher's.
    """
    refuse(arguments, OF_ONE, "cannot go with --processes, which starts and numbers the processes itself: leave it out")
    count = arguments.processes
    with ExitStack() as ended:
        folder = Path(ended.enter_context(tempfile.TemporaryDirectory()))
        coordinator = f"localhost:{_free_port()}"
        children: list[subprocess.Popen] = []
        ended.callback(_stop, children)
        for number in range(count):
            own = {"coordinator": coordinator, "process_count": count, "process_id": number, "processes": None}
            words = json.dumps(vars(arguments) | own)
            said = None if number == 0 else ended.enter_context((folder / str(number)).open("wb"))
            children.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", BEGIN, words],
                    stdin=subprocess.PIPE,
                    stdout=None if number == 0 else subprocess.DEVNULL,
                    stderr=said,
                    env={"JAX_PLATFORMS": "cpu"} | os.environ,
                    start_new_session=True,
                )
            )
        dead = _first_dead(children)
        if dead is None:
            return children[0].returncode
        _stop(children)
        if dead:
            print((folder / str(dead)).read_text(errors="replace"), end="", file=sys.stderr)
        status = children[dead].returncode
        print(_told(dead, count, status, arguments.checkpoint), file=sys.stderr)
        return 128 - status if status < 0 else status


def _first_dead(children: Sequence[subprocess.Popen]) -> int | None:
    """Wait; return the number of a process that died before the others, or None where all have ended in good order."""
    refused: float | None = None
    while None in [child.poll() for child in children]:  # every one is asked, each time
        for number, child in enumerate(children):
            status = child.returncode
            if status is None or status == 0:
                continue
            refused = refused or time.monotonic()
            if status < 0 or status > 2 or time.monotonic() > refused + GRACE:
                return number
        time.sleep(0.02)
    bad = [number for number, child in enumerate(children) if child.returncode not in (0, 1, 2)]
    return bad[0] if bad else None


def _stop(children: Sequence[subprocess.Popen]) -> None:
    """Kill those that still run: JAX takes a milder signal for a notice, and a checkpoint is whole or not there."""
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()


def _told(number: int, count: int, status: int, checkpoint: str | None) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    then = (
        f"run the same command with --resume to go on from the last checkpoint in {checkpoint}"
        if checkpoint is not None
        else "with --checkpoint DIR, a run can go on from where it was"
    )
    return f"manual-backprop train: process {number} of {count} {how}, so the others were stopped; {then}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
