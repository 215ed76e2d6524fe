"""Make the notebooks from their twins: N_name.py is run from its first cell, and N_name.ipynb keeps what came out.

    python notebooks/build.py          all of them
    python notebooks/build.py 2 3      some, by number or name
    python notebooks/build.py --dry    run and judge them, write nothing

The percent scripts are the source; edit those. A notebook is written only after all of it ran and nothing is wrong with
it, and twice the same bytes on one machine: no times, versions or random ids are kept. Needs the extra `notebooks`.
"""

import argparse
import base64
import io
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from PIL import Image

from reference import xla
from reference.cli.files import BadInput, write_atomically

HERE = Path(__file__).resolve().parent
MOST_BYTES = 300_000
MOST_LINES = 12
MOST_IMPORTS = 16  # lines of the first code cell
MOST_SECONDS = 180  # one cell; only a cell that hangs takes so long
CJK = re.compile(r"[\u4e00-\u9fff]")
LATIN = re.compile(r"[A-Za-z]{3,}")
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:/(?:home|root|tmp|usr|var|opt|mnt|srv|private|Users)\b|[A-Za-z]:\\|file://)")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
SPACING = "lines_to_next_cell"  # jupytext's: without it the blank lines before a `def` move, and Lab refuses the pair
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}


def scripts(names: Sequence[str] = ()) -> list[Path]:
    """The percent scripts, in order; `names` are numbers ("2"), names ("2_error_terms") or files.

    Raises:
        BadInput: a name that fits no script.
    """
    found = sorted(HERE.glob("[0-9]*_*.py"), key=lambda path: int(path.stem.partition("_")[0]))
    chosen = []
    for name in names:
        stem = Path(name).stem
        fits = [path for path in found if stem in (path.stem, path.stem.partition("_")[0])]
        if not fits:
            raise BadInput(f"no notebook {name!r}; there are {', '.join(path.stem for path in found) or 'none'}")
        chosen += fits
    return chosen if names else found


def from_percent(text: str) -> Any:
    """A notebook without outputs from a percent script: ids by position, no metadata but SPACING."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({key: n for key, n in cell.metadata.items() if key == SPACING})
    return notebook


def execute(notebook: Any, flags: str = "") -> Any:
    """The notebook with its outputs, from a fresh kernel in this folder that knows nothing of its user's settings.

    Args:
        notebook: its cells are run in order.
        flags: for XLA in that kernel.

    Raises:
        BadInput: a cell raised or hung, or its kernel died.
    """
    client = NotebookClient(
        notebook,
        timeout=MOST_SECONDS,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        coalesce_streams=True,  # how a stream is cut depends on the clock
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else it warns that it talks over localhost
    )
    with tempfile.TemporaryDirectory() as folder:
        own = {"IPYTHONDIR": folder, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "JAX_PLATFORMS": "cpu"}
        own |= {"MATPLOTLIBRC": str(Path(folder) / "matplotlibrc"), "PYTHONHASHSEED": "0", "XLA_FLAGS": flags}
        Path(own["MATPLOTLIBRC"]).touch()  # empty: matplotlib's own defaults
        users = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        try:
            client.execute(env={**users, **own})
        except (CellControlSignal, DeadKernelError) as error:  # raised, hung, or took its kernel down
            raise BadInput(str(error)) from error
    notebook.metadata.language_info = nbformat.from_dict(LANGUAGE)  # the kernel put its version in
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = lighter(output.data["image/png"])
    return notebook


def lighter(png: str) -> str:
    """A picture in base64 in at most 256 colours: a third of the size, and without the version of what drew it."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def as_bytes(notebook: Any) -> bytes:
    """What is written to the file."""
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def wrong_with(notebook: Any) -> list[str]:
    """Everything that a stored notebook may not be, in words; empty for one that is fit to be read."""
    return [*_wrong_form(notebook), *_wrong_run(notebook), *_wrong_outputs(notebook)]


def _wrong_form(notebook: Any) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown":
        yield "the first cell must be markdown and say what the notebook is about"
    elif not (CJK.search(first.source) and LATIN.search(first.source)):
        yield "the first cell must speak English and Chinese"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        most = MOST_LINES if number else MOST_IMPORTS
        if len(lines) > most:
            yield f"{cell.id} has {len(lines)} lines of code, at most {most} read well"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if re.match(r"#+ ", line)]
            yield from (
                f"{cell.id}: a heading in one language: {line}"
                for line in headings
                if not (CJK.search(line) and LATIN.search(line))
            )


def _wrong_run(notebook: Any) -> Iterator[str]:
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the cells were not run once each in order: {counts}"
    kept = set(notebook.metadata) - {"kernelspec", "language_info"}
    if kept or set(notebook.metadata.get("language_info", LANGUAGE)) - set(LANGUAGE):
        yield f"metadata of the tools or their versions: {', '.join(sorted(kept)) or 'language_info'}"
    for number, cell in enumerate(notebook.cells):
        if set(cell.metadata) - {SPACING} or cell.get("id") != f"cell-{number:02d}":
            yield f"cell {number} has metadata or a random id: {cell.get('id')} {dict(cell.metadata)}"


def _wrong_outputs(notebook: Any) -> Iterator[str]:
    size = len(as_bytes(notebook))
    if size > MOST_BYTES:
        yield f"{size} bytes, at most {MOST_BYTES}: fewer or smaller pictures"
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                yield f"{cell.id} ends in an error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"{cell.id} wrote to stderr: {output.text.strip()[:200]}"
            for what, found in _traces_of_a_machine(_text(output)):
                yield f"{cell.id} shows {what}: {found!r}"


def _text(output: Any) -> str:
    """What is read in an output; base64 is not."""
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", ())]
    parts += [str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/png")]
    return "\n".join(parts)


def _traces_of_a_machine(text: str) -> Iterator[tuple[str, str]]:
    for what, pattern in (("an absolute path", ABSOLUTE), ("a memory address", ADDRESS)):
        if match := pattern.search(text):
            yield what, text[match.start() :].split()[0][:60]
    for folder in {HERE.parent, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())}:
        if len(str(folder)) > 3 and str(folder) in text:
            yield "a folder of this machine", str(folder)
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        yield "the name of this machine", host


def build(script: Path, dry: bool = False) -> int:
    """Run one script and write its notebook; returns its size in bytes. What is not written is compiled quickly.

    Raises:
        BadInput: a cell raised, or the result is not fit to be stored.
    """
    notebook = execute(from_percent(script.read_text(encoding="utf-8")), xla.flags() if dry else "")
    problems = wrong_with(notebook)
    if problems:
        raise BadInput("\n  ".join([f"{script.name}:", *problems]))
    content = as_bytes(notebook)
    if not dry:
        write_atomically(script.with_suffix(".ipynb"), lambda file: file.write(content))
    return len(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where a notebook failed, the others are built all the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="numbers or names; all without any")
    parser.add_argument("--dry", action="store_true", help="run and judge, write nothing")
    given = parser.parse_args(arguments)
    failed = False
    try:
        chosen = scripts(given.names)
    except BadInput as error:
        parser.error(str(error))
    for script in chosen:
        try:
            print(f"{script.stem}: {build(script, given.dry) / 1000:.0f} kB", flush=True)
        except BadInput as error:
            print(f"{script.stem}: not built\n  {error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
