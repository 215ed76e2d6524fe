"""What is known of code of others: where it is truly off, and which libraries do not go with this JAX."""

_WIDER = ("the type of the value", "float32 for arguments in bfloat16", "the formula")

KNOWN: dict[str, tuple[str, str, str]] = {
    "vmap of a while": ("the value in float16", "nan", "expi is finite there"),
    "spence, above 1": (
        "the derivative for x > 1",
        "nan",
        "d/dx spence(x) = log(x) / (1 - x), which is finite there",
    ),
    "optax.scale_gradient": (
        "the gradient",
        "a factor, on purpose",
        "the plain function is the identity",
    ),
    "optax.losses.huber_loss": (
        "the gradient at small errors",
        "3e-8 absolute in float32, 215 roundings at 0.001: delta - delta + error cancels",
        "the derivative there is the error itself",
    ),
    "flax.linen.fp8_ops.out_qdq": (
        "the cotangent",
        "rounded to 8 bits, on purpose",
        "the plain function is the identity",
    ),
    "ott.math.utils.softmin": (
        "the cotangent of gamma",
        "None, which is 0",
        "the formula -gamma logsumexp(-x / gamma)",
    ),
    "numpyro.cholesky_update": (
        "the value",
        "0.07 and more of 1: b = gamma / Dj_new leaves b as it was",
        "numpy.linalg.cholesky of A + x x^T",
    ),
    "numpyro.Beta in bfloat16": (
        "the value",
        "-inf: x and 1 - x in 16 bits do not sum to 1, so they count as outside of the simplex",
        "the formula, which is finite there",
    ),
    "numpyro.HalfCauchy in bfloat16": _WIDER,
    "numpyro.Kumaraswamy in bfloat16": _WIDER,
    "numpyro.StudentT in bfloat16": _WIDER,
    "jaxopt.GradientDescent": ("the minimum", "7.5e-5 in float32", "the normal equations in float64"),
    "jaxopt.LBFGS": ("the gradient by b", "3e-5 relative in float32", "the normal equations in float64"),
    "jaxopt.linear_solve.solve_cg": (
        "the gradient by A at a second point",
        "5e-3 relative in float32",
        "jnp.linalg.solve in float64",
    ),
    "brax.math.inv_3x3": (
        "the value in float64",
        "3e-9 relative at the determinant 0.03: 1e-10 is added to it, on purpose",
        "jnp.linalg.inv",
    ),
    "expm, diagonal": (
        "the value where the 1-norm is just below 2^k times 3.93 in float32, or 5.37 in float64",
        "0.014 relative in float32, and 0.044 for the gradient, 1.4e-11 in float64: floor counts a squaring too few",
        "exp of the diagonal in float64",
    ),
    "lineax.BiCGStab": (
        "the cotangents for a cotangent of 0",
        "an error is raised: the solver divides 0 by 0",
        "A^-T 0 = 0",
    ),
    "lineax.SVD in float32": (
        "the cotangent of A",
        "1.3e-6 of its largest entry in float32, 21 roundings at the condition 10",
        "the same in float64; jnp.linalg.solve is 1.5e-7 off",
    ),
    "optax.losses.log_cosh in bfloat16": (
        "the gradient at small errors",
        "0.0016 at 0.0023: two numbers near 1/2 cancel",
        "tanh(error) in float64",
    ),
    "optax.projections._unit_simplex in bfloat16": (
        "the derivative",
        "an error is raised: the tangent is bfloat16, where the value is float32",
        "the primal is bfloat16 as well",
    ),
    "jax_md.space.transform": (
        "the tangent of R",
        "not multiplied by the box, on purpose",
        "d(box R) = dbox R + box dR",
    ),
    "jax_md.transform_gradients": (
        "the tangent",
        "multiplied by the box, on purpose",
        "the plain function is the identity",
    ),
    "jax_md._quaternion_rotate": (
        "the cotangent of q",
        "its part along q is taken away, on purpose",
        "the plain function at a quaternion that is not of norm 1",
    ),
}
"""By name of a case, or of a case in one precision: (where, how far it is off, who judges)."""

_TFP = (
    "AttributeError: module 'jax.interpreters.xla' has no attribute 'pytype_aval_mappings', in tensorflow-probability"
)

ABSENT: dict[str, str] = {
    "bayesnewton": "does not import: cannot import name 'xla_bridge' from 'jax.lib'",
    "bayeux-ml": f"does not import: {_TFP}",
    "distrax": f"does not import: {_TFP}",
    "efax": "does not import with Python 3.11: cannot import name 'override' from 'typing'",
    "jaxinterp2d": "does not install: no version is found",
    "kfac-jax": f"does not import: {_TFP}",
    "neural-tangents": "does not import: cannot import name 'Jaxpr' from 'jax.core'",
    "oryx": f"does not import: {_TFP}",
    "rlax": f"does not import: {_TFP}",
    "scico": "does not import: it takes JAX 0.10.2 for older than 0.2.19",
    "sphericart": "does not import without its own JAX extension: no module sphericart.jax",
    "tensorflow-probability": f"does not import, nor does its nightly version: {_TFP}",
    "tjax": "does not import with Python 3.11: cannot import name 'override' from 'typing'",
}
"""Libraries that were tried with JAX 0.10.2 and have no cases, with the reason."""
