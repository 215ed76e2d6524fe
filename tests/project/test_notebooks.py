"""The notebooks: each pair is one text, what is stored is fit to be read, and every one runs from its first cell."""

import ast
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

from notebooks import build
from reference.cli.files import BadInput

SCRIPTS = build.scripts()
each = pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])


def stored(script: Path) -> Any:
    return nbformat.reads(script.with_suffix(".ipynb").read_text(encoding="utf-8"), as_version=4)


def source(notebook: Any) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def as_an_editor_writes(notebook: Any) -> str:
    """The percent script that jupytext makes of a notebook, by the settings in this folder."""
    config = jupytext.config.load_jupytext_configuration_file(str(build.HERE / "jupytext.toml"))
    filters = ("notebook_metadata_filter", "cell_metadata_filter")
    notebook = copy.deepcopy(notebook)
    notebook.metadata["jupytext"] = {name: getattr(config, name) for name in filters}
    return str(jupytext.writes(notebook, fmt="py:percent"))


def test_every_notebook_has_a_twin_and_every_twin_a_notebook() -> None:
    made = {path.stem for path in build.HERE.glob("*.ipynb")}
    assert made == {script.stem for script in SCRIPTS}
    numbers = [script.stem.partition("_")[0] for script in SCRIPTS]
    assert numbers == [str(n) for n in range(1, len(SCRIPTS) + 1)]


@each
def test_a_pair_is_one_text(script: Path) -> None:
    assert source(stored(script)) == source(build.from_percent(script.read_text(encoding="utf-8")))


@each
def test_an_editor_writes_a_pair_back_as_it_is(script: Path) -> None:
    # Byte for byte: where a blank line moved, JupyterLab with jupytext would refuse the newer notebook (400).
    text = script.read_text(encoding="utf-8")
    assert as_an_editor_writes(stored(script)) == text
    assert as_an_editor_writes(build.from_percent(text)) == text


@each
def test_what_is_stored_is_fit_to_be_read(script: Path) -> None:
    notebook = stored(script)
    nbformat.validate(notebook)
    assert build.wrong_with(notebook) == []
    assert script.with_suffix(".ipynb").read_bytes() == build.as_bytes(notebook)  # as `build` writes it


@each
def test_the_script_says_nothing_of_the_tools_that_read_it(script: Path) -> None:
    head = script.read_text(encoding="utf-8").partition("# %%")[0]
    assert head.startswith("# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n")
    assert "version" not in head


CUT = ("join", "strip", "summary", "headline")


def cut_texts(code: str) -> list[str]:
    """The expressions that cut a text at a fixed width, in mid-word where it is longer."""
    slices = [node for node in ast.walk(ast.parse(code)) if isinstance(getattr(node, "slice", None), ast.Slice)]
    return [ast.unparse(node) for node in slices if node.slice.upper and getattr(_called(node), "attr", "") in CUT]


def _called(node: Any) -> Any:
    return getattr(node.value, "func", None)


@each
def test_no_printed_text_is_cut_in_mid_word(script: Path) -> None:
    assert cut_texts(script.read_text(encoding="utf-8")) == []


def test_the_test_for_cut_texts_can_fail() -> None:
    assert cut_texts("print(f\"{name:24s}{', '.join(names)[:27]:30s}\")\nnames[:2]\nf(x)[0]") == [
        "', '.join(names)[:27]"
    ]


SMALL = """# %% [markdown]
# # A title 标题
# %%
print("seen")
# %%
import matplotlib.pyplot as plt
figure = plt.figure(figsize=(1, 1))
plt.plot([0, 1])
plt.show()
"""


def ran(text: str = SMALL) -> Any:
    """The notebook of a script as it would be stored, without a kernel."""
    notebook = build.from_percent(text)
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="seen\n")]
    return notebook


def shows(text: str) -> Any:
    return lambda cells: cells[1].update(outputs=[nbformat.v4.new_output("stream", name="stdout", text=text)])


def picture(cells: Any) -> None:
    cells[2].outputs = [nbformat.v4.new_output("display_data", data={"image/png": "A" * build.MOST_BYTES})]


def error(cells: Any) -> None:
    cells[1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["line 1"])]


def warning(cells: Any) -> None:
    cells[1].outputs[0].name = "stderr"


BROKEN = {
    "cell-01 ends in an error: ValueError: no": error,
    "cell-01 wrote to stderr: seen": warning,
    "cell-01 shows an absolute path: '/home/someone/a.py'": shows("in /home/someone/a.py"),
    "cell-01 shows an absolute path: 'C:\\\\a.py'": shows("in C:\\a.py"),
    "cell-01 shows a folder of this machine": shows(f"in '{build.HERE.parent}'"),
    "cell-01 shows a memory address: '0x7f3a2b1c>'": shows("<object at 0x7f3a2b1c>"),
    "bytes, at most 300000": picture,
    "the cells were not run once each in order: [1, None]": lambda cells: cells[2].update(execution_count=None),
    "the cells were not run once each in order: [2, 1]": lambda cells: (
        cells[1].update(execution_count=2),
        cells[2].update(execution_count=1),
    ),
    "cell 2 has metadata or a random id: cell-02 {'execution'": lambda cells: cells[2].metadata.update(
        execution={"iopub.execute_input": "2026-01-01T00:00:00Z"}
    ),
    "cell 2 has metadata or a random id: f00d": lambda cells: cells[2].update(id="f00d"),
    "cell-02 has 13 lines of code": lambda cells: cells[2].update(source="x = 1\n\n" * 13),
    "cell-01 has 17 lines of code": lambda cells: cells[1].update(source="import jax\n" * 17),
    "the first cell must speak English and Chinese": lambda cells: cells[0].update(source="Only English."),
    "cell-00: a heading in one language: ## Only English": lambda cells: cells[0].update(
        source="# Both 双语\n\n## Only English"
    ),
    "the first cell must be markdown": lambda cells: cells.pop(0),
}


