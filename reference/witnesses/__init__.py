"""Ways to differentiate other than jax.grad, so that jax.grad and a gradient by hand cannot share a mistake."""
