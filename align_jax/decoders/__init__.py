"""Decoders: language models that read visual tokens among their own.

An entry of `DECODERS` makes a decoder's config from sizes; the config's
`make(dtype=, remat=, layout=)` gives the Linen module. One body serves a whole
family; a family is one line here plus its table of foreign names in
`hub/keymaps/`.
"""

from align_jax.registry import Registry

DECODERS = Registry("decoder", {
    "llama": "align_jax.decoders.transformer:DecoderConfig",
})
