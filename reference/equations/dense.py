"""The derived rounding bounds of the dense layer, and its values under the usual mistakes.

The bounds of a family without such a file are measured (`reference.equations.measured`).
"""

from manual_backprop.layers import Dense
from reference.equations import bounds
from reference.equations.bounds import Arithmetic, Known
from reference.equations.chain import Use, Wide
from reference.equations.families import Family, KnownFlow, Mistakes, family
from reference.reductions import of_features


@family.register
def _(layer: Dense) -> Family:
    return _Dense()


class _Dense(Family):
    def net_input(self, of: Arithmetic, use: Use, a_in: Known) -> tuple[Known, Mistakes]:
        W, b = use.params.W, use.params.b
        known = bounds.net_input(of, W, b, a_in)
        mistakes = {} if b is None else {"the bias is missing": known.value - b}
        if W.shape[0] == W.shape[1]:
            mistakes["W is transposed"] = a_in.value @ W + (0.0 if b is None else b)
        return known, mistakes | of_features(of.devices, a_in.value, W.T, 0.0 if b is None else b)

    def transport(self, of: Arithmetic, use: Use, a_in: Known, delta: Known) -> tuple[Known, Mistakes]:
        W = use.params.W
        square = W.shape[0] == W.shape[1]
        mistakes = {"W is not transposed": use.delta @ W.T} if square else {}
        return bounds.transport(of, W, delta), mistakes | of_features(of.devices, delta.value, W)

    def gradient(
        self, of: Arithmetic, uses: list[Use], a_in: list[Known], delta: list[Known], shares: Wide
    ) -> dict[str, Known]:
        dW, db = bounds.contraction(of, Known.together(a_in), Known.together(delta), shares)
        return {".W": dW, ".b": db} if uses[0].params.b is not None else {".W": dW}

    def gradient_mistakes(self, use: Use, entered: dict[Use, KnownFlow], shares: Wide, name: str) -> Mistakes:
        """The values of dW if it were computed from another layer's input, by the mistake in words."""
        if name != ".W":
            return {}
        wrong, own = {}, entered[use].value

        def dW(delta: Wide, a: Wide) -> Wide:
            weighted = shares.reshape(-1, *(1,) * (delta.ndim - 1)) * delta
            return weighted.reshape(-1, delta.shape[-1]).T @ a.reshape(-1, a.shape[-1])

        for other, a_in in entered.items():
            if other.values.z.shape == own.shape:
                wrong[f"z of layer {other.number} where its a is meant"] = dW(use.delta, other.values.z)
            if other is not use and isinstance(a_in, Known) and a_in.value.shape == own.shape:
                wrong[f"what entered layer {other.number} (stale)"] = dW(use.delta, a_in.value)
            if other is not use and other.delta.shape == use.delta.shape:
                wrong[f"the delta of layer {other.number} (stale)"] = dW(other.delta, own)
        return wrong
