"""The model; it needs only JAX and Flax."""
