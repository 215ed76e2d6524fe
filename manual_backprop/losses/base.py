"""The interface of every loss, and the functions that losses share."""

import math
from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from manual_backprop import explicit
from manual_backprop.precision import accumulator
from manual_backprop.types import came, values_here

Outputs = Float[Array, "N *outputs"]
Targets = Shaped[Array, "N *targets"]
Roots = Float[Array, "K N *outputs"]


class Loss(ABC):
    """A loss of one example, for outputs o of shape (N, *outputs)."""

    @abstractmethod
    def value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """l(o_n, y_n) of every example, summed over its outputs, in float32 or wider (J1)."""

    @abstractmethod
    def derivative(self, o: Outputs, y: Targets) -> Outputs:
        """dl(o_n, y_n)/do_n of every example, in o's dtype (B1)."""

    def checked_value(self, o: Outputs, y: Targets) -> Float[Array, " N"]:
        """The result of `value`, refused unless it has one number for each example; this adds no operation.

        Raises:
            TypeError: no floats.
            ValueError: another shape than (N,), which a mean or a product with weights would take without a word.
        """
        how = "one number for each example, summed over its other axes; the mean over examples is the objective's"
        return self._as_due(
            "value", explicit.automatic(self.value, PartitionSpec(*explicit.spec(o)[:1]), o, y), o.shape[:1], None, how
        )

    def checked_derivative(self, o: Outputs, y: Targets) -> Outputs:
        """The result of `derivative`, refused unless it has the shape and the dtype of the outputs.

        Raises:
            TypeError: another dtype, or no array.
            ValueError: another shape.
        """
        how = "dl/do of every example, like the outputs and with no 1/N in it"
        return self._as_due(
            "derivative", explicit.automatic(self.derivative, explicit.lies_as(o), o, y), o.shape, o.dtype, how
        )

    def hessian_product(self, o: Outputs, y: Targets, d_o: Outputs) -> Outputs:
        """H_n d_o_n of every example, with H_n = d^2 l/do do^T at (o_n, y_n), in o's dtype.

        Args:
            o: outputs.
            y: targets, as for `value`.
            d_o: one direction an example, like o.

        Raises:
            ValueError: shapes that do not fit, or targets out of range where their values are known.
            TypeError: wrong dtypes.
            NotImplementedError: this loss has none.
        """
        raise self._lacks("hessian_product(self, o, y, d_o), H_n d_o_n", "Hessian- and Gauss-Newton-vector products")

    def hessian_root(self, o: Outputs, y: Targets) -> Roots:
        """K vectors s_k of every example with sum_k s_k s_k^T = H_n, exactly, in o's dtype.

        K is the number of outputs of one example. Swept backward like dl/do, they give the Gauss-Newton matrix.

        Raises:
            ValueError, TypeError, NotImplementedError: as `hessian_product`.
        """
        raise self._lacks(
            "hessian_root(self, o, y), K vectors with sum_k s_k s_k^T = H_n in shape (K, *o.shape)",
            "exact Gauss-Newton diagonals and Kronecker factors",
        )

    def sample_derivative(self, key: PRNGKeyArray, o: Outputs) -> Outputs:
        """dl/do = s at targets drawn from the distribution that o stands for: E[s s^T] is the Fisher information.

        The Fisher information is H where H does not depend on y.

        Args:
            key: of the draw.
            o: outputs.

        Raises:
            TypeError: o does not hold floats.
            NotImplementedError: this loss has no such distribution, or does not know it.
        """
        raise self._lacks(
            "sample_derivative(self, key, o), dl/do at targets drawn from the model's own distribution",
            "Monte Carlo Fisher information",
        )

    def target_derivative(self, o: Outputs, y: Targets) -> Targets:
        """dl(o_n, y_n)/dy_n of every example, like y; for y that holds floats.

        Raises:
            ValueError, TypeError, NotImplementedError: as `hessian_product`; integer labels have no derivative.
        """
        raise self._lacks("target_derivative(self, o, y), dl(o_n, y_n)/dy_n", "derivatives with respect to targets")

    def _lacks(self, method: str, asked_by: str) -> NotImplementedError:
        name = type(self).__name__
        return NotImplementedError(
            f"{name} has no {method.partition('(')[0]}, which {asked_by} ask for;"
            f" write {name}.{method} of every example"
        )

    def checked_hessian_product(self, o: Outputs, y: Targets, d_o: Outputs) -> Outputs:
        """The result of `hessian_product`, refused like that of `derivative`."""
        how = "H_n d_o_n of every example, like the outputs"
        return self._as_due(
            "hessian_product",
            explicit.automatic(self.hessian_product, explicit.lies_as(o), o, y, d_o),
            o.shape,
            o.dtype,
            how,
        )

    def _as_due(self, method: str, found: Any, shape: tuple[int, ...], dtype: Any, how: str) -> Any:
        """The result of a method, refused if it has another shape or dtype than is due; None is any dtype of floats."""
        due = f"{dtype or 'floats'}{list(shape)}"
        if not isinstance(found, jax.Array | np.ndarray | np.generic):
            raise TypeError(f"{type(self).__name__}.{method} must return an array {due}, got {came(found)}: {how}")
        text = f"{type(self).__name__}.{method} returned {found.dtype}{list(found.shape)}, expected {due}"
        if found.shape != shape:
            raise ValueError(f"{text}: {how}")
        if not jnp.issubdtype(found.dtype, jnp.floating) or (dtype is not None and found.dtype != dtype):
            raise TypeError(f"{text}; convert it with .astype")
        return found

    def check(self, o: jax.ShapeDtypeStruct, y: Array) -> None:
        """Refuse targets that do not fit outputs of that shape and dtype.

        Raises:
            ValueError: wrong shape, or (where the values are known) values out of range.
            TypeError: wrong dtype.
        """
        if y.shape != o.shape:
            raise ValueError(
                f"{self} compares y with the outputs entry by entry: y is {list(y.shape)} but the outputs are"
                f" {list(o.shape)}; reshape y (nothing is broadcast)"
            )
        if y.dtype != o.dtype:
            raise TypeError(f"{self}: y is {y.dtype} but the outputs are {o.dtype}; convert y with .astype")


