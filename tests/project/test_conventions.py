"""What the project promises of its own files: no autodiff, two independent programs, equations cited, no hosts."""

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import conftest
import jax
import pytest

import manual_backprop as mb

ROOT = Path(__file__).resolve().parents[2]
BY_HAND = sorted((ROOT / "manual_backprop").rglob("*.py"))
REFERENCE = sorted((ROOT / "reference").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

AUTODIFF = {
    "grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose", "jacfwd", "jacrev", "jacobian",
    "hessian", "custom_vjp", "custom_jvp", "custom_gradient", "closure_convert", "checkpoint", "remat",
    "fwd_and_bwd", "vjp3", "saved_input_vjp",
}  # fmt: skip
TAGS = ["F1", "F2", "F3", "G1", "J1", "J2", "J3", "C1", "C2", "C3", "C4", "C5", "C6", "C7"]
TAGS += ["B1", "B2", "B3", "B4", "B5", "B6", "U1"]


def autodiff_uses(source: str) -> list[str]:
    """Names through which a module could reach JAX's autodiff, whatever it calls them."""
    found = []
    aliases = {"jax"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "jax":
                    aliases.add((name.asname or name.name).split(".")[0])
                    if re.search(r"autodiff|interpreters|_src|extend|experimental|test_util", name.name):
                        found.append(f"import {name.name}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            for name in node.names:
                if name.name in AUTODIFF or re.search(r"interpreters|_src|extend|experimental", node.module or ""):
                    found.append(f"from {node.module} import {name.name}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
            "getattr",
            "__import__",
            "eval",
            "exec",
        }:
            text = ast.unparse(node)
            if "jax" in text:
                found.append(text)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in AUTODIFF:
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in aliases:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: str(path.relative_to(ROOT)))
def test_manual_backprop_calls_no_autodiff(path):
    """`custom_vjp` registers our backward with JAX, which differentiates nothing; that is all that is let pass."""
    allowed = {"jax.custom_vjp"} if path.name == "custom_vjp.py" else set()
    assert set(autodiff_uses(path.read_text(encoding="utf-8"))) <= allowed


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.grad(f)",
        "import jax as j\ng = j.vjp",
        "from jax import jvp as push",
        "import jax.numpy as jnp\nimport jax\nh = jax.hessian(f)",
        "import jax\njax.lax.linalg.jvp",
        "import jax\ngetattr(jax, 'gr' + 'ad')(f)",
        "from jax.interpreters import ad",
        "from jax._src.api import grad",
        "import jax.experimental.jet",
    ],
)
def test_the_test_for_autodiff_can_fail(source):
    assert autodiff_uses(source)


def test_manual_backprop_runs_without_autodiff_at_run_time(monkeypatch):
    """With every door of JAX's autodiff shut, the step is traced all the same; what runs is what was traced."""
    for name in AUTODIFF:
        if hasattr(jax, name):
            monkeypatch.setattr(jax, name, shut)
    net = mb.Serial((mb.Repeat(mb.Dense(13, 13, "gelu"), 2), mb.Dense(13, 11)))  # no other test traces these shapes
    objective = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(0.1))
    params = jax.eval_shape(net.init, jax.random.key(0))
    given = params, jax.ShapeDtypeStruct((17, 13), "float64"), jax.ShapeDtypeStruct((17,), "int64")
    jax.eval_shape(lambda *a: mb.backprop(objective, *a), *given)
    jax.eval_shape(mb.value_and_grad(objective), *given)
    jax.eval_shape(lambda *a: mb.forward_mode.gradient_by_forward_propagation(objective, *a), *given)
    jax.eval_shape(lambda *a: mb.hessian_vector_product(objective, *a, a[0]), *given)
    jax.eval_shape(lambda *a: mb.gauss_newton_diagonal(objective, *a), *given)


