"""MLPs of Flax, Equinox and PyTorch: their own gradients against ours, in their own layout, and all that is refused."""

import ast
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from helpers import array, assert_close, batch, generic, targets

import manual_backprop as mb
from manual_backprop import adapters, validate
from manual_backprop.adapters import common

SIZES = (6, 5, 5, 4)
NET = mb.mlp(SIZES)
DEEP = mb.mlp((4,) * 13)  # twelve layers of one shape: only their names tell them apart
OBJECTIVE = mb.Objective(NET, mb.softmax_cross_entropy)
X, Y = batch(6), targets(mb.softmax_cross_entropy, 4)
OURS = jax.jit(lambda params: (mb.forward(NET, params, X)[0], mb.value_and_grad(OBJECTIVE)(params, X, Y)[1]))
FORWARD = jax.jit(mb.forward, static_argnums=0)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


COMPILED_CROSS_ENTROPY = jax.jit(cross_entropy)


def same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert str(a.dtype) == str(b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def filled(tree, seed=3, dtype="float64"):
    """A tree of the other library with a number of its own at every place."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: array(rng.normal(0, 0.6, leaf.shape), dtype), tree)


# The same MLP there. Each entry: what is differentiated there, its outputs, our adapters for it.


class Compact(nn.Module):
    sizes: tuple[int, ...] = SIZES[1:]

    @nn.compact
    def __call__(self, x):
        for width in self.sizes[:-1]:
            x = nn.tanh(nn.Dense(width, param_dtype=jnp.float64)(x))
        return nn.Dense(self.sizes[-1], param_dtype=jnp.float64)(x)


def nnx_linears(sizes=SIZES):
    return [nnx.Linear(i, o, param_dtype=jnp.float64, rngs=nnx.Rngs(0)) for i, o in pairwise(sizes)]


def sequential():
    first, second, third = nnx_linears()
    return nnx.Sequential(first, nnx.tanh, second, nnx.tanh, third)


class Attributes(nnx.Module):
    """Names whose alphabet runs against the order of application."""

    def __init__(self):
        self.z, self.m, self.a = nnx_linears()

    def __call__(self, x):
        return self.a(nnx.tanh(self.m(nnx.tanh(self.z(x)))))


class Listed(nnx.Module):
    def __init__(self, sizes=SIZES):
        self.layers = nnx.List(nnx_linears(sizes))

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.tanh(layer(x))
        return self.layers[-1](x)


def linen(sizes=SIZES):
    return filled(jax.eval_shape(Compact(sizes[1:]).init, jax.random.key(0), jnp.ones((1, sizes[0]))))


def nnx_model(make):
    graph, state = nnx.split(nnx.eval_shape(make))  # nothing is drawn
    return nnx.merge(graph, filled(state))


def equinox_mlp(depth=2, **given):
    return eqx.nn.MLP(6, 4, 5, depth, **{"activation": jnp.tanh, "key": jax.random.key(0)} | given)


def equinox_sequential(*parts):
    return eqx.nn.Sequential([part if isinstance(part, eqx.Module) else eqx.nn.Lambda(part) for part in parts])


@eqx.filter_jit
def equinox_gradient(model):
    return eqx.filter_grad(lambda model: cross_entropy(jax.vmap(model)(X)))(model)


@eqx.filter_jit
def equinox_outputs(model):
    return jax.vmap(model)(X)


def linear(d_in, d_out, **given):
    return eqx.nn.Linear(d_in, d_out, key=jax.random.key(d_in), **given)


def compare(params, there, outputs, gradient):
    """Outputs and gradient of the other library against ours, brought `there`."""
    ours, by_hand = OURS(params)
    assert_close(ours, outputs)
    assert_close(there(by_hand), gradient)


@partial(jax.jit, static_argnums=0)
def theirs(outputs, tree):
    """The outputs there, and the gradient of their cross-entropy."""
    return outputs(tree), jax.grad(lambda tree: cross_entropy(outputs(tree)))(tree)


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: v["params"], freeze], ids=["variables", "params", "frozen"])
def test_linen(wrap):
    variables = wrap(linen())

    def apply(variables):
        return Compact().apply(variables if "params" in variables else {"params": variables}, X)

    params = adapters.from_flax(variables, NET)
    compare(params, lambda tree: adapters.to_flax(tree, variables), *theirs(apply, variables))
    same_bits(adapters.to_flax(params, variables), variables)
    same_bits(adapters.from_flax(adapters.to_flax(params, variables), NET), params)


@pytest.mark.parametrize("kind", ["list", "sequential", "attributes"])
def test_nnx(kind):
    model = nnx_model({"list": Listed, "sequential": sequential, "attributes": Attributes}[kind])
    order = ("z", "m", "a") if kind == "attributes" else None
    graph, state = nnx.split(model)
    outputs, gradient = theirs(lambda state: nnx.merge(graph, state)(X), state)
    for tree in (lambda state: state, nnx.to_pure_dict):
        like = tree(state)
        params = adapters.from_flax(like, NET, order=order)
        compare(params, lambda ours, like=like: adapters.to_flax(ours, like, order=order), outputs, tree(gradient))
        same_bits(adapters.to_flax(params, like, order=order), like)


def test_an_nnx_optimizer_takes_our_gradients():
    ours, theirs = nnx_model(Listed), nnx_model(Listed)
    gradient = nnx.jit(nnx.grad(lambda model: cross_entropy(model(X))))(theirs)
    optimizers = [nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param) for model in (ours, theirs)]
    state = jax.tree.map(jnp.copy, nnx.state(ours, nnx.Param))  # the state itself changes with the model
    by_hand = adapters.to_flax(OURS(adapters.from_flax(state, NET))[1], state)

    @nnx.jit
    def step(optimizer, model, gradients):
        optimizer.update(model, gradients)

    for optimizer, model, gradients in zip(optimizers, (ours, theirs), (by_hand, gradient), strict=True):
        step(optimizer, model, gradients)
    assert_close(nnx.state(ours), nnx.state(theirs))
    kernel, before = (np.asarray(tree["layers"][0]["kernel"][...]) for tree in (nnx.state(ours), state))
    assert np.abs(kernel - before).max() > 1e-3
    nnx.update(ours, state)
    outputs = nnx.jit(lambda model: model(X))
    assert_close(outputs(ours), outputs(nnx_model(Listed)))


@pytest.mark.parametrize("kind", ["mlp", "sequential"])
def test_equinox(kind):
    parts = (linear(6, 5), jnp.tanh, linear(5, 5), jnp.sinh, jnp.arcsinh, jnp.tanh, linear(5, 4))
    model = equinox_mlp() if kind == "mlp" else equinox_sequential(*parts)
    params = adapters.from_equinox(model, NET)
    gradient = equinox_gradient(model)
    compare(params, lambda tree: adapters.to_equinox(tree, model), equinox_outputs(model), gradient)
    same_bits(adapters.to_equinox(params, model), eqx.filter(model, eqx.is_inexact_array))
    same_bits(adapters.to_equinox(adapters.from_equinox(gradient, NET), gradient), gradient)
    stepped = eqx.filter_jit(eqx.apply_updates)(model, adapters.to_equinox(params, model))
    assert_close(adapters.from_equinox(stepped, NET), jax.tree.map(lambda leaf: 2 * np.asarray(leaf), params))


class Tensor:
    """What an adapter may touch of a CPU tensor that asks for its gradient; `numpy` shares its memory, as there."""

    def __init__(self, values, dtype=None, attached=True):
        self.values, self.dtype, self.attached = values, dtype or f"torch.{values.dtype}", attached
        self.shape = values.shape

    def detach(self):
        return Tensor(self.values, self.dtype, attached=False)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values.astype("float32"), "torch.float32", self.attached)

    def numpy(self):
        if self.attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


def state_dict(sizes=SIZES, names=None, dtype="float64"):
    """As nn.Sequential of Linear and Tanh writes it."""
    rng = np.random.default_rng(4)
    state = {}
    for i, (d_in, d_out) in enumerate(pairwise(sizes)):
        name = names[i] if names else f"{2 * i}"
        state[f"{name}.weight"] = rng.normal(0, 0.6, (d_out, d_in)).astype(dtype)
        state[f"{name}.bias"] = rng.normal(0, 0.6, d_out).astype(dtype)
    return state


def torch_forward(state, x):
    """x @ weight.T + bias, and tanh between the layers."""
    layers = list(zip(list(state.values())[::2], list(state.values())[1::2], strict=True))
    for weight, bias in layers[:-1]:
        x = np.tanh(x @ weight.T + bias[None])
    weight, bias = layers[-1]
    return x @ weight.T + bias[None]


@pytest.mark.parametrize("names", [None, ("net.2", "net.0", "head")], ids=["numbers", "names"])
@pytest.mark.parametrize("box", [lambda a: a, Tensor], ids=["arrays", "tensors"])
def test_torch(names, box):
    arrays = state_dict(names=names)
    state = {name: box(value.copy()) for name, value in arrays.items()}
    params = adapters.from_torch_state_dict(state, NET)
    outputs, by_hand = OURS(params)
    assert_close(outputs, torch_forward(arrays, np.asarray(X)))
    back = adapters.to_torch_state_dict(params, state)
    assert list(back) == list(state)
    same_bits(back, arrays)
    gradient = adapters.to_torch_state_dict(by_hand, state)
    for name, value in gradient.items():  # d/dt at 0 of the objective along each entry, by differences
        assert type(value) is np.ndarray
        assert value.flags.writeable and value.flags.c_contiguous

        def moved(t, name=name):
            return float(COMPILED_CROSS_ENTROPY(torch_forward(arrays | {name: arrays[name] + t}, np.asarray(X))))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert abs(slope - value.sum()) < 1e-9


def test_the_torch_gradient_is_that_of_its_own_forward():
    """jax.grad over x @ weight.T + bias, written for the names of the state dict."""
    state = {name: jnp.asarray(value) for name, value in state_dict().items()}

    def outputs(state):
        x = X
        for i in ("0", "2", "4"):
            x = x @ state[f"{i}.weight"].T + jnp.tile(state[f"{i}.bias"], (len(X), 1))
            x = x if i == "4" else jnp.tanh(x)
        return x

    params = adapters.from_torch_state_dict(state, NET)
    compare(params, lambda tree: adapters.to_torch_state_dict(tree, state), *theirs(outputs, state))


# Layers without bias: nothing stands in for b, here or there

HALF = mb.Serial((mb.Dense(6, 5, "tanh", bias=False), mb.Dense(5, 5, "tanh", bias=False), mb.Dense(5, 4)))
NONE = mb.mlp(SIZES, bias=False)


class Unbiased(nn.Module):
    final: bool

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, use_bias=False, param_dtype=jnp.float64)(x))
        x = nn.tanh(nn.Dense(5, use_bias=False, param_dtype=jnp.float64)(x))
        return nn.Dense(4, use_bias=self.final, param_dtype=jnp.float64)(x)


class UnbiasedList(Listed):
    def __init__(self, final):
        self.layers = nnx.List(
            nnx.Linear(i, o, use_bias=final and o == 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            for i, o in pairwise(SIZES)
        )


def unbiased_state(final):
    """As PyTorch writes a Sequential whose Linear have bias=False."""
    return {name: value for name, value in state_dict().items() if "weight" in name or (final and name == "4.bias")}


def through_a_state_dict(state):
    x = X
    for i in ("0", "2", "4"):
        x = x @ state[f"{i}.weight"].T
        x = x + jnp.tile(state[f"{i}.bias"], (len(X), 1)) if f"{i}.bias" in state else x
        x = x if i == "4" else jnp.tanh(x)
    return x


def unbiased(library, final):
    """(model or tree, its parameters, the outputs from these, adapters) in a library."""
    if library == "linen":
        model = Unbiased(final)
        tree = filled(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 6))))
        return tree, tree, lambda tree: model.apply(tree, X), adapters.from_flax, adapters.to_flax
    if library == "nnx":
        graph, state = nnx.split(nnx_model(lambda: UnbiasedList(final)))
        return state, state, lambda state: nnx.merge(graph, state)(X), adapters.from_flax, adapters.to_flax
    if library == "equinox":
        model = equinox_mlp(use_bias=False, use_final_bias=final)
        tree, static = eqx.partition(model, eqx.is_inexact_array)
        outputs = lambda tree: jax.vmap(eqx.combine(tree, static))(X)  # noqa: E731
        return model, tree, outputs, adapters.from_equinox, adapters.to_equinox
    state = jax.tree.map(jnp.asarray, unbiased_state(final))
    return state, state, through_a_state_dict, adapters.from_torch_state_dict, adapters.to_torch_state_dict


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox", "torch"])
@pytest.mark.parametrize("final", [True, False], ids=["a final bias", "no bias"])
def test_models_without_biases(library, final):
    """Their outputs and their own gradients; every leaf there and back with its bits, and none more."""
    model, tree, outputs, take, give = unbiased(library, final)
    net = HALF if final else NONE
    params = take(model, net)
    assert [layer.b is None for layer in params] == [True, True, not final]
    same_bits(give(params, model), tree)

    @jax.jit
    def both(params, tree):
        ours = mb.forward(net, params, X)[0], mb.value_and_grad(mb.Objective(net, OBJECTIVE.loss))(params, X, Y)[1]
        return ours, (outputs(tree), jax.grad(lambda tree: cross_entropy(outputs(tree)))(tree))

    (ours, by_hand), (there, gradient) = both(params, tree)
    assert_close(ours, there)
    assert_close(give(by_hand, model), gradient)
    says = (
        r"(?s)do not fit the network.*layer 1: '[\w/]+' with \w+ \[\d, \d\], no bias; expected .*bias \[5\]  <- differs"
    )
    with pytest.raises(ValueError, match=says):
        take(model, NET)
    with pytest.raises(ValueError, match=says.replace("the network", "tree")):
        give(generic(NET), model)
    full = {"linen": linen, "nnx": lambda: nnx.state(nnx_model(Listed)), "equinox": equinox_mlp, "torch": state_dict}
    says = r"(?s)layer 1: .*bias \[5\]; expected \w+ \[\d, \d\], no bias  <- differs"
    with pytest.raises(ValueError, match=says):
        take(full[library](), net)
    with pytest.raises(ValueError, match=says):
        give(params, full[library]())


def test_a_sorted_state_dict_without_biases_tells_no_order():
    """A bias in front of its weight would show that a dict was sorted; an OrderedDict keeps its order under JAX."""
    state = {name: value for name, value in state_dict((4,) * 13).items() if name.endswith("weight")}
    net = mb.mlp((4,) * 13, bias=False)
    right = adapters.from_torch_state_dict(state, net)
    gone = jax.tree.map(lambda leaf: leaf, state)
    assert list(gone)[:2] == ["0.weight", "10.weight"]
    with pytest.raises(ValueError, match=r"no layer has a bias, so whether it was sorted cannot be known.*OrderedDict"):
        adapters.from_torch_state_dict(gone, net)
    ordered = jax.tree.map(lambda leaf: leaf, OrderedDict(state))
    same_bits(adapters.from_torch_state_dict(ordered, net), right)
    named = OrderedDict({"hidden.weight": np.ones((5, 6)), "out.weight": np.ones((4, 5))})
    net = mb.mlp((6, 5, 4), bias=False)
    assert [layer.W.shape for layer in adapters.from_torch_state_dict(named, net)] == [(5, 6), (4, 5)]
    with pytest.raises(ValueError, match="would be a guess"):
        adapters.from_torch_state_dict(dict(named), net)
    one = {"out.weight": np.ones((4, 6))}
    assert adapters.from_torch_state_dict(one, mb.mlp((6, 4), bias=False))[0].b is None


# Order of application


def marked(names, make):
    """Layers of one shape, each with its own number in every place: `make(i)` for the i-th that is applied."""
    return dict(sorted({name: make(float(i)) for i, name in enumerate(names)}.items()))


def flax_layer(i):
    return {"kernel": jnp.full((4, 4), i), "bias": jnp.full(4, i)}


@pytest.mark.parametrize("stem", ["Dense_", "layers_", "fc", ""])
def test_more_than_ten_layers_are_taken_by_number(stem):
    variables = {"params": marked([f"{stem}{i}" for i in range(12)], flax_layer)}
    assert [one.b[0] for one in adapters.from_flax(variables, DEEP)] == list(range(12))


def test_twelve_layers_of_linen_and_nnx():
    sizes = (4,) * 13
    variables, x = linen(sizes), batch(4)
    params = adapters.from_flax(jax.tree.map(lambda leaf: leaf, variables), DEEP)  # sorted: Dense_10 before Dense_2
    assert_close(FORWARD(DEEP, params, x)[0], jax.jit(Compact(sizes[1:]).apply)(variables, x))
    same_bits(adapters.to_flax(params, variables), variables)
    model = nnx_model(lambda: Listed(sizes))
    state = nnx.state(model, nnx.Param)
    params = adapters.from_flax(state, DEEP)
    assert_close(FORWARD(DEEP, params, x)[0], nnx.jit(lambda model, x: model(x))(model, x))
    text = {"layers": {str(i): layer for i, layer in nnx.to_pure_dict(state)["layers"].items()}}  # as a checkpoint
    same_bits(adapters.from_flax(text, DEEP), params)


def test_layers_within_numbered_blocks():
    variables = {
        f"Block_{i}": marked([f"Dense_{k}" for k in range(6)], lambda k, i=i: flax_layer(6 * i + k)) for i in (1, 0)
    }
    assert [one.b[0] for one in adapters.from_flax(variables, DEEP)] == list(range(12))


def test_names_that_tell_no_order_need_it():
    names = ["stem", "Dense_1", "Dense_0", "a"]
    net = mb.mlp((4,) * 5)
    variables = marked(names, flax_layer)
    with pytest.raises(ValueError, match=r"(?s)order of application cannot be known.*'Dense_0', .*'stem'.*pass order="):
        adapters.from_flax(variables, net)
    with pytest.raises(ValueError, match="order of application cannot be known"):
        adapters.to_flax(generic(net), variables)
    params = adapters.from_flax(variables, net, order=names)
    assert [one.b[0] for one in params] == [0, 1, 2, 3]
    same_bits(adapters.to_flax(params, variables, order=names), variables)
    for wrong in (names[:3], [*names, "a"], ["stem", "Dense_1", "Dense_0", "b"], "stem"):
        with pytest.raises(ValueError, match="order must name every layer once"):
            adapters.from_flax(variables, net, order=wrong)


@pytest.mark.parametrize(
    "names", [["Dense_0", "Other_1"], ["Dense_1", "Dense_01"], ["Dense", "Dense_1"], ["in", "out"], ["a1b", "a2b"]]
)
def test_two_layers_whose_order_is_a_guess(names):
    with pytest.raises(ValueError, match="order of application cannot be known"):
        adapters.from_flax(marked(names, flax_layer), mb.mlp((4, 4, 4)))


def test_nnx_forgets_the_order_of_attributes():
    """Why `order=` is needed: the layers were defined as z, m, a."""
    state = nnx.state(nnx_model(Attributes), nnx.Param)
    assert list(state) == ["a", "m", "z"]
    with pytest.raises(ValueError, match=r"\['a', 'm', 'z'\]"):
        adapters.from_flax(state, NET)


def test_an_order_overrules_the_numbers():
    variables = marked(["Dense_1", "Dense_0"], flax_layer)
    params = adapters.from_flax(variables, mb.mlp((4, 4, 4)), order=("Dense_1", "Dense_0"))
    assert [one.b[0] for one in params] == [0, 1]


def test_a_single_layer_needs_no_name():
    layer = flax_layer(3.0)
    for variables in (layer, {"params": layer}, {"out": layer}, {"params": {"out": layer}}):
        params = adapters.from_flax(variables, mb.mlp((4, 4)))
        same_bits(adapters.to_flax(params, variables), variables)
    state = {"weight": np.ones((4, 4)), "bias": np.ones(4)}
    same_bits(adapters.to_torch_state_dict(adapters.from_torch_state_dict(state, mb.mlp((4, 4))), state), state)


def test_the_order_of_a_state_dict_is_the_order_of_its_layers():
    state = state_dict((4,) * 13)
    params = adapters.from_torch_state_dict(state, DEEP)
    assert_close(FORWARD(DEEP, params, batch(4))[0], torch_forward(state, np.asarray(batch(4))))
    backwards = state_dict((4, 4, 4), names=("net.2", "net.0"))
    np.testing.assert_array_equal(
        adapters.from_torch_state_dict(backwards, mb.mlp((4, 4, 4)))[0].b, backwards["net.2.bias"]
    )
    with pytest.raises(ValueError, match=r"(?s)the mapping was sorted.*'0', '10', '12'.*for name in module.state_dict"):
        adapters.from_torch_state_dict(jax.tree.map(lambda leaf: leaf, state), DEEP)  # as optax gives it back
    with pytest.raises(ValueError, match="the mapping was sorted"):
        adapters.to_torch_state_dict(params, jax.tree.map(lambda leaf: leaf, state))
    few = state_dict()
    same_bits(adapters.from_torch_state_dict(dict(sorted(few.items())), NET), adapters.from_torch_state_dict(few, NET))


# Dtypes and memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept(dtype):
    params = generic(NET, dtype=dtype)
    variables = adapters.to_flax(params, jax.eval_shape(lambda v: jax.tree.map(lambda a: a.astype(dtype), v), linen()))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {dtype}
    same_bits(adapters.from_flax(variables, NET), params)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_array(leaf) else leaf, equinox_mlp())
    same_bits(adapters.from_equinox(adapters.to_equinox(params, model), NET), params)
    like = {name: Tensor(value) for name, value in state_dict(dtype=jnp.dtype(dtype)).items()}
    state = adapters.to_torch_state_dict(params, like)
    same_bits(adapters.from_torch_state_dict({name: Tensor(value) for name, value in state.items()}, NET), params)


def test_another_dtype_is_refused():
    params = generic(NET, dtype="float32")
    for to, like, name in (
        (adapters.to_flax, linen(), "Dense_0/kernel"),
        (adapters.to_equinox, equinox_mlp(), "layers/0/weight"),
        (adapters.to_torch_state_dict, {n: Tensor(v) for n, v in state_dict().items()}, "0.weight"),
    ):
        with pytest.raises(TypeError, match=f"{name} is float64 in like, float32 in tree; nothing is cast"):
            to(params, like)
    state = state_dict()
    with pytest.raises(TypeError, match=r"params mix the dtypes \['float32', 'float64'\]"):
        adapters.from_torch_state_dict(state | {"2.bias": state["2.bias"].astype("float32")}, NET)
    with pytest.raises(TypeError, match=r"must hold floats, got int64"):
        adapters.from_torch_state_dict({name: value.astype(int) for name, value in state.items()}, NET)


def test_float64_without_x64_is_refused():
    state, variables = state_dict(), jax.tree.map(np.asarray, linen())
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match="0.weight is float64, which JAX would make float32 while x64 is off"):
            adapters.from_torch_state_dict({name: Tensor(value) for name, value in state.items()}, NET)
        with pytest.raises(TypeError, match="Dense_0/kernel is float64, which JAX would make float32"):
            adapters.from_flax(variables, NET)


def test_no_library_is_imported():
    files = sorted(Path(adapters.__file__).parent.glob("*.py"))
    parts = {"__init__", "common", "carried", "names", "gpt"}
    assert {path.stem for path in files} == parts | {"flax", "equinox", "torch"}
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in modules} & {"flax", "equinox", "torch"} == set(), path.name


def test_another_kind_of_layer_is_a_map_of_its_names():
    """A norm's gain and shift, and an embedding's table that stands there turned, read from their maps alone."""

    @dataclass(frozen=True)
    class Norm:
        gain: jax.Array
        shift: jax.Array

    @dataclass(frozen=True)
    class Table:
        E: jax.Array

    norm = common.Family(Norm, {"gain": common.There("scale", ("d",)), "shift": common.There("bias", ("d",))})
    table = common.Family(Table, {"E": common.There("embedding", ("d_in", "d_out"), turned=True)})
    assert common.layers_of(["a/scale", "a/bias", "b/bias"], norm) == ["a", "b"]
    with pytest.raises(ValueError, match="'a/kernel' is no scale or bias"):
        common.layers_of(["a/kernel"], norm)
    found = common.Found(["e"], {"e/embedding": np.ones((7, 3))}, table)
    assert found.names("e") == found.held("e") == {"E": "e/embedding"}
    there = table.arrays["E"]
    assert there.shape((3, 7)) == there.shape_for(mb.Dense(7, 3)) == [7, 3]
    same_bits(there.carried(jnp.arange(6.0).reshape(2, 3)), jnp.arange(6.0).reshape(2, 3).T)
    with pytest.raises(ValueError, match=r"e/embedding is \[7\], expected rank 2"):
        common.Found(["e"], {"e/embedding": np.ones(7)}, table)


def test_a_step_in_place_does_not_reach_what_was_imported(monkeypatch):
    """JAX may read NumPy's memory after `jnp.asarray` has returned: one large array in four changed with it."""
    handed = []
    monkeypatch.setattr(
        validate, "array", lambda name, value, array=validate.array: (handed.append(value), array(name, value))[1]
    )
    net, state = mb.mlp((4, 4)), {"weight": np.ones((4, 4)), "bias": np.ones(4)}
    adapters.from_torch_state_dict({name: Tensor(value) for name, value in state.items()}, net)
    adapters.from_torch_state_dict(state, net)
    adapters.from_flax({"kernel": state["weight"], "bias": state["bias"]}, net)
    ours = [value for value in handed if isinstance(value, np.ndarray)]
    assert len(ours) == 6
    assert not any(np.shares_memory(value, given) for value in ours for given in state.values())


# Under jit


def test_under_jit():
    variables, model = linen(), equinox_mlp()

    @jax.jit
    def flax_gradient(variables):
        return adapters.to_flax(mb.value_and_grad(OBJECTIVE)(adapters.from_flax(variables, NET), X, Y)[1], variables)

    assert_close(flax_gradient(variables), theirs(lambda v: Compact().apply(v, X), variables)[1])

    @eqx.filter_jit
    def by_hand(model):
        return adapters.to_equinox(mb.value_and_grad(OBJECTIVE)(adapters.from_equinox(model, NET), X, Y)[1], model)

    assert_close(by_hand(model), equinox_gradient(model))
    with pytest.raises(ValueError, match="after layers/0 the model applies .*relu"):
        by_hand(equinox_mlp(activation=jax.nn.relu))
    state = state_dict()
    same_bits(
        jax.jit(lambda s: adapters.from_torch_state_dict(s, NET))(state), adapters.from_torch_state_dict(state, NET)
    )
    with pytest.raises(TypeError, match="do not exist under jit; call it on the result"):
        jax.jit(lambda params: adapters.to_torch_state_dict(params, state))(generic(NET))


# What a Serial of Dense cannot express


def flax_params(**changed):
    return {"params": linen()["params"] | changed}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (flax_params(LayerNorm_0={"scale": jnp.ones(5)}), "'LayerNorm_0/scale' is no kernel or bias"),
        (flax_params(Embed_0={"embedding": jnp.ones((5, 5))}), "'Embed_0/embedding' is no kernel or bias"),
        (
            flax_params(Dense_3={"kernel": jnp.ones((3, 3, 5, 5)), "bias": jnp.ones(5)}),
            r"Dense_3/kernel is \[3, 3, 5, 5\]",
        ),
        (flax_params(Dense_3={"kernel": jnp.ones((5, 5)), "bias": jnp.ones((1, 5))}), r"Dense_3/bias is \[1, 5\]"),
        (
            flax_params(Dense_2={"kernel": jnp.ones((5, 4))}),
            r"(?s)a bias is where a layer has bias=True:.*'Dense_2' with kernel \[5, 4\], no bias; expected",
        ),
        (flax_params(Dense_2={"bias": jnp.ones(4)}), "'Dense_2' has no 'Dense_2/kernel'"),
        (linen() | {"batch_stats": {}}, "besides params there is batch_stats"),
        ({"params": {}}, "(?s)layer 1: nothing; expected kernel .6, 5., bias .5."),
    ],
)
def test_flax_models_that_are_no_mlp(variables, says):
    with pytest.raises(ValueError, match=says):
        adapters.from_flax(variables, NET)
    if "expected" not in says:
        with pytest.raises(ValueError, match=says):
            adapters.to_flax(generic(NET), variables)


