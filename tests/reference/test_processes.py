"""`train` in several processes: what one trains, two train to rounding; killed and resumed; refused in words."""

import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from helpers import as_a_user, small_gpt

from reference import cli
from reference.cli import launch, processes
from reference.cli.files import BadInput

FLOAT32 = 1e-5  # of an array's largest entry, after the steps that are taken here
SMALL = ["--hidden", "4", "--batch", "17", "--epochs", "3", "--optimizer", "sgd", "--learning-rate", "0.1"]
GPT = small_gpt(batch=5)
COMMAND = [sys.executable, "-c", "import sys; from reference.cli import main; sys.exit(main())", "train"]


@pytest.fixture(autouse=True)
def _as_a_user():
    with as_a_user():
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Labels of 61 examples, of which 49 are trained on: neither batches nor processes divide them."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(61, 3))
    np.savez(path, x=x, y=(x @ rng.normal(size=(3, 3))).argmax(axis=1))
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("abcdefgh\n" * 60, encoding="utf-8")
    return str(path)


def environment(devices=1, **more):
    """Fewer devices in each process than the tests have."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return os.environ | {"XLA_FLAGS": flags} | more


def run(*arguments, devices=1, **more):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment(devices, **more)
    )
    return done.returncode, done.stdout, done.stderr


def started_as(code):
    """The command, which starts processes that run this code instead of `train`."""
    begin = f"import sys; from reference.cli import launch, main; launch.BEGIN = {code!r}; sys.exit(main())"
    return [sys.executable, "-c", begin, "train"]


def apart(left, right):
    """How far the arrays of two files are from each other, of the largest entry of each."""
    left, right = np.load(left), np.load(right)
    names = [name for name in left.files if left[name].dtype.kind == "f"]
    assert names
    return max(np.abs(left[name] - right[name]).max() / np.abs(left[name]).max() for name in names)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def of_a_launcher(port, *each, **more):
    """Start the command once for each list of arguments, wait for all, and return (status, stdout, stderr) of each."""
    started = [
        subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | more
        )
        for arguments in each
    ]
    said = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def numbered(port, count, number):
    return ["--coordinator", f"localhost:{port}", "--process-count", str(count), "--process-id", str(number)]


def losses(text):
    """The column of the loss by hand, of each of the three epochs."""
    return [float(line.split()[1]) for line in text.splitlines() if line[:2] in ("1 ", "2 ", "3 ")]


def test_two_processes_train_what_one_trains_and_a_run_goes_on_bit_for_bit(capsys, tmp_path, table, in_two_processes):
    """Two devices in each: batches of 17 and a last one of 15 are filled up to 20."""
    one = tmp_path / "one.npz"
    assert cli.main(["train", "--data", table, *SMALL, "--save", str(one)]) == 0
    alone = capsys.readouterr().out
    out, trained, again = in_two_processes
    whole, resumed, _ = out.split(BETWEEN)
    assert whole.splitlines()[0] == alone.splitlines()[0]  # and nothing of what connects the processes
    assert "\nin 2 processes, on 4 devices\n" in whole
    assert whole.count("loss curves: equal to rounding") == 1
    assert apart(one, trained) < FLOAT32
    assert len(losses(whole)) == 3
    np.testing.assert_allclose(losses(whole), losses(alone), rtol=1e-5)
    assert "by hand: goes on after epoch 1 of 3\nby jax.grad: goes on after epoch 1 of 3\n" in resumed
    assert again.read_bytes() == trained.read_bytes()
    assert losses(resumed) == losses(whole)


def test_processes_name_what_differs_and_take_arrays_whose_rows_lie_in_others(in_two_processes):
    """Eagerly, where the library looks at values; by jit in an epoch, to 1e-12; and what needs whole arrays says so."""
    out, _, _ = in_two_processes
    assert out.endswith("equal\n")


WAITING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def test_where_one_is_killed_the_others_are_stopped_at_once_and_the_command_says_so():
    """The processes only wait here; what is left of a run that is killed is in `test_checkpoints`."""
    command = subprocess.Popen(
        [*started_as(WAITING), "--checkpoint", "kept", "--processes", "2"], stderr=subprocess.PIPE, text=True
    )
    while len(found := children(command.pid)) < 2:
        assert command.poll() is None
        time.sleep(0.01)
    (second,) = (pid for pid, number in found if number == 1)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    _, said = command.communicate(timeout=60)
    assert time.monotonic() - killed < 5
    assert command.returncode == 128 + signal.SIGKILL
    assert (
        "process 1 of 2 was killed by SIGKILL, so the others were stopped; run the same command with --resume to go on"
        " from the last checkpoint in kept" in said
    )
    assert children(command.pid) == []


@pytest.mark.evidence
def test_a_run_of_two_that_is_killed_goes_on_bit_for_bit(tmp_path, table, in_two_processes):
    again, folder = tmp_path / "again.npz", tmp_path / "kept"
    kept = ["--data", table, *SMALL, "--checkpoint", str(folder), "--processes", "2", "--save", str(again)]
    command = subprocess.Popen(
        [*COMMAND, *kept], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(2)
    )
    while not any((folder / "by_hand").glob("[1-9]")):
        assert command.poll() is None
        time.sleep(0.001)
    (second,) = (pid for pid, number in children(command.pid) if number == 1)
    os.kill(second, signal.SIGKILL)
    assert command.wait(timeout=60) == 128 + signal.SIGKILL
    status, out, err = run(*kept, "--resume", devices=2)
    assert status == 0, err
    assert "by hand: goes on after epoch " in out
    _, trained, _ = in_two_processes
    assert again.read_bytes() == trained.read_bytes()


def children(parent):
    """(process id, its number among the processes) of what the command has started."""
    found = []
    for folder in os.scandir("/proc"):
        if folder.name.isdigit():
            try:
                with open(f"/proc/{folder.name}/stat") as stat, open(f"/proc/{folder.name}/cmdline") as line:
                    words, own = line.read(), int(stat.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            number = words.partition('"process_id": ')[2].partition(",")[0]
            if own == parent and number.isdigit():  # else it has just begun and runs its parent's words yet
                found.append((int(folder.name), int(number)))
    return found


def test_what_one_process_cannot_use_is_said_by_all_of_them(table):
    """From the environment, as a launcher would have it, the number among the flags."""
    port = free_port()
    named = {"MANUAL_BACKPROP_COORDINATOR": f"localhost:{port}", "MANUAL_BACKPROP_PROCESS_COUNT": "2"}
    found = of_a_launcher(
        port,
        ["--data", table, *SMALL, "--process-id", "0"],
        ["--data", f"{table}.none", *SMALL, "--process-id", "1"],
        **named,
    )
    for status, out, err in found:
        assert (status, out) == (2, "")
        assert f"process 1 of 2: there is no file {table}.none" in err


def test_a_process_that_waits_for_others_in_vain_says_so(table):
    status, out, err = run("--data", table, *SMALL, *numbered(free_port(), 2, 0), "--join-timeout", "1")
    assert status == 2
    assert out == ""
    assert "process 0 of 2 has waited 1 seconds for the others at localhost:" in err
    assert "--join-timeout sets the limit" in err


@pytest.mark.evidence
def test_bad_input_of_a_run_in_several_processes_is_said_once(table, tmp_path):
    status, out, err = run("--data", f"{table}.none", *SMALL, "--processes", "2")
    assert (status, out) == (2, "")
    assert [line for line in err.splitlines() if "there is no file" in line] == [
        f"manual-backprop train: there is no file {table}.none"
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--processes", "2", "--coordinator", "a:1"], "--coordinator cannot go with --processes"),
        (["--processes", "2", "--process-id", "0"], "--process-id cannot go with --processes"),
        (["--coordinator", "a:1", "--process-count", "2"], "--process-id or MANUAL_BACKPROP_PROCESS_ID is missing"),
        (["--process-id", "0"], "--coordinator or MANUAL_BACKPROP_COORDINATOR is missing"),
        (
            ["--coordinator", "a:1", "--process-count", "2", "--process-id", "2"],
            "process 2 of 2: the processes are numbered from 0 to 1",
        ),
        (
            ["--coordinator", "a", "--process-count", "2", "--process-id", "0"],
            "must be HOST:PORT of process 0, got 'a'",
        ),
        (["--coordinator", "a:x", "--process-count", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--coordinator", "a:99999", "--process-count", "2", "--process-id", "0"], "must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, arguments, says):
    assert cli.main(["train", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "number", "says"),
    [("--processes", "0", "1 or more"), ("--process-count", "0", "1 or more"), ("--process-id", "-1", "0 or more")],
)
def test_numbers_out_of_range_are_refused(capsys, flag, number, says):
    with pytest.raises(SystemExit):
        cli.main(["train", flag, number])
    assert f"must be {says}, got {number}" in capsys.readouterr().err


def test_what_the_environment_says_is_checked_as_well(monkeypatch):
    for name, value in (("COORDINATOR", "a:1"), ("PROCESS_COUNT", "two"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"MANUAL_BACKPROP_{name}", value)
    with (
        pytest.raises(BadInput, match="MANUAL_BACKPROP_PROCESS_COUNT must be a whole number from 1, got 'two'"),
        processes.joined(Namespace(coordinator=None, process_count=None, process_id=None)),
    ):
        pass


TOGETHER = """
import contextlib, io, shutil, sys, jax, numpy as np, jax.numpy as jnp
from pathlib import Path
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import optax, manual_backprop as mb, reference
from reference.cli import main, spread

