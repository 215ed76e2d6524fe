"""Parameters and gradients of other libraries' models, in and out."""

from manual_backprop.adapters.dense import from_equinox as from_equinox
from manual_backprop.adapters.dense import from_flax as from_flax
from manual_backprop.adapters.dense import from_torch_state_dict as from_torch_state_dict
from manual_backprop.adapters.dense import to_equinox as to_equinox
from manual_backprop.adapters.dense import to_flax as to_flax
from manual_backprop.adapters.dense import to_torch_state_dict as to_torch_state_dict