def test_real_flax_layers_that_are_no_dense():
    class Other(nnx.Module):
        def __init__(self, **layers):
            for name, layer in layers.items():
                setattr(self, name, layer)

    def state(make, kind=nnx.Param):
        return nnx.state(nnx.eval_shape(lambda: Other(**make(nnx.Rngs(0)))), kind)

    for make, says in (
        (lambda rngs: {"conv": nnx.Conv(2, 3, (3, 3), rngs=rngs)}, r"conv/kernel is \[3, 3, 2, 3\]"),
        (lambda rngs: {"norm": nnx.BatchNorm(3, rngs=rngs)}, "'norm/scale'"),
        (lambda rngs: {"out": nnx.Linear(6, 4, use_bias=False, rngs=rngs)}, r"'out' with kernel \[6, 4\], no bias"),
        (lambda rngs: {"out": nnx.LinearGeneral((6,), (2, 2), rngs=rngs)}, r"out/kernel is \[6, 2, 2\]"),
    ):
        with pytest.raises(ValueError, match=says):
            adapters.from_flax(state(make), mb.mlp((6, 4)))
    with pytest.raises(ValueError, match="'drop/rngs/count' is no kernel or bias"):
        adapters.from_flax(state(lambda rngs: {"drop": nnx.Dropout(0.5, rngs=rngs)}, ...), mb.mlp((6, 4)))
    with pytest.raises(TypeError, match=r"nnx.state\(model, nnx.Param\), got Listed"):
        adapters.from_flax(nnx_model(Listed), NET)