number, command, folder, again, between = jax.process_index(), COMMAND, Path(FOLDER), AGAIN, BETWEEN
print(between, end="")
if number == 0:
    for epoch in folder.glob("by_*/[23]"):
        shutil.rmtree(epoch)
assert main([*command, "--checkpoint", str(folder), "--resume", "--save", again]) == 0
print(between, end="")

said, printed = io.StringIO(), io.StringIO()
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
    assert main([*command, *(["--lam", "0.5", "--epochs", "9"] if number == 1 else [])]) == 2
assert (
    "--lam is 0.001 in process 0 and 0.5 in process 1, --epochs is 3 in process 0 and 9 in process 1" in said.getvalue()
)
assert printed.getvalue() == ""

jax.config.update("jax_enable_x64", True)
rows = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), P("data"))

def shared(array):
    return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])

rng = np.random.default_rng(0)
net = mb.Embedding(7, 3, "tanh")
objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), "float64"))
params = jax.tree.map(lambda leaf: jax.device_put(rng.normal(size=leaf.shape)), shapes)
x, y = rng.integers(0, 7, 8), rng.integers(0, 3, 8)
value, gradient = mb.value_and_grad(objective)(params, shared(x), shared(y))
by_one = jax.jit(reference.value_and_grad(objective))(params, x, y)
for ours, theirs in zip(jax.tree.leaves((value, gradient)), jax.tree.leaves(by_one), strict=True):
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-12 * np.abs(theirs).max()

