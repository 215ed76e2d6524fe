"""The probable cause of a difference: every hypothesis by a pattern of its own, and the order of trying them."""

import numpy as np
import pytest

from reference import causes

RNG = np.random.default_rng(0)
G, W, OTHER = RNG.normal(size=(3, 3, 3))
N, LAM = 7, 0.1
DATA = G - LAM * W  # the loss's part of G

PATTERNS = {
    "_not_finite": (np.where(np.eye(3), np.nan, G), "3 of 9 entries are nan or inf"),
    "_never_filled_in": (0 * G, "identically zero"),
    "_wrong_penalty": (DATA, "lam W missing"),
    "_known_mistake_in_several_numbers": (OTHER, "the other one"),
    "_known_ratio": (-G, "sign"),
    "_transposed": (G.T, "transposed"),
    "_signs_of_columns": (G * [1, -1, 1], "1 of 3 columns have the opposite sign; that of an eigenvector"),
    "_any_ratio": (3 * G, "a constant factor of 3"),
    "_wrong_without_the_penalty": (N * DATA + LAM * W, "1/N missing"),
}


def cause(manual, reference=G, mistakes=None):
    context = causes.Context(N, LAM, W, counted=True, mistakes=mistakes or {"the other one": OTHER}, vectors=True)
    return causes.probable_cause(np.asarray(manual), np.asarray(reference), context)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_hypothesis_has_its_pattern(name, monkeypatch):
    manual, said = PATTERNS[name]
    assert said in cause(manual)
    left = tuple(hypothesis for hypothesis in causes.HYPOTHESES if hypothesis.__name__ != name)
    assert len(left) == len(causes.HYPOTHESES) - 1
    monkeypatch.setattr(causes, "HYPOTHESES", left)
    again = {"_known_mistake_in_several_numbers", "_known_ratio"}  # the same stands below, for one number
    assert (said in cause(manual)) == (name in again)


def test_the_order_decides_where_two_hold():
    assert cause(-G, mistakes={"a mistake": -G}) == "a mistake"
    assert cause(-G[0, :1], G[0, :1], {"a mistake": -G[0, :1]}) == "sign"  # one number can equal anything
    assert cause(3 * G[0, :1], G[0, :1], {"a mistake": 3 * G[0, :1]}) == "a mistake"
    symmetric = G - G.T
    assert cause(-symmetric, symmetric) == "sign"  # and not transposed


def test_a_factor_next_to_one_is_not_called_one():
    assert cause((1 + 2e-5) * G) == "a constant factor of 1.00002"
    assert causes.number(1 + 1e-6) == "1 + 1e-06" and causes.number(1 - 2.5e-7) == "1 - 2.5e-07"


def test_signs_of_columns_are_open_in_values_alone():
    context = causes.Context()
    assert causes.probable_cause(G * [1, -1, 1], G, context) == ""


def test_nothing_is_said_where_nothing_is_known():
    assert cause(G + 1e-9 * RNG.normal(size=G.shape)) == ""
    assert cause(G + OTHER) == ""
    assert cause(-G, np.where(np.eye(3), np.nan, G)) == ""


def test_entries_next_to_zero_that_differ_are_not_called_equal():
    sparse = np.where(np.eye(3, dtype=bool), G, 0)
    wrong = sparse + np.asarray([[0, 0, 1.0], [0, 0, 0], [0, 0, 0]])
    assert causes.ratio_pattern(wrong, sparse)[1] == "1 of 9 entries differ, next to zero in the reference"
    close = G * np.where(np.eye(3, dtype=bool), 1 + 3e-5, 1)
    assert causes.ratio_pattern(close, G)[1] == "3 of 9 entries differ, ratios 1 to 1.00003"