def test_boxed_linen_parameters_keep_their_box():
    layer = nn.Dense(
        4, param_dtype=jnp.float64, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    )
    variables = filled(jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 6), "float64")))
    net = mb.mlp((6, 4))
    params = adapters.from_flax(variables, net)
    assert params[0].W.shape == (4, 6)
    same_bits(adapters.to_flax(params, variables), variables)
    assert adapters.to_flax(params, variables)["params"]["kernel"].names == (None, "model")


class Linear(eqx.nn.Linear):
    """Somebody's own, which may well compute something else."""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (equinox_mlp(use_bias=False), r"(?s)'layers/0' with weight \[5, 6\], no bias; expected.*<- differs"),
        (equinox_mlp(use_final_bias=False), r"(?s)'layers/2' with weight \[4, 5\], no bias; expected.*<- differs"),
        (equinox_mlp(scan=True), "scan=True, which stacks"),
        (eqx.nn.MLP("scalar", 4, 5, 2, key=jax.random.key(0)), "layers/0 has the size 'scalar'.*1 instead"),
        (eqx.nn.MLP(6, "scalar", 5, 2, key=jax.random.key(0)), "layers/2 has the size 'scalar'"),
        (equinox_mlp(activation=eqx.nn.PReLU(0.1)), "'activation/negative_slope' is no weight or bias"),
        (equinox_sequential(linear(6, 5), eqx.nn.PReLU(0.1)), "layers/1 is a PReLU, expected Linear or Lambda"),
        (equinox_sequential(linear(6, 5), eqx.nn.LayerNorm(5)), "layers/1 is a LayerNorm"),
        (equinox_sequential(eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0))), "layers/0 is a Conv2d"),
        (equinox_sequential(linear(6, 5), equinox_sequential(linear(5, 4))), "layers/1 is a Sequential"),
        (equinox_sequential(linear(6, 5), Linear(5, 4, key=jax.random.key(0))), r"layers/1 is a test_adapters.Linear"),
        (equinox_sequential(linear(6, 5), eqx.nn.Lambda(eqx.nn.PReLU(0.1))), "'layers/1/fn/negative_slope' is no"),
    ],
)
def test_equinox_models_that_are_no_mlp(model, says):
    with pytest.raises(ValueError, match=says):
        adapters.from_equinox(model, NET)
    with pytest.raises(ValueError, match=says):
        adapters.to_equinox(generic(NET), model)


