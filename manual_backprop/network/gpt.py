"""A language model of these layers: `gpt`, a decoder whose blocks normalise what enters them."""

from manual_backprop.activations import Activation
from manual_backprop.layers.attention import Attention
from manual_backprop.layers.dense import Dense
from manual_backprop.layers.dropout import Dropout
from manual_backprop.layers.embedding import Embedding
from manual_backprop.layers.layer_norm import LayerNorm
from manual_backprop.layers.positional_embedding import PositionalEmbedding
from manual_backprop.layers.product import Product
from manual_backprop.layers.rms_norm import RMSNorm
from manual_backprop.network.composites import Parallel, Residual, Serial
from manual_backprop.network.scanned import Repeat
from manual_backprop.network.tied_readout import TiedReadout
from manual_backprop.node import Node
from manual_backprop.types import came

NORMS = ("rms", "layer")


def gpt(
    vocab: int,
    d: int,
    heads: int,
    layers: int,
    length: int,
    *,
    kv_heads: int | None = None,
    hidden: int | None = None,
    activation: str | Activation = "silu",
    gated: bool = True,
    norm: str = "rms",
    eps: float = 1e-6,
    rope: float | None = None,
    bias: bool = False,
    tied: bool = False,
    dropout: float = 0.0,
    block: int | None = None,
    recompute: bool = True,
    segments: int | None = None,
) -> Node:
    """A decoder-only language model: ids (N, T) -> logits (N, T, vocab) of the next id at every position.

    x = W[ids] + P; in every block x + attention(norm(x)), then x + mlp(norm(x)) (Radford et al., 2019); the readout
    reads a last norm. By default norms are RMSNorm and the mlp is SwiGLU (Shazeer, arXiv:2002.05202), as in Llama. With
    norm="layer", gated=False, activation="gelu_tanh", bias=True, tied=True it is GPT-2's, but for the keys' bias.

    Args:
        vocab: number of ids.
        d: features of the residual stream.
        heads: of attention; they divide d.
        layers: number of blocks, under one `Repeat`.
        length: the most positions.
        kv_heads: heads of keys and values, which divide heads; None is as many.
        hidden: features inside the mlp; None is 4 d, and 8 d / 3 with a gate, which is as many parameters.
        activation: of the mlp, or of its gate.
        gated: whether the mlp is W_3 (f(W_1 x) * W_2 x), or W_2 f(W_1 x).
        norm: "rms" or "layer".
        eps: inside the root of every norm; torch's and Equinox's layer norms have 1e-5.
        rope: base of rotary positions in attention, such as 10000.0; None adds a learned P at the input instead.
        bias: whether dense layers and layer norms have a bias. Keys and the readout never do: softmax does not see a
            shift of its row, so a key's bias has the gradient 0.
        tied: whether the readout is the embedding's own W (Press and Wolf, arXiv:1608.05859).
        dropout: the rate of `Dropout` on the sum of the embeddings and at the end of both branches of every block, as
            in GPT-2. There is none on attention weights, which attention by blocks never makes. 0 adds no layer.
        block: rows of queries that attention computes at a time; see `Attention`.
        recompute: whether the blocks' inputs alone are kept where no trace is asked for; see `Repeat`.
        segments: of the blocks, likewise.

    Raises:
        ValueError: heads that do not divide d, kv_heads that do not divide heads, a number below 1, a rate of dropout
            outside 0 <= rate < 1, or an unknown norm.
        TypeError: numbers, activations or choices of another type.
    """
    if norm not in NORMS:
        raise ValueError(f"gpt norm must be one of {', '.join(NORMS)}, got {norm!r}")
    for name, value in (("gated", gated), ("tied", tied)):
        if not isinstance(value, bool):
            raise TypeError(f"gpt {name} must be True or False, got {came(value)}")
    embedding = Embedding(vocab, d)
    attention = Attention(heads, kv_heads, rope=rope, block=block)
    if d % heads:
        raise ValueError(f"gpt heads must divide d = {d}, got {heads}")
    of_keys = d // heads * (heads if kv_heads is None else kv_heads)
    dropped = Dropout(dropout)
    drop = (dropped,) if dropped.rate else ()
    inside = hidden if hidden is not None else (8 * d // 3 if gated else 4 * d)

    def normed() -> Node:
        return RMSNorm(d, eps) if norm == "rms" else LayerNorm(d, eps, bias)

    def dense(wide: int, to: int, f: str | Activation = "identity") -> Dense:
        return Dense(wide, to, f, bias=bias)

    q_k_v = Parallel((dense(d, d), Dense(d, of_keys, bias=False), dense(d, of_keys)))
    attended = Residual(Serial((normed(), q_k_v, attention, dense(d, d), *drop)))
    up = Dense(d, inside, activation, bias=bias)
    mlp = (Parallel((up, dense(d, inside))), Product()) if gated else (up,)
    block_of_both = Serial((attended, Residual(Serial((normed(), *mlp, dense(inside, d), *drop)))))
    blocks = Repeat(block_of_both, layers, recompute, segments)
    into_blocks = (*(() if rope is not None else (PositionalEmbedding(length, d),)), *drop)
    if tied:
        return TiedReadout(embedding, Serial((*into_blocks, blocks, normed())))
    return Serial((embedding, *into_blocks, blocks, normed(), Dense(d, vocab, bias=False)))
