"""`manual-backprop train --text`: a GPT on characters by the note's three steps, its first hundred by jax.grad too."""

import io
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_backprop as mb
from reference import autodiff, text
from reference.cli import checkpoints, curves, processes, spread
from reference.cli.files import BadInput, require_writable, write_atomically
from reference.cli.flags import fill, refuse
from reference.cli.terminal import Advance, print_table, progress
from reference.cli.text_network import Sizes, TextNetwork, load_text_network, network, save_text_network
from reference.cli.train import CURVES_EQUAL

OF_A_TABLE = ("data", "task", "hidden", "activation", "optimizer", "epochs", "lam")
OF_THE_NETWORK = {"width": 128, "heads": 4, "layers": 3, "length": 64}
OF_STEPS = {"learning_rate": 3e-3, "batch": 16}
DEFAULTS = OF_THE_NETWORK | OF_STEPS | {"steps": 500, "sample": 500, "temperature": 0.8, "prompt": "\n"}
COMPARED = 100  # steps that jax.grad takes too
HELD_WINDOWS, HELD_BATCH = 1024, 32  # at most so many windows say how the network does on what is held out


def run(arguments: Namespace) -> int:
    """Run the command; return 0 if both loss curves agree, 1 if they differ.

    Raises:
        BadInput: a file or an argument that cannot be used.
    """
    with processes.joined(arguments):
        return _run(arguments)


def _run(arguments: Namespace) -> int:
    save, picture = (None if name is None else Path(name) for name in (arguments.save, arguments.picture))
    start, corpus = processes.together(lambda: _prepared(arguments, save, picture))
    compared = min(COMPARED, arguments.steps)
    plan = checkpoints.Plan(_described(arguments, start, corpus), (arguments.steps, compared), "step")
    processes.require_same({**plan.run, "--process-count": arguments.process_count})

    if isinstance(sys.stdout, io.TextIOWrapper):  # a console with a one-byte encoding cannot print every sample
        sys.stdout.reconfigure(encoding="utf-8")
    _introduce(start, corpus, "Python's documentation" if arguments.text is True else Path(arguments.text).name)
    with checkpoints.opened(arguments, plan) as (kept, kept_theirs):
        left = arguments.steps + compared - len(kept.curve) - len(kept_theirs.curve)
        with progress("steps", left) as advance:
            by_hand, by_jax = (lambda note, who=who: advance(f"{who}, {note}") for who in checkpoints.FOLDERS)
            trained, ours = train(arguments, start, corpus, mb.value_and_grad, arguments.steps, by_hand, kept)
            _, theirs = train(arguments, start, corpus, autodiff.value_and_grad, compared, by_jax, kept_theirs)
    if not processes.first():
        return 0
    agree = _print(start, trained, corpus, ours, theirs)
    if picture is not None:
        content = curves.loss_curves(ours, theirs, picture.suffix.removeprefix("."))
        write_atomically(picture, lambda file: file.write(content))
        print(f"picture written to {picture}")
    if save is not None:
        save_text_network(save, trained)
        print(f"network written to {save}")
    if arguments.sample:
        print(f"\n{_sample(arguments, trained)}")
    return 0 if agree else 1


def _prepared(arguments: Namespace, save: Path | None, picture: Path | None) -> tuple[TextNetwork, text.Corpus]:
    """The network to begin with and the text as it reads it."""
    _require_consistent(arguments)
    _require_files(arguments, save, picture)
    words = _text(arguments.text)
    loaded = None if arguments.load is None else load_text_network(Path(arguments.load))
    if loaded:
        refuse(arguments, tuple(OF_THE_NETWORK), f"cannot go with --load, which brings its own: {loaded.sizes}")
    fill(arguments, DEFAULTS)
    sizes = loaded.sizes if loaded else _sizes(arguments)
    _require_length(words, sizes.length)
    corpus = text.corpus(words, loaded.characters if loaded else None)
    start = loaded or _fresh(sizes, corpus.characters, arguments.seed)
    _require_known(arguments.prompt, corpus.characters)
    return start, corpus


