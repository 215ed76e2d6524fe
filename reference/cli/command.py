"""The command `manual-backprop`. JAX is imported only when it is needed, so `--help` answers at once."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

LOSSES = (
    "softmax_cross_entropy",
    "squared_error",
    "huber",
    "sigmoid_binary_cross_entropy",
    "binary_cross_entropy",
)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a whole number, or several with commas between, got {text!r}"
        ) from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _natural(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _coefficient(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, 0 or above, got {text!r}")
    return value


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(",")) if text else ()


def _argnums(text: str) -> int | tuple[int, ...]:
    numbers = tuple(_natural(part) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


class _Versions(argparse.Action):
    """Prints our version and JAX's, without importing JAX."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"manual-backprop {version('manual-backprop')}, jax {version('jax')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manual-backprop",
        description="Backpropagation written by hand, and the proof by jax.grad that it is right.",
        epilog="exit status: 0 all proven, 1 something differs, 2 bad usage or input, 3 something is undecided",
    )
    parser.add_argument(
        "--version", action=_Versions, nargs=0, dest=argparse.SUPPRESS, help="print our version and JAX's"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="prove every hand-written gradient right, on real data, or check a function of yours",
        description="Without TARGET: every equation of a catalogue of networks by itself, and z, a, loss, penalty, J,"
        " every delta, dW and db, dL/dx and ds/dlam end to end against jax.grad; and three published examples with"
        " their printed digits. With TARGET: a jax.custom_vjp or jax.custom_jvp of yours, an Objective of yours, or"
        " with --gradient any function and its gradient.",
    )
    check.add_argument("target", nargs="?", metavar="TARGET", help="module:name of your function or Objective")
    check.add_argument(
        "--args",
        metavar="M:NAME",
        help="its arguments: a tuple, or a function that returns one; of an Objective (params, x, y)",
    )
    check.add_argument("--gradient", metavar="M:NAME", help="the gradient of TARGET that you wrote by hand")
    check.add_argument(
        "--raw", metavar="M:NAME", help="the plain function, where JAX cannot differentiate TARGET's own"
    )
    check.add_argument("--argnums", type=_argnums, metavar="I,I", help="which arguments to differentiate by")
    check.add_argument("--dtype", choices=("float64", "float32", "bfloat16", "float16"), help="to test TARGET in")
    check.add_argument(
        "--approximation",
        type=float,
        metavar="SHARE",
        help="how far TARGET may be off by intent, of the largest entry: a solver's tolerance, such as 1e-8",
    )
    check.add_argument(
        "--thorough", action="store_true", help="check TARGET at other arguments too, and its second derivative"
    )
    check.add_argument(
        "--witnesses", action="store_true", help="with --gradient: differentiate TARGET in every other way too"
    )
    check.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import MODULE first: the layers, composites and activations that it registers join the catalogue;"
        " may be given several times",
    )
    check.add_argument("--quick", action="store_true", help="every feature once, instead of every pair")
    check.add_argument("--mutate", action="store_true", help="break our gradients everywhere: does the check see it?")
    check.add_argument(
        "--devices",
        type=int,
        choices=(2, 4, 8),
        help="prove the catalogue's programs on so many devices, in every layout; on a CPU they are virtual",
    )
    check.add_argument("--only", metavar="PATTERN", help="networks whose name contains or matches PATTERN")
    check.add_argument("--list", action="store_true", help="name the networks and stop")
    check.add_argument("--seed", type=_natural, default=0, help="draws networks, parameters and rows (default 0)")
    check.add_argument("--json", metavar="FILE", help="write every row to FILE")
    check.add_argument("--junit", metavar="FILE", help="write JUnit XML, as CI systems read it")
    check.add_argument("--markdown", metavar="FILE", help="write a summary")
    check.add_argument("--html", metavar="FILE", help="write one self-contained page with pictures")

    train = commands.add_parser(
        "train",
        help="train a network by the note's three steps, with jax.grad's run beside it",
        description="An MLP on scikit-learn's digits, or on your own data, trained by hand-written gradients"
        " and again by jax.grad from the same start; prints both. With --text a GPT that reads and writes characters;"
        " jax.grad's run beside it is of the first hundred steps.",
    )
    train.add_argument("--data", metavar="FILE.npz", help="arrays x (examples, features) and y (labels or values)")
    train.add_argument(
        "--task",
        choices=("classes", "values"),
        help="what y is; needed where y holds whole numbers as floats, which may be either",
    )
    train.add_argument("--hidden", type=_widths, metavar="M,M", help="hidden widths (default 128,64)")
    train.add_argument("--activation", help="of the hidden layers (default relu)")
    train.add_argument("--optimizer", choices=("adam", "sgd", "momentum"), help="default adam")
    train.add_argument("--learning-rate", type=_rate, metavar="R", help="default 0.003")
    train.add_argument("--epochs", type=_natural, help="default 40")
    train.add_argument("--batch", type=_positive, help="examples a step (default 64; windows of a text: 16)")
    train.add_argument("--lam", type=_coefficient, help="of the regulariser (default 0.001)")
    train.add_argument("--seed", type=_natural, default=0, help="draws split, parameters and order (default 0)")
    train.add_argument("--save", metavar="FILE.npz", help="write the trained network")
    train.add_argument("--load", metavar="FILE.npz", help="start from a network that --save wrote")
    kept = train.add_argument_group(
        "checkpoints",
        "Of the run by hand and of that by jax.grad, each in a folder of its own in DIR: the parameters, the state of"
        " the optimizer and the losses so far. Stopped at any moment, a run ends with --resume in the same numbers, bit"
        " for bit.",
    )
    kept.add_argument("--checkpoint", metavar="DIR", help="keep checkpoints in DIR")
    kept.add_argument(
        "--every",
        type=_positive,
        metavar="N",
        help="epochs, with --text steps, from one to the next (default a tenth of the run)",
    )
    kept.add_argument("--keep", type=_positive, metavar="K", help="of each run, the last K (default 3)")
    kept.add_argument("--resume", action="store_true", help="go on from the last one in DIR, if there is any")
    several = train.add_argument_group(
        "several processes",
        "Every batch is divided among them, and they end in the numbers of one to rounding. --processes starts them"
        " on this machine; the other flags, or MANUAL_BACKPROP_COORDINATOR, _PROCESS_COUNT and _PROCESS_ID in the"
        " environment, are for a launcher that starts the command once on every host.",
    )
    several.add_argument(
        "--processes", type=_positive, metavar="N", help="how many to start on this machine, on its CPUs"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached by all")
    several.add_argument("--process-count", type=_positive, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=_natural, metavar="I", help="which one this is, from 0")
    several.add_argument(
        "--join-timeout", type=_positive, metavar="S", help="seconds to wait for the others (default 300)"
    )
    text = train.add_argument_group(
        "with --text",
        "A GPT, trained by AdamW to predict every next character; the last tenth of the text is held out. --batch,"
        " --learning-rate (its peak), --seed, --save and --load hold here too.",
    )
    text.add_argument(
        "--text",
        nargs="?",
        const=True,
        metavar="FILE",
        help="a text in UTF-8; without FILE, the documentation that comes with Python",
    )
    text.add_argument("--width", type=_positive, metavar="D", help="features of every character (default 128)")
    text.add_argument("--heads", type=_positive, metavar="H", help="of attention; they divide D (default 4)")
    text.add_argument("--layers", type=_positive, metavar="L", help="blocks (default 3)")
    text.add_argument("--length", type=_positive, metavar="T", help="characters that it reads at a time (default 64)")
    text.add_argument("--steps", type=_natural, metavar="N", help="default 500; with --load, 0 only samples")
    text.add_argument("--sample", type=_natural, metavar="N", help="characters to write in the end (default 500)")
    text.add_argument(
        "--temperature", type=_coefficient, metavar="X", help="divides the logits; 0: the most probable (default 0.8)"
    )
    text.add_argument("--prompt", metavar="WORDS", help="what the sample goes on from (default a new line)")
    text.add_argument("--picture", metavar="FILE", help="draw both loss curves, as .svg or .png")

    graph = commands.add_parser(
        "graph",
        help="draw a network's computational graph, forward or backward",
        description="Squares are variables, circles operators; with --backward every square is a gradient and every"
        " arrow has its local derivative. Of an MLP of --sizes, or with TARGET of any objective of yours.",
    )
    graph.add_argument("target", nargs="?", metavar="TARGET", help="module:name of a manual_backprop.Objective")
    graph.add_argument("--sizes", type=_widths, metavar="M,M,...", help="inputs, neurons of every layer, outputs")
    graph.add_argument("--activation", help="of the hidden layers (default tanh)")
    graph.add_argument("--output-activation", help="of the last layer (default identity)")
    losses = f"{LOSSES[0]} (default), {', '.join(LOSSES[1:])}"
    graph.add_argument("--loss", choices=LOSSES, metavar="NAME", help=losses)
    graph.add_argument("--lam", type=_coefficient, help="of the regulariser (default 0.0001; 0: none)")
    graph.add_argument("--backward", action="store_true", help="the gradients instead of the values")
    graph.add_argument("--open", type=_natural, metavar="N", help="levels of composites to open (default all)")
    graph.add_argument(
        "--values", action="store_true", help="with --sizes: show shapes and norms, on a batch of 32 random examples"
    )
    graph.add_argument("--seed", type=_natural, help="draws parameters and batch of --values (default 0)")
    graph.add_argument("--theme", choices=("light", "dark"), help="paper of .svg and .png (default light)")
    graph.add_argument("--out", metavar="FILE", help=".svg, .png, .mmd (Mermaid) or .dot; without: Mermaid, printed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    arguments.words = words
    arguments.command_line = shlex.join(["manual-backprop", *words])
    return answered(arguments)


def begin(words: str) -> int:
    """Be one of the processes of --processes, and end when the one that started them has ended.

    Args:
        words: the arguments as JSON.
    """
    import json
    import threading

    def end_with_parent() -> None:
        os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return answered(argparse.Namespace(**json.loads(words)))


def answered(arguments: argparse.Namespace) -> int:
    """Run the command of these arguments and return the exit status."""
    from reference.cli.files import BadInput

    try:
        if arguments.command == "check":
            from reference.cli.check import run
        elif arguments.command == "graph":
            from reference.cli.graph import run
        elif arguments.processes is not None:
            from reference.cli.launch import run
        elif arguments.text is not None:
            from reference.cli.train_text import run
        else:
            from reference.cli.train import run
        return run(arguments)
    except BadInput as error:
        print(f"manual-backprop {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the pipe has gone, so there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