def test_other_things_than_models():
    for model in (linear(6, 4), eqx.nn.Identity(), {"layers": ()}):
        with pytest.raises(TypeError, match=r"must be an equinox.nn.MLP.*got (Linear|Identity|builtins.dict)"):
            adapters.from_equinox(model, NET)
    with pytest.raises(TypeError, match="mapping of names to tensors, got Linear; pass .state_dict"):
        adapters.from_torch_state_dict(linear(6, 4), NET)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "sigmoid", "leaky_relu"])
def test_equinox_activations_are_compared(activation):
    model = equinox_mlp(activation=getattr(jax.nn, activation.removesuffix("_tanh")))
    adapters.from_equinox(model, mb.mlp(SIZES, activation))
    activation = activation.removesuffix("_tanh")
    with pytest.raises(ValueError, match=rf"after layers/0 the model applies .*{activation}.* Dense\(6 -> 5, tanh\)"):
        adapters.from_equinox(model, NET)


@pytest.mark.parametrize(
    ("model", "net", "says"),
    [
        (equinox_mlp(final_activation=jnp.tanh), NET, "after layers/2 the model applies"),
        (equinox_mlp(activation=jax.nn.gelu), mb.mlp(SIZES, "gelu"), "after layers/0 the model applies .*gelu"),
        (equinox_mlp(activation=jax.nn.relu6), mb.mlp(SIZES, "relu"), "after layers/0 the model applies .*relu6"),
        # Without a hidden layer Equinox's MLP leaves its last activation out.
        (equinox_mlp(0, final_activation=jnp.tanh), mb.mlp((6, 4), output_activation="tanh"), "applies nothing"),
        (equinox_sequential(linear(6, 5), linear(5, 4)), mb.mlp((6, 5, 4)), "after layers/0 the model applies nothing"),
        (equinox_sequential(linear(6, 4), jax.nn.softmax), mb.mlp((6, 4)), "after layers/0 the model applies softmax"),
        (equinox_sequential(linear(6, 4), jnp.sum), mb.mlp((6, 4)), "after layers/0 the model applies sum"),
        (equinox_sequential(jnp.ravel, linear(6, 4)), mb.mlp((6, 4)), "layers/0 is a Lambda before the first Linear"),
    ],
)
def test_other_activations_than_those_of_net(model, net, says):
    with pytest.raises(ValueError, match=says):
        adapters.from_equinox(model, net)


