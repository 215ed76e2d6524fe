"""Who is asked about a derivative: our check, jax.test_util.check_grads and chex, each with its own defaults."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import chex
import jax
import jax.test_util
import numpy as np

import reference
from benchmarks.elsewhere.faulty.linear_map import Subject
from benchmarks.elsewhere.faulty.truth import in_precision

Word = Literal["caught", "passed", "undecided", "error"]


@dataclass(frozen=True)
class Verdict:
    """What one judge says.

    Attributes:
        word: "caught" where it fails the derivative, "passed", "undecided", or "error" where it raises otherwise.
        why: in its words; "" for a pass.
        seconds: it took.
    """

    word: Word
    why: str
    seconds: float


Judge = Callable[[Callable[..., Any], tuple[Any, ...], Subject], tuple[Word, str]]


def _ours(function: Callable[..., Any], args: tuple[Any, ...], subject: Subject) -> tuple[Word, str]:
    check = reference.check_vjp if subject.mode == "vjp" else reference.check_jvp
    report = check(function, *args)
    words: dict[str, Word] = {"pass": "passed", "fail": "caught", "inconclusive": "undecided"}
    row = next((row for row in report.rows if row.verdict == report.verdict), None)
    return words[report.verdict], "" if report.verdict == "pass" or row is None else f"{row.name()}: {row.explain()}"


def _by(check: Callable[..., None]) -> Judge:
    def judge(function: Callable[..., Any], args: tuple[Any, ...], subject: Subject) -> tuple[Word, str]:
        mode = "rev" if subject.mode == "vjp" else "fwd"
        try:
            check(function, args, order=1, modes=[mode])
        except AssertionError as error:
            return "caught", str(error)
        return "passed", ""

    return judge


JUDGES: dict[str, tuple[Judge, str]] = {
    "ours": (_ours, "float32"),
    "check_grads float32": (_by(jax.test_util.check_grads), "float32"),
    "check_grads float64": (_by(jax.test_util.check_grads), "float64"),
    "chex float32": (_by(chex.assert_numerical_grads), "float32"),
    "chex float64": (_by(chex.assert_numerical_grads), "float64"),
}
"""Each judge with the precision of the arguments that it is given; ours repeats its comparison in float64 of itself."""


def asked(name: str, function: Callable[..., Any], args: tuple[Any, ...], subject: Subject) -> Verdict:
    """What that judge says of the function's derivative."""
    judge, dtype = JUDGES[name]
    began = time.perf_counter()
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        try:
            word, why = judge(function, in_precision(args, dtype), subject)
        except Exception as error:  # counted apart: it neither passed nor failed the derivative
            word, why = "error", f"{type(error).__name__}: {error}"
    return Verdict(word, " ".join(why.split())[:160], time.perf_counter() - began)
