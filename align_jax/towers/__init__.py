"""Vision towers: pixels -> patch features.

An entry of `TOWERS` makes a tower's config from sizes: `TOWERS.get("clip")(
image_size=64, ...)`. The config, of whatever class, has

  image_size, width        H = W, and C
  patches                  P, features of an image without a class token
  class_token              whether it has one
  mean, std                of the pixels
  make(layer=, class_token=, dtype=, remat=, layout=)
                           a Linen module, f[I,H,W,3] -> f[I,P,C]

so that a user's own tower is one registered class, be it a ViT or not.
"""

from align_jax.registry import Registry

TOWERS = Registry("tower", {
    "clip": "align_jax.towers.vit:clip",
    "siglip": "align_jax.towers.vit:siglip",
    "dinov2": "align_jax.towers.vit:dinov2",
    "eva": "align_jax.towers.vit:eva",
    "aimv2": "align_jax.towers.vit:aimv2",
})
