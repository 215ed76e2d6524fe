"""The vote: who stands alone, who cannot tell, and what a report shows of it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from reference import model
from reference.witnesses.voting import panel, vote
from tests.helpers import N, batch, generic, targets
from tests.reference.test_witnesses import PARAMS, J, X, Y, fault


def test_all_agree_on_a_right_gradient_and_a_wrong_one_stands_alone() -> None:
    wrong = panel(J, PARAMS, X, Y, manual=fault(1e-8))
    bars = {w.name: w.error for w in wrong.witnesses} | {"manual": wrong.witnesses[0].error}

    def ballot(manual: Any) -> Any:
        """On the same witnesses, which do not depend on what is judged."""
        return vote({"manual": manual} | {w.name: w.value for w in wrong.witnesses}, bars)

    right = ballot(fault(0.0))
    assert str(right) == "manual, jax.grad, forward mode, complex step and differences agree"
    assert {row.witness for row in right.rows} == {"jax.grad", "forward mode", "complex step", "differences"}
    assert all(row.passed and row.kind == "witness" for row in right.rows)
    assert str(ballot(fault(1e-8))) == str(wrong.vote)
    assert wrong.vote.alone == ("manual",)
    assert "manual stands alone: jax.grad, forward mode, complex step and differences agree" in str(wrong.vote)
    assert {row.path for row in wrong.vote.rows if row.verdict == "fail"} == {"gradients[0].b"}
    assert wrong.taylor is not None
    below = ballot(fault(1e-13 * 30))
    assert "differences cannot tell" in str(below)
    assert below.alone == ("manual",)


def test_a_wrong_rule_inside_the_function_makes_jax_grad_stand_alone() -> None:
    @jax.custom_vjp
    def reverse(x: Any) -> Any:
        return jnp.sum(jnp.square(x))

    reverse.defvjp(lambda x: (reverse(x), x), lambda x, c: (2.02 * c * x,))

    @jax.custom_jvp
    def forward(x: Any) -> Any:
        return jnp.sum(jnp.square(x))

    forward.defjvp(lambda p, t: (forward(p[0]), 2.02 * jnp.vdot(p[0], t[0])))
    x = jnp.asarray([1.0, 2.0, 3.0])
    for rule in (reverse, forward):
        found = panel(lambda x, rule=rule: rule(jnp.sin(x)), x, manual=np.sin(2 * x))
        assert "jax.grad stands alone: manual, forward mode, complex step and differences agree" in str(found.vote)
        assert {row.witness for row in found.vote.rows if not row.passed} == {"jax.grad"}


def test_at_a_kink_the_others_abstain_and_the_notes_say_why() -> None:
    x = jnp.asarray([0.0, 1.0, -1.0])
    found = panel(
        lambda x: jnp.sum(jax.nn.relu(x) * jnp.asarray([1.0, 2.0, 3.0])), x, manual=np.asarray([0.0, 2.0, 0.0])
    )
    assert found.vote.agree
    assert found.taylor is None
    assert any("1 of 3 slopes void: exactly at a kink: max at test_voting.py" in note for note in found.notes)
    assert "gradients: differences says nothing on 1 of 3 entries" in found.notes
    other = panel(lambda x: jnp.sum(jnp.maximum(x, 0.0)), x, manual=np.asarray([0.0, 1.0, 0.0]))
    assert "manual and jax.grad disagree, and nothing else can tell" in str(other.vote)
    assert not other.vote.agree


def test_the_vote_with_every_outcome() -> None:
    def outcome(**values: float) -> Any:
        ballot = vote({k: [np.asarray([1.0, v])] for k, v in values.items()}, {k: [np.full(2, 0.1)] for k in values})
        return ballot.leaves[0]

    assert outcome(a=1.0, b=1.1, c=1.2).outcome == "agree"
    alone = outcome(a=1.0, b=2.0, c=1.1, d=1.05)
    assert (alone.outcome, alone.alone) == ("alone", "b")
    assert "gradients[0][1]" in alone.text
    assert outcome(a=1.0, b=2.0).outcome == "undecided"
    split = outcome(a=1.0, b=2.0, c=1.0, d=2.0, e=1.1)
    assert split.outcome == "split"
    assert "a, c and e against b and d" in split.text
    assert outcome(a=1.0, b=float("nan"), c=1.0).alone == "b"
    coarse = vote(
        {"manual": np.ones(1), "jax.grad": np.full(1, 2.0), "d": np.full(1, 9.0)},
        {"manual": np.zeros(1), "jax.grad": np.zeros(1), "d": np.full(1, np.inf)},
    )
    assert coarse.leaves[0].outcome == "undecided"
    assert [row.witness for row in coarse.rows] == ["jax.grad"]
    assert coarse.notes == ("gradients: d says nothing on 1 of 1 entries",)


def test_a_partly_void_leaf_keeps_the_index_of_its_worst_entry() -> None:
    bars = np.asarray([[np.inf, 0.1], [0.1, 0.1]])
    other = np.asarray([[5.0, 0.0], [0.0, 3.0]])
    ballot = vote({"manual": np.zeros((2, 2)), "d": other}, {"manual": np.zeros((2, 2)), "d": bars})
    assert ballot.rows[0].where == (1, 1)
    assert ballot.rows[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("candidates", "errors", "text"),
    [
        ({"a": np.ones(2)}, {"a": np.ones(2)}, "a vote needs two candidates, got a"),
        ({"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)}, "no errors are given for b"),
        ({"a": np.ones(2), "b": [np.ones(2)]}, {"a": np.ones(2), "b": [np.ones(2)]}, "b has structure"),
        ({"a": np.ones(2), "b": np.ones(1)}, {"a": np.ones(2), "b": np.ones(1)}, "gradients of b is (1,)"),
    ],
)
def test_a_vote_that_cannot_be_held_is_refused(candidates: Any, errors: Any, text: str) -> None:
    with pytest.raises(ValueError) as refused:
        vote(candidates, errors)
    assert text in str(refused.value)


def test_without_x64_outside_and_float32_arguments() -> None:
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        x = np.asarray([0.3, 0.9], "float32")
        found = panel(lambda x: jnp.sum(jnp.sin(x)), x, manual=np.cos(np.asarray(x, "float64")))
        assert found.vote.agree, str(found.vote)
        assert len([w for w in found.witnesses if w.available]) == 4


def test_a_thousand_parameters_take_seconds_of_processor_time() -> None:
    net = mb.Dense(31, 32, "tanh")
    objective = mb.Objective(net, mb.squared_error, mb.Frobenius(0.1))
    params, x, y = generic(net), batch(31), targets(mb.squared_error, 32)
    gradient = jax.jit(mb.value_and_grad(objective))(params, x, y)[1]
    start = time.process_time()
    found = panel(lambda p: model.value(objective, p, x, y), params, manual=gradient)
    assert time.process_time() - start < 12
    assert found.vote.agree
    assert len(found.vote.rows) == 8
    assert N < 8
