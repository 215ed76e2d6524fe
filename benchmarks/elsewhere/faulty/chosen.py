"""The 40 rules and functions: of JAX and the libraries that the extra `dev` brings, 28; of ten others, 12.

Rules that a library wrote by hand come first, then what people write rules for. The projections onto a simplex are not
among them: at the points of their cases they are constant, so that there is nothing to break.
"""

CHOSEN: dict[str, tuple[str, ...]] = {
    "jax": (
        "softplus",
        "softmax",
        "log1mexp",
        "logsumexp, weighted",
        "xlogy",
        "log_ndtr",
        "ndtri",
        "custom_root",
        "custom_linear_solve",
        "scan",
        "scatter max",
        "cholesky",
        "qr",
        "solve_triangular",
        "eigh, of a function",
        "fft",
    ),
    "optax": (
        "optax.losses.weighted_logsoftmax",
        "optax.losses.kl_divergence",
        "optax.losses.huber_loss",
        "optax.losses.sigmoid_focal_loss",
        "optax.losses.cosine_similarity",
    ),
    "equinox": (
        "equinox.filter_custom_vjp",
        "equinox.internal.while_loop, checkpointed",
        "equinox.nn.GRUCell",
        "equinox.nn.LayerNorm",
    ),
    "flax": (
        "flax.linen.fp8_ops.dot_general_with_precision",
        "flax.linen.Conv",
        "flax.nnx.LoRALinear",
    ),
    "brax": ("brax.math.safe_arccos", "brax.math.rotate"),
    "e3nn_jax": ("e3nn_jax.spherical_harmonics, 3",),
    "folx": ("folx.slogdet",),
    "jax_md": ("jax_md._quaternion_rotate, unit",),
    "jaxley": ("jaxley.solve_gate_exponential",),
    "jaxopt": ("jaxopt.FixedPointIteration",),
    "lineax": ("lineax._norm.two_norm", "lineax.LU"),
    "matfree": ("matfree.tridiag_sym",),
    "numpyro": ("numpyro.log1mexp",),
    "optimistix": ("optimistix.Newton",),
}
"""The names of cases of `benchmarks.elsewhere`, by library."""
