"""The command refuses what it cannot use, flags that do not go together too, and ignores nothing without a word."""

import sys

import jax
import numpy as np
import pytest

import manual_backprop as mb
from reference import cli
from reference.catalogue import data, mutating
from reference.cli import check, train
from reference.cli.files import BadInput


@pytest.fixture(autouse=True)
def _as_a_user():
    """The command runs with JAX's defaults, not with the tests' strictness."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    "arguments",
    [[], ["prove"], ["check", "--seed", "-1"], ["check", "--seed", "x"], ["train", "--batch", "0"],
     ["train", "--learning-rate", "0"], ["train", "--learning-rate", "x"], ["train", "--lam", "-1"],
     ["train", "--hidden", "3,0"]],
)  # fmt: skip
def test_bad_usage_ends_with_two(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "invalid _" not in capsys.readouterr().err  # the name of a function of ours


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "--only", "nonesuch"], "no network is called like 'nonesuch'"),
        (["check", "--json", "{tmp}/missing/report.json"], "does not exist; make it first"),
        (["check", "--json", "{tmp}"], "is a folder; name a file in it"),
        (["train", "--data", "{tmp}/none.npz"], "there is no file"),
        (["train", "--activation", "swish"], "no activation is called 'swish'"),
        (["train", "--save", "{tmp}/missing/net.npz"], "does not exist; make it first"),
        (["train", "--load", "{tmp}/none.npz"], "there is no file"),
        (["train", "--task", "values"], "without --data, the digits are classes"),
        (["train", "--hidden", "", "--activation", "relu"], "--activation cannot go with --hidden ''"),
        (["check", "--dtype", "float32"], "--dtype cannot go without a TARGET"),
        (["check", "--argnums", "0"], "--argnums cannot go without a TARGET"),
        (
            ["check", "--args", "a:b", "--gradient", "a:c", "--raw", "a:d", "--witnesses"],
            "--args, --gradient, --raw, --witnesses cannot go without a TARGET",
        ),
        (["check", "a:b", "--args", "a:c", "--mutate"], "--mutate cannot go with a TARGET"),
        (
            ["check", "a:b", "--import", "c", "--only", "x", "--quick", "--list"],
            "--import, --only, --quick, --list cannot go with a TARGET",
        ),
        (["check", "--list", "--json", "{tmp}/a", "--html", "{tmp}/b"], "--json, --html cannot go with --list"),
        (["check", "--mutate", "--only", ""], "--only takes a part of a network's name"),
        (["check", "a:b", "--args", "a:c", "--witnesses"], "--witnesses differentiate a plain function"),
        (["check", "a:b", "--args", "a:c", "--gradient", "a:d", "--raw", "a:e"], "TARGET itself is plain"),
        (["graph", "--sizes", "4,3", "--theme", "dark"], "--theme cannot go without a picture"),
        (["graph", "--sizes", "4,3", "--theme", "dark", "--out", "{tmp}/a.dot"], "write one, --out with .svg or .png"),
        (["graph", "--sizes", "4,3", "--seed", "0"], "--seed cannot go without --values"),
        (["graph", "--sizes", "4,3", "--activation", "relu"], "--activation cannot go with two --sizes"),
    ],
)
def test_bad_input_ends_with_two_and_says_what_to_do(capsys, tmp_path, arguments, says):
    status, out, err = run(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert status == 2
    assert says in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path):
    status, out, err = run(capsys, "check", "--only", "mazur*", "--html", str(tmp_path / "none" / "page.html"))
    assert status == 2
    assert "make it first" in err
    assert "PROVEN" not in out


GOOD = {"x": np.random.default_rng(0).normal(size=(40, 3)), "y": np.arange(40) % 2}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"y": None}, "it needs the arrays x and y"),
        ({"x": np.ones(40)}, "it must be real numbers (examples, features)"),
        ({"x": np.ones((40, 3), complex)}, "it must be real numbers"),
        ({"x": np.full((40, 3), np.nan)}, "120 entries of nan or inf"),
        ({"y": np.arange(39)}, "40 rows of x but 39 of y"),
        ({"y": np.zeros(40, complex)}, "it must be integer labels"),
        ({"y": -np.ones(40, int)}, "labels in {path} must begin at 0, but begin at -1"),
        ({"y": np.arange(40) % 2 + 0.0}, "may be classes or values: say --task classes or --task values"),
        ({"y": np.arange(40) + 1950}, "go up to 1989, more classes than its 40 examples"),
        ({"x": np.ones((5, 3)), "y": np.zeros(5, int)}, "at least 10 are needed"),
        ({"y": 1 + np.arange(40) % 3}, "begin at 1; number them from 0"),
        ({"y": np.eye(4)[np.arange(40) % 4]}, "y.argmax(axis=1), or say --task values"),
        ({"y": np.asarray(["a"] * 40)}, "y in {path} is text; number them from 0"),
        ({"x": np.asarray([{}] * 40, object)}, "{path} is no .npz file of numbers or text, such as np.savez(FILE, x="),
    ],
)
def test_bad_data_files_are_refused(capsys, tmp_path, changed, says):
    path = tmp_path / "data.npz"
    np.savez(path, **{k: v for k, v in (GOOD | changed).items() if v is not None})
    status, _, err = run(capsys, "train", "--data", str(path))
    assert status == 2
    assert says.format(path=path) in err


def test_a_file_that_is_no_npz_is_refused(capsys, tmp_path):
    path = tmp_path / "data.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04 torn"):
        path.write_bytes(content)
        status, _, err = run(capsys, "train", "--data", str(path))
        assert status == 2
        assert f"{path} is no .npz file" in err


@pytest.mark.parametrize(
    ("y", "task", "classes", "shape"),
    [
        (np.arange(40) % 3, None, 3, (40,)),
        (np.arange(40) % 3, "values", 0, (40, 1)),
        (np.arange(40) % 3 + 0.0, "classes", 3, (40,)),
        (np.arange(40) % 3 + 0.0, "values", 0, (40, 1)),
        (np.arange(40) % 3 + 0.5, None, 0, (40, 1)),
        (np.zeros((40, 1)), None, 0, (40, 1)),
        (np.zeros((40, 2), int), "values", 0, (40, 2)),
    ],
)
def test_targets_are_classes_or_values(tmp_path, y, task, classes, shape):
    """Whole numbers in floats may be either, as the values of scikit-learn's diabetes are."""
    np.savez(tmp_path / "data.npz", x=GOOD["x"], y=y)
    found = train._examples(str(tmp_path / "data.npz"), task)
    assert (found.classes, found.y.shape, found.y.dtype.kind) == (classes, shape, "i" if classes else "f")