def shut(*args, **kwargs):
    raise AssertionError("autodiff was called")


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports: "package.module.Name"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{name.name}" for name in node.names}
    return names


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: str(path.relative_to(ROOT)))
def test_manual_backprop_knows_nothing_of_the_reference_or_the_outside(path):
    names = imported(path)
    assert not [n for n in names if n.startswith(("reference", "numpy.random", "sklearn", "rich", "jax.nn"))]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in {"print", "open"}]
    # jax.nn is the reference's: here it serves to draw initial weights, and nothing else.
    nn = re.findall(r"jax\.nn\.(\w+)", path.read_text(encoding="utf-8"))
    assert set(nn) <= {"initializers"}
    assert "config.update" not in path.read_text(encoding="utf-8")


DESCRIPTIONS = {
    "manual_backprop.layers": {
        "Affine", "Attention", "Dense", "Drawn", "Dropout", "Embedding", "Gain", "GainAndBias", "Layer",
        "LayerNorm", "LayerTrace", "Parameters", "PositionalEmbedding", "Positions", "Product", "RMSNorm", "Table",
    },
    "manual_backprop.losses": {
        "BinaryCrossEntropy", "Huber", "Loss", "SigmoidBinaryCrossEntropy", "SoftmaxCrossEntropy", "SquaredError",
    },
    "manual_backprop.network": {"Parallel", "Readout", "Repeat", "Residual", "Serial", "Tied", "TiedReadout"},
    "manual_backprop.node": {"Branches", "Node", "Wrapper"},
    "manual_backprop.objective": {"Objective", "Step"},
}  # fmt: skip
TAKES_DESCRIPTIONS = [
    "model",
    "autodiff",
    "masks",
    *(f"equations/{path.stem}" for path in REFERENCE if path.parent.name == "equations"),
]


@pytest.mark.parametrize("name", TAKES_DESCRIPTIONS)
def test_the_reference_takes_descriptions_alone(name):
    """No forward formula is shared; an activation or loss without a witness is the one exception, by name."""
    path = ROOT / "reference" / f"{name}.py"
    allowed = {f"{module}.{item}" for module, items in DESCRIPTIONS.items() for item in items}
    assert {n for n in imported(path) if n.startswith("manual_backprop")} <= allowed
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not {"bounds", "kind", "ways", "family"}
        & {word.id for word in ast.walk(node.func) if isinstance(word, ast.Name)}
    }  # the reference's own formulas
    forbidden = {"forward", "backward", "net_input", "transport", "factor", "pushforward", "derivative", "df",
                 "gradient", "d_lam", "lean_forward", "tangent"}  # fmt: skip
    assert called & forbidden == set()


def test_every_built_in_activation_and_loss_has_a_witness():
    import manual_backprop as mb
    from reference import model

    assert set(model.ACTIVATIONS) == set(mb.activations.TABLE)
    for loss in mb.losses.TABLE.values():
        assert model.losses.dispatch(type(loss)) is not model.losses.dispatch(object)


def test_only_the_check_and_what_stands_above_it_call_both_programs():
    both = {
        path.name
        for path in REFERENCE
        if any(n == "manual_backprop" or n.startswith("manual_backprop.") for n in imported(path))
        and f"{path.parent.name}/{path.stem}".removeprefix("reference/") not in TAKES_DESCRIPTIONS
    }
    about_ours = {"step.py", "published.py", "networks.py", "sequences.py", "proving.py", "mutating.py"}
    about_ours |= {
        "broken_sequences.py",
        "broken_curvature.py",
        "subject.py",
        "on_devices.py",
        "placement.py",
        "train.py",
        "train_text.py",
        "text_network.py",
        "spread.py",
        "graph.py",
    }
    assert both == about_ours | {"layer.py", "layer_quantities.py", "user.py"}


