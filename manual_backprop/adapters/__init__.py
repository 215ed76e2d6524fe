"""Convert parameters of another library's MLP to ours, and our parameters, gradients or updates back to its layout.

    Flax       from_flax              to_flax                 kernel (d_in, d_out), the transpose of W
    Equinox    from_equinox           to_equinox              weight (d_out, d_in), as W
    PyTorch    from_torch_state_dict  to_torch_state_dict     weight (d_out, d_in), as W

None of the libraries is imported. Arrays move between the dense layers of a tree, in the order of application, and
our tuple of `Affine`; bits and dtypes stay. A layer without bias is a `Dense` with bias=False, and its b is None.
Anything that a `Serial` of `Dense` cannot express is refused by name, and so is an order that would be a guess. Flax
and PyTorch trees hold no activations, so `net` must have the model's. Equinox modules hold them, and `from_equinox`
compares them.
"""

from manual_backprop.adapters.equinox import from_equinox as from_equinox
from manual_backprop.adapters.equinox import to_equinox as to_equinox
from manual_backprop.adapters.flax import from_flax as from_flax
from manual_backprop.adapters.flax import to_flax as to_flax
from manual_backprop.adapters.torch import from_torch_state_dict as from_torch_state_dict
from manual_backprop.adapters.torch import to_torch_state_dict as to_torch_state_dict
