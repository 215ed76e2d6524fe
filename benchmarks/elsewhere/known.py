"""What is known of code of others: where it is truly off, and which libraries do not go with this JAX."""

KNOWN: dict[str, tuple[str, str, str]] = {
    "dot_product_attention": (
        "the value in float64",
        "1e-7 relative: it computes in float32",
        "the formula in float64",
    ),
    "dot_product_attention, causal": (
        "the value in float64",
        "1e-7 relative: it computes in float32",
        "the formula in float64",
    ),
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
    "jaxopt.GradientDescent": ("the minimum", "7.5e-5 in float32", "the normal equations in float64"),
    "jaxopt.LBFGS": ("the gradient by b", "3e-5 relative in float32", "the normal equations in float64"),
    "jaxopt.linear_solve.solve_cg": (
        "the gradient by A under vmap",
        "5e-3 relative in float32",
        "jnp.linalg.solve in float64",
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
"""By name of a case: (where, how far it is off, who judges)."""

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
