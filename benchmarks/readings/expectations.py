"""The bounds that times, memory and flops must meet."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.readings.measuring import Measured

BATCHES = (32, 128, 512)


@dataclass(frozen=True)
class Expectation:
    """A bound on a row: `of(row)` is at most (or at least) `bound` at each of the batches."""

    what: str
    row: str
    of: Callable[[Measured], float]
    bound: float
    at_least: bool = False
    batches: tuple[int, ...] = BATCHES

    def verdict(self, rows: list[Measured]) -> tuple[str, str]:
        """("ok" | "MISSED" | "ok in part" | "not measured", the line); "in part" if a batch was not measured."""
        found = {row.batch: self.of(row) for row in rows if row.name == self.row and row.batch in self.batches}
        met = [value >= self.bound if self.at_least else value <= self.bound for value in found.values()]
        whole = "ok" if len(found) == len(self.batches) else "ok in part" if found else "not measured"
        values = ", ".join(f"{found[n]:.4g}" if n in found else "-" for n in self.batches)
        sign, at = ">=" if self.at_least else "<=", ", ".join(map(str, self.batches))
        return whole if all(met) else "MISSED", f"{self.what} {sign} {self.bound:g} at batch {at}: {values}"


def _time(row: Measured) -> float:
    return row.hand.time


EXPECTATIONS = (
    Expectation("squared_norms, gradients", "squared_norms", _time, 0.9),
    Expectation("gradient + squared_norms, gradients", "gradient + squared_norms", _time, 1.25),
    Expectation("clipped_gradients, gradients", "clipped_gradients", _time, 1.25),
    Expectation(
        "clipped_gradients, times as fast as vmap(grad)",
        "clipped_gradients",
        lambda row: row.peer.time / row.hand.time,
        50,
        at_least=True,
        batches=(128,),
    ),
    Expectation(
        "clipped_gradients, vmap(grad)'s temporary memory over ours",
        "clipped_gradients",
        lambda row: row.peer.temp / row.hand.temp,
        300,
        at_least=True,
        batches=(128,),
    ),
    Expectation("hessian_vector_product, gradients' flops", "hessian_vector_product", lambda row: row.hand.flops, 2.1),
)
