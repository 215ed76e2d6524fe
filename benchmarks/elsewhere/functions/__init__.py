"""Functions of JAX, each against itself: with float64, whose answer is the better one. A failure is a false alarm."""

from benchmarks.elsewhere.cases import Case
from benchmarks.elsewhere.functions import activations, arrays, control, elementwise, linear, programs, special, stats

CASES: dict[str, Case] = {
    **programs.CASES,
    **control.CASES,
    **elementwise.CASES,
    **arrays.CASES,
    **linear.CASES,
    **activations.CASES,
    **special.CASES,
    **stats.CASES,
}
