"""Real data that ships inside a package: scikit-learn's digits, breast cancer and diabetes."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from reference.files import BadInput


@dataclass(frozen=True, eq=False)
class Dataset:
    """Features with zero mean and unit variance where they vary, and targets.

    Attributes:
        name: as scikit-learn calls it.
        x: float64, (examples, features).
        y: int64 labels (examples,), or float64 values (examples, 1) with zero mean and unit variance.
        classes: number of labels; 0 for a regression.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int


def standardised(values: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance column by column; a constant column becomes zero."""
    deviation = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


@cache
def load(name: str) -> Dataset:
    """One of "digits", "breast_cancer", "diabetes".

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise BadInput(
            'the data ships with scikit-learn, which is not installed: pip install "manual-backprop[cli]"'
        ) from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = standardised(np.asarray(x, np.float64))
    if name == "diabetes":
        return Dataset(name, x, standardised(np.asarray(y, np.float64)[:, None]), 0)
    return Dataset(name, x, np.asarray(y, np.int64), int(y.max()) + 1)
