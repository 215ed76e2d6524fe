"""Which equation is wrong: faults planted one at a time in every equation of every layer, and what the check names.

    python -m benchmarks.confusion [--json FILE]

Each network is checked in float64. A row of the matrix is the equation that a fault was planted in, a column the one
that the report's first failure names; beside it how often the layer was right too, and the probable cause.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import manual_backprop as mb
from benchmarks.faults import FAULTS, Fault, layers
from reference.checks.step import Judge, by_hand, prepare
from reference.report import Report, plain_table
from reference.xla import quick

N = 7
NETWORKS = {
    "tanh, softmax": mb.Objective(mb.mlp((6, 5, 5, 5, 4), "tanh"), mb.softmax_cross_entropy, mb.Frobenius(0.1)),
    "gelu, squared": mb.Objective(mb.mlp((4, 4, 4, 4, 3), "gelu"), mb.squared_error, mb.Frobenius(0.03)),
    "sigmoid, sigmoid cross-entropy": mb.Objective(
        mb.mlp((5, 6, 6, 6), ("sigmoid", "silu")), mb.sigmoid_binary_cross_entropy, mb.Frobenius(0.2)
    ),
    "softplus then elu, huber": mb.Objective(
        mb.mlp((3, 5, 5, 5, 5, 2), ("softplus", "elu", "leaky_relu", "selu"), "tanh"), mb.huber, mb.Frobenius(0.05)
    ),
}


@dataclass(frozen=True)
class Trial:
    """One planted fault, and the check's answer."""

    network: str
    fault: str
    planted: str
    layer: int
    named: str
    named_layer: int
    cause: str
    expected: str

    @property
    def cause_right(self) -> bool:
        """Whether the probable cause names the fault; False for a fault without expected words."""
        return bool(self.expected) and self.expected in self.cause


def problem(objective: mb.Objective, seed: int = 0) -> tuple[Any, Any, Any]:
    """Generic (params, x, y), without zeros or symmetries that could hide a fault."""
    rng = np.random.default_rng(seed)
    widths = layers(objective)
    params = tuple(mb.Affine(rng.normal(0, 0.6, (w.d_out, w.d_in)), rng.normal(0, 0.5, w.d_out)) for w in widths)
    outputs = widths[-1].d_out
    x = rng.normal(size=(N, widths[0].d_in))
    if objective.loss is mb.softmax_cross_entropy:
        return params, x, rng.integers(0, outputs, N)
    return params, x, rng.uniform(size=(N, outputs))


def planted(fault: Fault, objective: mb.Objective) -> Iterator[tuple[int, mb.Objective, str, int]]:
    """Yield (layer of the fault, objective with the fault, equation and layer that a check must name)."""
    depth = len(layers(objective))
    for index in range(depth) if fault.per_layer else [depth - 1]:
        if not fault.fits(objective, index):
            continue
        shown = index + 1 - fault.shift
        equation, layer = fault.equation, shown
        if shown == 0:
            equation = "(B5)"  # W^T delta of the first layer is dL/dx itself
        elif shown == depth and equation == "(B2)":
            equation = "(B1)"
        if not fault.per_layer:
            layer = {"(B1)": depth, "(B4)": 1, "(B3)": 1}.get(equation, 0)
        yield index + 1, fault.plant(objective, index), equation, layer


def judged(judge: Judge, faulty: mb.Objective) -> Report:
    """The report on a step of the faulty objective."""
    step, _ = by_hand(judge, lambda _, *given: mb.backprop(faulty, *given), compiler_options=quick())
    return judge.report(step)


def trials() -> Iterator[Trial]:
    """Every fault in every layer of every network where it is possible."""
    for name, objective in NETWORKS.items():
        judge = prepare(objective, *problem(objective))
        for fault_name, fault in FAULTS.items():
            for layer, faulty, equation, shown in planted(fault, objective):
                report = judged(judge, faulty)
                first = report.failures[0] if report.failures else None
                yield Trial(
                    name,
                    fault_name,
                    equation,
                    shown,
                    first.equation if first else "none",
                    first.layer if first else 0,
                    first.cause if first else "",
                    fault.cause,
                )
                del layer


def matrix(found: list[Trial]) -> str:
    """The confusion matrix, as a table."""
    counts = Counter((t.planted, t.named) for t in found)
    columns = sorted({t.named for t in found} | {t.planted for t in found})
    lines = []
    for planted_in in sorted({t.planted for t in found}):
        row = [t for t in found if t.planted == planted_in]
        guessed = [t for t in row if t.expected]
        lines.append(
            (
                planted_in,
                *(str(counts[planted_in, named] or ".") for named in columns),
                f"{sum(t.named_layer == t.layer for t in row)} of {len(row)}",
                f"{sum(t.cause_right for t in guessed)} of {len(guessed)}",
            )
        )
    return plain_table(("planted in", *columns, "layer right", "cause right"), lines)


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = list(trials())
    print(matrix(found))
    right = sum((t.planted, t.layer) == (t.named, t.named_layer) for t in found)
    guessed = [t for t in found if t.expected]
    causes = sum(t.cause_right for t in guessed)
    print(f"\n{len(found)} faults of {len(FAULTS)} kinds in {len(NETWORKS)} networks")
    print(f"equation and layer named rightly: {right} of {len(found)} ({right / len(found):.1%})")
    print(f"cause guessed rightly: {causes} of {len(guessed)} ({causes / len(guessed):.1%})")
    for t in found:
        if (t.planted, t.layer) != (t.named, t.named_layer) or (t.expected and not t.cause_right):
            print(
                f"  {t.network}, {t.fault} in {t.planted} {t.layer}: named {t.named} {t.named_layer}, cause {t.cause!r}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(t) for t in found], indent=1))


if __name__ == "__main__":
    main()
