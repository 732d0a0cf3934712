"""Decoders: language models that read visual tokens among their own.

One body; a family is a config of it. A family is one line here plus its table
of foreign names in `hub/keymaps/`.
"""

from align_jax.registry import Registry

DECODERS = Registry("decoder", {
    "llama": "align_jax.decoders.transformer:Decoder",
})
