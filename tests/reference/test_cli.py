"""The command: what it prints, where it writes, and how it ends."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_a_user, in_its_own_process

import manual_backprop as mb
from reference import autodiff, cli, compare
from reference.catalogue import proving
from reference.cli import check, train
from reference.cli.command import _parser
from reference.cli.files import BadInput, write_atomically
from reference.reports import formats


@pytest.fixture(autouse=True)
def _as_a_user():
    """The command runs with JAX's defaults, not with the tests' strictness."""
    with as_a_user():
        yield


@pytest.fixture
def broken(monkeypatch):
    """`monkeypatch` for the library itself: what was traced while it was broken is forgotten after."""
    yield monkeypatch
    jax.clear_caches()


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_answers_without_importing_jax():
    code = "import sys; from reference.cli import main\ntry: main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "check" in done.stdout
    assert "train" in done.stdout


def test_check_proves_and_reports(capsys, tmp_path):
    """Exit 0, a table on stdout, progress on stderr, and every row in the file."""
    path = tmp_path / "report.json"
    status, out, err = run(capsys, "check", "--quick", "--only", "*, depth 1, *", "--json", str(path))
    assert status == 0, out
    assert "ALL PROVEN" in out
    assert "networks checked: " in err
    document = json.loads(path.read_text())
    assert document["schema"] == formats.SCHEMA
    assert document["passed"] is True
    assert all("depth 1" in network["name"] for network in document["networks"])
    found = [row for network in document["networks"] for row in network["report"]["rows"]]
    assert f"{len(found)} comparisons on {len(document['networks'])} network" in out
    assert all(row["error"] <= row["tolerance"] for row in found)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_check_list_names_what_it_would_prove(capsys):
    status, out, _ = run(capsys, "check", "--list", "--quick")
    assert status == 0
    assert "mazur-2015" in out.splitlines()
    assert sum(line.startswith("gpt, ") for line in out.splitlines()) == 1
    assert all("depth" in line or line.startswith("gpt, ") for line in out.splitlines()[:-3])


def test_a_broken_library_ends_with_one_and_names_the_place(capsys, broken, tmp_path):
    """lam W counted twice: the command finds it and says so, under GitHub in an annotation and the summary too."""
    right = mb.Frobenius.add_gradient
    broken.setattr(mb.Frobenius, "add_gradient", lambda self, g, *args: right(self, right(self, g, *args), *args))
    broken.setenv("GITHUB_ACTIONS", "true")
    broken.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    path = tmp_path / "report.json"
    status, out, _ = run(capsys, "check", "--only", "coursera", "--json", str(path))
    assert status == 1
    assert "NOT PROVEN" in out
    assert "lam W counted twice" in out
    assert "gradients[0].W" in out
    assert json.loads(path.read_text())["passed"] is False
    assert any(line.startswith("::error ") and "gradients[0].W" in line for line in out.splitlines())
    assert "lam W counted twice" in (tmp_path / "summary.md").read_text()


@pytest.mark.evidence
def test_train_on_digits_reaches_97_percent_and_equals_jax_grad(capsys, tmp_path):
    path = tmp_path / "net.npz"
    status, out, _ = run(capsys, "train", "--save", str(path))
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("held-out accuracy"))
    trained, by_grad = (float(part.split("%")[0]) for part in line.replace("by jax.grad", "").split(", ")[1:])
    assert trained >= 97.0
    assert abs(trained - by_grad) < 0.6
    assert "loss curves: equal to rounding" in out
    status, again, _ = run(capsys, "train", "--load", str(path), "--epochs", "0")
    assert status == 0
    assert f"{trained:.2f}% before" in again


def test_train_on_a_file_of_values_and_save_and_load(capsys, monkeypatch, tmp_path):
    """Of a long run the first epochs are compared."""
    monkeypatch.setattr(train, "COMPARED", 2)
    rng = np.random.default_rng(0)
    x = 5 + 3 * rng.normal(size=(60, 3))
    np.savez(tmp_path / "data.npz", x=x, y=np.sin(x[:, 0]) + x[:, 1])
    arguments = ["--data", str(tmp_path / "data.npz"), "--hidden", "8", "--batch", "16"]
    net = str(tmp_path / "net.npz")
    status, out, _ = run(capsys, "train", *arguments, "--epochs", "3", "--save", net)
    assert status == 0
    assert "held-out R squared" in out
    assert "\nloss curves of the first 2 epochs: equal to rounding, at most" in out
    assert re.search(r"\nafter them: at most \d\.\de[+-]\d\d apart", out)
    loaded = train.load_network(tmp_path / "net.npz")
    assert [node.d_out for node in loaded.net.nodes] == [8, 1]
    np.testing.assert_allclose(loaded.mean, x[np.random.default_rng(0).permutation(60)[12:]].mean(axis=0))
    status, _, err = run(capsys, "train", "--load", net)
    assert status == 2
    assert "the network takes 3 features but the data has 64" in err


def test_values_are_scored_by_the_variance_explained_and_labels_by_those_that_are_right():
    """R squared is 1 - 101 / 202: the deviations of y are from the mean of each output, over the examples."""
    objective = mb.Objective(mb.mlp((2, 2)), mb.squared_error)
    params = (mb.Affine(jnp.eye(2, dtype="float32"), jnp.zeros(2, "float32")),)
    x, y = np.float32([[1, 10], [2, 20]]), np.float32([[0, 10], [2, 30]])
    assert train.score(objective, params, x, y) == pytest.approx(0.5)
    assert train.score(objective, params, x, np.int32([1, 0])) == 0.5


def test_a_training_run_that_parts_from_jax_grad_ends_with_one(capsys, monkeypatch, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    right = mb.value_and_grad

    def wrong(objective):
        def broken(*args, **given):
            J, g = right(objective)(*args, **given)
            return J, jax.tree.map(lambda leaf: 1.01 * leaf, g)

        return broken

    monkeypatch.setattr(mb, "value_and_grad", wrong)
    arguments = ["--data", str(tmp_path / "data.npz"), "--hidden", "8", "--epochs", "5", "--optimizer", "sgd"]
    status, out, _ = run(capsys, "train", *arguments, "--learning-rate", "0.1")
    assert status == 1
    assert "THEY PART" in out


def test_a_run_that_ends_in_nan_late_parts_from_one_that_does_not(capsys):
    curve = np.linspace(2.0, 1.0, train.COMPARED + 2)
    split = train.Split(*(np.eye(2, 1, dtype=np.float32),) * 4, np.zeros(1), np.ones(1), 0)
    objective, params = (
        mb.Objective(mb.Dense(1, 1), mb.squared_error),
        mb.Dense(1, 1).init(jax.random.key(0), jnp.float32),
    )
    lost = np.where(np.arange(len(curve)) < train.COMPARED, curve, np.nan)
    assert train._print(objective, split, (params,) * 3, (curve, curve))
    assert not train._print(objective, split, (params,) * 3, (lost, curve))
    assert "THEY PART" in capsys.readouterr().out


@pytest.mark.evidence
def test_over_a_hundred_epochs_jax_grad_parts_from_itself_as_far_as_from_the_gradient_by_hand():
    """Begun one rounding beside. In the first epochs neither parts."""
    arguments = _parser().parse_args(["train", "--epochs", "100"])
    _, split, net, params = train._prepared(arguments, None)
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(arguments.lam))
    signs = np.random.default_rng(0)

    def beside(leaf):
        return leaf * (1 + np.finfo(np.float32).eps * signs.choice([-1, 0, 1], leaf.shape).astype(np.float32))

    moved = jax.tree.map(beside, params)
    runs = [(params, autodiff.value_and_grad), (params, mb.value_and_grad), (moved, autodiff.value_and_grad)]
    jax_grad, *others = (
        train.train(arguments, objective, start, split, gradient, lambda note: None)[1] for start, gradient in runs
    )
    for other in others:
        apart = np.abs(other - jax_grad) / jax_grad[0]
        assert apart[: train.COMPARED].max() < train.CURVES_EQUAL < apart.max()


def test_a_network_without_biases_is_saved_without_them_and_an_older_file_has_them(tmp_path):
    net = mb.Serial((mb.Dense(3, 4, "tanh", bias=False), mb.Dense(4, 2)))
    params, path = net.init(jax.random.key(0), jnp.float32), tmp_path / "net.npz"
    train.save_network(path, train.Network(net, params, np.zeros(3), np.ones(3)))
    arrays = dict(np.load(path))
    assert set(arrays) == {"0.W", "1.W", "1.b", "mean", "deviation", "description"}
    loaded = train.load_network(path)
    assert loaded.net == net
    assert loaded.params[0].b is None
    for ours, kept in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, kept)
    older = {
        "0.b": np.ones(4, np.float32),
        "description": np.asarray(re.sub(', "bias": (true|false)', "", str(arrays["description"]))),
    }
    np.savez(path, **(arrays | older))
    assert [node.bias for node in train.load_network(path).net.nodes] == [True, True]


def test_a_saved_network_that_was_tampered_with_is_refused(tmp_path):
    net = mb.mlp((3, 2))
    network = train.Network(net, net.init(jax.random.key(0)), np.zeros(3), np.ones(3))
    path = tmp_path / "net.npz"
    train.save_network(path, network)
    arrays = dict(np.load(path))
    unbiased = {"description": np.asarray(str(arrays["description"]).replace("true", "false"))}
    for change in ({"0.W": np.ones((5, 5), np.float32)}, {"description": np.asarray("{}")}, {"0.b": None}, unbiased):
        np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
        with pytest.raises(BadInput, match="is not a network that --save wrote"):
            train.load_network(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def torn(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="No space left on device"):
        write_atomically(path, torn)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_one_page_and_every_other_report_of_the_proof_of_a_published_example(capsys, tmp_path):
    files = {name: tmp_path / f"report.{name}" for name in ("json", "junit", "markdown", "html")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    status, out, _ = run(capsys, "check", "--only", "mazur*", *options)
    assert status == 0, out
    assert "published: mazur-2015" in out
    assert "37 + 32 printed" in out
    for path in files.values():
        assert path.stat().st_size > 500
        assert str(path) in out
    page = files["html"].read_text()
    assert page.index("ALL PROVEN") < page.index("mazur-2015")
    assert page.count("<svg") >= 3  # scatter, norms of delta, differences


def test_an_interrupted_run_keeps_what_it_has_and_says_so(capsys, monkeypatch, tmp_path):
    def one_and_then_ctrl_c(tasks, **options):
        yield from list(proving.prove(tasks[:1], **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "prove", one_and_then_ctrl_c)
    path = tmp_path / "report.json"
    status, out, _ = run(capsys, "check", "--quick", "--only", "float64", "--json", str(path))
    assert status == 130
    assert "stopped early" in out
    document = json.loads(path.read_text())
    assert document["partial"] is True
    assert document["passed"] is False
    assert len(document["networks"]) == 1


USERS = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def cubed(x):
    return x ** 3

cubed.defvjp(lambda x: (x ** 3, x), lambda x, g: ({slope} * x ** 2 * g,))

def energy(x):
    return jnp.sum(x ** 3)

def by_hand(x):
    return {slope} * x ** 2

def wave(x):
    return jnp.sum(jnp.sin(1e4 * x))

def wave_by_hand(x):
    return 1e4 * jnp.cos(1e4 * x)

arguments = (jnp.array([0.5, -1.0, 2.0]),)
"""


