"""`train --checkpoint`: stopped at any moment and resumed, a run ends in the numbers of one that was left alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from helpers import as_a_user, small_gpt

from reference import cli
from reference.cli import checkpoints

EPOCHS = 8
SMALL = ["--hidden", "4", "--batch", "16", "--epochs", str(EPOCHS)]
GPT = small_gpt(batch=4)
COMMAND = "import sys; from reference.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def _as_a_user():
    with as_a_user():
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Values to learn: 61 examples, of which 49 are trained on, which no batch of 16 divides."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(61, 3))
    np.savez(path, x=x, y=x @ rng.normal(size=(3, 2)))
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("abcdefgh\n" * 60, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory):
    """What a run writes that nobody stops and that keeps no checkpoints."""
    path = tmp_path_factory.mktemp("alone") / "net.npz"
    with as_a_user():
        assert cli.main(["train", "--data", table, *SMALL, "--save", str(path)]) == 0
    return path


def run(capsys, *arguments):
    status = cli.main(["train", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def started(table, folder, *more):
    command = [sys.executable, "-c", COMMAND, "train", "--data", table, *SMALL, "--checkpoint", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process, condition):
    """Kill a process without a warning as soon as a condition holds, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_goes_on_from_what_is_kept_bit_for_bit(capsys, tmp_path, table, alone):
    """Of more epochs than at first, both runs; what is kept is the last three."""
    folder, saved = str(tmp_path / "kept"), tmp_path / "net.npz"
    half = [*SMALL[:-1], "5", "--checkpoint", folder, "--every", "2"]
    status, _, _ = run(capsys, "--data", table, *half)
    assert status == 0
    assert sorted(os.listdir(tmp_path / "kept" / "by_hand")) == ["2", "4", "5"]
    again = ["--data", table, *SMALL, "--checkpoint", folder, "--save", str(saved)]
    status, out, err = run(capsys, *again, "--resume")
    assert status == 0
    assert f"by hand: goes on after epoch 5 of {EPOCHS}\nby jax.grad: goes on after epoch 5 of {EPOCHS}\n" in out
    assert f"epochs: 0 of {2 * (EPOCHS - 5)}" in err
    assert "\n1 " in out  # the losses before are in the table
    assert saved.read_bytes() == alone.read_bytes()
    assert sorted(os.listdir(tmp_path / "kept" / "by_jax_grad")) == ["6", "7", "8"]

    status, finished, err = run(capsys, *again, "--resume", "--keep", "1")  # there is nothing left to do
    assert status == 0
    assert finished.split("J by epoch")[1] == out.split("J by epoch")[1]
    assert "epochs: 0 of 0" in err
    assert saved.read_bytes() == alone.read_bytes()


def test_a_run_killed_during_a_write_ends_in_the_same_numbers(capsys, tmp_path, table, alone):
    """Without warning; `test_processes` kills one after a write, and the next test again and again."""
    folder, saved = tmp_path / "kept", tmp_path / "net.npz"
    process = started(table, folder)

    def writing_another():
        return any((folder / "by_hand").glob("[1-9]")) and any(folder.glob("*/*tmp*"))

    kill_when(process, writing_another)
    assert process.returncode == -signal.SIGKILL
    left = sorted(path.name for path in folder.glob("*/*"))
    status, out, _ = run(capsys, "--data", table, *SMALL, "--checkpoint", str(folder), "--resume", "--save", str(saved))
    assert status == 0
    assert "goes on after epoch" in out
    assert saved.read_bytes() == alone.read_bytes(), left
    assert not any(folder.glob("*/*tmp*"))


@pytest.mark.evidence
def test_a_run_killed_again_and_again_ends_in_the_same_numbers(capsys, tmp_path, table, alone):
    """Every time a little after it has kept one more."""
    folder, saved, kills = tmp_path / "kept", tmp_path / "net.npz", 0
    for _ in range(60):
        before = {path.name for path in folder.glob("*/[0-9]*") if path.name.isdigit()}
        process = started(table, folder, "--resume", "--save", str(saved))

        def one_more(before=before):
            return {path.name for path in folder.glob("*/[0-9]*") if path.name.isdigit()} - before

        kill_when(process, one_more)
        if process.returncode == 0:
            break
        kills += 1
    assert process.returncode == 0
    assert kills > 3
    assert saved.read_bytes() == alone.read_bytes()


