"""Characters as a network reads them: a text, its vocabulary, windows of it, and its last tenth held out."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

UNKNOWN = "\ufffd"  # id 0, and what every character outside the vocabulary is read as
LEAST = 5  # characters that come fewer times are read as UNKNOWN
HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids of its characters.

    Attributes:
        characters: the vocabulary in the order of its ids, UNKNOWN first.
        train: the first nine tenths, (n,).
        held: the last tenth, which is held out.
    """

    characters: str
    train: np.ndarray
    held: np.ndarray


def pythons_own() -> str:
    """The documentation of Python's language that comes with Python itself: some half a million characters."""
    from pydoc_data.topics import topics

    return "".join(topics.values())


def corpus(text: str, characters: str | None = None) -> Corpus:
    """Split a text, and number its characters.

    Args:
        text: any.
        characters: a vocabulary that is there already; None takes those that come LEAST times or more in what is not
            held out.
    """
    cut = len(text) - round(HELD_OUT * len(text))
    train, held = text[:cut], text[cut:]
    if characters is None:
        characters = vocabulary(train)
    return Corpus(characters, encoded(train, characters), encoded(held, characters))


def vocabulary(text: str) -> str:
    """UNKNOWN, and in the order of their code points the characters that come LEAST times or more."""
    return UNKNOWN + "".join(sorted(c for c, times in Counter(text).items() if times >= LEAST and c != UNKNOWN))


def encoded(text: str, characters: str) -> np.ndarray:
    """The id of each character, int32; 0 of those outside the vocabulary."""
    ids = {c: i for i, c in enumerate(characters)}
    return np.fromiter((ids.get(c, 0) for c in text), np.int32, len(text))


def decoded(ids: np.ndarray, characters: str) -> str:
    """The text of these ids."""
    return "".join(characters[i] for i in ids)


def windows(ids: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), each (len(starts), length): the ids from every start on, and at each of them the id that follows."""
    rows = ids[starts[:, None] + np.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def all_windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of all windows side by side, so that every id but the first is predicted once; a rest is left out."""
    return windows(ids, np.arange(0, len(ids) - length, length), length)
