"""Mutants: each fault is what it says, right programs run right, and a check that sees nothing scores nothing."""

import json
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from benchmarks import mutants
from benchmarks.subjects import SUBJECTS
from reference import model
from reference.catalogue import mutating as mutation_catalogue
from reference.catalogue.subject import FUNCTIONS, step_check
from reference.mutation import program
from reference.mutation.program import Program
from reference.mutation.score import mutation_score
from reference.report import Report

A = np.array([[1.0, -2.0], [3.0, 5.0]])
B = np.array([[0.5, 4.0], [-7.0, 2.0]])
V = np.array([1.0, -4.0, 2.0])


def seen(function, *args, **given):
    """{what: value} of every mutant, as the check is handed them."""
    values = []

    def check(mutant):
        values.append(np.asarray(mutant(*args)))

    score = mutation_score(function, check, *args, **given)
    changed = [m for m in score.mutants if m.verdict != "unchanged"]
    return dict(zip([(m.primitive, m.what) for m in changed], values[1:], strict=True))


def exact(function, *args):
    """A check that compares every number with the right function's own."""
    right = jax.device_get(function(*args))

    def check(mutant):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), jax.device_get(mutant(*args)), right)

    return check


FAULTS = {
    "product": (
        lambda a, b: a * b,
        (A, B),
        {
            ("mul", "sign flipped"): -A * B,
            ("mul", "times 1 + 1e-06"): A * B * (1 + 1e-6),
            ("mul", "largest element zeroed"): A * B * [[1, 1], [0, 1]],
            ("mul", "factor dropped: the right operand"): A,
            ("mul", "factor dropped: the left operand"): B,
        },
    ),
    "square": (lambda a: a * a, (A,), {("mul", "factor dropped: the right operand"): A}),
    "sum": (
        lambda a, b: a + b,
        (A, B),
        {("add", "addend dropped: the right operand"): A, ("add", "addend dropped: the left operand"): B},
    ),
    "difference": (
        lambda a, b: a - b,
        (A, B),
        {("sub", "subtrahend dropped: the right operand"): A, ("sub", "minuend dropped: the left operand"): -B},
    ),
    "mean": (lambda a: jnp.mean(a), (A,), {("div", "not divided by 4 (sum for mean)"): A.sum()}),
    "quotient": (lambda a, b: a / b, (A, B), {("div", "dividend dropped: the left operand"): 1 / B}),
    "factor": (lambda a: 0.5 * a, (A,), {("mul", "factor dropped: 0.5"): A}),
    "transpose": (lambda a: a.T, (A,), {("transpose", "transpose dropped"): A}),
    "function": (lambda a: jnp.tanh(a), (A,), {("tanh", "identity for tanh"): A}),
    "order": (lambda a: jnp.flip(a, 0), (A,), {("rev", "reversal dropped"): A}),
    "choice": (
        lambda a, b: jax.lax.select(a > b, a, b),
        (A, B),
        {("select_n", "case 0 taken always"): B, ("select_n", "case 1 taken always"): A},
    ),
    "maximum": (
        lambda a, b: jnp.maximum(a, b),
        (A, B),
        {("max", "the left operand taken always"): A, ("max", "the right operand taken always"): B},
    ),
    "clamp": (lambda a: jax.lax.clamp(-1.0, a, 2.0), (A,), {("clamp", "not clamped"): A}),
    "power": (lambda a, b: a**b, (np.abs(A), B), {("pow", "exponent dropped"): np.abs(A)}),
    "matrices": (
        lambda a, b: a @ b,
        (A, B),
        {
            ("dot_general", "left operand transposed"): A.T @ B,
            ("dot_general", "right operand transposed"): A @ B.T,
            ("dot_general", "last term of the sum left out"): np.outer(A[:, 0], B[0]),
        },
    ),
    "sum of rows": (
        lambda a: a.sum(0),
        (A,),
        {("reduce_sum", "last term of the sum over axis 0 left out"): A[0]},
    ),
    "scalar": (lambda v: v.sum(), (V,), {("reduce_sum", "zeroed"): 0.0, ("reduce_sum", "sign flipped"): 1.0}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_what_it_says(name):
    function, args, expected = FAULTS[name]
    found = seen(function, *args)
    for what, value in expected.items():
        np.testing.assert_allclose(found[what], value, rtol=1e-15, err_msg=str(what))


def test_one_other_element_is_zeroed():
    found = [value for (_, what), value in seen(lambda v: 2 * v, V).items() if what.startswith("element [")]
    assert len(found) == 1 and (found[0] == 0).sum() == 1
    assert set(np.flatnonzero(found[0])) < {0, 1, 2}


def test_a_precision_that_cannot_hold_the_nudge_gets_a_larger_one():
    found = seen(lambda v: v + v, jnp.asarray(V, "bfloat16"))
    nudged = found["add", "times 1 + 0.0312"].astype(np.float64)
    np.testing.assert_array_equal(nudged, np.asarray(2 * V * 1.03125, jnp.bfloat16).astype(np.float64))


@jax.custom_jvp
def _cubed(x):
    return x * x * x


_cubed.defjvp(lambda primals, tangents: (_cubed(*primals), 3 * primals[0] ** 2 * tangents[0]))


@jax.custom_vjp
def _halved(x):
    return x / 2


_halved.defvjp(lambda x: (x / 2, None), lambda _, d: (d / 2,))


def _loop(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def _table(x, reverse):
    return jax.lax.scan(lambda c, row: (c * row + 1, (c, c - row)), x[0], x, reverse=reverse)


PROGRAMS = {
    "jit": (lambda x: jax.jit(lambda v: jnp.cos(v) * v)(x), "cos"),
    "scan": (lambda x: _table(x, False), "mul"),
    "scan in reverse": (lambda x: _table(x, True), "mul"),
    "scan of nothing": (lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0], "sin"),
    "while": (_loop, "sin"),
    "cond": (lambda x: jax.lax.cond(x[0, 0] > 0, lambda v: jnp.exp(v), lambda v: jnp.log(v), x), "exp"),
    "switch": (lambda x: jax.lax.switch(5, [jnp.exp, lambda v: v * v], x), "mul"),
    "remat": (lambda x: jax.grad(lambda v: jax.checkpoint(lambda u: jnp.sin(jnp.sin(u)))(v).sum())(x), "cos"),
    "custom_jvp": (lambda x: _cubed(x), "mul"),
    "custom_vjp": (lambda x: _halved(x), "div"),
    "gradient": (lambda x: jax.grad(lambda v: (_halved(v) * _cubed(v)).sum())(x), "mul"),
}
X = np.abs(A) / 4 + 0.1


def judged(name):
    """The score of one of PROGRAMS, with values taken over from the right run."""
    function, x = PROGRAMS[name][0], jnp.asarray(X)
    return mutation_score(function, exact(function, x), x)


judged_once = cache(judged)


@pytest.mark.parametrize("name", PROGRAMS)
def test_equations_inside_are_broken_too(name):
    primitive, score = PROGRAMS[name][1], judged_once(name)
    inside = [m for m in score.mutants if m.primitive == primitive and m.verdict == "killed"]
    assert {m.what for m in inside} >= {"sign flipped", "times 1 + 1e-06"}
    assert " > " in inside[0].where or name in ("remat", "gradient")
    assert not score.survivors and score.counts["error"] == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_as_its_function_does(name):
    function = PROGRAMS[name][0]
    with jax.enable_x64(True):
        run = Program(function, X).run()
        points = [X, X + 1]
        compiled = jax.jit(function)
        expected = [jax.device_get(compiled(x)) for x in points]
        same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-14))
        same(run(X), expected[0])
        same(jax.jit(jax.vmap(run))(np.stack(points)), jax.tree.map(lambda *each: np.stack(each), *expected))


