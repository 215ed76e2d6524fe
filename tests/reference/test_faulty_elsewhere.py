"""Faults in the derivatives of others: three in each of two rules are caught, and what is equivalent is called that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_a_user

from benchmarks.elsewhere import functions
from benchmarks.elsewhere.cases import drawn, itself, rule, within
from benchmarks.elsewhere.faulty.__main__ import outcomes
from benchmarks.elsewhere.faulty.chosen import CHOSEN
from benchmarks.elsewhere.faulty.judges import Verdict
from benchmarks.elsewhere.faulty.kinds import Place, off_below_zero
from benchmarks.elsewhere.faulty.linear_map import subject_of
from benchmarks.elsewhere.faulty.of_equations import ALL, broken
from benchmarks.elsewhere.faulty.tables import Outcome, findings, tables
from benchmarks.elsewhere.faulty.truth import Truth


@pytest.fixture(autouse=True)
def defaults():
    """JAX's own settings, which the functions of others are written for."""
    with as_a_user():
        yield


@jax.custom_jvp
def log_sum(x):
    return jnp.log(jnp.sum(x))


log_sum.defjvp(lambda x, t: (log_sum(*x), jnp.sum(*t) / jnp.sum(*x)))

CASES = {
    "pulled back": itself(lambda x: x * x[::-1], within(0.3, 2, 3)),
    "pushed forward": rule(log_sum, within(0.3, 2, 3), mode="jvp"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_three_faults_are_caught_and_the_right_derivative_passes(name):
    right, *faulty = outcomes("ours", name, CASES[name], judges=("ours",))
    assert right.said("ours", "passed")
    assert len({fault.kind for fault in faulty}) == 3
    assert all(fault.said("ours", "caught") for fault in faulty if fault.wrong)
    assert any(fault.wrong for fault in faulty)


def test_what_changes_less_than_rounding_is_equivalent_and_what_changes_more_is_not():
    subject, args = subject_of(itself(lambda x, y: x @ y / jnp.sum(x), within(0.3, 2, 3, 3), drawn(3)))
    truth = Truth(subject, args)

    def times(factor):
        return lambda args, given: jax.tree.map(lambda leaf: leaf * factor, subject.right(args, given))

    assert truth.excess(subject.right) == 0
    assert truth.excess(times(1 + 1e-8)) < 1 < truth.excess(times(1 + 1e-5))
    assert np.isnan(truth.excess(times(jnp.nan)))


def test_a_wrong_branch_is_equivalent_where_no_argument_takes_it():
    subject, args = subject_of(itself(jnp.exp, within(0.3, 2, 4)))
    for sign, wrong in ((1, False), (-1, True)):
        place = Place(subject, tuple(sign * x for x in args), np.random.default_rng(0))
        assert (Truth(subject, place.args).excess(off_below_zero(place).derivative) > 1) == wrong


@pytest.mark.evidence
@pytest.mark.parametrize("kind", list(ALL))
def test_every_kind_fits_somewhere_and_changes_the_derivative(kind):
    def function(x, y):
        return x @ x / y + jnp.log(y), jnp.sum(x, 0)

    subject, args = subject_of(itself(function, drawn(3, 3), within(0.3, 2, 3, 3)))
    truth = Truth(subject, args)
    faults = [ALL[kind](Place(subject, args, np.random.default_rng(i))) for i in range(2)]
    assert all(fault is not None for fault in faults)
    assert max(truth.excess(fault.derivative) for fault in faults) > 1


def test_a_broken_equation_is_the_same_one_in_every_precision():
    subject, args = subject_of(itself(jnp.sin, drawn(4)))
    wrong = broken(subject, ("1 mul", "sign flipped"))
    narrow = wrong(args, jnp.ones(4, "float32"))[0]
    with jax.enable_x64(True):
        wide = wrong((jnp.asarray(args[0], "float64"),), jnp.ones(4))[0]
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)
    np.testing.assert_allclose(narrow, -np.cos(args[0]), rtol=1e-6)


def test_the_table_counts_what_was_said_of_what_is_wrong():
    caught, passed = Verdict("caught", "too large", 0.1), Verdict("passed", "", 0.1)
    head = ("a library", "a rule")
    made = [
        Outcome(*head, "right", "", 0.0, {"ours": passed}),
        Outcome(*head, "clipped", "to [-1, 1]", 50.0, {"ours": caught}),
        Outcome(*head, "transposed", "argument 0", 20.0, {"ours": passed}),
        Outcome(*head, "stop_gradient", "argument 1", 0.0, {}),
    ]
    counted = [line.split() for line in tables(made).splitlines() if line.startswith("all")]
    assert counted[0][1:7] == ["1", "3", "1", "2", "1", "50.0"]
    assert "a rule: transposed: argument 0 (20 roundings): passed" in findings(made)
    assert "clipped" not in findings(made)


def test_forty_are_chosen():
    assert sum(map(len, CHOSEN.values())) == 40
    assert set(CHOSEN["jax"]) <= set(functions.CASES)