def test_arrows_point_one_way():
    """node <- layers <- network <- sweep <- readings, rules <- objective <- curvature, training."""
    order = ["types", "precision", "shards", "activations", "node", "layers", "network", "losses", "regularizers"]
    order += ["validate", "sweep", "tangent", "readings.angle", "readings.gradients"]
    order += ["readings.kronecker", "readings.diagnosis", "rules", "readout", "objective"]
    order += ["readings.curvature", "custom_vjp", "functions", "textbook", "training", "adapters", "graph"]
    order += ["schedules", "pipelined"]
    rank = {name: i for i, name in enumerate(order)}
    for path in BY_HAND:
        here = room(path.relative_to(ROOT).with_suffix("").parts, rank)
        for name in imported(path):
            there = room(tuple(name.split(".")), rank)
            if here and there:
                assert there == here or rank[there] < rank[here], f"{path.name} imports {name}"


def room(parts: tuple[str, ...], rank: dict[str, int]) -> str:
    """The room of a module of `manual_backprop`; of a package that only gathers names, and of anything else, ""."""
    ours = ".".join(parts[1:]) if parts[0] == "manual_backprop" else ""
    return next((name for name in rank if ours == name or ours.startswith(f"{name}.")), "")


@pytest.mark.parametrize("tag", TAGS)
def test_every_equation_is_cited_in_code_and_in_a_test(tag):
    def cites(path: Path) -> bool:
        text = re.sub(r"\((\w\d)\)-\((\w)(\d)\)", _spread, path.read_text(encoding="utf-8"))
        return f"({tag})" in text

    assert any(map(cites, BY_HAND)), f"({tag}) is not cited in manual_backprop"
    assert any(cites(p) for p in TESTS if p.name != Path(__file__).name), f"({tag}) is not cited in a test"
    table = re.findall(r"^\| (\(\w\d\)) \|", (ROOT / "docs/equations.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"({tag})" in table, f"({tag}) is not in the table of docs/equations.md"


def _spread(match: re.Match) -> str:
    first, letter, last = match.groups()
    return " ".join(f"({letter}{i})" for i in range(int(first[1]), int(last) + 1))


MADE = {"build", "dist", "__pycache__"}
"""Folders that tools make, besides virtual environments and those with a dot in front (.ci is the project's)."""


def ours(folder: Path) -> Iterator[Path]:
    """The files of the project, whether git knows them or not, and where there is no git."""
    for path in sorted(folder.iterdir()):
        made = path.name in MADE or path.name.endswith(".egg-info") or (path / "pyvenv.cfg").exists()
        hidden = path.name.startswith(".") and path.name != ".ci"
        if path.is_dir() and not made and not hidden:
            yield from ours(path)
        elif path.is_file() and path.suffix != ".pyc":
            yield path


def test_locks_have_no_addresses():
    host = re.compile(r"py" + r"pi\.org|python" + r"hosted|extra-" + r"index-url|find-" + r"links")
    found = list(ours(ROOT))
    assert {ROOT / name for name in ("constraints.txt", "pyproject.toml")} | {*BY_HAND, *REFERENCE, *TESTS} <= {*found}
    for path in found:
        assert not host.search(path.read_text(errors="ignore")), path
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line) for line in pins if line)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


