"""What a person sees at the prompt: things read like the code that builds them, and names complete."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import manual_backprop as mb
import reference

NAMES = vars(mb) | vars(mb.losses) | vars(mb.rules) | vars(mb.edits)
NET = mb.Serial((mb.Dense(4, 3, "tanh"), mb.Residual(mb.Repeat(mb.Dense(3, 3), 2)), mb.Product()))


def draw(site):
    return site.delta


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        (
            mb.Dense(3, 4, "tanh"),
            "Dense(d_in=3, d_out=4, activation=activations.tanh, initializer='glorot', bias=True)",
        ),
        (mb.activations.relu, "activations.relu"),
        (mb.mlp((4, 3, 2), "gelu"), None),
        (NET, None),
        (mb.Objective(NET, mb.softmax_cross_entropy, mb.Frobenius(0.1)), None),
        (mb.huber, "Huber(threshold=1.0)"),
        (mb.rules.SignSymmetry(), "SignSymmetry(magnitudes=None, scale=1.0)"),
        (mb.rules.on_delta((None, mb.edits.TopK(3))), "OnDelta(edits=(None, TopK(k=3)), key=None, beneath=Rule())"),
        *((loss, None) for loss in mb.losses.TABLE.values()),
        *((row, None) for row in mb.activations.TABLE.values()),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_a_thing_reads_like_the_code_that_builds_it(thing, shown):
    assert shown in (None, repr(thing))
    assert eval(repr(thing), {**NAMES}) == thing


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        (mb.Activation("m", jnp.sin, lambda z, a: z), "Activation('m', f=<PjitFunction of sin>, df=<lambda>)"),
        (mb.Activation("mine", draw, draw, ((0.0, 1.0),)), "Activation('mine', f=draw, df=draw, kinks=((0.0, 1.0),))"),
        (mb.rules.on_delta((draw, None)), "OnDelta(edits=(draw, None), key=None, beneath=Rule())"),
        (mb.rules.on_delta(partial(draw)), "OnDelta(edits=functools.partial(draw), key=None, beneath=Rule())"),
        (mb.rules.FeedbackAlignment(mb.Dense(2, 2).init(jax.random.key(0))), None),
        (mb.Dense(2, 2, mb.Activation("mine", f=draw, df=draw)), None),
    ],
    ids=["a jitted function", "kinks", "edits", "a partial one", "arrays", "a layer with a row of one's own"],
)  # fmt: skip
def test_a_function_of_ones_own_is_its_name_and_no_address(thing, shown):
    assert shown in (None, repr(thing))
    assert not re.search("0x[0-9a-f]{6}|<function", repr(thing))


def test_public_names_complete_and_no_others():
    names = {name for name in dir(reference) if not name.startswith("__")}
    modules = {name for name in names if type(getattr(reference, name)).__name__ == "module"}
    assert {"check", "check_vjp", "mutation_score", "Report", "value_and_grad"} <= names
    assert names - modules == set(reference.__all__) - modules
    assert not {"Any", "find_spec", "import_module", "TYPE_CHECKING"} & names
