"""Decoders: language models that read visual tokens among their own.

An entry of `DECODERS` makes a decoder's config from sizes; the config's
`make(dtype=, remat=, layout=)` gives the Linen module. One body serves all
families (Llama, Mistral, Qwen, Gemma, Phi ...), which differ in switches of its
config; a checkpoint's own are read by the family's table in `hub/keymaps/`.
"""

from align_jax.registry import Registry

DECODERS = Registry("decoder", {
    "llama": "align_jax.decoders.transformer:DecoderConfig",
})
