"""`manual-backprop check`: prove the catalogue, or a user's function, and print the results."""

import gc
import os
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import jax

from reference.catalogue import networks, published, sequences
from reference.catalogue.mutating import catalogue_mutation, subjects
from reference.catalogue.on_devices import in_a_process_with
from reference.catalogue.proving import Plan, Task, on_devices, prove, tasks
from reference.catalogue.subject import Subject
from reference.checks.step import check
from reference.cli.files import BadInput, require_writable
from reference.cli.flags import refuse
from reference.cli.targets import current_folder_first, module, told
from reference.cli.terminal import print_table, progress
from reference.report import Report
from reference.reports.formats import github_annotations, write_reports, write_step_summary
from reference.reports.html import require_engine
from reference.reports.run import NetworkResult, Published, Run
from reference.xla import quick

SHOWN_FAILURES = 10
FORMATS = ("json", "junit", "markdown", "html")
AGAIN = "MANUAL_BACKPROP_VIRTUAL_DEVICES"  # tells a process that it was started with virtual devices
MANY = 100_000  # objects between two collections: tracing makes many, hardly any of them garbage
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
OF_A_TARGET = ("args", "gradient", "raw", "argnums", "dtype", "approximation", "thorough", "witnesses")
OF_THE_CATALOGUE = ("imports", "only", "quick", "mutate", "list", "devices")


