"""Tables and progress: by rich in a terminal, as aligned plain text anywhere else."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from reference.report import plain_table

Advance = Callable[[str], None]


def print_table(title: str, header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    """Print a table."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(*header, title=title, title_justify="left")
            for line in lines:
                table.add_row(*line)
            Console().print(table)
            return
    print(f"{title}\n\n{plain_table(header, lines)}")


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show the progress of a loop on stderr: a bar in a terminal, elsewhere a line at once and for every tenth.

    Yields:
        A function to call after each item, with a few words on how it went ("" for none).
    """
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task(what, total=total, note="")
                yield lambda note: bar.update(task, advance=1, note=note)
            return
    done = 0
    print(f"{what}: 0 of {total}", file=sys.stderr, flush=True)

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{what}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
