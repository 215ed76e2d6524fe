"""Checks of programs on several devices: ours pass in every layout, and a wrong reduction is named."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import every_time, generic
from jax.sharding import AxisType, PartitionSpec

import manual_backprop as mb
import reference
from reference.catalogue.on_devices import layouts
from reference.checks.placement import gathered
from reference.cli import main
from reference.cli.check import AGAIN

RNG = np.random.default_rng(0)
NET = mb.mlp((6, 8, 4), activation="tanh")
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(0.05))
PARAMS = generic(NET)
X, Y = RNG.normal(size=(12, 6)), RNG.integers(0, 4, 12)
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
WHOLE, ROWS = PartitionSpec(), PartitionSpec("data")


@pytest.mark.parametrize("layout", every_time(mb.sharding.LAYOUTS, "fsdp", "2d"))
def test_our_step_is_proven_in_every_layout(layout):
    report = reference.check(OBJECTIVE, PARAMS, X, Y, mesh=MESH, layout=layout, weights=RNG.uniform(size=12))
    report.raise_if_failed()
    assert report.notes[0] == f'on 8 devices, data=4 x model=2, layout "{layout}"'


def test_the_program_under_test_runs_on_all_devices_and_a_value_that_is_summed_for_a_mean_is_named():
    """Its results lie on the mesh: a check of a program on one device would prove nothing about eight."""
    seen = []

    def summed(objective: mb.Objective) -> Callable[..., Any]:
        def run(params: Any, x: Any, y: Any) -> Any:
            jax.debug.inspect_array_sharding(x, callback=seen.append)
            J, gradient = mb.value_and_grad(objective)(params, x, y)
            return 4 * J, gradient

        return run

    (wrong,) = reference.check(OBJECTIVE, PARAMS, X, Y, mesh=MESH, value_and_grad=summed).failures
    assert wrong.path == "value_and_grad.value"
    assert wrong.cause.startswith("4 times over: a sum over devices")
    assert len(seen[0].device_set) == 8
    assert seen[0].shard_shape(X.shape) == (3, 6)


Reduced = Callable[[Any, Any, int], Any]
"""(a shard's mean gradient without penalty, its penalty, the number of shards) -> the leaf."""


def on_shards(of_layers: Sequence[Reduced]) -> Callable[..., Any]:
    """A gradient by hand in shard_map, that of every layer reduced in its own way."""

    def value_and_grad(objective: mb.Objective) -> Callable[..., Any]:
        plain = mb.Objective(objective.net, objective.loss)

        def on_a_shard(params: Any, x: Any, y: Any) -> Any:
            J, gradient = mb.value_and_grad(plain)(params, x, y)
            penalty = objective.regularizer.add_gradient(jax.tree.map(jnp.zeros_like, params), params, None)
            J = jax.lax.pmean(J, "data") + objective.regularizer.penalty(params, None)
            layers = zip(of_layers, gradient, penalty, strict=True)
            return J, tuple(jax.tree.map(lambda g, p, to=to: to(g, p, 4), *leaves) for to, *leaves in layers)

        return jax.shard_map(
            on_a_shard, mesh=MESH, in_specs=(WHOLE, ROWS, ROWS), out_specs=(WHOLE, WHOLE), check_vma=False
        )

    return value_and_grad


def mean(g: Any) -> Any:
    return jax.lax.pmean(g, "data")


def total(g: Any) -> Any:
    return jax.lax.psum(g, "data")


def of(k: int, g: Any) -> Any:
    """The gradient on shard k, zero elsewhere."""
    return jnp.where(jax.lax.axis_index("data") == k, g, jnp.zeros_like(g))


def swapped(g: Any) -> Any:
    """The right gradient with the halves of its first axis exchanged."""
    return jnp.roll(g, g.shape[0] // 2, axis=0)


FAULTS: dict[str, tuple[Reduced, str]] = {
    "never reduced": (lambda g, p, n: g + p, "alone: the sum over the shards of the batch is missing"),
    "one device lacks the sum": (
        lambda g, p, n: jnp.where(jax.lax.axis_index("data") == 2, g, mean(g)) + p,
        "the rows of shard 2 alone",
    ),
    "sum for mean": (lambda g, p, n: total(g) + p, "4 times over: a sum over devices where a mean is meant"),
    "reduced twice": (lambda g, p, n: total(mean(g)) + p, "4 times over: a sum over devices where a mean is meant"),
    "mean of a share": (lambda g, p, n: mean(g / n) + p, "divided by 4 once too often: a mean over devices"),
    "penalty before the sum": (lambda g, p, n: total(g / n + p), "the penalty 4 times over: every device adds it"),
    "penalty averaged": (lambda g, p, n: mean(g) + p / n, "the penalty divided by 4"),
    "all of it summed again": (lambda g, p, n: total(mean(g) + p), "4 times over, penalty and all"),
    "a shard's rows missing": (lambda g, p, n: mean(g - of(1, g)) + p, "the rows of shard 1 are missing"),
    "a shard's gradient zeroed": (
        lambda g, p, n: mean(g + p - of(1, g + p)),
        "the rows of shard 1 are missing",
    ),
    "a mean over three": (lambda g, p, n: total((g - of(3, g)) / 3) + p, "the rows of shard 3 are missing"),
    "a shard's rows twice": (lambda g, p, n: mean(g + of(0, g)) + p, "the rows of shard 0 are counted twice"),
    "largest for mean": (
        lambda g, p, n: jax.lax.pmax(g, "data") + p,
        "the largest over the shards where their mean is meant",
    ),
    "blocks exchanged": (lambda g, p, n: swapped(mean(g) + p), "the blocks of axis 0 stand in the order"),
}


def test_a_wrong_reduction_is_named_and_a_right_one_passes():
    """Of one network, whose first layer is reduced as it must be, and every other one in a wrong way."""
    net = mb.mlp((6, *[8] * len(FAULTS), 4), activation="tanh")
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.05))
    of_layers = [lambda g, p, n: mean(g) + p, *(reduced for reduced, _ in FAULTS.values())]
    report = reference.check(objective, generic(net), X, Y, mesh=MESH, value_and_grad=on_shards(of_layers))
    causes = {row.path: row.cause for row in report.rows if not row.passed}
    assert {path.partition("]")[0] for path in causes} == {
        f"value_and_grad.gradients[{k}" for k in range(1, len(of_layers))
    }
    for k, (name, (_, named)) in enumerate(FAULTS.items(), start=1):
        assert named in causes[f"value_and_grad.gradients[{k}].W"], name