def _described(arguments: Namespace, start: TextNetwork, corpus: text.Corpus) -> dict[str, Any]:
    """All that the run depends on; the number of steps as well, since the rate follows it."""
    said = {name: getattr(arguments, name) for name in ("steps", "learning_rate", "batch", "seed")}
    return {
        "the network": str(start.sizes),
        **{f"--{name.replace('_', '-')}": value for name, value in said.items()},
        "the text": checkpoints.digest((corpus.characters, corpus.train, corpus.held)),
        "--load": arguments.load and checkpoints.digest(start.params),
    }


def train(
    arguments: Namespace,
    start: TextNetwork,
    corpus: text.Corpus,
    value_and_grad: mb.training.ValueAndGrad,
    steps: int,
    advance: Advance,
    kept: checkpoints.Nowhere = checkpoints.Nowhere(),  # noqa: B008
) -> tuple[TextNetwork, np.ndarray]:
    """(trained network, loss before each step in nats a character), by the first `steps` of those asked for."""
    length, batch = start.sizes.length, arguments.batch
    step = spread.make_step(objective(start), optimizer(arguments), value_and_grad)
    params = jax.tree.map(jnp.array, start.params)  # a copy, since the step donates its arguments' memory
    params, state = spread.everywhere(kept.restored((params, optimizer(arguments).init(params))))
    weights = spread.rows(np.full(batch, 1 / (batch * length), np.float32))  # of an example's sum over its characters
    rng, curve = np.random.default_rng(arguments.seed), list(kept.curve)
    for number in range(steps):
        starts = rng.integers(0, len(corpus.train) - length, batch)
        if number < len(kept.curve):  # drawn, so that the next are those of a run that was never stopped
            continue
        x, y = map(spread.rows, text.windows(corpus.train, starts, length))
        params, state, J = step(params, state, x, y, weights=weights)
        curve.append(float(J))
        advance(f"{curve[-1]:.4f} nats a character")
        kept.keep((params, state), curve, last=number + 1 == steps)
    return replace(start, params=spread.here(params)), np.asarray(curve)


def objective(of: TextNetwork) -> mb.Objective:
    """The cross-entropy of every next character, summed over a window."""
    return mb.Objective(of.net, mb.softmax_cross_entropy)