def test_the_scan_is_broken_as_a_whole_too():
    whole = {m.what for m in judged_once("scan").mutants if m.primitive == "scan"}
    assert {"output 0: sign flipped", "output 1: largest element zeroed", "output 2: times 1 + 1e-06"} <= whole


def test_a_long_scan_is_run_compiled():
    def function(x):
        return jax.lax.scan(lambda c, _: (c * 0.999 + 0.001, None), x, None, 2000)[0]

    score = mutation_score(function, exact(function, V), V, limit=4)
    assert score.killed == score.judged == 4


@pytest.mark.usefixtures("without_hook")
def test_a_loop_that_no_longer_ends_is_an_error():
    def root_of_two(x):
        return jax.lax.while_loop(lambda r: jnp.abs(r * r - 2) > 1e-9, lambda r: (r + 2 / r) / 2, x)

    score = mutation_score(root_of_two, exact(root_of_two, np.float64(1.0)), np.float64(1.0), limit=6)
    assert any("does not end" in m.by for m in score.having("error"))


def test_the_source_line_is_named():
    def function(v):
        return jnp.tanh(v) * 3  # this very line

    score = mutation_score(function, exact(function, V), V)
    assert all("test_mutation.py:" in m.source and "function" in m.source for m in score.mutants)
    assert {m.code for m in score.mutants} == {"return jnp.tanh(v) * 3  # this very line"}
    line = int(score.mutants[0].source.partition("test_mutation.py:")[2].split()[0])
    with open(__file__) as file:
        assert "this very line" in file.read().splitlines()[line - 1]