def over_model(a: Any) -> Any:
    return jax.lax.psum(a, "model")


def by_columns_then_rows(**sums: Callable[[Any], Any]) -> Callable[..., Any]:
    """A step of three layers over "model", which shares the features of 1 and 3, and so the terms of z of 2.

    Args:
        sums: in the place of the sum over "model" in z of layer 2, in delta of layer 2, and in d_x.
    """
    add = {"z": lambda z, b: over_model(z) + b[None], "delta": over_model, "d_x": over_model} | sums
    columns, by_rows, both = PartitionSpec("model"), PartitionSpec(None, "model"), PartitionSpec("data", "model")
    weights = [(columns, columns), (by_rows, WHOLE), (columns, columns)]
    found = [(both, ROWS, both)] * 3

    def on_a_shard(weights: Any, x: Any, y: Any) -> Any:
        (W1, b1), (W2, b2), (W3, b3) = weights
        a1 = jnp.tanh(z1 := x @ W1.T + b1[None])
        a2 = jnp.tanh(z2 := add["z"](a1 @ W2.T, b2))
        z3 = a2 @ W3.T + b3[None]
        delta3 = z3 - y
        delta2 = (1 - a2**2) * add["delta"](delta3 @ W3)
        delta1 = (1 - a1**2) * (delta2 @ W2)
        return [(z1, z2, z3), (a1, a2, z3), (delta1, delta2, delta3)], add["d_x"](delta1 @ W1)

    shared = jax.shard_map(
        on_a_shard, mesh=MESH, in_specs=(weights, ROWS, both), out_specs=(found, ROWS), check_vma=False
    )

    def backprop(objective: mb.Objective, params: Any, x: Any, y: Any, **given: Any) -> mb.Step:
        (z, a, deltas), d_x = shared([(layer.W, layer.b) for layer in params], x, y)
        step = mb.backprop(objective, params, x, y, **given)
        trace = tuple(replace(values, z=z[i], a=a[i]) for i, values in enumerate(step.trace))
        return replace(step, trace=trace, deltas=deltas, d_x=d_x, output=a[-1])

    return backprop


IN_FEATURES = {
    "none": ({}, None, ""),
    "z not summed": ({"z": lambda z, b: z + b[None]}, "trace[1].z", "alone: the sum over devices is missing"),
    "z summed twice": (
        {"z": lambda z, b: over_model(over_model(z)) + b[None]},
        "trace[1].z",
        "the product 2 times over",
    ),
    "b summed": ({"z": lambda z, b: over_model(z + b[None])}, "trace[1].z", "the bias 2 times over"),
    "delta not summed": ({"delta": lambda d: d}, "deltas[1]", "alone: the sum over devices is missing"),
    "delta summed twice": ({"delta": lambda d: over_model(over_model(d))}, "deltas[1]", "2 times over"),
    "d_x not summed": ({"d_x": lambda d: d}, "d_x", "of 2 alone: the sum over devices is missing"),
}


