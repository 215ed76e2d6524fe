"""The derived rounding bounds of the product of two signals, and its values under the usual mistakes."""

import numpy as np

from manual_backprop.layers import Product
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import Family, Mistakes, family


@family.register
def _(layer: Product) -> Family:
    return _Product()


class _Product(Family):
    def net_input(self, of: Arithmetic, use: Use, a_in: tuple[Known, Known]) -> tuple[Known, Mistakes]:
        u, v = a_in
        return _times(of, u, v), {"the first factor is missing": v.value, "the second factor is missing": u.value}

    def transport(
        self, of: Arithmetic, use: Use, a_in: tuple[Known, Known], delta: Known
    ) -> tuple[tuple[Known, Known], Mistakes]:
        u, v = a_in
        return (_times(of, v, delta), _times(of, u, delta)), {"the other factor is missing": delta.value}

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[tuple[Known, Known]], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        return {}


def _times(of: Arithmetic, one: Known, other: Known) -> Known:
    """`one` times `other`, entry by entry, with the errors of both, rounded once."""

    def moved(a: Wide, b: Wide) -> Wide:
        return np.abs(one.value) * b + np.abs(other.value) * a + a * b

    value = one.value * other.value
    return of.rounded(Known(value, moved(one.bound, other.bound), moved(one.slack, other.slack)))
