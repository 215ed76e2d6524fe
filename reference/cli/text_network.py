"""A GPT and its vocabulary as `train --text --save` writes them and `--load` reads them."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from reference.cli.files import BadInput, read_arrays, write_arrays
from reference.text import UNKNOWN

FORMAT = "manual-backprop/text/1"
SAVED = "train --text --save"


@dataclass(frozen=True)
class Sizes:
    """Of a GPT, but for its vocabulary.

    Attributes:
        width: features of the residual stream.
        heads: of attention.
        layers: number of blocks.
        length: the most characters that it reads at a time.

    Raises:
        ValueError: anything but whole numbers from 1, or a width that is no even multiple of the heads.
    """

    width: int
    heads: int
    layers: int
    length: int

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if type(number) is not int or number < 1:
                raise ValueError(f"--{name} must be a whole number from 1, got {number!r}")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"--width must be an even multiple of --heads, since positions turn pairs of a head's features: got a"
                f" width of {self.width} for {self.heads} heads"
            )


@dataclass(frozen=True, eq=False)
class TextNetwork:
    """A GPT on characters, with rotary positions and one table for the embedding and the readout.

    Attributes:
        sizes: of the network.
        characters: its vocabulary in the order of its ids, UNKNOWN first.
        params: its parameters, float32.
    """

    sizes: Sizes
    characters: str
    params: Any

    @cached_property
    def net(self) -> mb.layers.Node:
        """The network itself."""
        return network(self.sizes, self.characters)


def network(sizes: Sizes, characters: str) -> mb.layers.Node:
    """The GPT of these sizes; blocks this small are kept, which is faster than to run them forward again."""
    width, heads, layers, length = sizes.width, sizes.heads, sizes.layers, sizes.length
    return mb.gpt(len(characters), width, heads, layers, length, rope=10000.0, tied=True, recompute=False)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their places: 0.W is the table, and so on."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def save_text_network(path: Path, saved: TextNetwork) -> None:
    """Write the parameters as plain arrays, and a line of JSON with sizes and vocabulary.

    Raises:
        BadInput: the file cannot be written.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(saved.params).items()}
    described = {"format": FORMAT, "sizes": asdict(saved.sizes), "characters": saved.characters}
    write_arrays(path, {**arrays, "description": np.asarray(json.dumps(described))})


def load_text_network(path: Path) -> TextNetwork:
    """Read a network that `save_text_network` wrote.

    Raises:
        BadInput: no such file, not one of ours, or arrays that do not fit its description.
    """
    arrays = read_arrays(path, SAVED)
    try:
        description = json.loads(str(arrays["description"]))
        if description["format"] != FORMAT:
            raise BadInput(
                f"{path} has format {description['format']!r}; --text reads {FORMAT!r}, as {SAVED} writes it"
            )
        sizes, characters = Sizes(**description["sizes"]), description["characters"]
        if not isinstance(characters, str) or len(set(characters)) != len(characters) or characters[:1] != UNKNOWN:
            raise ValueError(f"its characters must be a text that begins with {UNKNOWN}, each of them once")
        net = network(sizes, characters)
        expected = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.float32))
        read = []
        for name, leaf in _named(expected).items():
            found = arrays[name]
            if (found.dtype, found.shape) != (leaf.dtype, leaf.shape):
                raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, not {leaf.dtype}{list(leaf.shape)}")
            if not np.isfinite(found).all():
                raise ValueError(f"{name} has entries of nan or inf")
            read.append(jnp.asarray(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} is not a network that {SAVED} wrote: {error}") from error
    return TextNetwork(sizes, characters, jax.tree.unflatten(jax.tree.structure(expected), read))
