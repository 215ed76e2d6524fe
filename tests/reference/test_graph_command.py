"""`manual-backprop graph`: every form in a file, values of a batch, an objective of one's own, and refusals."""

import jax
import pytest

import manual_backprop as mb
from reference import cli
from reference.cli import command


def run(capsys, *arguments):
    status = cli.main(["graph", *arguments])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("form", ["svg", "png", "mmd", "dot"])
def test_the_command_writes_every_form(capsys, tmp_path, form):
    out = tmp_path / f"graph.{form}"
    status, said, _ = run(capsys, "--sizes", "4,3", "--backward", "--out", str(out))
    objective = mb.Objective(mb.mlp((4, 3)), mb.softmax_cross_entropy, mb.Frobenius(1e-4))
    graph = mb.backward_graph(objective)
    expected = {"svg": graph.svg, "png": graph.png, "mmd": graph.mermaid, "dot": graph.dot}[form]()
    assert out.read_bytes() == (expected if isinstance(expected, bytes) else expected.encode())
    assert status == 0
    assert "8 vertices, 8 arrows" in said
    assert not [p for p in tmp_path.iterdir() if p != out]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "huber", "binary_cross_entropy"])
def test_the_command_shows_values_for_every_kind_of_target(capsys, loss):
    last = "sigmoid" if loss == "binary_cross_entropy" else "identity"
    with jax.enable_x64(False):
        status, said, _ = run(capsys, "--sizes", "4,3", "--values", "--loss", loss, "--output-activation", last)
    assert status == 0
    assert "32×3<br/>‖·‖" in said


def test_the_command_knows_every_loss():
    assert set(command.LOSSES) == set(mb.losses.TABLE)


def test_the_command_draws_an_objective_of_yours(capsys, tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "import manual_backprop as mb\nnet = mb.Residual(mb.Dense(3, 3))\nJ = mb.Objective(net, mb.squared_error)\n"
    )
    monkeypatch.chdir(tmp_path)
    status, said, _ = run(capsys, "of_mine:J")
    assert status == 0
    assert "Residual: x + f(x)" in said
    assert "subgraph" not in run(capsys, "of_mine:J", "--open", "0")[1]
    assert run(capsys, "of_mine:net")[2].endswith("of_mine:net is a Residual, not a manual_backprop.Objective\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --sizes"),
        (["--sizes", "4"], "at least inputs and outputs"),
        (["--sizes", "4,1"], "the softmax of one output is 1"),
        (["--sizes", "4,3,3", "--activation", "swoosh"], "no activation is called"),
        (["--sizes", "4,3", "--out", "graph.jpg"], "write one of .svg"),
        (["--sizes", "4,3", "--out", "nowhere/graph.svg"], "does not exist"),
        (["a:b", "--sizes", "4,3"], "--sizes describe an MLP"),
        (["a:b", "--lam", "0.1", "--loss", "huber"], "--loss, --lam describe an MLP"),
        (["--sizes", "4,3", "--out", "graph"], "has no ending"),
        (["--sizes", "4,3", "--values", "--loss", "binary_cross_entropy"], "add --output-activation sigmoid"),
        (["no_such_module:b"], "there is no module"),
        (["tests.manual_backprop.test_graph_pictures:OBJECTIVE", "--values"], "call mb.forward_graph or"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(capsys, arguments, text):
    status, said, error = run(capsys, *arguments)
    assert (status, said) == (2, "")
    assert text in error
