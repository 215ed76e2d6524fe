"""Do right answers ever fail, and wrong ones ever pass: random networks in four precisions, and faults in them.

    python -m benchmarks.evidence [--networks 10000] [--seed 0] [--processes 2] [--json FILE]

A network has 1 to 20 layers of 1 to 16 neurons, activation functions drawn layer by layer, weights of a scale between
1e-3 and 1e2 and inputs between 1e-2 and 1e1, a loss, a lambda and 2 to 8 examples. Each is checked as `reference.check`
does, equation by equation and end to end; then a fault (benchmarks.faults) is planted in it and it is checked again. A
fault that leaves every bit of the step as it was is no fault there and is not counted.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from benchmarks.faults import FAULTS, layers
from reference import autodiff
from reference.checks.step import Judge
from reference.report import Report, plain_table
from reference.tolerance.rounding import meter
from reference.xla import quick

DTYPES = ("float64", "float32", "bfloat16", "float16")
LOSSES = ("squared_error", "huber", "softmax_cross_entropy", "sigmoid_binary_cross_entropy")
WIDTHS = (1, 2, 3, 5, 8, 16)
EXAMPLES = (2, 5, 8)  # few, so that few shapes are compiled for
DRAWS = 250  # networks of one architecture, which share compiled programs
KINDS = ("equation", "end to end")
Tally = dict[str, Any]


def architecture(rng: np.random.Generator) -> mb.Objective:
    """Layers, activation functions, loss and lambda; hidden widths repeat so that some W are square."""
    depth = int(rng.integers(1, 21))
    hidden = rng.choice(WIDTHS, depth - 1) if rng.random() < 0.5 else np.full(depth - 1, rng.choice(WIDTHS))
    sizes = [int(rng.choice(WIDTHS)), *map(int, hidden), int(rng.choice(WIDTHS))]
    activations = [str(name) for name in rng.choice(list(mb.activations.TABLE), depth)]
    nodes = [mb.Dense(i, o, f) for i, o, f in zip(sizes, sizes[1:], activations, strict=False)]
    lam = float(10 ** rng.uniform(-4, 0))
    return mb.Objective(mb.Serial(tuple(nodes)), mb.losses.TABLE[str(rng.choice(LOSSES))], mb.Frobenius(lam))


def draw(objective: mb.Objective, n: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """(params, x, y) at a random scale."""
    scale = 10 ** rng.uniform(-3, 2)
    widths = layers(objective)
    params = tuple(
        mb.Affine(scale * rng.normal(0, w.d_in**-0.5, (w.d_out, w.d_in)), rng.normal(0, scale, w.d_out)) for w in widths
    )
    x = 10 ** rng.uniform(-2, 1) * rng.normal(size=(n, widths[0].d_in))
    outputs = widths[-1].d_out
    labels = objective.loss is mb.softmax_cross_entropy
    return params, x, rng.integers(0, outputs, n) if labels else rng.uniform(size=(n, outputs))


def family(seed: int, draws: int) -> Tally:
    """Run every check of one architecture."""
    jax.clear_caches()  # drop the programs of other architectures, since a process can map only a limited number
    rng = np.random.default_rng(seed)
    objective, n = architecture(rng), int(rng.choice(EXAMPLES))
    tally = _empty()
    with jax.enable_x64(True):
        example = draw(objective, n, rng)
        measured = meter(lambda p, x, y: autodiff.backprop(objective, p, x, y), *example)
        run = _runner(objective)
        planted = list(_plants(objective, rng))
        for i in range(draws):
            dtype = DTYPES[i % len(DTYPES)]
            inputs = jax.tree.map(lambda leaf, dtype=dtype: _rounded(leaf, dtype), draw(objective, n, rng))
            judge = Judge(objective, inputs, {}, dtype, measured(dtype, *inputs))
            step = run(*inputs)
            report = judge.report(step)
            _count(tally, dtype, report)
            if report.failures:
                where = f"{report.failures[0].explain()} [family {seed}, draw {i}, {dtype}] {objective.net}"
                tally["false failures"].append(where)
            name, faulty = planted[int(rng.integers(len(planted)))]
            wrong = faulty(*inputs)
            if not _same(step, wrong):
                tally["faults"][f"{name}|{dtype}|{_seen(judge.report(wrong))}"] += 1
    return tally


def _runner(objective: mb.Objective) -> Any:
    """The hand-written step, compiled; results on the host."""
    compiled = jax.jit(lambda p, x, y: mb.backprop(objective, p, x, y), compiler_options=quick())
    return lambda *inputs: jax.device_get(compiled(*inputs))


def _plants(objective: mb.Objective, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Yield a few faults that are possible in this architecture."""
    for name in rng.permutation(list(FAULTS))[:4]:
        fault = FAULTS[name]
        places = [i for i in range(len(layers(objective))) if fault.fits(objective, i)]
        if places:
            yield str(name), _runner(fault.plant(objective, int(rng.choice(places))))


