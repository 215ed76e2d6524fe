"""Single functions with a gradient written by hand, for anybody's JAX code: in a Flax or Equinox model as elsewhere.

Each takes and returns plain arrays and works under jit, vmap, scan, jax.checkpoint and shard_map. jax.grad through
it runs the hand-written rule. To check one: `reference.check_vjp(function, *args, raw=plain)`.
"""

from manual_backprop.functions.cross_entropy import linear_cross_entropy as linear_cross_entropy
from manual_backprop.functions.cross_entropy import mean_linear_cross_entropy as mean_linear_cross_entropy
from manual_backprop.functions.dot_product import attention as attention
from manual_backprop.functions.norms import layer_norm as layer_norm
from manual_backprop.functions.norms import rms_norm as rms_norm
