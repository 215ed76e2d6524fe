"""Published worked examples, to the digits that their sources printed."""

import pytest

import reference
from reference.catalogue import published

EXAMPLES = {example.name: example for example in published.examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_printed_figure(name):
    figures = published.figures(EXAMPLES[name])
    assert len(figures) == {"mazur-2015": 32, "coursera-ml-ex4-lambda3": 38, "relu-softmax-dead-unit": 15}[name]
    assert [figure for figure in figures if not figure.passed] == []


def test_the_reference_agrees_on_a_dead_unit():
    """The other two are proven by the command, in test_cli."""
    example = EXAMPLES["relu-softmax-dead-unit"]
    reference.check(example.objective, example.params, example.x, example.y, generic=False).raise_if_failed()


def test_a_figure_that_is_off_by_one_unit_fails():
    assert published.Figure("a", "0.593269992", 0.59326999210).passed
    assert not published.Figure("a", "0.593269992", 0.593269993).passed
    assert not published.Figure("a", "-9.2783e-3", 9.2783e-3).passed


def test_every_number_in_the_files_that_can_be_compared_is():
    inputs = {"x", "y", "X", "W1", "b1", "W2", "b2", "lambda", "W1_in_out", "W2_in_out"}
    words = {"source", "network", "erratum", "weights", "y_note", "gradient_order"}
    for example in EXAMPLES.values():
        compared = {figure.name.partition("[")[0] for figure in published.figures(example)}
        assert set(example.published) == compared | (set(example.published) & (inputs | words))
