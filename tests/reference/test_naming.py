"""Which equation is wrong: a fault planted in the sweep itself, in any equation of any layer, is named where it is."""

import jax
import jax.numpy as jnp
import pytest

import manual_backprop as mb
from benchmarks import confusion
from benchmarks.faults import FAULTS
from reference.checks.step import prepare

OBJECTIVE = mb.Objective(mb.mlp((6, 5, 5, 4), "tanh"), mb.softmax_cross_entropy, mb.Frobenius(0.1))


@pytest.fixture(scope="module")
def judge():
    return prepare(OBJECTIVE, *confusion.problem(OBJECTIVE))


def report(judge, faulty):
    """Operation by operation, which is compiled once for all faults; `benchmarks.confusion` compiles every step."""
    return judge.report(jax.device_get(mb.backprop(faulty, *jax.tree.map(jnp.asarray, judge.inputs))))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_equation_and_layer(judge, name):
    fault = FAULTS[name]
    found = list(confusion.planted(fault, judge.objective))
    assert found
    for _, faulty, equation, layer in found[:2]:
        first = report(judge, faulty).failures[0]
        assert (first.equation, first.layer) == (equation, layer)
        assert fault.cause in first.cause


def test_every_equation_has_faults_planted_in_it():
    tags = {fault.equation for fault in FAULTS.values()}
    assert tags >= {"(F1)", "(F2)", "(J1)", "(J2)", "(B1)", "(B2)", "(B3)", "(B4)", "(B6)"}
    assert len(FAULTS) >= 20


def test_the_right_step_is_named_nowhere(judge):
    assert report(judge, judge.objective).verdict == "pass"
    assert confusion.judged(judge, judge.objective).verdict == "pass"
