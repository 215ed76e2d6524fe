"""`manual-backprop train`: the note's training loop on real data, and the same run by jax.grad to compare."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_backprop as mb
from reference import autodiff
from reference.catalogue import data
from reference.cli import checkpoints, processes, spread, text_network
from reference.cli.files import BadInput, read_arrays, require_writable, write_arrays
from reference.cli.flags import fill, refuse
from reference.cli.terminal import Advance, print_table, progress

FORMAT = "manual-backprop/network/1"
HELD_OUT = 0.2
HIDDEN, ACTIVATION = (128, 64), "relu"
DEFAULTS = {"optimizer": "adam", "learning_rate": 3e-3, "epochs": 40, "batch": 64, "lam": 1e-3}
OF_A_TEXT = ("width", "heads", "layers", "length", "steps", "sample", "temperature", "prompt", "picture")
# Relative to the first epoch's loss. The two runs round differently at every step, and training magnifies that. In
# float32 the curves of the default run stay within 1e-6 of each other; with a gradient that is wrong by a part in a
# thousand they differ by far more than this.
CURVES_EQUAL = 1e-4
COMPARED = 40  # epochs: over many more, jax.grad parts as far from itself, begun one rounding beside
SAVED = "np.savez(FILE, x=..., y=...)"
NUMBERED = "number them from 0, as np.unique(y, return_inverse=True)[1] does"

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Training and held-out rows, with features standardised by the training rows' mean and deviation."""

    x: np.ndarray
    y: np.ndarray
    x_held: np.ndarray
    y_held: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    classes: int

    @property
    def outputs(self) -> int:
        """How many outputs a network for these targets has."""
        return self.classes or self.y.shape[1]


def run(arguments: Namespace) -> int:
    """Run the command; return 0 if both runs agree, 1 if they differ.

    Raises:
        BadInput: a file or an argument that cannot be used.
    """
    with processes.joined(arguments):
        return _run(arguments)


def _run(arguments: Namespace) -> int:
    save = None if arguments.save is None else Path(arguments.save)
    dataset, split, net, params = processes.together(lambda: _prepared(arguments, save))
    loss = mb.softmax_cross_entropy if split.classes else mb.squared_error
    objective = mb.Objective(net, loss, mb.Frobenius(arguments.lam))
    plan = checkpoints.Plan(_described(arguments, objective, dataset, params), (arguments.epochs,) * 2, "epoch")
    processes.require_same({**plan.run, "--epochs": arguments.epochs, "--process-count": arguments.process_count})

    print(f"{net}\n{len(split.x)} examples of {dataset.name} to train on, {len(split.x_held)} held out")
    print(f"{processes.how_many()}\n")
    with checkpoints.opened(arguments, plan) as (kept, kept_theirs):
        left = 2 * arguments.epochs - len(kept.curve) - len(kept_theirs.curve)
        with progress("epochs", left) as advance:
            by_hand, by_jax = (lambda note, who=who: advance(f"{who}, {note}") for who in checkpoints.FOLDERS)
            ours, curve = train(arguments, objective, params, split, mb.value_and_grad, by_hand, kept)
            theirs, their_curve = train(
                arguments, objective, params, split, autodiff.value_and_grad, by_jax, kept_theirs
            )
    if not processes.first():
        return 0
    agree = _print(objective, split, (params, ours, theirs), (curve, their_curve))
    if save is not None:
        save_network(save, Network(net, ours, split.mean, split.deviation))
        print(f"network written to {save}")
    return 0 if agree else 1


