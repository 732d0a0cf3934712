"""Connectors: from a tower's features to the visual tokens that an LLM reads.

A connector is one file here plus one line in `CONNECTORS`.
"""

from align_jax.registry import Registry

CONNECTORS = Registry("connector", {
    "linear": "align_jax.connectors.linear:Linear",
    "mlp": "align_jax.connectors.mlp:MLP",
    "align": "align_jax.connectors.align:Align",
})
