"""The pictures of the README and the pages, each on light and on dark paper.

`python docs/pictures.py` writes docs/pictures/*.svg.
Needs matplotlib (extra `cli`). The graphs are the same bytes wherever matplotlib is of the same
version; in the others the last bits of rounding show, which differ from one processor to the next.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.sharding import AbstractMesh
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import manual_backprop as mb
import reference
from manual_backprop.graph.picture import COLOURS
from reference.cli.files import write_atomically

FOLDER = Path(__file__).resolve().parent / "pictures"
SERIES = {
    "light": ("#0969da", "#bc4c00", "#1a7f37", "#8250df"),
    "dark": ("#58a6ff", "#f0883e", "#56d364", "#bc8cff"),
}


def objective() -> mb.Objective:
    """The network of the README."""
    return mb.Objective(mb.mlp((64, 128, 10)), mb.softmax_cross_entropy, mb.Frobenius(1e-4))


def forward_graph(theme: Any) -> str:
    """(G1) as the note and D2L draw it."""
    return mb.forward_graph(objective()).svg(theme=theme)


def backward_graph(theme: Any) -> str:
    """Local derivatives on the arrows, delta at every z."""
    return mb.backward_graph(objective()).svg(theme=theme)


def composite_graph(theme: Any) -> str:
    """Composites, opened: a residual block, and a chain of which one block is drawn for all."""
    block = mb.Residual(mb.Serial((mb.Dense(64, 64, "gelu"), mb.Dense(64, 64))))
    net = mb.Serial((block, mb.Repeat(block, 8), mb.Dense(64, 10)))
    return mb.forward_graph(mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(1e-4))).svg(theme=theme)


def gate_graph(theme: Any) -> str:
    """Branches beside one another, and their product: the gate of SwiGLU, backward."""
    net = mb.Serial((mb.Parallel((mb.Dense(64, 128, "silu"), mb.Dense(64, 128))), mb.Product(), mb.Dense(128, 10)))
    return mb.backward_graph(mb.Objective(net, mb.softmax_cross_entropy)).svg(theme=theme)


def heat_map(theme: str) -> str:
    """|by hand - jax.grad| of every weight: the right gradient, and one in which f' of layer 2 was forgotten."""
    net = mb.mlp((24, 20, 16, 10), activation="tanh")
    problem = mb.Objective(net, mb.softmax_cross_entropy, mb.Frobenius(1e-3))
    params = net.init(jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (32, 24)), jnp.arange(32) % 10
    _, right = jax.jit(mb.value_and_grad(problem))(params, x, y)
    _, automatic = jax.jit(reference.value_and_grad(problem))(params, x, y)
    step = jax.jit(lambda p, x, y: mb.backprop(problem, p, x, y, rule=forgetful()))(params, x, y)
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(24, 20, 16))
    norm = BoundaryNorm(np.arange(-19, -0.5, 1.0), 256)
    for row, (gradients, said) in enumerate(((right, "by hand"), (step.gradients, "f' of layer 2 forgotten"))):
        for layer, (ours, theirs) in enumerate(zip(gradients, automatic, strict=True)):
            away = np.abs(np.asarray(ours.W) - np.asarray(theirs.W))
            at = axes[row, layer]
            with np.errstate(divide="ignore"):
                shown = at.imshow(np.maximum(np.log10(away), -18.9), norm=norm, cmap="viridis", aspect="auto")
            at.set_title(rf"$W^{{({layer + 1})}}$: {said}", fontsize=10)
            at.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, label=r"$\log_{10}$ |by hand - jax.grad|", ticks=range(-18, 0, 3))
    return text(figure, theme)


def forgetful() -> Any:
    """A sweep that forgets f' in layer 2."""
    return mb.rules.on_delta((None, lambda site: site.delta / site.layer.f.df(site.trace.z, site.trace.a), None))


