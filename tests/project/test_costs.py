"""Memory against jax.grad's, by XLA's own count; and that the table of benchmarks.costs names what misses a bound."""

import math
import os

import jax
import pytest
from helpers import FUSED, assert_close, every_time

from benchmarks.costs import __main__ as command
from benchmarks.costs.cases import EXACT, QUANTITIES, Case, Setting, cases
from benchmarks.costs.measuring import Effort, Row, Run, compiled, measured, standard_error, temporary
from benchmarks.costs.tables import MEMORY, TIME, difference, line, medians, misses, table, worst_memory
from benchmarks.interleaved import LEAST_ROUNDS, turns
from manual_backprop.activations import TABLE

SMALL = "64-128-128-10"


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", every_time(TABLE, "relu", "elu", "gelu", "silu", "softplus", "tanh"))
def test_a_gradient_takes_no_more_memory_than_jax_grad(name):
    """Fused as users compile, in float32, without running; half a percent is the rounding of the claim."""
    by_hand, plain = map(temporary, compiled(Case(TABLE[name], SMALL, 256), Setting(), FUSED))
    assert round(by_hand / plain, 2) <= 1.00, f"{by_hand} bytes by hand, {plain} by jax.grad"


def test_exact_variants_take_an_array_for_every_layer():
    """The comparison can fail: what `short` saves is seen."""
    by_hand, plain = map(temporary, compiled(Case(TABLE["tanh"].exact, SMALL, 256), Setting(), FUSED))
    assert by_hand > 1.2 * plain


@pytest.mark.parametrize("quantity, lam, weighted", [("grad", 0.0, False), *((name, 0.1, True) for name in QUANTITIES)])
def test_both_sides_compute_the_same(quantity, lam, weighted):
    setting, case = Setting(quantity, lam, weighted), Case(TABLE["silu"], SMALL, 3)
    args = case.arguments(setting)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(args)} == {"float32", "int32"}
    by_hand, plain = (program(*args) for program in compiled(case, setting))
    assert_close(by_hand, plain, 1e-5)


def test_rows_are_of_every_activation_net_and_batch():
    rows = cases(TABLE, ("one", "other"), (1, 2), exact=False)
    assert len(rows) == len(set(rows)) == 12 * 4 and all(row.held for row in rows)
    with_exact = cases(["tanh", "relu"], ["one"], [1], exact=True)
    assert [(row.name, row.held) for row in with_exact] == [("tanh", True), ("relu", True), ("tanh.exact", False)]
    assert [row.name for row in EXACT] == ["sigmoid", "tanh", "softsign"]


def planted(name="tanh", memory=1.0, time=1.0, apart=0.0, exact=False):
    activation = TABLE[name].exact if exact else TABLE[name]
    run = None if time is None else Run(time, 0.01, 0.1, apart)
    return Row(Case(activation, SMALL, 128), round(1e6 * memory), 10**6, run)


@pytest.mark.parametrize(
    "row, told",
    [
        (planted(time=TIME, memory=MEMORY), []),
        (planted(memory=1.004), []),
        (planted(memory=1.006), ["memory 1.006 > 1 (+0.006 MiB, +1.17 arrays of outputs)"]),
        (planted(time=1.031), ["time 1.031 +- 0.010 > 1.03"]),
        (planted(time=math.nan), ["time nan +- 0.010 > 1.03"]),
        (planted(apart=0.5), ["results differ by 0.5 > 0.1"]),
        (planted(time=None, memory=2), ["memory 2.000 > 1 (+0.954 MiB, +195.31 arrays of outputs)"]),
        (planted(time=9, memory=9, exact=True), []),
    ],
)
def test_a_bound_is_missed_by_what_is_above_it(row, told):
    assert misses([planted("relu"), row]) == [f"tanh, {SMALL}, batch 128: {text}" for text in told]


def test_the_worst_comes_first_and_medians_are_of_the_listed_activations():
    rows = [
        planted("relu", 0.5, 0.9),
        planted("gelu", 0.7, 1.2),
        planted("silu", 1.0, 1.0),
        planted(time=9, exact=True),
    ]
    assert [text.split()[0] for text in table(rows).splitlines()[2:]] == ["tanh.exact", "gelu", "silu", "relu"]
    assert medians(rows).splitlines()[-1].split() == [SMALL, "128", "1.000", "0.700"]
    untimed = [planted("relu", 0.5, None), planted("gelu", 0.7, None), planted(memory=3, time=None, exact=True)]
    assert [text.split()[0] for text in table(untimed).splitlines()[2:]] == ["tanh.exact", "gelu", "relu"]
    assert worst_memory(untimed).startswith(f"worst memory: 0.700, gelu, {SMALL}, batch 128")
    assert line(untimed[0])[3:6] == ("-", "-", "0.500")
    assert difference(rows[0]) == "-0.477 MiB, -97.66 arrays of outputs"


def test_the_command_counts_memory_without_running(capsys):
    chosen = ["--memory", "--check", "--only", "relu", "--nets", "64-128", "--batches", "128"]
    assert command.main(chosen) == 0
    out = capsys.readouterr().out
    assert "grad, no regulariser" in out and "0 bounds missed in 1 rows" in out
    assert [text.split()[:5] for text in out.splitlines() if text.startswith("relu")] == [
        ["relu", SMALL, "128", "-", "-"]
    ]


def test_the_command_fails_by_its_exit_status_where_a_bound_is_missed(monkeypatch, capsys):
    monkeypatch.setattr(command, "measured", lambda *given: [planted("relu"), planted("gelu", time=1.2)])
    assert command.main([]) == 0
    assert command.main(["--check"]) == 1
    assert f"MISSED: gelu, {SMALL}, batch 128: time 1.200" in capsys.readouterr().out
    monkeypatch.setattr(command, "measured", lambda *given: [planted("relu")])
    assert command.main(["--check"]) == 0


@pytest.mark.parametrize(
    "given, said", [(["--nets", "x9"], "there are 64-128"), (["--cores", "99999"], "--cores must be")]
)
def test_the_command_refuses_what_it_has_not(given, said, capsys):
    if "--cores" in given and not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinities on this system")
    with pytest.raises(SystemExit, match="2"):
        command.main(given)
    assert said in capsys.readouterr().err


def test_a_row_is_timed():
    (row,) = measured([Case(TABLE["relu"], SMALL, 2)], Setting(), Effort(rounds=2, seconds=0.0))
    assert row.run.time > 0 and row.run.seconds > 0 and row.run.apart < 1e-5


def test_no_round_begins_once_time_is_up():
    contestants = {"a": lambda: 1.0, "b": lambda: 2.0}
    assert [len(turn) for turn in turns(contestants, rounds=3, seconds=0.0).values()] == [3, 3]
    assert [len(turn) for turn in turns(contestants, rounds=99, seconds=0.0, at_most=0.0).values()] == [
        LEAST_ROUNDS
    ] * 2


def test_the_standard_error_is_that_of_a_normal_median():
    """Of 400 values from a standard normal distribution it is sqrt(pi/2)/20 = 0.0627, up to their own scatter."""
    values = jax.random.normal(jax.random.key(0), (400,)).tolist()
    assert standard_error(values) == pytest.approx(0.0627, rel=0.15)
