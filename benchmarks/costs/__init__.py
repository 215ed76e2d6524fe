"""Time and memory of compiled programs by hand, against jax.grad's; run `python -m benchmarks.costs`."""
