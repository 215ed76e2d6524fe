"""Convert parameters of another library's model to ours, and our parameters, gradients or updates back to its layout.

    Flax       from_flax              to_flax                 kernel (d_in, d_out), the transpose of W
    Equinox    from_equinox           to_equinox              weight (d_out, d_in), as W
    PyTorch    from_torch_state_dict  to_torch_state_dict     weight (d_out, d_in), as W

None of the libraries is imported. Arrays move between the dense layers of a tree, in the order of application, and
our tuple of `Affine`; bits and dtypes stay. A layer without bias is a `Dense` with bias=False, and its b is None.
Anything that a `Serial` of `Dense` cannot express is refused by name, and so is an order that would be a guess. Flax
and PyTorch trees hold no activations, so `net` must have the model's. Equinox modules hold them, and `from_equinox`
compares them.

Any other network is carried by names that are given, as `names=`: `by_names(net, tree)` has the name of the other
library's module for every layer, and `gpt_names` makes them from a few patterns for the networks of `mb.gpt`. Dense
layers, embeddings and norms then go each by the library's own names and axes:

               Dense            Embedding, PositionalEmbedding    RMSNorm   LayerNorm
    Flax       kernel, bias     embedding                         scale     scale, bias
    Equinox    weight, bias     weight                            weight    weight, bias
    PyTorch    weight, bias     weight                            weight    weight, bias

Every array there must be taken by one layer, so nothing is left behind unseen. GPT-2's Conv1D, the transpose of a
linear layer under the same name, is not among them; turn these kernels before.
"""

from manual_backprop.adapters.equinox import from_equinox as from_equinox
from manual_backprop.adapters.equinox import to_equinox as to_equinox
from manual_backprop.adapters.flax import from_flax as from_flax
from manual_backprop.adapters.flax import to_flax as to_flax
from manual_backprop.adapters.gpt import gpt_names as gpt_names
from manual_backprop.adapters.names import Names as Names
from manual_backprop.adapters.names import by_names as by_names
from manual_backprop.adapters.torch import from_torch_state_dict as from_torch_state_dict
from manual_backprop.adapters.torch import to_torch_state_dict as to_torch_state_dict