def test_dead_code_is_not_broken():
    def function(v):
        jnp.sin(v)
        return jnp.cos(v)

    assert {m.primitive for m in mutation_score(function, exact(function, V), V).mutants} == {"cos"}


def test_a_check_that_sees_nothing_scores_nothing():
    score = mutation_score(lambda v: jnp.tanh(v) * v, lambda mutant: None, V)
    assert score.score == 0 and score.survivors and "SURVIVED" in str(score)
    assert str(score).splitlines()[-1] == score.headline()


def test_the_summary_lists_the_first_survivors_and_counts_the_rest():
    score = mutation_score(lambda v: jnp.tanh(v) * v, lambda mutant: None, V)
    headline, *lines, rest = score.summary().splitlines()
    assert headline == score.headline() == f"0 of {score.judged} mutants killed (0.0 %); {score.judged} survived"
    assert lines == [f"  survived: {mutant}" for mutant in score.survivors[:5]]
    assert "test_mutation.py:" in lines[0] and "tanh: sign flipped: score = mutation_score(" in lines[0]
    assert rest == f"  and {score.judged - 5} more in .survivors"
    few = replace(score, mutants=score.survivors[:5])
    assert few.summary().splitlines()[1:] == lines
    killed = mutation_score(jnp.tanh, exact(jnp.tanh, V), V)
    assert killed.summary() == killed.headline()


def test_what_a_check_may_say():
    calls = iter(range(100))

    def check(mutant):
        turn = next(calls)
        if turn == 1:
            return False
        if turn == 2:
            raise AssertionError("first line\nsecond")
        if turn == 3:
            raise ZeroDivisionError("broke down")
        if turn == 4:
            return Report((), "float64", "empty")  # shows nothing, so it is no pass
        return np.True_ if turn == 5 else True

    score = mutation_score(lambda v: v * v, check, V)
    verdicts = [(m.verdict, m.by) for m in score.mutants if m.verdict != "unchanged"]
    assert verdicts[:3] == [
        ("killed", "returned False"),
        ("killed", "AssertionError: first line"),
        ("error", "ZeroDivisionError: broke down"),
    ]
    assert verdicts[3][0] == "killed" and "INCONCLUSIVE" in verdicts[3][1]
    assert verdicts[4:] == [("survived", "")]
    assert score.score == 4 / 5 and score.counts["error"] == 1


def test_a_sample_is_drawn_by_its_seed_and_says_so():
    def run(**given):
        return mutation_score(lambda v: jnp.tanh(v) * jnp.exp(v), lambda mutant: None, V, limit=5, **given)

    assert len(run().mutants) == 5 and run() == run()
    assert run().mutants != run(seed=1).mutants
    assert f"a sample of 5 of {run().possible}, seed 0" in run().summary()


ACCEPTED = {
    "words": {"identity for tanh": "near zero they agree"},
    "several words": {("test_mutation.py", "tanh: identity for tanh"): "near zero they agree"},
    "function": lambda mutant: "near zero they agree" if mutant.what == "identity for tanh" else None,
}


@pytest.mark.parametrize("how", ACCEPTED)
def test_equivalent_mutants_are_listed_and_do_not_count(how):
    small = 1e-5 * V
    score = mutation_score(lambda v: jnp.tanh(v), exact(jnp.tanh, small), small, accept=ACCEPTED[how])
    assert not score.survivors and score.score == 1
    assert [m.argument for m in score.having("equivalent")] == ["near zero they agree"]
    assert "near zero they agree" in str(score) and not score.refuted


def test_a_false_claim_of_equivalence_is_shown():
    score = mutation_score(jnp.tanh, exact(jnp.tanh, V), V, accept=ACCEPTED["words"])
    assert [m.what for m in score.refuted] == ["identity for tanh"]
    assert score.score == 1 and "NOT EQUIVALENT" in str(score)


