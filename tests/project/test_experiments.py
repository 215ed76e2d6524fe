"""Published claims, asserted by the functions of benchmarks.experiments at a smaller size; and that they can fail.

Also what benchmarks.readings holds its times to, at which batches.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, every_time

from benchmarks.experiments import CLAIMS, Bound, Claim, Finding, alignment, curvature, examples, forward
from benchmarks.experiments.__main__ import chosen, main
from benchmarks.experiments.claims import least_mean
from benchmarks.readings.expectations import EXPECTATIONS
from benchmarks.readings.measuring import Cost, Measured, apart, problem
from benchmarks.readings.rows import readings
from reference.cli.files import BadInput

EXACT = {
    "KP-law": {"seeds": (0,), "steps": 8, "lam": 0.75},
    "norms": {"seeds": (0,), "n": 16},
    "norms-sequences": {"seeds": (0,), "n": 16},
    "clipping": {"seeds": (0,), "n": 16},
    "noise-trace": {"seeds": (0,), "n": 16},
    "Fisher-is-GGN": {"seeds": (0,)},
    "KFAC-exact": {"seeds": (0,)},
    "KFAC-expand": {"seeds": (0,)},
    "KFAC-reduce": {"seeds": (0,)},
}
SLOW = {
    "FA-aligns": {"seeds": (5, 6), "epochs": 20},
    "FA-learns": {"seeds": (5, 6, 7, 8, 9), "epochs": 20},
    "DFA-aligns": {"seeds": (5,), "epochs": 10},
    "uSF-aligns": {"seeds": (5,), "epochs": 5},
    "frSF-aligns": {"seeds": (5,), "epochs": 5},
    "KP-aligns": {"seeds": (5,), "epochs": 10},
    "zero-start": {"seeds": (5,), "epochs": 20},
    "zero-gradient": {"seeds": (5,), "epochs": 20},
    "noise-grows": {"seeds": (0,)},
    "TracIn": {"seeds": (0,)},
    "Fisher-sampled": {"seeds": (0,), "draws": 4},
    "forward-unbiased": {"seeds": (0,)},
    "forward-second-moment": {"seeds": (0,)},
    "forward-activity": {"seeds": (0,)},
}


def assert_holds(name, size):
    finding = CLAIMS[name](**size)
    assert finding.measured.holds, finding.measured
    assert finding.control.holds, finding.control
    assert finding.holds


@pytest.mark.parametrize("name", every_time(EXACT, "norms", "noise-trace", "Fisher-is-GGN", "KFAC-expand"))
def test_exact_claims_hold(name):
    assert_holds(name, EXACT[name])


@pytest.mark.evidence
@pytest.mark.parametrize("name", SLOW)
def test_claims_about_training_and_sampling_hold(name):
    assert_holds(name, SLOW[name])


def test_every_claim_is_asserted_here_and_has_a_source():
    """But for what the other rules reach in the end: thirty epochs each, which the script runs."""
    left_to_the_script = {f"{name}-learns" for name in ("DFA", "uSF", "frSF", "KP")}
    assert set(CLAIMS) == {*EXACT, *SLOW} | left_to_the_script
    assert all("arXiv:" in c.source or "doi:" in c.source for c in CLAIMS.values())


@pytest.mark.parametrize(
    "value, side, holds",
    [(1.0, "<=", True), (1.1, "<=", False), (1.0, ">=", True), (0.9, ">=", False), (math.nan, "<=", False),
     (math.nan, ">=", False)],
)  # fmt: skip
def test_a_bound_holds_on_its_side_alone(value, side, holds):
    bound = Bound("it", value, side, 1.0)
    assert bound.holds is holds
    assert str(bound).endswith("FAILS") is not holds


def finding(measured=0.0, control=2.0):
    return Finding(Bound("a", measured, "<=", 1.0), Bound("b", control, ">=", 1.0), (0,), "a note")


@pytest.mark.parametrize("wrong", [{"measured": 2.0}, {"control": 0.0}, {"measured": math.nan}])
def test_a_claim_without_its_control_does_not_hold(wrong):
    assert finding().verdict == "holds"
    assert finding(**wrong).verdict == "does not hold"


def test_a_mean_is_held_to_its_lower_end():
    """Four values of mean 5 and deviation 1: their mean's standard error is 1/2."""
    spread = math.sqrt(3) / 2  # so that sum (x - 5)^2 / 3 = 1
    values = [5 - spread, 5 - spread, 5 + spread, 5 + spread]
    assert least_mean(values) == pytest.approx(4.0, abs=1e-12)
    assert least_mean([5.0, 5.0, 5.0]) == 5.0
    assert math.isnan(least_mean([5.0])) and not Bound("it", least_mean([5.0]), ">=", 0.0).holds


def test_feedback_that_nothing_learns_with_does_not_align():
    """The measurement can fail: without training the angle is what the control's is."""
    with jax.enable_x64(True):
        params, _, rule, _ = alignment.run("FA", 5, 1)
        digits = alignment.split(5)
        angles = alignment.hidden_angles(params, rule, digits.x_test[:50], digits.y_test[:50])
    assert float(angles.min()) > 80


@pytest.mark.evidence
@pytest.mark.parametrize("moment", ["P", "P + 4"])
def test_another_second_moment_would_be_seen(moment):
    with jax.enable_x64(True):
        params, x, y = forward.point(0, 8)
        g = forward.true_gradient(params, x, y)
        estimates = forward.weight_estimates(params, x, y, jax.random.key(1), forward.DRAWS, "gauss")
        assert forward.off(estimates, g, g.size + 2) < forward.LIMIT
        assert forward.off(estimates, g, {"P": g.size, "P + 4": g.size + 4}[moment]) > forward.LIMIT


