"""The catalogue meets what is registered: every pair of features, and a family or composite of somebody's own."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from reference import cli, model
from reference.catalogue import data, mutating, networks, proving, sequences
from reference.catalogue.subject import step_check
from reference.checks.step import Judge, prepare
from reference.mutation.score import mutation_score
from reference.report import Report

OWN = Path(__file__).parents[1] / "scaled_layer.py"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    """JAX's defaults, not the tests' strictness."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def stays_out(cls: type, *given: Any) -> None:
    """In the place of a specimen: nothing that was registered can be taken back, but it can stay out."""


def forget(name: str) -> None:
    """Leave the catalogue to the other tests as it was."""
    for kind in (*model.apply.registry, *model.through.registry):
        if kind.__module__ == name:
            kind.specimen = classmethod(stays_out)  # type: ignore[attr-defined]
    sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module `mine` of a family and a composite."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(OWN, tmp_path / "mine.py")
    yield tmp_path
    forget("mine")


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """That module, imported."""
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module("mine")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        return status, *capsys.readouterr()

    return command


def met(settings: Any) -> set[Any]:
    """The pairs of values that these settings meet."""
    return set().union(*(networks._pairs(networks.features(), setting) for setting in settings))


def test_the_catalogue_meets_every_pair_of_features() -> None:
    settings = networks.covering(0)
    every = tuple(networks.features().items())
    assert met(settings) == networks.all_pairs(every)
    assert len(settings) <= 110
    assert settings == networks.covered.__wrapped__(0, every)  # drawn once more, not remembered
    assert settings != networks.covering(1)
    few = networks.each_value(settings)
    for i, values in enumerate(networks.features().values()):
        assert {setting[i] for setting in few} == set(values)


def test_what_is_built_in_is_met() -> None:
    assert list(networks.families()) == ["dense", "product"]
    assert set(networks.composites()) == {"serial", "residual", "parallel", "repeat", "tied"}
    names = [plan.name for plan in networks.plans(0, each_once=False)]
    assert len(set(names)) == len(names)
    ends = ("serial", "residual", "parallel", "repeat", "tied", ", product")
    assert all(name.endswith(ends) for name in names)


def test_layers_without_bias_are_met_wherever_there_are_gates() -> None:
    """And gates meet every activation, loss, precision and composite."""
    value, gate, product = networks.block(mb.Product, 10, "tanh").layers()
    assert (value.bias, gate.bias, type(product)) == (False, True, mb.Product)


def test_parameters_are_drawn_around_what_they_start_from(mine: ModuleType) -> None:
    net = mb.Repeat(mb.Serial((mine.Scale(9), mb.Dense(9, 9))), 2)
    scales, dense = networks.draw_params(net, 1.0, np.random.default_rng(0))
    assert scales.s.shape == (2, 9)
    assert np.abs(scales.s - 1).max() < 0.5 < scales.s.min()
    assert np.abs(scales.b).max() < 1.5
    assert all((leaf != 0).all() for leaf in jax.tree.leaves((scales, dense)))


def test_language_models_meet_every_choice_and_with_their_opposites_every_pair() -> None:
    values = [*sequences.CHOICES, networks.DTYPES]
    both = [[(*chosen, dtype) for chosen, dtype in sequences.settings(seed)] for seed in (0, 1)]
    for settings in both:
        assert [set(each) for each in zip(*settings, strict=True)] == [set(each) for each in values]
    for i, j in combinations(range(len(values)), 2):
        pairs = {(setting[i], setting[j]) for settings in both for setting in settings}
        assert pairs == set(product(values[i], values[j])), (i, j)
    names = [plan.name for plan in sequences.plans(0, each_once=False)]
    assert len(set(names)) == len(names) == len(networks.DTYPES)
    assert [plan.name for plan in sequences.plans(0, each_once=True)] == names[:1]


@pytest.mark.evidence
def test_the_opposite_language_models_are_proven() -> None:
    for result in proving.prove(proving.tasks(sequences.plans(1, False), []), False, 1):
        assert result.verdict == "pass", result.reason()


def test_language_models_read_a_real_text() -> None:
    """Each id is a character; at every position the next one is to be found, and some have no id of their own."""
    ids = data.ids(sequences.VOCAB)
    counts = np.bincount(ids)
    assert counts.size == sequences.VOCAB and counts.min() > 1000
    assert list(counts[1:]) == sorted(counts[1:], reverse=True)
    case, other = (sequences.plans(0, True)[0].drawn(seed) for seed in (0, 1))
    assert case.x.shape == case.y.shape == (sequences.EXAMPLES, sequences.LENGTH)
    np.testing.assert_array_equal(case.x[:, 1:], case.y[:, :-1])
    assert (case.x != other.x).any()
    assert (case.y == data.OTHERS).any() and case.objective.loss.ignored == data.OTHERS