def error_terms(theme: str) -> str:
    """||delta^(l)|| from the last layer of 24 down to the first, before any training."""
    depth, width = 24, 128
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(1, depth + 1)
    for colour, name in zip(SERIES[theme], ("relu", "tanh", "gelu", "sigmoid"), strict=True):
        net = mb.mlp((64, *(width,) * (depth - 1), 10), activation=name)
        x, y = jax.random.normal(jax.random.key(1), (64, 64)), jnp.arange(64) % 10
        problem = mb.Objective(net, mb.softmax_cross_entropy)
        step = jax.jit(lambda p, x, y, of=problem: mb.backprop(of, p, x, y))(net.init(jax.random.key(0)), x, y)
        norms = [float(jnp.sqrt(jnp.mean(jnp.sum(delta**2, axis=1)))) for delta in step.deltas]
        axes.semilogy(layers, norms, color=colour, lw=1.8, label=name)
    axes.set(xlabel="layer $l$", ylabel=r"$\|\delta^{(l)}\|$, root mean square", xlim=(1, depth))
    axes.legend(ncols=4, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return text(figure, theme)


def schedules(theme: Any) -> str:
    """1F1B above zero-bubble: four stages, eight microbatches."""
    both = mb.schedules.one_forward_one_backward(4, 8), mb.schedules.zero_bubble(4, 8)
    most = max(schedule.ticks for schedule in both)
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    colours = COLOURS[theme]
    of_kind = dict(zip("FBW", SERIES[theme], strict=False))
    for axes, name, schedule in zip(figure.subplots(2, 1), ("1f1b", "zero_bubble"), both, strict=True):
        for stage, row in enumerate(schedule.rows):
            for tick, cell in enumerate(row):
                paper = of_kind[cell.kind] if cell else colours["paper"]
                box = Rectangle((tick, stage), 1, 1, facecolor=paper, edgecolor=colours["paper"], lw=0.8)
                axes.add_patch(box)
                if cell:
                    axes.text(
                        tick + 0.5, stage + 0.5, str(cell), size=7, color=colours["paper"], ha="center", va="center"
                    )
        axes.set(xlim=(0, most), ylim=(schedule.stages, 0), xticks=[], yticks=np.arange(schedule.stages) + 0.5)
        axes.set_yticklabels([f"stage {stage}" for stage in range(schedule.stages)])
        axes.set_title(f"{name}: {schedule.ticks} ticks, {schedule.idle_share:.0%} idle", fontsize=10)
    return text(figure, theme)


def layouts(theme: str) -> str:
    """The part of every W, and of the batch, that the first of 4 x 2 devices holds, by layout."""
    net = mb.Serial((mb.Dense(8, 16, "tanh"), mb.Dense(16, 8, "tanh"), mb.Dense(8, 8)))
    mesh = AbstractMesh((4, 2), ("data", "model"))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    colours = COLOURS[theme]
    rows = figure.subplots(4, 4, height_ratios=(16, 16, 8, 8))
    for column, layout in enumerate(mb.sharding.LAYOUTS):
        specs = mb.sharding.specs(net, params, layout, mesh)
        arrays = [(f"$W^{{({i + 1})}}$", params[i].W.shape, specs[i].W) for i in range(3)]
        for row, (name, shape, spec) in enumerate([("x", (16, 8), mb.sharding.batch_spec(layout)), *arrays]):
            parts = [mesh.shape[axis] if axis else 1 for axis in (*spec, None, None)][:2]
            axes = rows[row, column]
            height, width = shape
            axes.add_patch(Rectangle((0, 0), width / parts[1], height / parts[0], facecolor=SERIES[theme][0]))
            for lines, of, to in ((axes.axhline, height, parts[0]), (axes.axvline, width, parts[1])):
                for cut in range(1, to):
                    lines(cut * of / to, color=colours["frame"], lw=0.8)
            axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
            axes.set_ylabel(name if column == 0 else "", rotation=0, labelpad=16, va="center")
            axes.set_title(layout if row == 0 else "", fontsize=10)
    return text(figure, theme)


def text(figure: Figure, theme: str) -> str:
    """A figure as SVG, in the theme's ink and paper."""
    colours = COLOURS[theme]
    figure.set_facecolor(colours["paper"])
    for axes in figure.axes:
        axes.set_facecolor(colours["paper"])
        axes.tick_params(colors=colours["ink"])
        for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
            label.set_color(colours["ink"])
        for spine in axes.spines.values():
            spine.set_edgecolor(colours["frame"])
        for entry in axes.get_legend().get_texts() if axes.get_legend() else ():
            entry.set_color(colours["ink"])
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue().decode()


PICTURES: dict[str, Callable[[Any], str]] = {
    "forward_graph": forward_graph,
    "backward_graph": backward_graph,
    "composite_graph": composite_graph,
    "gate_graph": gate_graph,
    "heat_map": heat_map,
    "error_terms": error_terms,
    "schedules": schedules,
    "layouts": layouts,
}


def main() -> None:
    """Make them all."""
    FOLDER.mkdir(exist_ok=True)
    with jax.enable_x64(True), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "manual-backprop", "mathtext.fontset": "cm"})
        for name, make in PICTURES.items():
            for theme in COLOURS:
                path = FOLDER / f"{name}.{theme}.svg"
                content = make(theme).encode()
                write_atomically(path, lambda file, content=content: file.write(content))
                print(f"{path.name}: {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