def test_a_net_without_a_hidden_layer():
    model = equinox_mlp(0, final_activation=jnp.tanh)
    params = adapters.from_equinox(model, mb.mlp((6, 4)))
    assert_close(FORWARD(mb.mlp((6, 4)), params, X)[0], equinox_outputs(model))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"1.running_mean": np.ones(5)}, "'1.running_mean' is no weight or bias"),
        ({"1.num_batches_tracked": np.ones(())}, "'1.num_batches_tracked' is no weight or bias"),
        ({"0.weight_g": np.ones((5, 1))}, "'0.weight_g' is no weight or bias"),
        ({"1.weight": np.ones(5), "1.bias": np.ones(5)}, r"1.weight is \[5\], expected rank 2"),
        ({"1.weight": np.ones((5, 1, 3, 3)), "1.bias": np.ones(5)}, r"1.weight is \[5, 1, 3, 3\], expected rank 2"),
        ({"emb.weight": np.ones((5, 5))}, r"'emb' with weight \[5, 5\], no bias; expected nothing  <- differs"),
        ({"1.bias": np.ones(5)}, "'1' has no '1.weight'"),
    ],
)
def test_state_dicts_that_are_no_mlp(entry, says):
    for state in (state_dict() | entry, {name: Tensor(value) for name, value in (state_dict() | entry).items()}):
        with pytest.raises(ValueError, match=says):
            adapters.from_torch_state_dict(state, NET)
        with pytest.raises(ValueError, match=says):
            adapters.to_torch_state_dict(generic(NET), state)