def test_modules_stay_small():
    """A file has one job and fits a few screens."""
    for path in [*BY_HAND, *REFERENCE]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def modules(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The file of every module of these packages, by its dotted name; an `__init__` has the package's."""
    paths = [path for name in names for path in sorted((folder / name).rglob("*.py"))]
    return {".".join(p.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports_among(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which of these modules each of them imports, at its top, in a function, for types alone or by `import_module`.

    A name that a package gathers is the package's own; a module in it is the module, and the package too where that
    has a `__getattr__`, which Python asks first. That Python runs the `__init__` of the packages around a module is no
    import of them.
    """
    imports, asked = {}, set()
    for module, path in files.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        asked |= {module} if any(getattr(node, "name", "") == "__getattr__" for node in tree.body) else set()
        nodes = ast.walk(tree) if "import_module" in source else statements(tree.body)
        imports[module] = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]
    arrows: dict[str, set[str]] = {}
    for module, nodes in imports.items():
        package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
        found: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                up = package.rsplit(".", node.level - 1)[0] if node.level else ""
                source = ".".join(filter(None, [up, node.module]))
                inner = {f"{source}.{name.name}" for name in node.names} & files.keys()
                found |= inner | ({source} if source in asked or len(inner) < len(node.names) else set())
            elif ast.unparse(node.func).endswith("import_module"):
                found |= {of.value for of in node.args if isinstance(of, ast.Constant)}
        arrows[module] = found & files.keys()
    return arrows


def statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """These and what stands in them, without the expressions, which are the most of a file and hold no `import`."""
    for node in nodes:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(node, part, ()))


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The modules that reach one another, circle by circle."""
    reached = {module: set(there) for module, there in arrows.items()}
    for through in arrows:
        for module in arrows:
            if through in reached[module]:
                reached[module] |= reached[through]
    found = {tuple(sorted(m for m in reached[n] if n in reached[m])) for n in arrows if n in reached[n]}
    return [list(circle) for circle in sorted(found)]


LATE = {
    ("reference", "reference.api"): "its names are loaded when one is asked for, so that --help answers without JAX",
}
"""The imports that may close a circle, and why."""


def test_no_import_runs_in_a_circle():
    """Counting imports within functions and for types alone, which only hide one."""
    files = modules(ROOT, ["manual_backprop", "reference"])
    assert {*files.values()} == {*BY_HAND, *REFERENCE}
    arrows = imports_among(files)
    for module, late in LATE:
        arrows[module].remove(late)
    assert circles(arrows) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import math", []),
        ("from pack import b", [["pack.a", "pack.b"]]),
        ("from . import b", [["pack.a", "pack.b"]]),
        ("from .b import name", [["pack.a", "pack.b"]]),
        ("import pack.b", [["pack.a", "pack.b"]]),
        ("def f():\n    from pack.b import name", [["pack.a", "pack.b"]]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.b import name", [["pack.a", "pack.b"]]),
        ("from pack.in_between import name", [["pack.a", "pack.b", "pack.in_between"]]),
        ("import importlib\ndef f():\n    importlib.import_module('pack.b')", [["pack.a", "pack.b"]]),
        ("from pack.on_demand import leaf", [["pack.a", "pack.b", "pack.on_demand"]]),
        ("from pack import name", [["pack", "pack.a", "pack.b"]]),  # the package gathers it from b
        ("from pack.a import name", [["pack.a"]]),
    ],
)
def test_the_test_for_circles_can_fail(tmp_path, source, found):
    texts = {
        "__init__": "from pack.b import name",
        "a": source,
        "b": "from pack.a import other",
        "in_between": "def f():\n    from pack.b import name",
        "on_demand/__init__": "from importlib import import_module\ndef __getattr__(n):\n    import_module('pack.b')",
        "on_demand/leaf": "",
    }
    for name, text in texts.items():
        path = tmp_path / "pack" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert circles(imports_among(modules(tmp_path, ["pack"]))) == found


def riddles(source: str) -> list[str]:
    """The docstrings of a module that begin with "What ", those of its attributes too."""
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [text for text in strings if text.lstrip().startswith("What ")]


@pytest.mark.parametrize("path", [*BY_HAND, *REFERENCE], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_what(path):
    """A docstring says what a thing is, does or returns, and needs no "What"."""
    assert riddles(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""What a module holds."""', 1),
        ('def f():\n    """What f returns."""', 1),
        ('class C:\n    """What C is."""\n    a: int\n    """What a is."""', 2),
        ('async def f():\n    """\n    What f returns."""', 1),
        ('def f():\n    """Return what was found."""\n    return "What else"', 0),
    ],
)
def test_the_test_for_docstrings_can_fail(source, found):
    assert len(riddles(source)) == found


@pytest.mark.parametrize("of", [1, 3, 8, 30])
def test_the_parts_of_the_evidence_are_all_of_it_once(of):
    items = list(range(20))
    parts = [conftest.of_part(conftest.part(f"{k}/{of}"), items) for k in range(1, of + 1)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "/8", "-1/8", "a/b"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 2/8"):
        conftest.part(text)