@pytest.fixture
def users(monkeypatch, tmp_path):
    """Writes users.py, with the slope that is given, into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users", raising=False)
    yield lambda slope: (tmp_path / "users.py").write_text(USERS.format(slope=slope))
    sys.modules.pop("users", None)


@pytest.mark.parametrize(("slope", "status"), [(3, 0), (2, 1)])
@pytest.mark.parametrize("how", [["users:cubed"], ["users:energy", "--gradient", "users:by_hand", "--witnesses"]])
def test_a_function_of_the_users_is_checked_from_the_shell(capsys, users, tmp_path, slope, status, how):
    users(slope)
    got, out, _ = run(capsys, "check", *how, "--args", "users:arguments", "--json", "report.json")
    assert got == status, out
    assert ("ALL PROVEN" if status == 0 else "a constant factor of 0.666667") in out
    assert out.splitlines()[-2].endswith("on 1 function")  # and not on a network
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["networks"][0]["name"], told["unit"]) == (how[0], "function")


def test_a_gradient_that_rounding_hides_ends_with_three(capsys, users, tmp_path):
    users(3)
    how = ["users:wave", "--gradient", "users:wave_by_hand", "--args", "users:arguments", "--json", "report.json"]
    status, out, _ = run(capsys, "check", *how, "--dtype", "bfloat16")
    assert status == 3, out
    assert "INCONCLUSIVE: 1 of 1 function undecided" in out
    assert "check it in a wider precision" in out
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["verdict"], told["passed"]) == ("inconclusive", False)
    assert run(capsys, "check", *how, "--dtype", "float64")[0] == 0


def test_a_network_that_stays_undecided_ends_with_three(capsys, monkeypatch, tmp_path):
    """Rows that must see every fault at all: none does, however often the network is drawn anew."""

    def redrawn(*given):
        return [replace(task, redraw=lambda seed, task=task: task.build()) for task in proving.tasks(*given)]

    monkeypatch.setattr(compare, "BLIND", 0.0)
    monkeypatch.setattr(proving, "REDRAWN", 1)
    monkeypatch.setattr(check, "tasks", redrawn)
    path = tmp_path / "report.json"
    status, out, _ = run(capsys, "check", "--only", "mazur*", "--json", str(path))
    assert status == 3, out
    assert "INCONCLUSIVE: 1 of 1 network undecided" in out
    assert "1 of the networks drawn anew" in out
    (network,) = json.loads(path.read_text())["networks"]
    assert network["verdict"] == "inconclusive"
    *of_its_values, last = network["report"]["notes"]  # equal entries of b, and N = 1
    assert len(of_its_values) == 2 and last.startswith("drawn anew,")


def test_a_plain_function_is_told_how_to_name_its_gradient(capsys, users):
    users(3)
    status, _, err = run(capsys, "check", "users:energy", "--args", "users:arguments")
    assert status == 2
    assert "users:energy is a plain function" in err
    assert "--gradient users:its_gradient" in err


def test_a_target_without_arguments_is_bad_input(capsys):
    status, _, err = run(capsys, "check", "users:cubed")
    assert status == 2
    assert "--args is missing" in err


@pytest.mark.evidence
def test_every_mutant_of_the_library_is_killed_or_equivalent(tmp_path):
    """The check that this suite rests on sees every fault in every equation of our own gradients' programs.

    In a process of its own, where no annotation is checked at every operation, it takes a third of the time.
    """
    path = tmp_path / "report.json"
    arguments = ["check", "--mutate", "--json", str(path)]
    done = in_its_own_process(f"from reference.cli import main; raise SystemExit(main({arguments!r}))")
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [network["mutation"] for network in json.loads(path.read_text())["networks"]]
    assert sum(len(score["mutants"]) for score in scores) > 15000
    mutants = [mutant for score in scores for mutant in score["mutants"]]
    verdicts = [mutant["verdict"] for mutant in mutants]
    assert "survived" not in verdicts
    assert not [mutant for mutant in mutants if mutant["argument"] and mutant["verdict"] in ("killed", "error")]
    assert verdicts.count("equivalent") < 0.02 * len(verdicts)
