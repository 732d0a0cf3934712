"""align_jax: join a vision tower to a language model in JAX."""