def _rounded(leaf: Any, dtype: str) -> np.ndarray:
    return leaf.astype(jnp.dtype(dtype)) if leaf.dtype.kind == "f" else leaf


def _same(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(np.asarray(u, np.float64), np.asarray(v, np.float64), equal_nan=True)
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _seen(report: Report) -> str:
    return {"fail": "caught", "pass": "missed", "inconclusive": "inconclusive"}[report.verdict]


def _empty() -> Tally:
    return {"rows": defaultdict(list), "verdicts": Counter(), "faults": Counter(), "false failures": []}


def _count(tally: Tally, dtype: str, report: Report) -> None:
    """Add the errors of all conclusive rows, in units of the tolerance, and the verdicts of rows and networks."""
    for kind in KINDS:
        rows = [row for row in report.rows if row.kind == kind]
        tally["rows"][dtype, kind] += [row.used for row in rows if row.verdict != "inconclusive"]
        for row in rows:
            tally["verdicts"][f"{dtype}|{kind}|{row.verdict}"] += 1
        tally["verdicts"][f"{dtype}|networks, {kind}|{replace(report, rows=tuple(rows)).verdict}"] += 1


def _merge(into: Tally, other: Tally) -> None:
    for key, used in other["rows"].items():
        into["rows"][key] += used
    into["verdicts"] += other["verdicts"]
    into["faults"] += other["faults"]
    into["false failures"] += other["false failures"]


def right_answers(tally: Tally) -> str:
    """The table of right answers."""
    lines = []
    for dtype in DTYPES:
        for kind in KINDS:
            used, count = np.asarray(tally["rows"][dtype, kind]), tally["verdicts"]
            rows = {v: count[f"{dtype}|{kind}|{v}"] for v in ("pass", "fail", "inconclusive")}
            nets = {v: count[f"{dtype}|networks, {kind}|{v}"] for v in ("pass", "fail", "inconclusive")}
            quantiles = [f"{q:.2g}" for q in np.quantile(used, (0.5, 0.99, 0.9999, 1.0))] if used.size else ["-"] * 4
            blind = f"{rows['inconclusive'] / max(1, sum(rows.values())):.1%}"
            lines.append(
                (dtype, kind, str(sum(nets.values())), str(sum(rows.values())), str(rows["fail"]), blind, *quantiles)
            )
    header = (
        "dtype",
        "kind",
        "networks",
        "rows",
        "false failures",
        "inconclusive",
        "median",
        "99 %",
        "99.99 %",
        "worst",
    )
    return plain_table(header, lines)


def wrong_answers(tally: Tally) -> str:
    """The table of faults."""
    lines = []
    for name in [*FAULTS, "all"]:
        cells = []
        for dtype in DTYPES:
            counts = [
                sum(
                    n
                    for key, n in tally["faults"].items()
                    if key.endswith(f"|{dtype}|{seen}") and (name == "all" or key.startswith(f"{name}|"))
                )
                for seen in ("caught", "missed", "inconclusive")
            ]
            cells.append(" / ".join(map(str, counts)))
        lines.append((name, *cells))
    return plain_table(("fault: caught / missed / inconclusive", *DTYPES), lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    started, total = time.time(), _empty()
    families = -(-arguments.networks // DRAWS)
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(family, arguments.seed * 1_000_000 + i, DRAWS) for i in range(families)]
        for done, job in enumerate(as_completed(jobs), 1):
            found = job.result()
            _merge(total, found)
            for line in found["false failures"]:
                print("FALSE FAILURE", line, flush=True)
            if done % max(1, families // 20) == 0:
                failures = len(total["false failures"])
                print(f"{done * DRAWS} networks, {failures} false failures, {time.time() - started:.0f} s", flush=True)
    print(f"\nRight answers: error in units of the tolerance\n\n{right_answers(total)}\n\n{wrong_answers(total)}")
    if arguments.json:
        plain = {"verdicts": total["verdicts"], "faults": total["faults"], "false failures": total["false failures"]}
        arguments.json.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
