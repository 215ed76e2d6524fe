"""Backpropagation written by hand: pure functions over parameter pytrees, every z, a and delta a value.

    forward    x -> z, a of every layer           step 1, (F1) (F2)
    backward   dl/do -> delta of every layer      step 2, (B1) (B2)
    gradients  (a, delta) -> dW, db               step 3, (B3) (B4)

`Objective` is J = L + s; `backprop` runs the three steps and keeps everything; `value_and_grad` is the
drop-in for `jax.value_and_grad`. `gradients` is one reading of (a, delta): norms, clipped sums, Gram matrices and
the rest in `readings` are others; `rules` has other ways for delta to travel, `curvature` the second order.
Nothing here calls automatic differentiation. The package `reference` does, and proves every number right.
"""

from manual_backprop import activations as activations
from manual_backprop import adapters as adapters
from manual_backprop import functions as functions
from manual_backprop import graph as graph
from manual_backprop import losses as losses
from manual_backprop import rules as rules
from manual_backprop import schedules as schedules
from manual_backprop import sharding as sharding
from manual_backprop import training as training
from manual_backprop.activations import Activation as Activation
from manual_backprop.custom_vjp import as_custom_vjp as as_custom_vjp
from manual_backprop.graph import backward_graph as backward_graph
from manual_backprop.graph import forward_graph as forward_graph
from manual_backprop.layers import Affine as Affine
from manual_backprop.layers import Attention as Attention
from manual_backprop.layers import Dense as Dense
from manual_backprop.layers import Dropout as Dropout
from manual_backprop.layers import Embedding as Embedding
from manual_backprop.layers import Gain as Gain
from manual_backprop.layers import GainAndBias as GainAndBias
from manual_backprop.layers import LayerNorm as LayerNorm
from manual_backprop.layers import PositionalEmbedding as PositionalEmbedding
from manual_backprop.layers import Product as Product
from manual_backprop.layers import RMSNorm as RMSNorm
from manual_backprop.losses import Huber as Huber
from manual_backprop.losses import Loss as Loss
from manual_backprop.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from manual_backprop.losses import binary_cross_entropy as binary_cross_entropy
from manual_backprop.losses import huber as huber
from manual_backprop.losses import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from manual_backprop.losses import softmax_cross_entropy as softmax_cross_entropy
from manual_backprop.losses import squared_error as squared_error
from manual_backprop.network import Parallel as Parallel
from manual_backprop.network import Repeat as Repeat
from manual_backprop.network import Residual as Residual
from manual_backprop.network import Serial as Serial
from manual_backprop.network import Tied as Tied
from manual_backprop.network import TiedReadout as TiedReadout
from manual_backprop.network import gpt as gpt
from manual_backprop.network import mlp as mlp
from manual_backprop.objective import Objective as Objective
from manual_backprop.objective import Step as Step
from manual_backprop.objective import backprop as backprop
from manual_backprop.objective import value_and_grad as value_and_grad
from manual_backprop.pipelined.executor import pipeline as pipeline
from manual_backprop.readings import curvature as curvature
from manual_backprop.readings import diagnosis as diagnosis
from manual_backprop.readings.angle import angle as angle
from manual_backprop.readings.curvature import fisher_deltas as fisher_deltas
from manual_backprop.readings.curvature import fisher_diagonal as fisher_diagonal
from manual_backprop.readings.curvature import gauss_newton_diagonal as gauss_newton_diagonal
from manual_backprop.readings.curvature import gauss_newton_vector_product as gauss_newton_vector_product
from manual_backprop.readings.curvature import hessian_vector_product as hessian_vector_product
from manual_backprop.readings.diagnosis import diagnose as diagnose
from manual_backprop.readings.gradients import clip_weights as clip_weights
from manual_backprop.readings.gradients import clipped_gradients as clipped_gradients
from manual_backprop.readings.gradients import gradients as gradients
from manual_backprop.readings.gradients import gram as gram
from manual_backprop.readings.gradients import noise_scale as noise_scale
from manual_backprop.readings.gradients import over_layers as over_layers
from manual_backprop.readings.gradients import per_example_gradients as per_example_gradients
from manual_backprop.readings.gradients import second_moment as second_moment
from manual_backprop.readings.gradients import squared_norms as squared_norms
from manual_backprop.readings.kronecker import kfac_direction as kfac_direction
from manual_backprop.readings.kronecker import kronecker_factors as kronecker_factors
from manual_backprop.readings.lean import value_and_reading as value_and_reading
from manual_backprop.regularizers import Frobenius as Frobenius
from manual_backprop.rules import edits as edits
from manual_backprop.sampling import sampled as sampled
from manual_backprop.sweep import backward as backward
from manual_backprop.sweep import factors as factors
from manual_backprop.sweep import forward as forward
from manual_backprop.tangent import pushforward as pushforward
from manual_backprop.textbook import forward_mode as forward_mode
from manual_backprop.textbook import jacobians as jacobians
