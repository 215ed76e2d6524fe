"""Schedules of a pipeline, as data: which stage does what at which tick.

The layers are split into stages, the batch into microbatches. A stage does three things with each of them, and a tick
is the time of one:

    F   forward: values up through the stage's blocks (F1) (F2)
    B   transport: error terms down, W^T delta (B2)
    W   contraction: the parameters' gradient, delta a^T (B3) (B4)

Whoever is below waits for B alone. jax.grad has no B without its W; here they are two functions, so W can fill the
ticks in which a stage would wait (Qi et al., arXiv:2401.10241). `mb.pipeline` runs a schedule.
"""

from manual_backprop.schedules.makers import NAMED as NAMED
from manual_backprop.schedules.makers import gpipe as gpipe
from manual_backprop.schedules.makers import one_forward_one_backward as one_forward_one_backward
from manual_backprop.schedules.makers import zero_bubble as zero_bubble
from manual_backprop.schedules.schedule import Operation as Operation
from manual_backprop.schedules.schedule import Schedule as Schedule