def test_an_interruption_keeps_what_was_judged():
    calls = iter([None, False, False])

    def check(mutant):
        try:
            return next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None

    score = mutation_score(lambda v: v * v, check, V)
    assert score.partial and score.killed == 2 and len(score.mutants) < score.planned
    assert score.summary().startswith(f"INTERRUPTED after {len(score.mutants)} of {score.planned}")
    assert score.as_dict()["partial"] is True


def test_the_score_is_plain_values():
    score = mutation_score(lambda v: v * v, lambda mutant: None, V)
    stored = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert stored["score"] == 0 and len(stored["mutants"]) == len(score.mutants)
    assert stored["mutants"][0]["source"] == score.mutants[0].source


def test_nothing_that_counts_has_no_score():
    score = mutation_score(jnp.sin, lambda mutant: None, np.zeros(3))
    assert np.isnan(score.score) and score.as_dict()["score"] is None and score.counts["unchanged"] > 0


def test_a_mutant_works_under_jit_and_vmap():
    def function(v):
        return jnp.tanh(v) * v

    def check(mutant):
        right = np.tanh(V) * V
        np.testing.assert_allclose(jax.jit(mutant)(V), right, rtol=1e-9)
        np.testing.assert_allclose(jax.vmap(mutant)(V[None].repeat(2, 0)), [right, right], rtol=1e-9)

    score = mutation_score(function, check, V)
    assert score.score == 1 and score.counts["error"] == 0


def test_a_change_in_place_is_not_missed():
    ours, values = V.copy(), []

    def check(mutant):
        ours[:] = 2 * V
        values.append(np.asarray(mutant(ours)))
        ours[:] = V

    mutation_score(lambda v: v * v, check, ours)
    np.testing.assert_array_equal(values[0], 4 * V**2)
    np.testing.assert_array_equal(values[1], -4 * V**2)  # the first mutant: sign flipped


@pytest.mark.parametrize("name", ["gradient", "scan", "scan in reverse"])
def test_values_taken_over_from_the_right_run_change_no_verdict(monkeypatch, name):
    taken_over = judged_once(name)
    monkeypatch.setattr(program, "HELD", -1)
    assert judged(name) == taken_over


def test_a_check_may_delete_what_it_was_given():
    v = jnp.asarray(V)
    right = np.tanh(V), 3 * V

    def check(mutant):
        pair = mutant(v)
        same = all(np.allclose(ours, theirs, rtol=1e-9) for ours, theirs in zip(pair, right, strict=True))
        for leaf in pair:  # as a function that its result is donated to does
            leaf.delete()
        return same

    score = mutation_score(lambda v: (jnp.tanh(v), 3 * v), check, v)
    assert score.score == 1 and score.counts["error"] == 0


def test_float64_arrays_stay_float64_with_x64_off():
    with jax.enable_x64(False):
        score = mutation_score(lambda v: v * v, exact(lambda v: np.asarray(v) ** 2, V), V, nudge=1e-8)
    assert score.score == 1 and any(m.what == "times 1 + 1e-08" and m.verdict == "killed" for m in score.mutants)


def test_float32_stays_float32_with_x64_off():
    with jax.enable_x64(False):
        v = jnp.asarray(V, "float32")
        kinds = set()
        mutation_score(lambda v: v * v, lambda mutant: kinds.add(mutant(v).dtype), v, nudge=1e-9)
    assert kinds == {jnp.dtype("float32")}


def _shape_changing(mutant):
    mutant(V[:2])


