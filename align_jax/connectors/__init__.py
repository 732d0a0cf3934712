"""Connectors: from a tower's features to the visual tokens that an LLM reads.

A connector is one file here plus one line in `CONNECTORS`.
"""

from align_jax.registry import Registry

CONNECTORS = Registry("connector", {
    "linear": "align_jax.connectors.linear:Linear",
    "mlp": "align_jax.connectors.mlp:MLP",
    "mlp_wide": "align_jax.connectors.mlp:WideMLP",
    "mlp_ln": "align_jax.connectors.mlp:NormedMLP",
    "align": "align_jax.connectors.align:Align",
    "pixel_shuffle": "align_jax.connectors.pixel_shuffle:PixelShuffle",
    "perceiver": "align_jax.connectors.perceiver:Perceiver",
    "ovis": "align_jax.connectors.ovis:Ovis",
    "h_reducer": "align_jax.connectors.h_reducer:HReducer",
    "c_abstractor": "align_jax.connectors.c_abstractor:CAbstractor",
    "d_abstractor": "align_jax.connectors.d_abstractor:DAbstractor",
    "qformer": "align_jax.connectors.qformer:QFormer",
    "sam": "align_jax.connectors.sam:SAM",
    "vpg_c": "align_jax.connectors.vpg_c:VPGC",
    "guided_perceiver": "align_jax.connectors.sam:GuidedPerceiver",
})