@pytest.mark.parametrize("y", [np.zeros((40, 1)), np.arange(40) + 0.5])
def test_targets_that_are_no_classes(tmp_path, y):
    np.savez(tmp_path / "data.npz", x=GOOD["x"], y=y)
    with pytest.raises(BadInput, match="labels must be whole numbers, one for each example"):
        train._examples(str(tmp_path / "data.npz"), "classes")


def test_a_saved_network_has_its_own_layers_and_outputs(capsys, tmp_path):
    net, path, values = mb.mlp((3, 2)), str(tmp_path / "net.npz"), str(tmp_path / "data.npz")
    params = (mb.Affine(np.zeros((2, 3), np.float32), np.zeros(2, np.float32)),)
    train.save_network(tmp_path / "net.npz", train.Network(net, params, np.zeros(3), np.ones(3)))
    np.savez(values, x=GOOD["x"], y=GOOD["x"][:, 0])
    for asked in (["--hidden", "9"], ["--activation", "relu"]):
        status, _, err = run(capsys, "train", "--load", path, *asked)
        assert status == 2
        assert f"{asked[0]} cannot go with --load, which brings its own network: {path} holds Dense(3 -> 2" in err
    status, _, err = run(capsys, "train", "--load", path, "--data", values)
    assert (status, "the network has 2 outputs but the data needs 1" in err) == (2, True)
    status, _, err = run(capsys, "train", "--data", values, "--save", values)
    assert (status, "would write the network over the data" in err) == (2, True)


def test_only_chooses_among_the_networks_to_mutate(capsys, monkeypatch):
    subject = object.__new__(mutating.Subject)  # of which the name alone is looked at
    names = ["mlp", "residual", "repeated residual"]
    monkeypatch.setattr(check, "subjects", lambda seed: dict.fromkeys(names, subject))
    status, out, _ = run(capsys, "check", "--mutate", "--list", "--only", "resid")
    assert (status, out) == (0, "residual\nrepeated residual\n")
    status, _, err = run(capsys, "check", "--mutate", "--only", "zzzz")
    assert (status, "called like 'zzzz'; there are mlp, residual, repeated residual" in err) == (2, True)

    def chosen(*arguments):
        raise BadInput(f"to break: {arguments[-1]}")

    monkeypatch.setattr(check, "catalogue_mutation", chosen)
    assert "to break: ('residual', 'repeated residual')" in run(capsys, "check", "--mutate", "--only", "resid")[2]
    monkeypatch.setattr(mutating, "subjects", lambda seed: {"mlp": subject})
    assert mutating.catalogue_mutation(True, 0, names=["gated"]) == {}


def test_the_version_names_ours_and_jax(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith(f", jax {jax.__version__}\n")


def test_a_missing_scikit_learn_is_installed_from_the_clone(monkeypatch):
    """The package is on no index."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BadInput, match=r'python -m pip install -e "\.\[cli\]"'):
        data.raw.__wrapped__("digits")


def test_a_page_that_could_not_be_written_is_refused_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, out, err = run(capsys, "check", "--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json"))
    assert (status, out) == (2, "")
    assert "the HTML page needs jinja2" in err and "networks checked" not in err
