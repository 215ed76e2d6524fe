"""Ways for error terms to travel other than W^T, and edits of them on the way."""

from manual_backprop.rules.feedback import DirectFeedbackAlignment as DirectFeedbackAlignment
from manual_backprop.rules.feedback import FeedbackAlignment as FeedbackAlignment
from manual_backprop.rules.feedback import KolenPollack as KolenPollack
from manual_backprop.rules.feedback import OnDelta as OnDelta
from manual_backprop.rules.feedback import SignSymmetry as SignSymmetry
from manual_backprop.rules.feedback import Site as Site
from manual_backprop.rules.feedback import angle as angle
from manual_backprop.rules.feedback import backprop as backprop
from manual_backprop.rules.feedback import direct_feedback as direct_feedback
from manual_backprop.rules.feedback import on_delta as on_delta