def test_area_under_the_curve_is_that_of_pairs():
    positive = jnp.array([True, False, True, False])
    assert examples.area_under_curve(jnp.array([4.0, 1.0, 3.0, 2.0]), positive) == 1.0
    assert examples.area_under_curve(jnp.array([1.0, 4.0, 2.0, 3.0]), positive) == 0.0
    assert examples.area_under_curve(jnp.array([4.0, 4.0, 1.0, 2.0]), positive) == 0.375


def test_the_loss_of_the_mean_has_its_own_derivative_and_hessian():
    loss = curvature.OfTheMean()
    rng = np.random.default_rng(0)
    o, y = jnp.asarray(rng.normal(size=(3, 4, 2))), jnp.asarray(rng.normal(size=(3, 2)))
    assert_close(loss.derivative(o, y), jax.jit(jax.grad(lambda o: loss.value(o, y).sum()))(o))
    H = jax.jit(jax.hessian(lambda o: loss.value(o[None], y[:1])[0]))(o[0]).reshape(8, 8)
    root = np.asarray(loss.hessian_root(o, y))[:, 0].reshape(2, 8)
    assert_close(root.T @ root, H)
    with pytest.raises(ValueError, match="y must be"):
        loss.check(o, o)


def test_a_share_of_labels_is_wrong_and_said_to_be():
    with jax.enable_x64(True):
        y, flipped = examples.mislabelled(0)
        true = examples.split(0).y
    assert int(flipped.sum()) == 140
    np.testing.assert_array_equal(y != true, flipped)
    assert int(y.min()) >= 0 and int(y.max()) <= 9


@pytest.fixture
def two_claims(monkeypatch):
    given = {
        "one": Claim("one", "this is so", "arXiv:0", lambda: finding()),
        "two": Claim("two", "that is so", "arXiv:1", lambda: finding(measured=3.0)),
    }
    monkeypatch.setattr("benchmarks.experiments.__main__.CLAIMS", given)


def test_the_command_says_what_holds_by_its_exit_status(two_claims, capsys, tmp_path):
    assert main(["--only", "ONE", "--json", str(tmp_path / "found.json")]) == 0
    assert "1 of 1 claims hold" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["measured"] == {"what": "a", "value": 0.0, "side": "<=", "threshold": 1.0}
    assert found["verdict"] == "holds"
    assert main([]) == 1
    assert "1 of 2 claims hold; not: two" in capsys.readouterr().out


def test_the_command_lists_and_refuses(two_claims, capsys):
    assert main(["--list", "--only", "^t.o"]) == 0
    out = capsys.readouterr().out
    assert "two" in out and "one" not in out
    assert main(["--only", "nothing"]) == 2
    assert "no claim is called like 'nothing'" in capsys.readouterr().err
    with pytest.raises(BadInput):
        chosen("(")


def test_a_claim_runs_in_float64_whatever_the_flag():
    seen = Claim("x", "", "", lambda: jnp.zeros(()).dtype)
    with jax.enable_x64(False):
        assert seen.run() == jnp.float32
        assert seen() == jnp.float64


def row(batch, time):
    cost = Cost(time, 2.0, 1, 1)
    return Measured("squared_norms", batch, cost, cost, "", 0.0)


@pytest.mark.parametrize(
    "times, verdict, values",
    [
        ({32: 0.8, 128: 0.9, 512: 0.7}, "ok", "0.8, 0.9, 0.7"),
        ({32: 0.8, 128: 0.9, 512: 0.91}, "MISSED", "0.8, 0.9, 0.91"),
        ({32: 0.91}, "MISSED", "0.91, -, -"),
        ({128: 0.9}, "ok in part", "-, 0.9, -"),
        ({64: 0.9}, "not measured", "-, -, -"),
        ({32: math.nan, 128: 0.9, 512: 0.7}, "MISSED", "nan, 0.9, 0.7"),
    ],
)
def test_an_expectation_is_of_every_batch(times, verdict, values):
    norms = EXPECTATIONS[0]
    found = norms.verdict([row(batch, time) for batch, time in times.items()])
    assert found == (verdict, f"squared_norms, gradients <= 0.9 at batch 32, 128, 512: {values}")


def test_the_issues_numbers_are_expected_at_its_batches():
    every = (32, 128, 512)
    assert [(e.row, e.bound, e.at_least, e.batches) for e in EXPECTATIONS] == [
        ("squared_norms", 0.9, False, every),
        ("gradient + squared_norms", 1.25, False, every),
        ("clipped_gradients", 1.25, False, every),
        ("clipped_gradients", 50, True, (128,)),
        ("clipped_gradients", 300, True, (128,)),
        ("hessian_vector_product", 2.1, False, every),
    ]


def test_every_reading_and_its_peer_have_one_form():
    found = []
    args = jax.eval_shape(lambda: found.append(problem(3)) or found[0][1])  # shapes are enough
    rows = readings(found[0][0])
    assert len(rows) == 16
    with jax.numpy_rank_promotion("allow"):  # the peers are written as users write
        for row in rows:
            hand, peer = (jax.eval_shape(way, *args) for way in (row.by_hand, row.peer))
            forms = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(result)] for result in (hand, peer)]
            assert forms[0] == forms[1], row.name
            assert {dtype for _, dtype in forms[0]} == {jnp.float32.dtype}, row.name


def test_apart_is_relative_to_the_largest_entry_of_a_leaf():
    assert apart((jnp.array([1.0, 20.0]),), (jnp.array([2.0, 20.0]),)) == 0.05
    assert apart([jnp.array([1.0]), jnp.array([1e-6])], [jnp.array([1.0]), jnp.array([0.0])]) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"\[2\] by hand and \[3\] by its peer"):
        apart(jnp.ones(2), jnp.ones(3))