def _prepared(arguments: Namespace, save: Path | None) -> tuple[data.Dataset, Split, mb.Serial, Any]:
    """The data as they are and split, the network, and its parameters to begin with."""
    refuse(
        arguments, OF_A_TEXT, "cannot go without --text, which trains a GPT on characters: add it, or leave them out"
    )
    fill(arguments, DEFAULTS)
    if save is not None:
        require_writable(save)
        if arguments.data is not None and save.resolve() == Path(arguments.data).resolve():
            raise BadInput(f"--save would write the network over the data in {save}: name another file")
    dataset = _examples(arguments.data, arguments.task)
    loaded = None if arguments.load is None else load_network(Path(arguments.load))
    if loaded:
        held = f"{arguments.load} holds {loaded.net}"
        refuse(arguments, ["hidden", "activation"], f"cannot go with --load, which brings its own network: {held}")
    split = _split(dataset, arguments.seed, loaded)
    net, params = (loaded.net, loaded.params) if loaded else _fresh(arguments, split)
    if loaded:
        _require_fit(loaded, split)
    return dataset, split, net, params


def _described(arguments: Namespace, objective: mb.Objective, dataset: data.Dataset, params: Any) -> dict[str, Any]:
    """All that the run depends on, but for the number of its epochs."""
    said = {name: getattr(arguments, name) for name in ("optimizer", "learning_rate", "batch", "lam", "seed")}
    return {
        "the network": str(objective.net),
        "the loss": str(objective.loss),
        **{f"--{name.replace('_', '-')}": value for name, value in said.items()},
        "the data": checkpoints.digest((dataset.x, dataset.y)),
        "--load": arguments.load and checkpoints.digest(params),
    }


def train(
    arguments: Namespace,
    objective: mb.Objective,
    params: Any,
    split: Split,
    value_and_grad: mb.training.ValueAndGrad,
    advance: Advance,
    kept: checkpoints.Nowhere = checkpoints.Nowhere(),  # noqa: B008
) -> tuple[Any, np.ndarray]:
    """(trained parameters, mean J of every epoch), from `params` or what is kept, by gradients of `value_and_grad`."""
    optimizer = OPTIMIZERS[arguments.optimizer](arguments.learning_rate)
    epoch = spread.make_epoch(objective, optimizer, arguments.batch, value_and_grad)
    params = jax.tree.map(jnp.array, params)  # a copy, since the epoch donates its arguments' memory
    params, state = spread.everywhere(kept.restored((params, optimizer.init(params))))
    key = jax.random.key(arguments.seed)
    curve = list(kept.curve)
    for number in range(len(curve), arguments.epochs):
        params, state, values = epoch(params, state, jax.random.fold_in(key, number), split.x, split.y)
        curve.append(float(values.mean()))
        advance(f"J {curve[-1]:.4f}")
        kept.keep((params, state), curve, last=number + 1 == arguments.epochs)
    return spread.here(params), np.asarray(curve)


