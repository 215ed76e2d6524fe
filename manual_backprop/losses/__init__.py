"""The loss L = l(o, y) of one example (J1) and its derivative dl/do, for the first delta of (B1).

Each loss is a small frozen class: `value` per example, `derivative` per output, `check` for its targets.
Every loss is summed over one example's outputs; the mean over examples is taken where examples are summed.
To add one, subclass `Loss` here and bring its witness in `reference.model`. `value` and `derivative` are all
that a gradient needs; products with the Hessian, Kronecker factors and the like ask for the four other methods.
"""

from manual_backprop.losses.base import Loss as Loss
from manual_backprop.losses.base import Outputs as Outputs
from manual_backprop.losses.base import Roots as Roots
from manual_backprop.losses.base import Targets as Targets
from manual_backprop.losses.entropies import BinaryCrossEntropy as BinaryCrossEntropy
from manual_backprop.losses.entropies import SigmoidBinaryCrossEntropy as SigmoidBinaryCrossEntropy
from manual_backprop.losses.residuals import Huber as Huber
from manual_backprop.losses.residuals import SquaredError as SquaredError
from manual_backprop.losses.softmax import SoftmaxCrossEntropy as SoftmaxCrossEntropy

squared_error = SquaredError()
huber = Huber()
softmax_cross_entropy = SoftmaxCrossEntropy()
sigmoid_binary_cross_entropy = SigmoidBinaryCrossEntropy()
binary_cross_entropy = BinaryCrossEntropy()

TABLE: dict[str, Loss] = {
    "squared_error": squared_error,
    "huber": huber,
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
