"""The families of layers, one file each; `base` says what a family gives and what it gets for it."""

from manual_backprop.layers.attention import Attention as Attention
from manual_backprop.layers.base import AffineLayer as AffineLayer
from manual_backprop.layers.base import Layer as Layer
from manual_backprop.layers.base import LayerTrace as LayerTrace
from manual_backprop.layers.base import ParameterFree as ParameterFree
from manual_backprop.layers.base import Parameters as Parameters
from manual_backprop.layers.dense import Affine as Affine
from manual_backprop.layers.dense import Dense as Dense
from manual_backprop.layers.dense import OuterProduct as OuterProduct
from manual_backprop.layers.dropout import Drawn as Drawn
from manual_backprop.layers.dropout import Dropout as Dropout
from manual_backprop.layers.embedding import Embedding as Embedding
from manual_backprop.layers.embedding import Lookup as Lookup
from manual_backprop.layers.embedding import Table as Table
from manual_backprop.layers.factor import Factor as Factor
from manual_backprop.layers.layer_norm import GainAndBias as GainAndBias
from manual_backprop.layers.layer_norm import LayerNorm as LayerNorm
from manual_backprop.layers.positional_embedding import PositionalEmbedding as PositionalEmbedding
from manual_backprop.layers.positional_embedding import Positions as Positions
from manual_backprop.layers.product import Product as Product
from manual_backprop.layers.rms_norm import Gain as Gain
from manual_backprop.layers.rms_norm import RMSNorm as RMSNorm
from manual_backprop.node import Node as Node