def flip(file):
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def tampered(folder):
    """A number changed by a right hand: a checkpoint that reads well, and is not what was written."""
    file = folder / "described" / "metadata"
    text = file.read_text()
    at = text.index('"sha256": "') + len('"sha256": "')
    file.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


DAMAGES = {
    ("by_hand", "5"): lambda folder: [flip(file) for file in (folder / "arrays" / "d").iterdir()],
    ("by_hand", "4"): lambda folder: os.truncate(largest(folder), 10),
    ("by_hand", "3"): tampered,
    ("by_jax_grad", "5"): lambda folder: shutil.rmtree(folder / "described"),
    ("by_jax_grad", "4"): tampered,
}
"""A bit, a file cut short, a file lost, and other numbers."""


def test_damaged_checkpoints_are_set_aside_and_named_and_the_one_before_them_is_taken(
    capsys, tmp_path, table, alone, kept_five
):
    """All of those by hand, so that this run begins anew; of those by jax.grad all but the oldest."""
    folder, saved = tmp_path / "kept", tmp_path / "net.npz"
    shutil.copytree(kept_five, folder)
    for (who, epoch), damage in DAMAGES.items():
        damage(folder / who / epoch)
    arguments = ["--data", table, *SMALL, "--checkpoint", str(folder), "--resume", "--save", str(saved)]
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert f"by hand: nothing kept, begins anew\nby jax.grad: goes on after epoch 3 of {EPOCHS}\n" in out
    assert saved.read_bytes() == alone.read_bytes()
    for who, epoch in DAMAGES:
        assert f"checkpoint {folder}/{who}/{epoch} is damaged, now {folder}/{who}/damaged-{epoch}-0: " in err
        assert (folder / who / f"damaged-{epoch}-0").is_dir()


@pytest.fixture(scope="module")
def kept_five(table, tmp_path_factory):
    """The checkpoints of five epochs."""
    folder = tmp_path_factory.mktemp("five") / "kept"
    with as_a_user():
        assert cli.main(["train", "--data", table, *SMALL[:-1], "5", "--checkpoint", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (["--batch", "8"], "--batch is 16 there and 8 here; give the same arguments again"),
        (
            ["--hidden", "5"],
            "the network is Dense(3 -> 4, relu) > Dense(4 -> 2, identity) there and Dense(3 -> 5, relu)",
        ),
        (["--seed", "1", "--lam", "0"], "--lam is 0.001 there and 0.0 here, --seed is 0 there and 1 here"),
        (["--optimizer", "sgd"], "--optimizer is adam there and sgd here"),
        (["--learning-rate", "0.1"], "--learning-rate is 0.003 there and 0.1 here"),
        (["--data", "{other}"], "the data is "),
        (["--hidden", "4", "--load", "{alone}"], "--hidden cannot go with --load"),
        (["--epochs", "3"], "by_hand has done 5 epochs, more than the 3 asked for"),
    ],
)
def test_checkpoints_of_another_run_are_refused_with_what_differs(
    capsys, tmp_path, table, alone, kept_five, other, says
):
    x = np.random.default_rng(1).normal(size=(61, 3))
    np.savez(tmp_path / "other.npz", x=x, y=x[:, :2])
    there = sorted(kept_five.rglob("*"))
    other = [word.format(other=tmp_path / "other.npz", alone=alone) for word in other]
    status, _, err = run(capsys, "--data", table, *SMALL, "--checkpoint", str(kept_five), "--resume", *other)
    assert status == 2
    assert says in err
    assert sorted(kept_five.rglob("*")) == there


def test_the_network_that_a_run_began_with_must_be_the_same(capsys, tmp_path, table, alone):
    arguments = ["--data", table, "--epochs", "1", "--checkpoint", str(tmp_path / "kept")]
    assert run(capsys, *arguments, "--load", str(alone))[0] == 0
    assert run(capsys, *arguments, "--load", str(alone), "--resume")[0] == 0
    status, _, err = run(capsys, *arguments, "--hidden", "4", "--resume")
    assert status == 2
    assert "--load is" in err
    assert "and None here" in err