@pytest.mark.evidence
def test_a_language_model_is_proven_with_its_pictures() -> None:
    (plan,) = sequences.plans(0, each_once=True)
    (result,) = proving.prove(proving.tasks([plan], []), True, 0)
    assert result.verdict == "pass", result.reason()
    ours, theirs = result.pictures.scatter
    assert ours.size == sum(leaf.size for leaf in jax.tree.leaves(plan.drawn(0).params)) == theirs.size
    assert len(result.pictures.delta_norms) == plan.drawn(0).objective.net.depth
    assert min(result.pictures.difference_curve.errors) < 1e-5


def shallowest(layer: str, composite: str) -> networks.Case:
    """The network of the catalogue with the fewest layers, but three or more, in float64."""
    at = {name: i for i, name in enumerate(networks.features())}
    found = []
    for i, setting in enumerate(networks.covering(0)):
        if setting[at["layer"]] == layer and setting[at["composite"]] == composite and setting[at["depth"]] > 2:
            chosen = list(setting)
            chosen[at["dtype"]] = "float64"
            found.append((setting[at["depth"]], i, tuple(chosen)))
    _, seed, chosen = min(found)
    with jax.enable_x64(True):
        return networks.build(chosen, seed)


def proven(case: networks.Case) -> Report:
    (result,) = proving.prove([proving.Task("case", lambda: case)], False, 0)
    return result.report


def reference_of(case: networks.Case) -> Judge:
    """The reference's side of `proven`, for several faults of our own."""
    return prepare(case.objective, case.params, case.x, case.y, lam=case.lam)


def by_operation(judge: Judge) -> Report:
    """A step that is not compiled as a whole; its operations are compiled once for all faults."""
    with jax.enable_x64(True):
        inputs, given = jax.tree.map(jnp.asarray, (judge.inputs, judge.given))
        step = mb.backprop(judge.objective, *inputs, **given)
        return judge.report(jax.device_get(step))


def test_what_stays_out_is_said_with_the_reason(mine: ModuleType) -> None:
    class Unseen(mine.Scale):
        pass

    class Unregistered(mb.Residual):
        pass

    for kind in (Unseen, Unregistered):
        kind.__module__ = mine.__name__
        setattr(mine, kind.__name__, kind)
    assert networks.staying_out(mine) == [
        "Unseen stays out of the catalogue: nothing is registered for it on reference.model.apply",
        "Unregistered stays out of the catalogue: nothing is registered for it on reference.model.through",
    ]


def test_a_family_of_ones_own_is_met_with_everything(mine: ModuleType) -> None:
    assert networks.families()["scale"] is mine.Scale
    pairs = met(networks.covering(0))
    for name, values in networks.features().items():
        for value in values:
            if name != "layer" and (name, value) != ("depth", 1):
                assert ((name, value), ("layer", "scale")) in pairs
    assert len(networks.covering(0)) <= 110
    names = [plan.name for plan in networks.plans(0, each_once=True)]
    assert any(name.endswith(", scale") for name in names)
    assert any(name.endswith(("turned around", "turned around, product", "turned around, scale")) for name in names)