BAD = {
    "grad_fun": (lambda: mutation_score(3, print, V), TypeError, "grad_fun must be a function, got int 3"),
    "custom_vjp": (lambda: mutation_score(_halved, print, V), TypeError, "to break the rule pass its gradient"),
    "custom_jvp": (lambda: mutation_score(_cubed, print, V), TypeError, "to break the rule pass its gradient"),
    "check": (lambda: mutation_score(jnp.tanh, None, V), TypeError, "check must be a function"),
    "not jax": (
        lambda: mutation_score(lambda v: v if float(v[0]) > 0 else -v, lambda m: None, V),
        TypeError,
        "cannot be traced by JAX",
    ),
    "not an array": (lambda: mutation_score(jnp.tanh, lambda m: None, "text"), TypeError, r"args\[0\] is str"),
    "no floats": (lambda: mutation_score(lambda n: n * 1.0, lambda m: None, 3), ValueError, "none among 1 args"),
    "nothing to break": (lambda: mutation_score(lambda v: v, lambda m: None, V), ValueError, "nothing to break"),
    "failing check": (
        lambda: mutation_score(jnp.tanh, lambda m: False, V),
        ValueError,
        "must pass on the gradient as it is, before it is broken, but returned False",
    ),
    "raising check": (
        lambda: mutation_score(jnp.tanh, lambda m: 1 / 0, V),
        ValueError,
        "but raised ZeroDivisionError: division by zero",
    ),
    "strange check": (lambda: mutation_score(jnp.tanh, lambda m: "fine", V), TypeError, "got str"),
    "other shapes": (
        lambda: mutation_score(jnp.tanh, _shape_changing, V),
        ValueError,
        r"args\[0\] as float64\[2\] but was traced with float64\[3\]",
    ),
    "other structure": (lambda: mutation_score(jnp.tanh, lambda m: m(V, V), V), ValueError, "arguments of structure"),
    "nudge": (lambda: mutation_score(jnp.tanh, print, V, nudge=0.0), ValueError, "between 0 and 1; got 0.0"),
    "limit": (lambda: mutation_score(jnp.tanh, print, V, limit=0), ValueError, "at least 1, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, without_hook):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()


subjects = cache(partial(mutation_catalogue.subjects, 0))


def _gradient_of_an_mlp(lam, n):
    objective = mb.Objective(mb.mlp((3, 3, 2)), mb.squared_error, mb.Frobenius(lam))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: objective.net.init(jax.random.key(0)))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.6, s.shape)), shapes)
    x, y = jnp.asarray(rng.normal(size=(n, 3))), jnp.asarray(rng.normal(size=(n, 2)))
    right = jax.jit(jax.grad(lambda p: objective(p, x, y)))(params)

    def check(gradient):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), gradient(params), right)

    return mutation_score(lambda p: mb.value_and_grad(objective)(p, x, y)[1], check, params)


@pytest.mark.usefixtures("without_hook")  # which takes half of the time of a run operation by operation
@pytest.mark.parametrize(("lam", "n", "blind"), [(0.1, 5, None), (0.0, 5, "regularizers.py"), (0.1, 1, "objective.py")])
def test_what_arguments_must_be_for_a_fault_to_show(lam, n, blind):
    score = _gradient_of_an_mlp(lam, n)
    right_here = [m for m in score.having("unchanged") if m.primitive in ("mul", "div", "add", "add_any")]
    assert not score.survivors
    if blind is None:
        assert not [m for m in right_here if "regularizers.py" in m.source or "sum for mean" in m.what]
    elif blind == "regularizers.py":
        assert sum(blind in m.source for m in right_here) >= 4  # two kinds of fault or more in each of 2 layers
    else:
        mean = [m for m in right_here if "sum for mean" in m.what or "not divided by 1" in m.what]
        assert any(blind in m.source for m in mean)  # 1/N enters once, at the output


def test_the_catalogue_meets_every_formula():
    of_all = subjects().values()
    text = " ".join(str(s.objective.net) for s in of_all)
    assert all(name in text for name in mb.activations.TABLE)
    assert {s.objective.loss for s in of_all} >= set(mb.losses.TABLE.values())
    nets = " ".join(repr(s.objective.net) for s in of_all)
    assert all(
        f"{kind}(" in nets for kind in ("Serial", "Residual", "Repeat", "Tied", "Parallel", "Product", "Attention")
    )
    assert {key for s in of_all for key in s.given} == {"lam", "weights", "v"}
    assert {s.function for s in of_all} == set(FUNCTIONS) and any(s.key is not None for s in of_all)
    of_products = " ".join(repr(s.objective.net) for s in of_all if "v" in s.given)
    layers = ("Attention", "LayerNorm", "RMSNorm", "Embedding", "PositionalEmbedding", "Product", "Dropout")
    assert all(f"{kind}(" in of_products for kind in (*layers, "TiedReadout"))
    assert all(model.examples(s.x) > 1 for s in of_all) and any(s.objective.regularizer is None for s in of_all)
    for subject in of_all:
        floats = (leaf for leaf in jax.tree.leaves((subject.params, subject.x)) if leaf.dtype == np.float64)
        assert not any((np.asarray(leaf) == 0).any() for leaf in floats)


