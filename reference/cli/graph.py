"""`manual-backprop graph`: the computational graph of a network as a picture or as text (G1)."""

import io
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax

import manual_backprop as mb
from manual_backprop.graph import Graph, backward_graph, forward_graph
from reference.cli.files import BadInput, require_writable, write_atomically
from reference.cli.flags import refuse
from reference.cli.targets import current_folder_first, named, told

EXAMPLES = 32  # in the batch that --values shows
MLP = {"activation": "tanh", "output_activation": "identity", "loss": "softmax_cross_entropy", "lam": 1e-4}
FORMS = ".svg .png .mmd .dot"
PICTURES = (".svg", ".png")


def run(arguments: Namespace) -> int:
    """Draw the graph, write or print it, and return the exit status 0.

    Raises:
        BadInput: a file, a name or an argument that cannot be used.
    """
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None:
        if out.suffix not in FORMS.split():
            ending = f"ends in {out.suffix}" if out.suffix else "has no ending"
            raise BadInput(f"--out {out} {ending}; write one of {FORMS.replace(' ', ', ')}")
        require_writable(out)
    if out is None or out.suffix not in PICTURES:
        refuse(arguments, ["theme"], f"cannot go without a picture: write one, --out with {' or '.join(PICTURES)}")
    if not arguments.values:
        refuse(arguments, ["seed"], "cannot go without --values, whose batch it draws: add them, or leave it out")
    objective = _objective(arguments)
    graph = _graph(objective, arguments)
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a console with a one-byte encoding has no λ
            sys.stdout.reconfigure(encoding="utf-8")
        print(graph.mermaid(), end="")
        return 0
    content = _content(graph, out.suffix, arguments.theme or "light")
    write_atomically(out, lambda file: file.write(content))
    print(f"wrote {out}: {len(graph.vertices)} vertices, {len(graph.arrows)} arrows")
    return 0


def _objective(arguments: Namespace) -> mb.Objective:
    """The user's own objective, or an MLP of these sizes."""
    if arguments.target is not None:
        for_mlp = ("sizes", "activation", "output_activation", "loss", "lam")
        refuse(arguments, for_mlp, "describe an MLP of ours; an objective of yours has its own, not both")
        with current_folder_first():
            found = named(arguments.target)
        if not isinstance(found, mb.Objective):
            raise BadInput(f"{arguments.target} is a {type(found).__name__}, not a manual_backprop.Objective")
        return found
    if arguments.sizes is None:
        raise BadInput("give --sizes, such as --sizes 64,128,10, or module:name of an objective of yours")
    if len(arguments.sizes) == 2:
        refuse(arguments, ["activation"], "cannot go with two --sizes, between which there is no hidden layer")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    vars(arguments).update({**MLP, **given})
    try:
        hidden = mb.activations.get(arguments.activation)
        net = mb.mlp(arguments.sizes, hidden, arguments.output_activation)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if arguments.loss == "softmax_cross_entropy" and arguments.sizes[-1] == 1:
        raise BadInput("the softmax of one output is 1, whatever it is; add --loss squared_error or another loss")
    return mb.Objective(net, mb.losses.TABLE[arguments.loss], mb.Frobenius(arguments.lam) if arguments.lam else None)


def _graph(objective: mb.Objective, arguments: Namespace) -> Graph:
    draw = backward_graph if arguments.backward else forward_graph
    opened: Any = True if arguments.open is None else arguments.open
    if not arguments.values:
        return draw(objective, opened=opened)
    if arguments.target is not None:
        raise BadInput(
            "--values draws a batch for an MLP of --sizes; for an objective of yours call mb.forward_graph or"
            " mb.backward_graph in Python, with (objective, params, x, y)"
        )
    if arguments.loss == "binary_cross_entropy" and arguments.output_activation != "sigmoid":
        raise BadInput("binary_cross_entropy takes probabilities; to show values add --output-activation sigmoid")
    of_params, of_x, of_y = jax.random.split(jax.random.key(arguments.seed or 0), 3)
    x = jax.random.normal(of_x, (EXAMPLES, arguments.sizes[0]))
    return draw(objective, objective.net.init(of_params), x, _targets(of_y, arguments), opened=opened)


def _targets(key: Any, arguments: Namespace) -> Any:
    """Targets that fit the loss: classes, yes or no, or values."""
    outputs = arguments.sizes[-1]
    if arguments.loss == "softmax_cross_entropy":
        return jax.random.randint(key, (EXAMPLES,), 0, outputs)
    if "binary" in arguments.loss:
        return jax.random.bernoulli(key, 0.5, (EXAMPLES, outputs)).astype(float)
    return jax.random.normal(key, (EXAMPLES, outputs))


def _content(graph: Graph, form: str, theme: Any) -> bytes:
    try:
        if form == ".png":
            return graph.png(theme=theme)
        return {".svg": lambda: graph.svg(theme=theme), ".mmd": graph.mermaid, ".dot": graph.dot}[form]().encode()
    except ImportError as error:
        raise BadInput(told(error)) from error
