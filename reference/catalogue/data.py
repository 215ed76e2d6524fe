"""Real data that ships inside a package: scikit-learn's digits, breast cancer and diabetes, and Python's help."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

import numpy as np

from reference.cli.files import BadInput

ONE_UNIT = ("digits",)  # data sets whose features are all in one unit: pixels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Features and targets.

    Attributes:
        name: its name in scikit-learn.
        x: float64, (examples, features).
        y: int64 labels (examples,), or float64 values (examples, 1).
        classes: number of labels; 0 for a regression.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int


def scaling(x: np.ndarray, one_unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of every column; with `one_unit`, the deviation of all columns together.

    A constant column gets the deviation 1, so that scaling makes it zero.
    """
    deviation = np.full(x.shape[1], x.std()) if one_unit else x.std(axis=0)
    return x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


TEXT = "topics"  # of Python's help
OTHERS = 0  # the id of all characters that are not among the most frequent


@cache
def raw(name: str) -> Dataset:
    """Load one of "digits", "breast_cancer", "diabetes", unscaled.

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise BadInput(
            "the data ships with scikit-learn, which is not installed; in the clone of the repository, run"
            ' python -m pip install -e ".[cli]"'
        ) from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = np.asarray(x, np.float64)
    if name == "diabetes":
        return Dataset(name, x, np.asarray(y, np.float64)[:, None], 0)
    return Dataset(name, x, np.asarray(y, np.int64), int(y.max()) + 1)


@cache
def load(name: str) -> Dataset:
    """Load a data set with features and values scaled to zero mean and unit variance."""
    dataset = raw(name)
    x, y = _scaled(dataset.x, name in ONE_UNIT), dataset.y
    return Dataset(name, x, y if dataset.classes else _scaled(y), dataset.classes)


def _scaled(values: np.ndarray, one_unit: bool = False) -> np.ndarray:
    mean, deviation = scaling(values, one_unit)
    return (values - mean) / deviation


@cache
def ids(vocab: int) -> np.ndarray:
    """The topics of Python's help as one sequence of ids, int64: the most frequent characters, and `OTHERS`."""
    text = "\n".join(topics.values())
    frequent = [character for character, _ in Counter(text).most_common(vocab - 1)]
    id_of = {character: i for i, character in enumerate(frequent, OTHERS + 1)}
    return np.asarray([id_of.get(character, OTHERS) for character in text])
