"""Backpropagation written by hand: pure functions over parameter pytrees, every z, a and delta a value.

    forward    x -> z, a of every layer           step 1, (F1) (F2)
    backward   dl/do -> delta of every layer      step 2, (B1) (B2)
    gradients  (a, delta) -> dW, db               step 3, (B3) (B4)

`Objective` is J = L + s; `backprop` runs the three steps and keeps everything; `value_and_grad` is the
drop-in for `jax.value_and_grad`. Nothing here calls automatic differentiation. The package `reference`
does, and proves every number of this one right.
"""

from manual_backprop import activations as activations
from manual_backprop import forward_mode as forward_mode
from manual_backprop import jacobians as jacobians
from manual_backprop import losses as losses
from manual_backprop import training as training
from manual_backprop.activations import Activation as Activation
from manual_backprop.contractions import gradients as gradients
from manual_backprop.layers import Affine as Affine
from manual_backprop.layers import Dense as Dense
from manual_backprop.losses import Huber as Huber
from manual_backprop.losses import Loss as Loss
from manual_backprop.losses import binary_cross_entropy as binary_cross_entropy
from manual_backprop.losses import huber as huber
from manual_backprop.losses import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from manual_backprop.losses import softmax_cross_entropy as softmax_cross_entropy
from manual_backprop.losses import squared_error as squared_error
from manual_backprop.network import Repeat as Repeat
from manual_backprop.network import Residual as Residual
from manual_backprop.network import Serial as Serial
from manual_backprop.network import mlp as mlp
from manual_backprop.objective import Objective as Objective
from manual_backprop.objective import Step as Step
from manual_backprop.objective import backprop as backprop
from manual_backprop.objective import value_and_grad as value_and_grad
from manual_backprop.regularizers import Frobenius as Frobenius
from manual_backprop.sweep import backward as backward
from manual_backprop.sweep import factors as factors
from manual_backprop.sweep import forward as forward
from manual_backprop.sweep import pushforward as pushforward