@pytest.mark.parametrize("told", BROKEN)
def test_each_fault_of_a_stored_notebook_is_told(told: str) -> None:
    notebook = ran()
    assert build.wrong_with(notebook) == []
    BROKEN[told](notebook.cells)
    assert any(told in problem for problem in build.wrong_with(notebook)), build.wrong_with(notebook)


def test_versions_of_the_tools_are_told() -> None:
    for where, key in (("language_info", "version"), ("jupytext", "jupytext_version")):
        notebook = ran()
        notebook.metadata = nbformat.from_dict(copy.deepcopy(dict(notebook.metadata)))
        notebook.metadata.setdefault(where, nbformat.from_dict({}))[key] = "1.2.3"
        (told,) = build.wrong_with(notebook)
        assert where in told


def test_an_editor_with_jupytext_pairs_them() -> None:
    config = jupytext.config.load_jupytext_configuration_file(str(build.HERE / "jupytext.toml"))
    assert config.default_formats(str(build.HERE / "2_error_terms.ipynb")) == "ipynb,py:percent"


def test_a_pair_that_differs_is_seen() -> None:
    notebook = ran()
    assert source(notebook) == source(build.from_percent(SMALL))
    notebook.cells[1].source += " "
    assert source(notebook) != source(build.from_percent(SMALL))
    assert source(ran(SMALL.replace("# %%\nprint", "# %% [markdown]\n# print"))) != source(ran())


WITH_A_DEF = """# %% [markdown]
# # A title 标题


# %% tags=["a"]
def f():
    return 1


# %% [markdown]
# The end.
"""


def test_the_blank_lines_around_a_def_are_kept_and_no_other_metadata_of_a_cell() -> None:
    notebook = build.from_percent(WITH_A_DEF)
    assert [dict(cell.metadata) for cell in notebook.cells] == [{build.SPACING: 2}, {build.SPACING: 2}, {}]
    assert as_an_editor_writes(notebook).endswith(WITH_A_DEF.replace(' tags=["a"]', ""))
    notebook.cells[0].metadata = nbformat.from_dict({})
    assert not as_an_editor_writes(notebook).endswith(WITH_A_DEF.replace(' tags=["a"]', ""))


def test_a_name_that_fits_no_notebook_is_refused() -> None:
    with pytest.raises(BadInput, match="no notebook 'forward'; there are .*2_error_terms"):
        build.scripts(["forward"])
    assert build.scripts(["2", "notebooks/2_error_terms.ipynb"]) == [build.HERE / "2_error_terms.py"] * 2


def test_one_that_fails_is_told_and_does_not_stop_the_others(monkeypatch: Any, capsys: Any) -> None:
    def built(script: Path, dry: bool) -> int:
        if script.stem.startswith("2"):
            raise BadInput("NameError: x")
        return 2000

    monkeypatch.setattr(build, "build", built)
    assert build.main(["2", "3", "--dry"]) == 1
    told = capsys.readouterr()
    assert "2_error_terms: not built\n  NameError: x" in told.err
    assert told.out == "3_manual_against_automatic: 2 kB\n"
    assert build.main(["3", "7"]) == 0


TWICE_AND_BROKEN = """
import sys
from pathlib import Path
from notebooks import build
script = Path(sys.argv[1])
made, text = script.with_suffix(".ipynb"), script.read_text(encoding="utf-8")
build.build(script)
once = made.read_bytes()
build.build(script)
assert made.read_bytes() == once and b"image/png" in once and b"seen" in once
for fault, told in (("1 / 0", "ZeroDivisionError"), ("import sys; sys.stderr.write('oh')", "wrote to stderr: oh")):
    script.write_text(text + f"# %%\\n{fault}\\n", encoding="utf-8")
    try:
        build.build(script)
    except build.BadInput as error:
        assert told in str(error), error
    else:
        raise AssertionError(f"built with {fault}")
    assert made.read_bytes() == once
"""


@pytest.mark.evidence
def test_a_script_gives_the_same_bytes_twice_and_one_that_fails_leaves_them(tmp_path: Path) -> None:
    script = tmp_path / "1_small.py"
    script.write_text(SMALL, encoding="utf-8")
    in_its_own_process("-c", TWICE_AND_BROKEN, str(script))
    assert build.wrong_with(stored(script)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1_small.ipynb", "1_small.py"]


@pytest.mark.evidence
@each
def test_every_notebook_runs_from_its_first_cell(script: Path) -> None:
    in_its_own_process("notebooks/build.py", "--dry", script.stem)


def in_its_own_process(*arguments: str) -> None:
    """Away from this process: a kernel's client opens sockets and an event loop, and its settings are not ours."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=build.HERE.parent, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
