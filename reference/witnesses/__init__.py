"""Other ways to differentiate than jax.grad, so that it and a hand-written gradient cannot share a mistake."""