epoch = mb.training.make_epoch(objective, optax.sgd(0.1), 3)
copy = lambda: jax.tree.map(jnp.array, params)
key = jax.random.key(1)
state = optax.sgd(0.1).init(params)
one = epoch(copy(), state, key, x, y)
of_rows = epoch(copy(), state, key, shared(x), shared(y))
spread_epoch = spread.make_epoch(objective, optax.sgd(0.1), 3, mb.value_and_grad)
by_command = spread_epoch(spread.everywhere(copy()), state, key, x, y)
for two in (of_rows, by_command):
    for ours, theirs in zip(jax.tree.leaves((two[0], two[2])), jax.tree.leaves((one[0], one[2])), strict=True):
        assert np.abs(np.asarray(ours) - theirs).max() <= 1e-12 * np.abs(theirs).max()
signed = spread.everywhere((np.float32([-0.0, np.nan]), jnp.asarray(3)))
assert np.signbit(np.asarray(signed[0])[0]) and np.isnan(np.asarray(signed[0])[1]) and int(signed[1]) == 3

def refused(call, says):
    try:
        call()
    except ValueError as error:
        assert says in str(error), str(error)
    else:
        raise AssertionError(says)

wrong_id, wrong_label = np.where(x == x[0], 7, x), np.where(y == y[0], 3, y)
wrong_id[-1], wrong_label[-1] = 7, 3
wrong_id[0], wrong_label[0] = 7, 3
refused(lambda: mb.value_and_grad(objective)(params, shared(wrong_id), shared(y)), "ids must lie in 0..6")
refused(lambda: mb.value_and_grad(objective)(params, shared(x), shared(wrong_label)), "must lie in 0..2")
for call in (reference.check, mb.forward_graph, mb.backward_graph):
    refused(lambda: call(objective, params, shared(x), shared(y)), "process_allgather(tree, tiled=True)")
whole = multihost_utils.process_allgather((shared(x), shared(y)), tiled=True)
np.testing.assert_array_equal(whole[0], x)
print("equal")
"""
BEFORE_LEAVING = """
import sys, jax
from reference.cli.command import begin

leave = jax.distributed.shutdown

def last():
    jax.distributed.shutdown = leave
    exec(TOGETHER, {})
    leave()