class Elementwise(Loss):
    """A loss that is a sum of terms with one output each, so that H is diagonal."""

    @abstractmethod
    def curvature_root(self, o: Array, y: Array) -> Array:
        """sqrt(d^2 l/do_i^2) of every output, for arrays in float32 or wider."""

    def hessian_product(self, o: Outputs, y: Targets, d_o: Outputs) -> Outputs:
        """(d^2 l/do_i^2) d_o_i."""
        check_given(self, o, y, d_o)
        wide_o, wide_y, wide_d_o = widened(o, y, d_o)
        root = self.curvature_root(wide_o, wide_y)
        return (root * (root * wide_d_o)).astype(o.dtype)

    def hessian_root(self, o: Outputs, y: Targets) -> Roots:
        """Vector i is sqrt(d^2 l/do_i^2) at output i and zero at the others."""
        check_given(self, o, y)
        root = self.curvature_root(*widened(o, y)).astype(o.dtype)
        return each_in_its_place(root[None], o.shape[1:])


def check_given(loss: Loss, o: Array, y: Array | None = None, d_o: Array | None = None) -> None:
    """Refuse outputs that are not floats, targets that do not fit them and a direction unlike them."""
    if not jnp.issubdtype(o.dtype, jnp.floating):
        raise TypeError(f"{loss}: outputs must be floats, got {o.dtype}; convert them with .astype")
    if y is not None:
        loss.check(jax.ShapeDtypeStruct(o.shape, o.dtype), y)
    if d_o is not None and d_o.shape != o.shape:
        raise ValueError(f"{loss}: d_o is {list(d_o.shape)} but the outputs are {list(o.shape)}; reshape d_o")
    if d_o is not None and d_o.dtype != o.dtype:
        raise TypeError(f"{loss}: d_o is {d_o.dtype} but the outputs are {o.dtype}; convert d_o with .astype")


def each_in_its_place(columns: Array, positions: tuple[int, ...]) -> Array:
    """(c, N, *positions, ...) -> (P c, N, *positions, ...): each vector is kept at one position, zero at the others."""
    count = math.prod(positions)
    own = jnp.eye(count, dtype=bool).reshape(count, 1, 1, *positions, *(1,) * (columns.ndim - 2 - len(positions)))
    return jnp.where(own, columns[None], 0).reshape(count * columns.shape[0], *columns.shape[1:])


def check_range(loss: Loss, what: str, y: Array | np.ndarray, top: int) -> None:
    """Refuse targets outside 0..top, where their values are known: not for a y that is being traced."""
    if isinstance(y, jax.core.Tracer):
        return
    values = values_here(y)
    if not np.all((values >= 0) & (values <= top)):
        raise ValueError(f"{loss}: {what} must lie in 0..{top}, got {values.min()} to {values.max()}")


def sum_outputs(terms: Array) -> Float[Array, " N"]:
    """Sum over all but the first axis, in float32 or wider."""
    return jnp.sum(terms.astype(accumulator(terms.dtype)), axis=tuple(range(1, terms.ndim)))


def widened(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in float32 or wider."""
    return tuple(array.astype(accumulator(array.dtype)) for array in arrays)
