"""The peers: the usual ways to compute the readings, with nothing of manual_backprop but the parameters' class.

Each is a `Calculation`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

MAX_NORM = 30.0  # of examples' gradients; about half are longer
THRESHOLD = 0.01  # of |f'|, below which `diagnose` calls an entry saturated

Tree = Any
Calculation = Callable[[Tree, jax.Array, jax.Array, Tree], Any]
"""(params, x, y, more) -> result; `more` is a tree like params: the direction v, or the feedback B."""


def outputs(params: Tree, x: jax.Array, probes: Tree = None) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """(o, the input of each layer and o, z of each layer); probes are added to z."""
    activations, net_inputs = [x], []
    for index, layer in enumerate(params):
        z = activations[-1] @ layer.W.T + layer.b
        z = z if probes is None else z + probes[index]
        net_inputs.append(z)
        activations.append(z if index == len(params) - 1 else jnp.tanh(z))
    return activations[-1], activations, net_inputs


def loss_of(o: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(o, y))


def plain(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    """J as a user of jax.grad would write it."""
    return loss_of(outputs(params, x)[0], y)


def one_gradient(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Tree:
    """One plain gradient, the unit of time and flops."""
    return jax.grad(plain)(params, x, y)


def of_examples(use: Callable[[list[jax.Array]], Any]) -> Calculation:
    """A calculation that applies `use` to the leaves of vmap(grad), each with the examples in front."""

    def calculation(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
        one = jax.grad(lambda p, x, y: plain(p, x[None], y[None]))
        return use(jax.tree.leaves(jax.vmap(one, (None, 0, 0))(params, x, y)))

    return calculation


def products_of(gradients: list[jax.Array]) -> jax.Array:
    """(N, N): the inner products of every pair of examples' gradients."""
    rows = (g.reshape(g.shape[0], -1) for g in gradients)
    return sum(g @ g.T for g in rows)


def squares_of(gradients: list[jax.Array]) -> jax.Array:
    """The squared norm of every example's gradient."""
    return sum(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))) for g in gradients)


def mean_squares_of(gradients: list[jax.Array]) -> list[jax.Array]:
    """The mean square of every entry over the examples."""
    return [jnp.mean(jnp.square(g), axis=0) for g in gradients]


