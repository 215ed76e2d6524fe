"""The derived rounding bounds of the layers that read a table: the embedding, its readout, and learned positions."""

import numpy as np

from manual_backprop.layers import Embedding, PositionalEmbedding
from manual_backprop.network import Readout
from reference.equations import bounds
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import Family, KnownFlow, Mistakes, family


@family.register(Embedding)
@family.register(Readout)
def _(layer: Embedding | Readout) -> Family:
    return _Table()


@family.register
def _(layer: PositionalEmbedding) -> Family:
    return _Positions()


class _Table(Family):
    """Both uses of a table W: rows of it, and products with its rows."""

    def net_input(self, of: Arithmetic, use: Use, a_in: Known) -> tuple[Known, Mistakes]:
        if isinstance(use.layer, Embedding):
            return Known.exactly(use.params.W[a_in.value]), {}  # copied
        return bounds.net_input(of, use.params.W, None, a_in), {}

    def transport(self, of: Arithmetic, use: Use, a_in: Known, delta: Known) -> tuple[KnownFlow, Mistakes]:
        return (None if isinstance(use.layer, Embedding) else bounds.transport(of, use.params.W, delta)), {}

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[Known], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        each = [self._of_use(of, *use, shares) for use in zip(uses, a_in, delta, strict=True)]
        return {".W": each[0] if len(each) == 1 else of.rounded(sum(each[1:], each[0]))}

    def _of_use(self, of: Arithmetic, use: Use, a_in: Known, delta: Known, shares: Wide) -> Known:
        """sum_n w_n delta_n a_n^T, where the embedding has one-hot rows for a."""
        if not isinstance(use.layer, Embedding):
            return bounds.contraction(of, a_in, delta, shares)[0]
        one_hot = Known.exactly(np.eye(use.layer.vocab)[a_in.value])
        by_column = bounds.contraction(of, one_hot, delta, shares)[0]
        return Known(by_column.value.T, by_column.bound.T, by_column.slack.T)


class _Positions(Family):
    def net_input(self, of: Arithmetic, use: Use, a_in: Known) -> tuple[Known, Mistakes]:
        P = use.params.P[: a_in.value.shape[-2]]
        return of.rounded(a_in + Known.exactly(np.broadcast_to(P, a_in.value.shape))), {"P is missing": a_in.value}

    def transport(self, of: Arithmetic, use: Use, a_in: Known, delta: Known) -> tuple[Known, Mistakes]:
        return delta, {}

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[Known], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        """sum_n w_n delta_n, for every position; beyond the sequence it is zero."""
        together = Known.together(delta)
        shape = together.value.shape
        rows = Known(*(part.reshape(*shape[:-2], -1) for part in (together.value, together.bound, together.slack)))
        total = bounds.contraction(of, rows, rows, shares)[1]
        beyond = ((0, len(uses[0].params.P) - shape[-2]), (0, 0))
        parts = (total.value, total.bound, total.slack)
        return {".P": Known(*(np.pad(part.reshape(shape[-2:]), beyond) for part in parts))}