jax.distributed.shutdown = last
sys.exit(begin(sys.argv[1]))
"""
BETWEEN = "-- and then --\n"


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, table):
    """What a run of two prints, the network that it trains, and that which it trains from its first checkpoint on.

    Before they leave, the two go on from there, and do what `TOGETHER` says.
    """
    folder = tmp_path_factory.mktemp("together")
    trained, again, kept = folder / "net.npz", folder / "again.npz", folder / "kept"
    command = ["train", "--data", table, *SMALL]
    given = {"COMMAND": command, "FOLDER": str(kept), "AGAIN": str(again), "BETWEEN": BETWEEN}
    words = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    code = f"TOGETHER = {words + TOGETHER!r}\n{BEFORE_LEAVING}"
    arguments = [*command[1:], "--checkpoint", str(kept), "--processes", "2", "--save", str(trained)]
    done = subprocess.run(
        [*started_as(code), *arguments], capture_output=True, text=True, check=False, env=environment(2), timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, trained, again


def test_where_processes_end_in_good_order_nobody_is_dead():
    """The status of each: what one says at last is known as soon as it has ended."""

    def ended(*statuses):
        code = "import sys, time; time.sleep(float(sys.argv[2])); sys.exit(int(sys.argv[1]))"
        started = [subprocess.Popen([sys.executable, "-S", "-c", code, str(s), str(t)]) for s, t in statuses]
        dead = launch._first_dead(started)
        launch._stop(started)
        return dead

    assert ended((0, 0), (0, 0.2)) is None
    assert ended((1, 0.2), (0, 0)) is None  # the curves part: process 0 says so by its status
    assert ended((2, 0.2), (2, 0)) is None  # all refuse
    assert ended((0, 9), (134, 0)) == 1


@pytest.mark.evidence
def test_a_launcher_loses_a_process_and_the_others_end(tmp_path, table):
    """In words where they wait for the dead; by JAX, after its heartbeat, wherever else they are."""
    port, folder = free_port(), tmp_path / "kept"
    arguments = ["--data", table, *SMALL, "--epochs", "5000", "--checkpoint", str(folder), "--every", "10"]
    started = [
        subprocess.Popen(
            [*COMMAND, *arguments, *numbered(port, 3, number)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for number in range(3)
    ]
    while not any((folder / "by_hand").glob("[1-9]*")):
        assert started[0].poll() is None
        time.sleep(0.01)
    started[1].kill()
    killed = time.monotonic()
    said = [process.communicate(timeout=120)[1] for process in started]
    assert time.monotonic() - killed < 40
    assert [process.returncode in (1, -signal.SIGABRT) for process in started] == [True, False, True]
    assert "has lost another one" in said[0] or "heartbeat" in said[0], said[0]


@pytest.mark.evidence
def test_processes_end_with_the_one_that_started_them(tmp_path, table):
    folder = tmp_path / "kept"
    arguments = [
        "--data",
        table,
        *SMALL,
        "--epochs",
        "5000",
        "--checkpoint",
        str(folder),
        "--processes",
        "2",
        "--every",
        "10",
    ]
    command = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    while not any((folder / "by_hand").glob("[1-9]*")):
        assert command.poll() is None
        time.sleep(0.01)
    theirs = [pid for pid, _ in children(command.pid)]
    assert len(theirs) == 2
    command.kill()
    command.wait()
    end = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in theirs):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.evidence
@pytest.mark.parametrize("kind", ["data", "text"])
def test_four_processes_give_the_numbers_of_one(capsys, tmp_path, table, words, kind):
    arguments = {"data": ["--data", table, *SMALL], "text": ["--text", words, *GPT]}[kind]
    one, more = tmp_path / "one.npz", tmp_path / "more.npz"
    assert cli.main(["train", *arguments, "--save", str(one)]) == 0
    status, _, err = run(*arguments, "--processes", "4", "--save", str(more))
    assert status == 0, err
    assert apart(one, more) < FLOAT32


@pytest.mark.evidence
def test_a_run_of_two_goes_on_with_four_and_with_one(capsys, tmp_path, table):
    """The same numbers, to rounding, as one process from the beginning."""
    one, more, folder = tmp_path / "one.npz", tmp_path / "more.npz", tmp_path / "kept"
    assert cli.main(["train", "--data", table, *SMALL, "--save", str(one)]) == 0
    part = ["--data", table, *SMALL, "--checkpoint", str(folder), "--save", str(more)]
    assert run(*part, "--epochs", "1", "--processes", "2")[0] == 0
    status, out, err = run(*part, "--epochs", "2", "--processes", "4", "--resume")
    assert status == 0, err
    assert "goes on after epoch 1 of 2" in out
    capsys.readouterr()
    assert cli.main(["train", *part, "--resume"]) == 0
    assert "goes on after epoch 2 of 3" in capsys.readouterr().out
    assert apart(one, more) < FLOAT32