def grad_and_norms(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> tuple[Tree, jax.Array]:
    """The gradient by itself and the norms; averaging vmap(grad) would keep XLA from fusing the norms, at more cost."""
    return one_gradient(params, x, y, more), of_examples(squares_of)(params, x, y, more)


def noise(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """S, |G|^2 and their quotient."""
    gradient, norms = grad_and_norms(params, x, y, more)
    n, of_one = norms.size, jnp.mean(norms)
    of_mean = optax.tree.norm(gradient, squared=True)
    spread, squared = n / (n - 1) * (of_one - of_mean), (n * of_mean - of_one) / (n - 1)
    return spread, squared, spread / squared


def probed(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, list[Any], list[Any], list[Any]]:
    """(gradient, z, a, deltas) by one jax.grad with respect to params and a zero added to each z."""

    def J(params: Tree, probes: list[jax.Array]) -> tuple[jax.Array, Any]:
        o, activations, net_inputs = outputs(params, x, probes)
        return loss_of(o, y), (activations, net_inputs)

    zeros = [jnp.zeros((x.shape[0], layer.b.size), x.dtype) for layer in params]
    (gradient, probes), (activations, net_inputs) = jax.grad(J, (0, 1), has_aux=True)(params, zeros)
    return gradient, net_inputs, activations, [x.shape[0] * probe for probe in probes]


def probed_norms(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> jax.Array:
    """|delta|^2 (|a|^2 + 1), summed over layers."""
    _, _, activations, deltas = probed(params, x, y)
    pairs = zip(activations[:-1], deltas, strict=True)
    return sum(jnp.sum(jnp.square(d), axis=1) * (jnp.sum(jnp.square(a), axis=1) + 1) for a, d in pairs)


def clipped_by_two(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Tree:
    """Ghost clipping: the norms by one gradient, then a second gradient of the losses weighted by the clipping."""
    norm = jnp.sqrt(probed_norms(params, x, y, more))
    clip = jnp.minimum(1, MAX_NORM / norm)

    def J(params: Tree) -> jax.Array:
        o = outputs(params, x)[0]
        return jnp.sum(clip * optax.losses.softmax_cross_entropy_with_integer_labels(o, y))

    return jax.grad(J)(params)


def with_one(a: jax.Array) -> jax.Array:
    """(a, 1), for the bias."""
    return jnp.concatenate([a, jnp.ones((a.shape[0], 1), a.dtype)], axis=1)


def kronecker(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
    """(A, G) of every layer."""
    _, _, activations, deltas = probed(params, x, y)
    n = x.shape[0]
    inputs = map(with_one, activations[:-1])
    return [(a.T @ a / n, delta.T @ delta / n) for a, delta in zip(inputs, deltas, strict=True)]


def kronecker_of_all_labels(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
    """(A, G) of every layer, of the Fisher matrix: every class's delta, and G as one product over all of them."""
    n = x.shape[0]
    zeros = [jnp.zeros((n, layer.b.size), x.dtype) for layer in params]

    def output(probes: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        o, activations, _ = outputs(params, x, probes)
        return o, activations

    o, back, activations = jax.vjp(output, zeros, has_aux=True)
    p = jax.nn.softmax(o)
    roots = jnp.sqrt(p.T)[:, :, None] * (p[None] - jnp.eye(p.shape[1], dtype=p.dtype)[:, None])
    (deltas,) = jax.vmap(back)(roots)
    inputs, rows = map(with_one, activations[:-1]), (delta.reshape(-1, delta.shape[-1]) for delta in deltas)
    return [(a.T @ a / n, delta.T @ delta / n) for a, delta in zip(inputs, rows, strict=True)]


def diagnosed(params: Tree, x: jax.Array, y: jax.Array, more: Tree) -> Any:
    """The gradient, and the numbers of `diagnose` by jnp."""
    gradient, net_inputs, activations, deltas = probed(params, x, y)
    functions = [jnp.tanh] * (len(params) - 1) + [lambda z: z]

    def signal(v: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.sqrt(jnp.sum(jnp.square(v)) / v.shape[0]), jnp.mean(v), jnp.std(v), jnp.mean(v == 0)

    def health(f: Any, z: jax.Array, a: jax.Array, delta: jax.Array) -> Any:
        flat = jnp.abs(jax.vmap(jax.vmap(jax.grad(f)))(z)) < THRESHOLD
        return signal(z), signal(a), signal(delta), jnp.mean(flat), jnp.mean(jnp.all(flat, axis=0))

    return gradient, list(map(health, functions, net_inputs, activations[1:], deltas))


@jax.custom_vjp
def _aligned(W: jax.Array, b: jax.Array, B: jax.Array, a: jax.Array) -> jax.Array:
    return a @ W.T + b


def _aligned_forward(W: Any, b: Any, B: Any, a: Any) -> Any:
    return _aligned(W, b, B, a), (B, a)


def _aligned_backward(kept: Any, delta: Any) -> Any:
    B, a = kept
    return delta.T @ a, jnp.sum(delta, axis=0), jnp.zeros_like(B), delta @ B


_aligned.defvjp(_aligned_forward, _aligned_backward)


def feedback_aligned(params: Tree, x: jax.Array, y: jax.Array, feedback: Tree) -> Tree:
    """jax.grad through layers whose custom_vjp sends B^T delta down."""

    def J(params: Tree) -> jax.Array:
        a = x
        for index, (layer, B) in enumerate(zip(params, feedback, strict=True)):
            z = _aligned(layer.W, layer.b, B.W, a)
            a = z if index == len(params) - 1 else jnp.tanh(z)
        return loss_of(a, y)

    return jax.grad(J)(params)


def hessian_product(params: Tree, x: jax.Array, y: jax.Array, v: Tree) -> Tree:
    """H v by forward over reverse mode."""
    return jax.jvp(lambda p: jax.grad(plain)(p, x, y), (params,), (v,))[1]


def gauss_newton_product(params: Tree, x: jax.Array, y: jax.Array, v: Tree) -> Tree:
    """J^T (H (J v)) by jvp, jvp of grad, and vjp."""

    def o_of(p: Tree) -> jax.Array:
        return outputs(p, x)[0]

    o, back = jax.vjp(o_of, params)
    d_o = jax.jvp(o_of, (params,), (v,))[1]
    return back(jax.jvp(jax.grad(lambda o: loss_of(o, y)), (o,), (d_o,))[1])[0]