@pytest.mark.evidence
def test_a_run_on_a_text_stopped_and_resumed_ends_in_the_same_numbers(capsys, monkeypatch, tmp_path, words):
    """By hand and by jax.grad, which train alike: windows and learning rate go on as well."""
    arguments, left = ["--text", words, *GPT], tmp_path / "left.npz"
    status, out, _ = run(capsys, *arguments, "--save", str(left))
    assert status == 0
    write = checkpoints.Checkpoints.keep
    saved, kept = tmp_path / "net.npz", ["--checkpoint", str(tmp_path / "kept"), "--every", "2", "--save"]

    def stopping(self, state, curve, *, last):
        write(self, state, curve, last=last)
        if len(curve) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(checkpoints.Checkpoints, "keep", stopping)
        assert run(capsys, *arguments, *kept, str(saved))[0] == 130
    status, again, _ = run(capsys, *arguments, *kept, str(saved), "--resume")
    assert status == 0
    assert "by hand: goes on after step 4 of 9\nby jax.grad: nothing kept, begins anew" in again
    assert again.split("Loss by step")[1].replace(str(saved), "") == out.split("Loss by step")[1].replace(str(left), "")
    assert saved.read_bytes() == left.read_bytes()
    status, _, err = run(capsys, *arguments, "--steps", "12", *kept, str(saved), "--resume")
    assert status == 2
    assert "--steps is 9 there and 12 here" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume"], "--resume cannot go without --checkpoint DIR"),
        (["--every", "3", "--keep", "2"], "--every, --keep cannot go without --checkpoint DIR"),
        (
            ["--checkpoint", "{five}"],
            "holds checkpoints already: add --resume to go on from them, or name another folder",
        ),
        (["--checkpoint", "{table}"], "cannot keep checkpoints in {table}: Not a directory"),
        (["--checkpoint", "/proc/none"], "cannot keep checkpoints in /proc/none: No such file or directory"),
    ],
)
def test_what_cannot_be_is_refused(capsys, table, kept_five, arguments, says):
    names = {"table": table, "five": kept_five}
    there = sorted(kept_five.rglob("*"))
    status, _, err = run(capsys, "--data", table, *SMALL, *(word.format(**names) for word in arguments))
    assert status == 2
    assert says.format(**names) in err
    assert sorted(kept_five.rglob("*")) == there


@pytest.mark.parametrize("flag", ["--every", "--keep"])
def test_numbers_below_one_are_refused(capsys, flag):
    with pytest.raises(SystemExit):
        cli.main(["train", "--checkpoint", "kept", flag, "0"])
    assert "must be 1 or more, got 0" in capsys.readouterr().err


def test_a_tenth_of_a_run_lies_between_checkpoints_that_nobody_counted(capsys, tmp_path, table):
    folder = tmp_path / "kept"
    assert run(capsys, "--data", table, *SMALL[:-1], "35", "--checkpoint", str(folder), "--keep", "99")[0] == 0
    expected = {str(k) for k in range(3, 36, 3)} | {"35"}
    assert {path.name for path in (folder / "by_hand").iterdir()} == expected
    assert {path.name for path in (folder / "by_jax_grad").iterdir()} == expected


def test_without_orbax_the_error_says_how_to_install_it(capsys, monkeypatch, tmp_path, table):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    status, _, err = run(capsys, "--data", table, *SMALL, "--checkpoint", str(tmp_path / "kept"))
    assert status == 2
    assert "needs orbax-checkpoint and filelock, which are not installed" in err
    assert 'python -m pip install -e ".[checkpoint]"' in err


def test_two_runs_never_share_a_folder(capsys, monkeypatch, tmp_path, table):
    """The second is refused before it writes anything, and may have the folder when the first has ended."""
    monkeypatch.setattr(checkpoints, "ENDING", 0.1)
    folder = tmp_path / "kept"
    arguments = ("--data", table, *SMALL[:-1], "1", "--checkpoint", str(folder), "--resume")
    folder.mkdir()
    with FileLock(folder / "in_use.lock"):
        status, _, err = run(capsys, *arguments)
        assert not any(folder.glob("*/*"))
    assert status == 2
    assert f"another run keeps checkpoints in {folder}; wait until it ends, stop it, or name another folder" in err
    assert run(capsys, *arguments)[0] == 0
    with FileLock(folder / "in_use.lock"):  # which is said first: to resume would not help
        assert f"another run keeps checkpoints in {folder}" in run(capsys, *arguments[:-1])[2]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_an_error(capsys, monkeypatch, tmp_path, table):
    import orbax.checkpoint as ocp

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    status, _, err = run(capsys, "--data", table, *SMALL, "--checkpoint", str(tmp_path / "kept"))
    assert status == 2
    assert f"cannot write a checkpoint to {Path(tmp_path)}/kept/by_hand: [Errno 28] No space left on device" in err