@pytest.mark.usefixtures("without_hook")  # which takes half of the time of a run operation by operation
def test_a_family_of_ones_own_is_proven_and_its_faults_are_named(
    mine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by the equation and the layer where it was planted."""
    case = shallowest("scale", "serial")
    last = len(case.objective.net.nodes) - 1  # type: ignore[attr-defined]
    judge = reference_of(case)
    report = by_operation(judge)
    assert report.passed, report
    assert {row.equation for row in report.rows if row.layer == 1} >= {"(F1)", "(F2)", "(B2)", "(B3)", "(B4)"}
    net_input, transport = mine.Scale.net_input, mine.Scale.transport
    faults: dict[str, tuple[type, str, Any, int]] = {
        "(F1)": (mine.Scale, "net_input", lambda *given: (1.01 * net_input(*given)[0], given[-1]), 1),
        "(B2)": (mine.Scale, "transport", lambda *given: 1.01 * transport(*given), last - 1),
        "(B4)": (mine.ScaleFactor, "weighted_sum", wrong_gradient(mine, "s"), 1),
        "(B3)": (mine.ScaleFactor, "weighted_sum", wrong_gradient(mine, "b"), 1),
    }
    for equation, (owner, method, wrong, layer) in faults.items():
        with monkeypatch.context() as broken:
            broken.setattr(owner, method, wrong)
            report = by_operation(judge)
        assert report.verdict == "fail"
        first = report.failures[0]
        assert (first.equation, first.layer, first.kind) == (equation, layer, "equation"), first


def wrong_gradient(mine: ModuleType, name: str) -> Callable[..., Any]:
    """The gradient of one parameter negated."""
    right = mine.ScaleFactor.weighted_sum

    def wrong(self: Any, weights: Any = None) -> Any:
        gradient = right(self, weights)
        return replace(gradient, **{name: -getattr(gradient, name)})

    return wrong


@pytest.mark.usefixtures("without_hook")
def test_a_fault_of_a_gate_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    case = shallowest("product", "serial")
    judge = reference_of(case)
    assert by_operation(judge).passed
    transport = mb.Product.transport
    faults: dict[str, tuple[str, Any, str]] = {
        "(F1)": ("net_input", lambda self, params, a_in: (a_in[0], a_in), "the second factor is missing"),
        "(B2)": (
            "transport",
            lambda self, params, saved, delta: (transport(self, params, saved, delta)[0], delta),
            "the other factor is missing",
        ),
    }
    for equation, (method, wrong, cause) in faults.items():
        with monkeypatch.context() as broken:
            broken.setattr(mb.Product, method, wrong)
            first = by_operation(judge).failures[0]
        assert (first.equation, first.kind) == (equation, "equation")
        assert cause in first.cause


def test_a_composite_of_ones_own_is_proven(mine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = shallowest("dense", "turned around")
    assert proven(case).passed
    backward = mine.TurnedAround.backward
    monkeypatch.setattr(mine.TurnedAround, "backward", lambda self, step, d, *given: backward(self, step, -d, *given))
    report = by_operation(reference_of(case))
    assert report.failures[0].equation == "(B2)"
    assert report.failures[0].layer == len(case.objective.net.nodes) - 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("without_hook", "mine")
def test_everything_of_the_catalogue_is_broken_and_mutants_of_what_is_ones_own_are_killed() -> None:
    with jax.enable_x64(True):
        subjects = mutating.subjects(0)
        kinds = set().union(*(mutating._kinds(subject.objective.net) for subject in subjects.values()))
        nets = [sequences.plans(seed, True)[0].drawn(seed).objective.net for seed in (0, 1)]
        of_language_models = set().union(*map(mutating._kinds, nets))
        assert kinds >= {*networks.families().values(), *networks.composites().values(), *of_language_models}
        for name in ("scale", "turned around"):
            subject = subjects[name]
            score = mutation_score(
                subject.by_hand,
                step_check(subject),
                *subject.args,
                limit=8,
                accept=mutating.EQUIVALENT,
            )
            assert score.score == 1, score


@pytest.mark.usefixtures("folder")
def test_the_command_imports_what_joins_its_catalogue(run: Run) -> None:
    before = run("check", "--list", "--only", "scale")
    assert before[0] == 2
    status, out, _ = run("check", "--import", "mine", "--list")
    assert status == 0
    assert sum(line.endswith(", scale") for line in out.splitlines()) >= len(mb.activations.TABLE)
    assert any("turned around" in line for line in out.splitlines())
    again, same, _ = run("check", "--import", "mine", "--list")  # known by now, and so no error
    assert (again, same) == (0, out)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no module 'other'"),
        ("raise ValueError('not today')", "importing other raised ValueError: not today"),
        ("import json", "other adds nothing to the catalogue"),
        (
            "from manual_backprop.layers import ParameterFree\nfrom reference import model\n"
            "class Bare(ParameterFree): pass\nmodel.apply.register(Bare, lambda *given: None)",
            "and each has a classmethod `specimen`",
        ),
        (
            "import mine\nmine.Scale.specimen = classmethod(lambda cls, width, activation: 'a layer')",
            "Scale.specimen must return a layer or composite, got 'a layer'",
        ),
        (
            "import mine, manual_backprop as mb\n"
            "mine.Scale.specimen = classmethod(lambda cls, width, activation: mb.Dense(width, 2))",
            "Scale.specimen must keep 10 features",
        ),
        ("import mine\nmine.Scale.specimen = classmethod(lambda cls, *given: 1 / 0)", "division by zero"),
    ],
)
def test_a_module_that_cannot_join_is_refused(run: Run, folder: Path, text: str | None, says: str) -> None:
    if text is not None:
        (folder / "other.py").write_text(text)
    try:
        status, _, err = run("check", "--import", "other", "--list")
    finally:
        sys.modules.pop("other", None)
    assert status == 2
    assert says in err
    assert "Traceback" not in err


def test_what_is_imported_is_not_for_a_target(run: Run) -> None:
    for arguments, says in ((("users:cubed", "--import", "mine"), "leave one"), (("--import", "a b"), "dotted name")):
        status, _, err = run("check", *arguments)
        assert status == 2
        assert says in err
