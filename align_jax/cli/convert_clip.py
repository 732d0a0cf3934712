"""A CLIP run as a folder that transformers' CLIPModel loads."""

from pathlib import Path
from typing import Any

from align_jax.errors import InputError


def convert_clip(run: Path, target: Path) -> dict[str, Any]:
  """Writes config.json, model.safetensors, the processor and the tokenizer.

  Returns:
    How it was made, and the SHA-256 of every image it was trained on.

  Raises:
    InputError: no finished run.
  """
  from align_jax.cli.convert import command
  from align_jax.data.images import image_hashes
  from align_jax.data.pipeline import open_source
  from align_jax.hub.export_clip import export_clip
  from align_jax.train.manifest import read_json
  from align_jax.train.restore import restore

  found = restore(run)
  if not found.finished:
    raise InputError(f"{run} is not finished (step {found.step}); go on with "
                     "`align-jax train`")
  model = found.parts.model
  export_clip(found.params, model.config, found.parts.tokenizer, target)

  used = {name for stage in found.config.stages
          for name in (stage.data or found.config.data.sources)}
  images: dict[str, str] = {}
  for name in sorted(used):
    source = open_source(name, found.config.data.sources[name])
    source = getattr(source, "of", source)  # views are of another's images
    images |= image_hashes(source[i] for i in range(len(source)))
  how = read_json(run / "manifest.json")
  keep = ("name", "commit", "python", "versions", "device", "seed",
          "parameters", "stages", "steps", "seconds")
  return {
      # Where on some machine the run lay is no part of how it was made.
      "command": command(how),
      **{key: how[key] for key in keep if key in how},
      "images": images,
      "said": f"{target}: {how['parameters']:,} parameters, trained on "
              f"{len(images):,} images"}