@pytest.mark.parametrize("name", every_time(IN_FEATURES, "none", "b summed", "delta not summed"))
def test_a_wrong_sum_over_features_is_named(name):
    sums, path, cause = IN_FEATURES[name]
    net = mb.mlp((6, 8, 8, 4), activation="tanh")
    objective, y = mb.Objective(net, mb.squared_error), RNG.normal(size=(12, 4))
    report = reference.check(objective, generic(net), X, y, mesh=MESH, backprop=by_columns_then_rows(**sums))
    first = next((row for row in report.rows if not row.passed), None)
    assert (first and first.path) == path
    assert path is None or cause in first.cause


def test_of_copies_that_disagree_one_that_is_nan_is_taken_whichever_part_it_is_of():
    """Two parts along "data", two copies of each along "model"; in one copy of the second part is a nan."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])

    def part(x: Any) -> Any:
        bad = (jax.lax.axis_index("data") == 1) & (jax.lax.axis_index("model") == 1)
        return x + jnp.where(bad, jnp.nan, jnp.where(jax.lax.axis_index("model") == 0, 0.1, 0.0))

    found = jax.shard_map(part, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False)(jnp.ones(4))
    np.testing.assert_array_equal(gathered(found, np.ones(4)), [1, 1, np.nan, np.nan])


def test_what_does_not_fit_is_refused(without_hook):
    with pytest.raises(ValueError, match="a layout says how inputs lie on a mesh: give mesh= too"):
        reference.check(OBJECTIVE, PARAMS, X, Y, layout="fsdp")
    with pytest.raises(ValueError, match="layout must be one of"):
        reference.check(OBJECTIVE, PARAMS, X, Y, mesh=MESH, layout="rows")
    with pytest.raises(ValueError, match="splits an axis of 10 into 4 parts"):
        reference.check(OBJECTIVE, PARAMS, X[:10], Y[:10], mesh=MESH)


def test_the_catalogue_is_proven_on_devices(capsys):
    assert main(["check", "--devices", "8", "--quick", "--only", "float64, repeat; data, explicit axes"]) == 0
    printed = capsys.readouterr().out
    assert "Hand-written gradients on 8 devices against jax.grad" in printed
    assert re.search(r"^data, explicit axes +\d", printed, re.MULTILINE)
    assert "ALL PROVEN" in printed


def test_a_network_is_named_by_the_layout_that_it_has():
    """No axis of 10 is split over four devices, so "fsdp" would be "data" by another name."""
    of_tens = {way.layout for way in layouts([mb.mlp((10, 10, 1))] * 6, 8)}
    assert of_tens == {"data", "tensor", "2d"}
    ways = layouts([NET] * 8, 8)
    assert {(way.layout, way.axes) for way in ways} == {
        (layout, axes) for layout in mb.sharding.LAYOUTS for axes in ("automatic", "explicit")
    }


PLACES = [
    *(f"; {layout}, {axes} axes" for layout in mb.sharding.LAYOUTS for axes in ("automatic", "explicit")),
    "; pipeline, ",
]


@pytest.mark.evidence
def test_the_places_are_all_there_are(capsys):
    assert main(["check", "--devices", "8", "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) > 100
    assert all(sum(place in name for place in PLACES) == 1 for name in names)


@pytest.mark.evidence
@pytest.mark.parametrize("place", PLACES)
def test_the_whole_catalogue_is_proven_on_devices(place):
    assert main(["check", "--devices", "8", "--only", place]) == 0


def test_a_process_with_one_device_starts_another_with_more(capfd, monkeypatch, tmp_path):
    """The same words again, so that a module which they import counts the devices there."""
    (tmp_path / "counting.py").write_text("import jax\n\nprint(jax.device_count(), 'devices')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(Path(reference.__file__).parent.parent))
    monkeypatch.setenv(AGAIN, "")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--devices", "4", "--quick", "--list", "--import", "counting"]) == 2
    out, err = capfd.readouterr()
    assert out == "4 devices\n", err
    assert "counting adds nothing to the catalogue" in err


def test_devices_do_not_go_with_a_target_or_with_mutants(capsys):
    assert main(["check", "--devices", "8", "--mutate"]) == 2
    assert "cannot go with --mutate" in capsys.readouterr().err
    assert main(["check", "module:name", "--devices", "8"]) == 2
    assert "--devices cannot go with a TARGET" in capsys.readouterr().err
