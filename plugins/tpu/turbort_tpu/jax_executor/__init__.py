"""The `jax` executor: torch models and ops run as JAX programs."""