def run(arguments: Namespace) -> int:
    """Run the command; return 0 if all is proven, 1 if something differs, 3 if undecided, 130 if interrupted.

    Raises:
        BadInput: flags that do not go together, a report that cannot be written, a pattern that matches nothing, a
            target that cannot be checked, a module that cannot be imported or that adds nothing to the catalogue.
    """
    _require_consistent(arguments)
    gc.set_threshold(MANY, 20, 20)
    if arguments.devices is not None and jax.device_count() < arguments.devices:
        return _on_virtual_devices(arguments)
    files = {name: getattr(arguments, name) for name in FORMATS}
    for path in files.values():
        if path is not None:
            require_writable(Path(path))
    if files["html"] is not None:
        require_engine()
    for name in arguments.imports:
        _add(name)
    if arguments.list:
        print("\n".join(_broken(arguments) if arguments.mutate else [task.name for task in _matching(arguments)[0]]))
        return 0
    started = time.perf_counter()
    if arguments.target:
        found = _users(arguments)
    elif arguments.mutate:
        found = _mutated(arguments)
    else:
        found = _catalogue(arguments)
    whole = Run(
        title=f"check of {arguments.target}" if arguments.target else "hand-written gradients against jax.grad",
        networks=tuple(found.networks),
        published=tuple(found.published),
        command=arguments.command_line,
        seed=arguments.seed,
        versions={"jax": jax.__version__, "python": platform.python_version(), "backend": jax.default_backend()},
        partial=found.partial,
        seconds=time.perf_counter() - started,
        unit="function" if arguments.target else "network",
    )
    print(whole.headline())
    for path in write_reports(whole, **files):
        print(f"report written to {path}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(github_annotations(whole)))
        write_step_summary(whole)
    return 130 if whole.partial else EXIT[whole.verdict]


def _require_consistent(arguments: Namespace) -> None:
    if arguments.target:
        why = "cannot go with a TARGET, which is checked in the place of the catalogue: leave one of them out"
        refuse(arguments, OF_THE_CATALOGUE, why)
    else:
        refuse(arguments, OF_A_TARGET, "cannot go without a TARGET, module:name of a function of yours: give it first")
    if arguments.mutate:
        refuse(arguments, ["devices"], "cannot go with --mutate, which breaks programs on one device")
    if arguments.list:
        refuse(arguments, FORMATS, "cannot go with --list, which names the networks and has no results to write")


def _on_virtual_devices(arguments: Namespace) -> int:
    """Start again with as many virtual devices as are asked for, unless that was done already."""
    if os.environ.get(AGAIN):
        raise BadInput(
            f"--devices {arguments.devices}: JAX has {jax.device_count()} devices of {jax.default_backend()} even with"
            " XLA_FLAGS=--xla_force_host_platform_device_count; set the flag and JAX_PLATFORMS=cpu yourself"
        )
    os.environ[AGAIN] = "1"
    return in_a_process_with(arguments.devices, arguments.words)


class _Found:
    """The results so far, kept when the run is interrupted."""

    def __init__(self) -> None:
        self.networks: list[NetworkResult] = []
        self.published: list[Published] = []
        self.partial = False


def _add(name: str) -> None:
    """Import a module that adds to the catalogue: layers, composites or activations."""
    before = networks.features()
    with current_folder_first():
        module(name)
    try:
        networks.require_fitting()
    except Exception as error:
        raise BadInput(f"{name}: {told(error)}") from error
    if networks.features() == before and not _imported_before(name):
        raise BadInput(
            f"{name} adds nothing to the catalogue: a family of layers registers its forward on reference.model.apply,"
            " a composite how it is joined on reference.model.through, and each has a classmethod `specimen`, a piece"
            " of network that shows it at work"
        )
    for line in networks.staying_out(sys.modules[name]):
        print(line, file=sys.stderr)


def _imported_before(name: str) -> bool:
    """Whether something in the catalogue is from that module or package."""
    kinds = (*networks.families().values(), *networks.composites().values())
    return any(f"{kind.__module__}.".startswith(f"{name}.") for kind in kinds)


def _matching(arguments: Namespace) -> tuple[list[Task], list[published.Example]]:
    """The networks to prove, and the published examples among them, which have too few rows for several devices."""
    pattern, devices = _pattern(arguments), arguments.devices
    plans: list[Plan] = [plan for of in (networks, sequences) for plan in of.plans(arguments.seed, arguments.quick)]
    with jax.enable_x64(True):
        examples = [] if devices else [e for e in published.examples() if _matches(e.name, pattern)]
    every = on_devices(plans, devices) if devices else tasks(plans, examples)
    found = [task for task in every if _matches(task.name, pattern)]
    if not found:
        raise BadInput(f"no network is called like {pattern!r}; `manual-backprop check --list` names them")
    return found, examples


def _pattern(arguments: Namespace) -> str | None:
    if arguments.only == "":
        raise BadInput("--only takes a part of a network's name, got nothing; leave it out to check every network")
    return arguments.only


def _broken(arguments: Namespace) -> dict[str, Subject]:
    """The networks to mutate, by name."""
    pattern = _pattern(arguments)
    with jax.enable_x64(True):
        every = subjects(arguments.seed)
    chosen = {name: subject for name, subject in every.items() if _matches(name, pattern)}
    if not chosen:
        raise BadInput(f"no network to mutate is called like {pattern!r}; there are {', '.join(every)}")
    return chosen


def _matches(name: str, pattern: str | None) -> bool:
    """Whether a name matches a shell pattern or contains it as plain text."""
    return pattern is None or fnmatch(name, pattern) or pattern in name


def _catalogue(arguments: Namespace) -> _Found:
    """Check every network of the catalogue, and the published examples with their printed digits."""
    everything, examples = _matching(arguments)
    found = _Found()
    with jax.enable_x64(True):
        figures = {example.name: published.figures(example) for example in examples}
    found.published = [
        Published(name, f.name, f.printed, f.ours, f.passed) for name, group in figures.items() for f in group
    ]
    try:
        with progress("networks checked", len(everything)) as advance:
            for result in prove(everything, pictures=arguments.html is not None, seed=arguments.seed):
                found.networks.append(result)
                advance("" if result.verdict == "pass" else f"{result.name}: {result.verdict}")
    except KeyboardInterrupt:
        found.partial = True
    order = {task.name: i for i, task in enumerate(everything)}
    found.networks.sort(key=lambda result: order[result.name])
    _print(found.networks, figures, arguments.devices)
    return found


def _mutated(arguments: Namespace) -> _Found:
    """Break our own gradients at every equation of their programs, and see whether the check detects it."""
    found = _Found()
    broken = _broken(arguments)
    with progress("networks mutated", len(broken)) as advance:
        scores = catalogue_mutation(arguments.quick, arguments.seed, advance, tuple(broken))
    for name, score in scores.items():
        it = broken[name]
        given = {"lam": it.given.get("lam"), "weights": it.given.get("weights"), "key": it.key}
        report = check(it.objective, it.params, it.x, it.y, **given, compiler_options=quick())
        found.networks.append(NetworkResult(f"mutants of {name}", report, mutation=score))
        found.partial |= score.partial
        print(f"{name}\n{score}\n")
    return found


def _users(arguments: Namespace) -> _Found:
    """Check a user's function."""
    from reference.cli import user

    if not arguments.args:
        raise BadInput(f"--args is missing: the arguments to check {arguments.target} on, --args module:name")
    report = user.run(
        arguments.target,
        arguments.args,
        gradient=arguments.gradient or "",
        raw=arguments.raw or "",
        argnums=arguments.argnums,
        dtype=arguments.dtype,
        seed=arguments.seed,
        witnesses="all" if arguments.witnesses else (),
        approximation=arguments.approximation or 0.0,
        thorough=arguments.thorough,
    )
    found = _Found()
    found.networks.append(NetworkResult(arguments.target, report))
    print(f"{report}\n")
    return found


def _print(
    results: Sequence[NetworkResult], figures: dict[str, list[published.Figure]], devices: int | None = None
) -> None:
    """Print one line for every precision, or layout, and every published example, then all that is not a pass."""
    rows = []
    for dtype in networks.DTYPES if devices is None else ():
        group = [result for result in results if result.dataset and result.report.dtype == dtype]
        if group:
            datasets = ", ".join(sorted({result.dataset for result in group}))
            rows.append((f"{dtype} on {datasets}", *_worst(group)))
    for way in dict.fromkeys(result.name.partition("; ")[2] for result in results) if devices else ():
        rows.append((way, *_worst([result for result in results if result.name.endswith(f"; {way}")])))
    for result in results:
        printed = figures.get(result.name, [])
        if printed:
            far = max(printed, key=lambda figure: figure.error / figure.tolerance)
            own = _worst([result])
            used = max(result.report.worst.used, far.error / far.tolerance)
            where = f"{far.name}, printed {far.printed}"
            rows.append(
                (f"published: {result.name}", "1", f"{own[1]} + {len(printed)} printed", f"{used:.2g}", "", where)
            )
    header = ("what", "networks", "checks", "of tolerance", "would see", "where")
    title = "Hand-written gradients" if devices is None else f"Hand-written gradients on {devices} devices"
    print_table(f"{title} against jax.grad", header, rows)
    print()
    anew = sum(any(note.startswith("drawn anew") for note in result.report.notes) for result in results)
    if anew:
        print(f"{anew} of the networks drawn anew: rounding left the first draw undecided\n")
    unproven = [result for result in results if result.verdict != "pass"]
    for result in unproven[:SHOWN_FAILURES]:
        print(f"{result.name}\n  {result.reason()}\n")
    if len(unproven) > SHOWN_FAILURES:
        print(f"... and {len(unproven) - SHOWN_FAILURES} more networks\n")
    for name, printed in figures.items():
        for figure in printed:
            if not figure.passed:
                print(f"{name}: {figure.name} was printed as {figure.printed}, ours is {figure.ours:.17g}\n")
    sys.stdout.flush()


def _worst(group: Sequence[NetworkResult]) -> tuple[str, str, str, str, str]:
    """(networks, rows, worst error in units of its tolerance, worst power, where the worst error is)."""
    reports: list[tuple[str, Report]] = [(result.name, result.report) for result in group]
    name, report = max(reports, key=lambda item: item[1].worst.used)
    power = max(row.power for _, each in reports for row in each.rows)
    count = sum(len(each.rows) for _, each in reports)
    return str(len(group)), str(count), f"{report.worst.used:.2g}", f"{power:.1g}", f"{report.worst.path} of {name}"
