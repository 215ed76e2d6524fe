"""Prove the catalogue and the published examples side by side, and collect their pictures."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from reference import model
from reference.catalogue import networks, published, sequences
from reference.catalogue.on_devices import Way, layouts, pipelines
from reference.checks.step import Judge, by_hand, prepare
from reference.equations.chain import written_out
from reference.reports.run import NetworkResult, Pictures
from reference.witnesses.differences import difference_curve
from reference.xla import quick

Plan = networks.Plan | sequences.Plan
REDRAWN = 3  # how often a network of the catalogue is drawn anew if rounding leaves it undecided
REDRAW_SEED = 1_000_003


@dataclass(frozen=True)
class Task:
    """One network to prove.

    Attributes:
        name: its name in reports.
        build: the network and its data, built when it is its turn.
        redraw: seed -> the same network with other parameters and examples; None if these are fixed.
        way: how it lies on several devices; None is one device.
    """

    name: str
    build: Callable[[], networks.Case]
    redraw: Callable[[int], networks.Case] | None = None
    way: Way | None = None


def tasks(plans: list[Plan], examples: list[published.Example]) -> list[Task]:
    """A task for each network of the catalogue, then for each published example."""
    return [
        *(Task(plan.name, partial(plan.drawn, plan.seed), plan.drawn) for plan in plans),
        *(Task(example.name, partial(_of_example, example)) for example in examples),
    ]


def on_devices(plans: list[Plan], devices: int) -> list[Task]:
    """A task for each network of the catalogue in a layout, and one for each that can be a pipeline."""
    every = tasks(plans, [])
    nets = [task.build().objective.net for task in every]
    ways: list[Way | None] = [*layouts(nets, devices), *pipelines(nets, devices)]
    pairs = zip((*every, *every), ways, strict=True)
    return [replace(task, name=f"{task.name}; {way.name}", way=way) for task, way in pairs if way is not None]


def _of_example(of: published.Example) -> networks.Case:
    return networks.Case(of.objective, of.params, of.x, of.y, None, "float64", "")


def prove(all_tasks: list[Task], pictures: bool, seed: int) -> Iterator[NetworkResult]:
    """Yield results as they are done. Compilation runs outside Python's lock, so networks run side by side."""
    pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
    try:
        jobs = [pool.submit(_proven, task, pictures, seed) for task in all_tasks]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _proven(task: Task, pictures: bool, seed: int) -> NetworkResult:
    """Prove a network; if rounding leaves it undecided, draw it anew and say so in the report."""
    result = _once(task, task.build(), pictures, seed)
    for again in range(1, REDRAWN + 1):
        if task.redraw is None or result.verdict != "inconclusive":
            break
        retried = _once(task, task.redraw(REDRAW_SEED * again + seed), pictures, seed)
        note = f"drawn anew, since before it was {result.reason()}"
        result = replace(retried, report=replace(retried.report, notes=(*result.report.notes, note)))
    return result


def _once(task: Task, case: networks.Case, pictures: bool, seed: int) -> NetworkResult:
    started = time.perf_counter()
    inputs = (case.params, case.x, case.y)
    way = task.way
    mesh = None if way is None else way.mesh()
    layout = None if way is None else way.layout_of(case.objective.net, case.params)
    judge = prepare(case.objective, *inputs, lam=case.lam, dtype=case.dtype, seed=seed, mesh=mesh, layout=layout)
    value_and_grad = mb.value_and_grad if way is None else way.value_and_grad()
    step, pair = by_hand(judge, value_and_grad=value_and_grad, compiler_options=quick())
    report = judge.report(step, pair)
    drawn = _pictures(judge, step, seed) if pictures else None
    return NetworkResult(task.name, report, time.perf_counter() - started, case.dataset, drawn)


def _pictures(judge: Judge, step: mb.Step, seed: int) -> Pictures:
    """Every gradient entry by hand and by jax.grad, the deltas' norms, and finite differences' errors by step."""
    ours, theirs = (_flat(tree) for tree in (step.gradients, judge.measured.value.gradients))
    uses = written_out(judge.objective.net, judge.inputs[0], step)
    norms = tuple((f"layer {use.number}", float(np.linalg.norm(use.delta))) for use in uses)
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(lambda leaf: jnp.asarray(_wide(leaf)), judge.inputs)
        lam = judge.given.get("lam")

        def J(params: Any) -> Any:
            return model.value(judge.objective, params, x, y, lam=None if lam is None else _wide(lam))

        gradient = jax.tree.map(_wide, step.gradients)
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        curve = difference_curve(J, params, gradient=gradient, seed=seed) if finite else None
    return Pictures(scatter=(ours, theirs), delta_norms=norms, difference_curve=curve)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([_wide(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def _wide(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf if np.issubdtype(leaf.dtype, np.integer) else leaf.astype(np.float64)
