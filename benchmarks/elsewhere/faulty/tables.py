"""What the judges said, counted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.elsewhere.faulty.judges import JUDGES, Verdict
from reference.report import plain_table


@dataclass(frozen=True)
class Outcome:
    """One derivative before the judges.

    Attributes:
        library: whose it is.
        name: of the rule or function.
        kind: of the fault, or "right".
        what: the fault in words.
        excess: by how many times its rounding the fault changes the derivative; up to 1 it is equivalent.
        verdicts: by judge; none where the fault is equivalent.
    """

    library: str
    name: str
    kind: str
    what: str
    excess: float
    verdicts: Mapping[str, Verdict]

    @property
    def right(self) -> bool:
        """Whether there is no fault in it."""
        return self.kind == "right"

    @property
    def wrong(self) -> bool:
        """Whether there is one, and it changes the derivative by more than its rounding."""
        return self.excess > 1

    def said(self, judge: str, word: str) -> bool:
        """Whether the judge said that."""
        return judge in self.verdicts and self.verdicts[judge].word == word

    def in_short(self) -> str:
        """The kind, and what ours said."""
        return f"{self.kind}: {self.verdicts['ours'].word if self.verdicts else 'equivalent'}"


IN_A_BATCH = "right unbatched only"  # the other judges call the function without vmap, so that they cannot see it
HEADER = ("", "rules", "faults", "equivalent", "wrong", *JUDGES)


def tables(outcomes: list[Outcome]) -> str:
    """The share of wrong derivatives that each judge caught, by library and by kind; what each said of right ones."""
    faults = [outcome for outcome in outcomes if not outcome.right]
    unbatched = [fault for fault in faults if fault.kind != IN_A_BATCH]
    whole = [_caught("all", faults), _caught(f"all but '{IN_A_BATCH}'", unbatched)]
    whole += [_told_apart(faults, outcomes), _seconds(outcomes)]
    return "\n\n".join(
        (
            plain_table(HEADER, [*_grouped(faults, lambda o: o.library), *whole]),
            plain_table(HEADER, list(_grouped(sorted(faults, key=lambda o: o.kind), lambda o: o.kind))),
            plain_table(("the right derivative is", *JUDGES), list(_alarms([o for o in outcomes if o.right]))),
        )
    )


def _grouped(faults: list[Outcome], by: Callable[[Outcome], str]) -> Iterable[tuple[str, ...]]:
    for name in dict.fromkeys(map(by, faults)):
        yield _caught(name, [fault for fault in faults if by(fault) == name])


def _caught(name: str, faults: list[Outcome]) -> tuple[str, ...]:
    wrong = [fault for fault in faults if fault.wrong]
    caught = [sum(fault.said(judge, "caught") for fault in wrong) for judge in JUDGES]
    counts = (len({fault.name for fault in faults}), len(faults), len(faults) - len(wrong), len(wrong))
    shares = (f"{n} {100 * n / len(wrong):.1f} %" if wrong else "" for n in caught)
    return (name, *map(str, counts), *shares)


def _told_apart(faults: list[Outcome], outcomes: list[Outcome]) -> tuple[str, ...]:
    """What was caught in those rules alone whose right derivative the judge does not fail."""
    cells = []
    for judge in JUDGES:
        cried = {o.name for o in outcomes if o.right and o.said(judge, "caught")}
        wrong = [fault for fault in faults if fault.wrong and fault.name not in cried]
        cells.append(f"{sum(fault.said(judge, 'caught') for fault in wrong)} of {len(wrong)}")
    return ("where the right one does not fail", "", "", "", "", *cells)


def _seconds(outcomes: list[Outcome]) -> tuple[str, ...]:
    spent = [sum(o.verdicts[judge].seconds for o in outcomes if judge in o.verdicts) for judge in JUDGES]
    return ("seconds", "", "", "", "", *(f"{seconds:.0f}" for seconds in spent))


def _alarms(right: list[Outcome]) -> Iterable[tuple[str, ...]]:
    for word, name in (("passed", "passed"), ("caught", "failed"), ("undecided", "undecided"), ("error", "an error")):
        yield (name, *(str(sum(outcome.said(judge, word) for outcome in right)) for judge in JUDGES))


def findings(outcomes: list[Outcome]) -> str:
    """What ours did not catch of the wrong, and every false alarm, each with what it said."""
    smallest = min((o.excess for o in outcomes if o.wrong), default=0)
    lines = [
        f"The smallest wrong one changes the derivative by {smallest:.3g} times its rounding.",
        "Ours did not catch:",
    ]
    for o in outcomes:
        if o.wrong and not o.said("ours", "caught"):
            said = o.verdicts["ours"]
            lines.append(f"  {o.name}: {o.kind}: {o.what} ({o.excess:.3g} roundings): {said.word} {said.why}".rstrip())
    lines += ["Not passed, though right:"]
    for o in outcomes:
        for judge, said in o.verdicts.items() if o.right else ():
            if said.word != "passed":
                lines.append(f"  {o.name}: {judge}: {said.word} {said.why}")
    return "\n".join(lines)
