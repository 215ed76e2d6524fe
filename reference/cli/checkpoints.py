"""Checkpoints of a training run by orbax-checkpoint: written beside the work, whole or not there, the last few kept."""

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.cli import processes
from reference.cli.files import BadInput
from reference.cli.flags import refuse

OPTIONS = ("every", "keep", "resume")
KEPT = 3
USUAL = 10  # checkpoints of a run, where nothing else is asked for: a small one takes a tenth of a second to write
ENDING = 2.0  # seconds: so long may a run that was stopped take to end, when another begins in its place
FOLDERS = {"by hand": "by_hand", "by jax.grad": "by_jax_grad"}
Described = Mapping[str, Any]
"""A run in words: names of arguments and their values, as JSON has them."""


class Nowhere:
    """The checkpoints of a run that asked for none: there is nothing to go on from, and nothing is written."""

    curve: tuple[float, ...] = ()

    def restored(self, state: Any) -> Any:
        """The state to begin with: the given one, or that of the newest whole checkpoint."""
        return state

    def keep(self, state: Any, curve: Sequence[float], *, last: bool) -> None:
        """Write the state after `len(curve)` rounds, where one is due; `last` says that no other follows."""


class Checkpoints(Nowhere):
    """One run's checkpoints, in a folder of its own; process 0 alone reads and writes them.

    Attributes:
        curve: the losses so far, one a round; none where training begins at the start.
    """

    def __init__(self, folder: Path, manager: Any, run: Described, every: int) -> None:
        self._folder, self._manager, self._run, self._every = folder, manager, run, every
        self._arrays = self._newest()
        self.curve = tuple(map(float, self._arrays.pop("curve", ())))

    def restored(self, state: Any) -> Any:
        """The newest checkpoint in the form of this state; the state itself where there is none."""
        if not self._arrays:
            return state
        expected, found = (
            {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
            for arrays in (_named(state), self._arrays)
        )
        other = processes.differing(found, expected, "there", "here")
        if other:
            raise BadInput(f"{self._folder} holds checkpoints of other arrays: {other}; name another folder")
        return jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(self._arrays[name]) for name in expected])

    def keep(self, state: Any, curve: Sequence[float], *, last: bool) -> None:
        """Write a checkpoint, where one is due or this is the last; a state that stands there is not written again."""
        if len(curve) == len(self.curve) or not (last or len(curve) % self._every == 0):
            return
        import orbax.checkpoint as ocp

        arrays = {name: np.array(leaf) for name, leaf in _named(state).items()}  # copies: the next step takes memory
        arrays["curve"] = np.asarray(curve, np.float64)
        described = {"run": self._run, "sha256": digest(arrays)}
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), described=ocp.args.JsonSave(described))
        try:
            self._manager.save(len(curve), args=args, force=True)
            if last:
                self._manager.wait_until_finished()
        except Exception as error:
            raise BadInput(f"cannot write a checkpoint to {self._folder}: {error}") from error

    def _newest(self) -> dict[str, np.ndarray]:
        """The arrays of the newest checkpoint that is whole, {} without one; damaged ones are set aside and named."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                arrays, described = self._read(step)
            except Exception as error:  # of many kinds: whatever orbax and what it stands on say of a damaged file
                aside = self._set_aside(step)
                said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                print(f"checkpoint {self._folder / str(step)} is damaged, now {aside}: {said}", file=sys.stderr)
                continue
            other = processes.differing(described["run"], self._run, "there", "here")
            if other:
                raise BadInput(
                    f"{self._folder} holds checkpoints of another run: {other}; give the same arguments again, or"
                    " --checkpoint another folder"
                )
            return arrays
        return {}

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(), described=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        if digest(found.arrays) != found.described["sha256"]:
            raise ValueError("its numbers are not those that were written")
        return dict(found.arrays), dict(found.described)

    def _set_aside(self, step: int) -> Path:
        taken = len(list(self._folder.glob(f"damaged-{step}-*")))
        aside = (self._folder / str(step)).rename(self._folder / f"damaged-{step}-{taken}")
        self._manager.reload()
        return aside


@dataclass(frozen=True)
class Plan:
    """Of the two runs of one command.

    Attributes:
        run: what a checkpoint must agree with.
        rounds: how many the run by hand has, and that by jax.grad.
        what: a round is called.
    """

    run: Described
    rounds: tuple[int, int]
    what: str


@contextmanager
def opened(arguments: Namespace, plan: Plan) -> Iterator[Sequence[Nowhere]]:
    """The checkpoints of the run by hand and of that by jax.grad; what is being written is finished on leaving.

    Raises:
        BadInput: a flag without --checkpoint, no orbax-checkpoint, a folder that cannot be used, checkpoints that are
            there already without --resume, those of another run, or a run that goes on there at this moment.
    """
    with ExitStack() as managers:
        kept = processes.together(lambda: _begun(arguments, plan, managers))
        curves = json.loads(processes.gathered(json.dumps([one.curve for one in kept]))[0])
        for one, curve in zip(kept, curves, strict=True):
            one.curve = tuple(curve)
        yield kept


def _begun(arguments: Namespace, plan: Plan, managers: ExitStack) -> Sequence[Nowhere]:
    if arguments.checkpoint is None:
        refuse(arguments, OPTIONS, "cannot go without --checkpoint DIR, the folder to keep checkpoints in: add it")
    if arguments.checkpoint is None or not processes.first():
        return Nowhere(), Nowhere()
    try:
        import filelock  # noqa: F401 - of `_alone_in`
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise BadInput(
            "--checkpoint needs orbax-checkpoint and filelock, which are not installed; in the clone of the repository,"
            ' run python -m pip install -e ".[checkpoint]"'
        ) from error
    folder, begun = Path(arguments.checkpoint).absolute(), []
    managers.enter_context(_alone_in(folder))
    if not arguments.resume and any(path.name.isdigit() for path in folder.glob("by_*/*")):
        raise BadInput(f"{folder} holds checkpoints already: add --resume to go on from them, or name another folder")
    managers.enter_context(_late_readers_unheard())
    for (who, name), rounds in zip(FOLDERS.items(), plan.rounds, strict=True):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=arguments.keep or KEPT,
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix=name
            ),
        )
        manager = managers.enter_context(ocp.CheckpointManager(folder / name, options=options))
        begun.append(Checkpoints(folder / name, manager, plan.run, arguments.every or max(1, rounds // USUAL)))
        done = len(begun[-1].curve)
        if done > rounds:
            raise BadInput(f"{folder / name} has done {done} {plan.what}s, more than the {rounds} asked for")
        if arguments.resume:
            stands = f"goes on after {plan.what} {done} of {rounds}" if done else "nothing kept, begins anew"
            print(f"{who}: {stands}")
    return begun


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs from it; the system lets them in when a process ends, however it ends.

    Two runs would remove what the other is writing, and each would take the other's checkpoints for its own.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "in_use.lock")
    try:
        for name in FOLDERS.values():
            (folder / name).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=ENDING)
    except Timeout as error:
        raise BadInput(
            f"another run keeps checkpoints in {folder}; wait until it ends, stop it, or name another folder"
        ) from error
    except OSError as error:
        raise BadInput(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _late_readers_unheard() -> Iterator[None]:
    """Arrays are read side by side; those that fail after the first did would complain that nobody waits for them."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def digest(tree: Any) -> str:
    """The beginning of the SHA-256 of a tree's arrays: their places, dtypes, shapes and entries."""
    found = hashlib.sha256()
    for name, leaf in sorted(_named(tree).items()):
        array = np.asarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their places."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