def score(objective: mb.Objective, params: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Accuracy for labels, the share of variance explained (R squared) for values."""
    output = np.asarray(mb.forward(objective.net, params, jnp.asarray(x))[0])
    if np.issubdtype(y.dtype, np.integer):
        return float((output.argmax(axis=1) == y).mean())
    return float(1 - ((output - y) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def _print(
    objective: mb.Objective,
    split: Split,
    networks: tuple[Any, Any, Any],
    curves: tuple[np.ndarray, np.ndarray],
) -> bool:
    """Print both runs side by side, and return whether their loss curves agree."""
    ours, theirs = curves
    what = "accuracy" if split.classes else "R squared"
    if len(ours):
        shown = sorted({*np.linspace(0, len(ours) - 1, min(8, len(ours))).astype(int)})
        rows = [(str(i + 1), f"{ours[i]:.6f}", f"{theirs[i]:.6f}", f"{abs(ours[i] - theirs[i]):.1e}") for i in shown]
        print_table("J by epoch", ("epoch", "by hand", "by jax.grad", "difference"), rows)
        print()
    held = [score(objective, params, split.x_held, split.y_held) for params in networks]
    print(f"held-out {what}: {held[0]:.2%} before, {held[1]:.2%} trained by hand, {held[2]:.2%} by jax.grad")
    if not len(ours):
        return True
    apart = np.abs(ours - theirs) / abs(theirs[0])
    gap, late = float(apart[:COMPARED].max()), apart[COMPARED:]
    agree = bool(gap <= CURVES_EQUAL and np.isfinite(apart).all())
    verdict = "equal to rounding" if agree else "THEY PART"
    which = f"loss curves of the first {COMPARED} epochs" if len(late) else "loss curves"
    print(f"{which}: {verdict}, at most {gap:.1e} of the first apart (tolerance {CURVES_EQUAL:.0e})")
    if len(late):
        print(f"after them: at most {late.max():.1e} apart, where rounding grows with every step")
    return agree


def _examples(path: str | None, task: str | None) -> data.Dataset:
    """The digits, or the arrays x and y of a file."""
    if path is None:
        if task is not None:
            raise BadInput("--task says what y of --data is; without --data, the digits are classes: leave it out")
        return data.raw("digits")
    arrays = read_arrays(Path(path), SAVED)
    if not {"x", "y"} <= set(arrays):
        raise BadInput(f"{path} holds {sorted(arrays)}; it needs the arrays x and y, as {SAVED} writes them")
    x, y = arrays["x"], arrays["y"]
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise BadInput(f"x in {path} is {x.dtype}{list(x.shape)}; it must be real numbers (examples, features)")
    whole, real = np.issubdtype(y.dtype, np.integer), np.issubdtype(y.dtype, np.floating)
    if y.dtype.kind in "US":
        raise BadInput(f"y in {path} is text; {NUMBERED}")
    if not (y.ndim == 1 and (whole or real)) and not (y.ndim == 2 and (real or (whole and task == "values"))):
        raise BadInput(
            f"y in {path} is {y.dtype}{list(y.shape)}; it must be integer labels (examples,) or floats"
            " (examples,) or (examples, outputs)"
        )
    if len(x) != len(y):
        raise BadInput(f"{path} has {len(x)} rows of x but {len(y)} of y")
    if len(x) < 10:
        raise BadInput(f"{path} has {len(x)} examples; at least 10 are needed to hold some out")
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            raise BadInput(f"{name} in {path} has {np.count_nonzero(~np.isfinite(values))} entries of nan or inf")
    y, classes = _targets(path, y, task)
    return data.Dataset(Path(path).name, x.astype(np.float64), y, classes)


def _targets(path: str, y: np.ndarray, task: str | None) -> tuple[np.ndarray, int]:
    """Labels (examples,) and their number of classes, or values (examples, outputs) and 0."""
    kind, whole = f"y in {path} is {y.dtype}{list(y.shape)}", bool((y == np.floor(y)).all())
    if task is None and whole and y.ndim == 1 and np.issubdtype(y.dtype, np.floating):
        raise BadInput(f"{kind} of whole numbers, which may be classes or values: say --task classes or --task values")
    if task is None and y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        raise BadInput(f"{kind}, one 1 in every row: give labels, y.argmax(axis=1), or say --task values")
    if task == "values" or (task is None and np.issubdtype(y.dtype, np.floating)):
        return y.reshape(len(y), -1).astype(np.float64), 0
    if y.ndim != 1 or not whole:
        raise BadInput(
            f"{kind}; labels must be whole numbers, one for each example: leave out --task classes for values"
        )
    if y.max() >= len(y):
        raise BadInput(
            f"labels in {path} go up to {y.max():g}, more classes than its {len(y)} examples: number them from 0, or"
            " say --task values"
        )
    if y.min() != 0:
        raise BadInput(f"labels in {path} must begin at 0, but begin at {y.min():g}; {NUMBERED}")
    return y.astype(np.int64), int(y.max()) + 1


def _split(dataset: data.Dataset, seed: int, loaded: "Network | None") -> Split:
    """Split off the held-out rows by seed; a loaded network brings its own mean and deviation."""
    x, y = dataset.x, dataset.y
    order = np.random.default_rng(seed).permutation(len(x))
    cut = max(1, round(HELD_OUT * len(x)))
    held, kept = order[:cut], order[cut:]
    mean, deviation = data.scaling(x[kept], dataset.name in data.ONE_UNIT)
    if loaded is not None:
        if loaded.mean.shape != x.shape[1:]:
            raise BadInput(f"the network takes {loaded.mean.size} features but the data has {x.shape[1]}")
        mean, deviation = loaded.mean, loaded.deviation
    x, y = ((x - mean) / deviation).astype(np.float32), y.astype(np.int32 if dataset.classes else np.float32)
    return Split(x[kept], y[kept], x[held], y[held], mean, deviation, dataset.classes)


def _fresh(arguments: Namespace, split: Split) -> tuple[mb.Serial, Any]:
    hidden = HIDDEN if arguments.hidden is None else arguments.hidden
    if not hidden:
        refuse(arguments, ["activation"], "cannot go with --hidden '', a network without hidden layers")
    try:
        net = mb.mlp((split.x.shape[1], *hidden, split.outputs), activation=arguments.activation or ACTIVATION)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return net, net.init(jax.random.key(arguments.seed), jnp.float32)


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network, as --save writes it and --load reads it.

    Attributes:
        net: a chain of dense layers.
        params: its parameters, float32.
        mean: of the features that it was trained on.
        deviation: of the same features.
    """

    net: mb.Serial
    params: Any
    mean: np.ndarray
    deviation: np.ndarray


def save_network(path: Path, network: Network) -> None:
    """Write plain arrays 0.W, 0.b and so on, the scaling, and a line of JSON that names the layers.

    A layer without bias has no b here either.

    Raises:
        BadInput: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {"mean": network.mean, "deviation": network.deviation}
    for i, layer in enumerate(network.params):
        arrays |= {f"{i}.{k}": np.asarray(value) for k, value in vars(layer).items() if value is not None}
    dense = [node for node in network.net.nodes if isinstance(node, mb.Dense)]
    layers = [{"d_in": n.d_in, "d_out": n.d_out, "activation": n.f.name, "bias": n.bias} for n in dense]
    arrays["description"] = np.asarray(json.dumps({"format": FORMAT, "layers": layers}))
    write_arrays(path, arrays)


def load_network(path: Path) -> Network:
    """Read a network that `save_network` wrote.

    Raises:
        BadInput: no such file, not one of ours, or arrays that do not fit its description.
    """
    arrays = read_arrays(path, SAVED)
    try:
        description = json.loads(str(arrays["description"]))
        if description["format"] == text_network.FORMAT:
            raise BadInput(f"{path} holds a network that was trained with --text: give --text here too")
        if description["format"] != FORMAT:
            raise BadInput(f"{path} has format {description['format']!r}; this version reads {FORMAT!r}")
        layers = [_layer(described) for described in description["layers"]]
        params = tuple(
            mb.Affine(*(jnp.asarray(arrays[name]) if name in arrays else None for name in (f"{i}.W", f"{i}.b")))
            for i in range(len(layers))
        )
        network = Network(mb.Serial(tuple(layers)), params, arrays["mean"], arrays["deviation"])
        mb.forward(network.net, params, jnp.zeros((1, layers[0].d_in), jnp.float32))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInput(f"{path} is not a network that --save wrote: {error}") from error
    return network


def _layer(described: dict[str, Any]) -> mb.Dense:
    """A layer of the file's description; where it says nothing of a bias, as older ones, there is one."""
    return mb.Dense(described["d_in"], described["d_out"], described["activation"], bias=described.get("bias", True))


def _require_fit(loaded: Network, split: Split) -> None:
    outputs = loaded.net.out_shape(split.x.shape[1:])[0]
    if outputs < split.outputs or (outputs > split.outputs and not split.classes):
        raise BadInput(f"the network has {outputs} outputs but the data needs {split.outputs}")