def optimizer(arguments: Namespace) -> optax.GradientTransformation:
    """AdamW whose rate rises over the first tenth of the steps and falls by a cosine to a tenth of its peak."""
    peak, steps = arguments.learning_rate, arguments.steps
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, peak, min(100, steps // 10), max(1, steps), peak / 10))


def held_out_losses(ids: np.ndarray, *networks: TextNetwork) -> tuple[list[float], int]:
    """(the loss of each network of one kind in nats a character, the number of characters that it was measured on)."""
    length = networks[0].sizes.length
    x, y = (rows[:HELD_WINDOWS] for rows in text.all_windows(ids, length))
    batch = min(HELD_BATCH, len(x))
    x, y = (rows[: len(x) // batch * batch].reshape(-1, batch, length) for rows in (x, y))
    loss = objective(networks[0])

    @jax.jit
    def mean(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jax.lax.map(lambda rows: loss(params, *rows), (x, y)))

    return [float(mean(one.params, x, y)) / length for one in networks], x.size


def _require_consistent(arguments: Namespace) -> None:
    refuse(arguments, OF_A_TABLE, "cannot go with --text, which trains a GPT on characters: leave one of them out")
    if arguments.steps == 0:
        refuse(arguments, [*OF_STEPS, "picture", "checkpoint"], "cannot go with --steps 0, which trains nothing")
    if arguments.sample == 0:
        refuse(arguments, ["temperature", "prompt"], "cannot go with --sample 0, which writes nothing")
    if arguments.prompt == "":
        raise BadInput("--prompt must have a character at least; leave it out to begin at a new line")


def _require_files(arguments: Namespace, save: Path | None, picture: Path | None) -> None:
    for flag, path in (("--save", save), ("--picture", picture)):
        if path is None:
            continue
        require_writable(path)
        if arguments.text is not True and path.resolve() == Path(arguments.text).resolve():
            raise BadInput(f"{flag} would write over the text in {path}: name another file")
    if picture is not None:
        if picture.suffix not in curves.FORMS:
            raise BadInput(f"--picture {picture} must end in {' or '.join(curves.FORMS)}")
        curves.require_engine()


def _text(path: str | bool) -> str:
    """The words of a file, or Python's own."""
    if path is True:
        try:
            return text.pythons_own()
        except ImportError as error:
            raise BadInput(f"this Python comes without {error.name}; name a text of yours, --text FILE") from error
    try:
        words = Path(str(path)).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise BadInput(f"{path} is no text in UTF-8 ({wrong}): convert it first, as iconv -t utf-8 does") from error
    if not words:
        raise BadInput(f"{path} is empty; it must hold a text")
    return words


def _require_length(words: str, length: int) -> None:
    """Refuse a text whose last tenth has no window and a character to follow it."""
    held = round(text.HELD_OUT * len(words))
    if held <= length:
        shorter = f"; a --length of {held - 1} would do" if held > 1 else ""
        raise BadInput(
            f"the text has {len(words)} characters, {held} of them held out, and a window of {length} needs"
            f" {length + 1}: give a text of {10 * (length + 1)} or more{shorter}"
        )


def _require_known(prompt: str, characters: str) -> None:
    strange = "".join(sorted(set(prompt) - set(characters)))
    if strange:
        raise BadInput(f"--prompt has {strange!r}, which the network does not know; it knows {characters[1:]!r}")


def _sizes(arguments: Namespace) -> Sizes:
    try:
        return Sizes(*(getattr(arguments, name) for name in OF_THE_NETWORK))
    except ValueError as error:
        raise BadInput(str(error)) from error


def _fresh(sizes: Sizes, characters: str, seed: int) -> TextNetwork:
    return TextNetwork(sizes, characters, network(sizes, characters).init(jax.random.key(seed), jnp.float32))


def _introduce(of: TextNetwork, corpus: text.Corpus, name: str) -> None:
    s, count = of.sizes, sum(leaf.size for leaf in jax.tree.leaves(of.params))
    print(f"GPT of {s.layers} blocks, width {s.width}, {s.heads} heads, {s.length} characters, {count} parameters")
    print(f"{len(corpus.train)} characters of {name} to train on, {len(corpus.held)} held out")
    unknown = int((corpus.train == 0).sum() + (corpus.held == 0).sum())
    print(
        f"{len(corpus.characters) - 1} different ones, and {text.UNKNOWN} for all others, which come {unknown} times\n"
    )


def _print(start: TextNetwork, trained: TextNetwork, corpus: text.Corpus, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Print what training came to, and return whether the loss curves agree."""
    n = len(theirs)
    if n:
        shown = sorted(
            {*np.linspace(0, n - 1, min(5, n)).astype(int), *np.linspace(n - 1, len(ours) - 1, 6).astype(int)}
        )
        beside = {i: (f"{theirs[i]:.6f}", f"{abs(ours[i] - theirs[i]):.1e}") for i in range(n)}
        rows = [(str(i + 1), f"{ours[i]:.6f}", *beside.get(i, ("", ""))) for i in shown]
        print_table("Loss by step, nats a character", ("step", "by hand", "by jax.grad", "difference"), rows)
        print()
    held, measured = held_out_losses(corpus.held, *([start, trained] if n else [start]))
    said = f"{held[0]:.3f} before, {held[1]:.3f} trained by hand" if n else f"{held[0]:.3f}"
    print(f"held-out loss, nats a character: {said}, over {measured} characters")
    if not n:
        return True
    gap = float(np.abs(ours[:n] - theirs).max())
    agree = bool(gap <= CURVES_EQUAL * theirs[0])
    verdict = "equal to rounding" if agree else "THEY PART"
    print(
        f"loss curves of the first {n} steps: {verdict}, at most {gap:.1e} apart"
        f" (tolerance {CURVES_EQUAL:.0e} of the first, {CURVES_EQUAL * theirs[0]:.1e})"
    )
    return agree


def _sample(arguments: Namespace, of: TextNetwork) -> str:
    """A sample, headed by how it was drawn; a character that would steer a terminal is shown as UNKNOWN."""
    ids = jnp.asarray(text.encoded(arguments.prompt, of.characters))[None]
    drawn = mb.sampled(
        of.net,
        of.params,
        jax.random.key(arguments.seed),
        ids,
        arguments.sample,
        length=of.sizes.length,
        temperature=arguments.temperature,
    )
    words = arguments.prompt + text.decoded(np.asarray(drawn[0]), of.characters)
    shown = "".join(c if c.isprintable() or c in "\n\t" else text.UNKNOWN for c in words)
    return f"a sample of {arguments.sample} characters at temperature {arguments.temperature:g}:\n{shown}"
