"""Ways for error terms to travel other than W^T, and edits of them on the way."""

from manual_backprop.readings.angle import angle as angle
from manual_backprop.rules.direct import DirectFeedbackAlignment as DirectFeedbackAlignment
from manual_backprop.rules.direct import direct_feedback as direct_feedback
from manual_backprop.rules.feedback import FeedbackAlignment as FeedbackAlignment
from manual_backprop.rules.feedback import KolenPollack as KolenPollack
from manual_backprop.rules.feedback import OtherWeights as OtherWeights
from manual_backprop.rules.feedback import SignSymmetry as SignSymmetry
from manual_backprop.rules.feedback import backprop as backprop
from manual_backprop.rules.on_delta import Edit as Edit
from manual_backprop.rules.on_delta import OnDelta as OnDelta
from manual_backprop.rules.on_delta import Site as Site
from manual_backprop.rules.on_delta import on_delta as on_delta
from manual_backprop.sweep import Rule as Rule