@pytest.mark.usefixtures("without_hook")
def test_the_catalogue_judges_and_stops(monkeypatch):
    monkeypatch.setattr(mutation_catalogue, "QUICK", 12)
    only = dict.fromkeys(("tied", "once more"), subjects()["tied"])
    monkeypatch.setattr(mutation_catalogue, "subjects", lambda seed: only)
    told = []
    scores = mutation_catalogue.catalogue_mutation(True, 0, told.append)
    assert list(scores) == list(only) and len(told) == 2
    for score in scores.values():
        assert score.planned == 12 < score.possible
        assert score.score == 1 and not score.refuted and score.counts["error"] == 0


WRONG = {
    "delta": lambda step: {"deltas": jax.tree.map(lambda d: d.at[0].multiply(1 + 1e-9), step.deltas)},
    "d_lam": lambda step: {"d_lam": -step.d_lam},
    "penalty": lambda step: {"penalty": 2 * step.penalty},
    "gradients": lambda step: {"gradients": jax.tree.map(lambda g: g.at[0].set(0.0), step.gradients)},
    "a": lambda step: {"trace": jax.tree.map(lambda a: a * (1 + 1e-9), step.trace)},
}


@pytest.mark.usefixtures("without_hook")
def test_the_catalogues_check_looks_at_every_part_of_the_step():
    subject = subjects()["tied"]
    right = jax.jit(subject.by_hand)
    check = step_check(subject)
    assert check(right)
    step = right(*subject.args)
    for name, wrong in WRONG.items():
        assert not check(lambda *args, wrong=wrong: mb.Step(**{**vars(step), **wrong(step)})), name


@pytest.mark.usefixtures("without_hook")
def test_the_catalogues_check_sees_a_small_error_of_a_hessian_vector_product():
    subject = subjects()["curvature of a gate with dropout"]
    check = step_check(subject)
    right = jax.jit(subject.by_hand)(*subject.args)
    assert check(lambda *args: right)
    leaves, structure = jax.tree.flatten(right)
    for i, leaf in enumerate(leaves):
        wrong = [*leaves[:i], leaf * (1 + 1e-9), *leaves[i + 1 :]]
        assert not check(lambda *args, wrong=wrong: structure.unflatten(wrong))


def test_sums_of_products_of_sixteenths_are_exact():
    """So the first position, which sees itself alone, has a query without any gradient, where rounding leaves none."""
    subject = subjects()["causal attention in blocks"]
    floats = [leaf for leaf in jax.tree.leaves(subject.args) if leaf.dtype == np.float64]
    assert all((np.asarray(leaf) * 16 % 2 == 1).all() for leaf in floats)
    d_q = jax.jit(subject.by_hand)(*subject.args).d_x[0]
    assert (d_q[:, 0] == 0).all() and (d_q[:, 1:] != 0).all()


def test_published_gradients_are_right():
    for subject in SUBJECTS:
        args = tuple(jnp.asarray(arg) for arg in subject.args)
        shape = jax.eval_shape(subject.function, *args).shape
        d_output = jnp.asarray(np.random.default_rng(9).normal(size=shape))

        def pulled(*args, function=subject.function):
            return jax.vjp(function, *args[:-1])[1](args[-1])

        both = (jax.jit(function)(*args, d_output) for function in (subject.pullback, pulled))
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13, err_msg=subject.name)


@pytest.mark.evidence
@pytest.mark.usefixtures("without_hook")
def test_the_published_table_counts_what_each_checker_sees():
    softmax = next(subject for subject in SUBJECTS if subject.name == "weighted softmax")
    chosen = ("ours", "jax check_grads float64", "chex float32")
    scores = {name: mutants.judged(softmax, *mutants.CHECKERS[name]) for name in chosen}
    assert scores["ours"].score == 1 and not scores["ours"].refuted
    nudged = [m for m in scores["jax check_grads float64"].mutants if m.what.startswith("times 1 + ")]
    assert nudged and not any(m.verdict in ("killed", "error") for m in nudged)  # its tolerance is 1e-5
    lines = mutants.table({"weighted softmax": scores}).splitlines()
    assert lines[2].split()[3] == str(scores["ours"].judged) and "100.0 %" in lines[2]
    assert len(lines) == 2 + 1 + 2