IMPORTS = {
    "flax": (adapters.from_flax, linen),
    "equinox": (adapters.from_equinox, equinox_mlp),
    "torch": (adapters.from_torch_state_dict, state_dict),
}


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("library", IMPORTS)
def test_networks_that_are_no_mlp_of_ours(library):
    take, make = IMPORTS[library]
    block = mb.Residual(mb.Dense(5, 5))
    for net, says in (
        (block, "must be a Serial of Dense, .*got Residual"),
        (mb.Repeat(mb.Dense(6, 6), 2), "got Repeat"),
        (mb.Dense(6, 4), "got Dense"),
        (mb.Serial((mb.Dense(6, 5), block, mb.Dense(5, 4))), "must be a Serial of Dense alone, got Residual as node 1"),
        (mb.Serial((NET,)), "got Serial as node 0"),
    ):
        with pytest.raises(ValueError, match=says):
            take(make(), net)
    with pytest.raises(TypeError, match="net must be a network such as mlp.*got tuple"):
        take(make(), SIZES)


@pytest.mark.parametrize("library", IMPORTS)
def test_layers_that_do_not_fit_show_both_sides(library):
    take, make = IMPORTS[library]
    wide = {"flax": "[5, 4], bias [4]", "equinox": "[4, 5], bias [4]", "torch": "[4, 5], bias [4]"}[library]
    more = {"flax": "[5, 3], bias [3]", "equinox": "[3, 5], bias [3]", "torch": "[3, 5], bias [3]"}[library]
    name = {"flax": "Dense_2", "equinox": "layers/2", "torch": "4"}[library]
    word = "kernel" if library == "flax" else "weight"
    with pytest.raises(ValueError, match="do not fit the network") as caught:
        take(make(), mb.mlp((6, 5, 5, 3)))
    rows = str(caught.value).split("\n")[1:]
    assert len(rows) == 3
    assert rows[2] == f"  layer 3: {name!r} with {word} {wide}; expected {word} {more}  <- differs"
    assert not any("differs" in row for row in rows[:2])
    with pytest.raises(ValueError, match=r"layer 3: .*; expected nothing  <- differs"):
        take(make(), mb.mlp((6, 5, 5)))
    with pytest.raises(ValueError, match=rf"layer 4: nothing; expected {word} .*4, 4.*  <- differs"):
        take(make(), mb.mlp((*SIZES, 4)))


@pytest.mark.parametrize(
    ("give", "like"),
    [(adapters.to_flax, linen), (adapters.to_equinox, equinox_mlp), (adapters.to_torch_state_dict, state_dict)],
    ids=["flax", "equinox", "torch"],
)
def test_trees_that_do_not_fit_like(give, like):
    params = generic(NET)
    with pytest.raises(ValueError, match=r"(?s)layers do not fit tree.*layer 3: .*; expected nothing  <- differs"):
        give(params[:2], like())
    with pytest.raises(ValueError, match="layers do not fit tree"):
        give((mb.Affine(params[0].W.T, params[0].b), *params[1:]), like())
    with pytest.raises(TypeError, match=r"one Affine a layer.*got \['Affine', 'ArrayImpl'\]"):
        give((params[0], X), like())
    with pytest.raises(TypeError, match=r"one Affine a layer.*got dict"):
        give({}, like())
    with pytest.raises(TypeError, match=r"tree\[0\].W must be an array, got float"):
        give((mb.Affine(0.5, params[0].b), *params[1:]), like())
