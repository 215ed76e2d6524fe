"""The names of another library's GPT for a network of `mb.gpt`, from one pattern for each kind of layer."""

from collections.abc import Mapping
from typing import Any

from manual_backprop.adapters.names import Entry, Names, by_names
from manual_backprop.layers import PositionalEmbedding, Product
from manual_backprop.network import TiedReadout
from manual_backprop.node import Node


def gpt_names(
    net: Node,
    *,
    embedding: str,
    block: str,
    norm_1: Entry,
    q: Entry,
    k: Entry,
    v: Entry,
    out: Entry,
    norm_2: Entry,
    up: Entry,
    down: Entry,
    last: Entry,
    gate: Entry | None = None,
    positions: Entry | None = None,
    readout: str | None = None,
) -> Names:
    """`by_names` for a network that `mb.gpt` has made, or one of the same form.

    Args:
        net: the network.
        embedding: the table of ids.
        block: in front of every name inside a block, with braces for its number, such as "transformer.h.{}". Without
            braces the other library stacks its blocks.
        norm_1: the norm in front of attention.
        q: queries.
        k: keys.
        v: values.
        out: the projection of what attention gives.
        norm_2: the norm in front of the mlp.
        up: the mlp's first matrix; with a gate, the one without an activation.
        down: the mlp's last matrix.
        last: the norm in front of the readout.
        gate: the matrix whose output passes the activation; None where the mlp has no gate.
        positions: the learned positions; None with rotary ones.
        readout: the last matrix. With a tied one, None; or the name under which the table stands a second time, with
            the same values, as PyTorch writes it.

    Raises:
        ValueError: a network of another form, a gate, positions or readout that it has not or that are missing, and
            all that `by_names` refuses.
        TypeError: as `by_names`.
    """
    tied, kinds = isinstance(net, TiedReadout), {type(layer) for layer in net.layers()}
    for name, given, has in (
        ("gate", gate, Product in kinds),
        ("positions", positions, PositionalEmbedding in kinds),
        ("readout", readout, True if not tied else readout is not None),
    ):
        if (given is not None) != has:
            raise ValueError(f"{name} is {given!r}, but the network has {'one' if has else 'none'}: {net}")
    n1, of_q, of_k, of_v, of_out, n2, of_gate, of_up, of_down = (
        None if name is None else _within(block, name) for name in (norm_1, q, k, v, out, norm_2, gate, up, down)
    )
    mlp = (of_up, of_down) if gate is None else ((of_gate, of_up), None, of_down)
    blocks = ((n1, (of_q, of_k, of_v), None, of_out), (n2, *mlp))
    body = (*(() if positions is None else (positions,)), blocks, last)
    if tied:
        return by_names(net, (embedding if readout is None else [embedding, readout], body))
    return by_names(net, (embedding, *body, readout))


def _within(block: str, name: Any) -> Any:
    if isinstance(name, Mapping):
        return {field: _within(block, one) for field, one in name.items()}
    return f"{block}.{name}" if isinstance(name, str) else name
