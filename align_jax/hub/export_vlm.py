"""What every export of a whole model to transformers shares.

  image token   transformers reads an image from `<image>` tokens in the text,
                our models from none: the token takes a spare row of the
                embedding table, or rows are added that answers never choose
  processor     LlavaProcessor: image processor, tokenizer, chat template
  proof         what was written is loaded again, and must give the tokens and
                the pixels of the run's own reading
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from align_jax.data.example import PLACEHOLDER
from align_jax.decoders.lora import is_adapter
from align_jax.errors import InputError
from align_jax.hub.export_clip import preprocessor
from align_jax.hub.keymaps import FAMILIES, Family
from align_jax.hub.match import expand, places
from align_jax.hub.write import Tensor

# Added rows come in such numbers, so that a mesh divides the vocabulary.
_ROWS = 64

# Before the run's own template: contents may be lists of parts, as
# transformers' users write them, or strings with placeholders.
_FLATTEN = """\
{%- set ns = namespace(turns=[], text='', after=false) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set ns.text = message['content'] -%}
{%- else -%}
{%- set ns.text = '' -%}{%- set ns.after = false -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set ns.text = ns.text + '<image>' -%}{%- set ns.after = true -%}
{%- else -%}
{%- set ns.text = ns.text + ('\\n' if ns.after else '') + part['text'] -%}
{%- set ns.after = false -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set ns.turns = ns.turns + [
    {'role': message['role'], 'content': ns.text}] -%}
{%- endfor -%}
{%- set messages = ns.turns -%}
"""


# The renderer's "blip": images, bos, and the words.
_BLIP = """\
{%- set ns = namespace(images='', text='') -%}
{%- for message in messages -%}
{%- set ns.images = ns.images + '<image>' * message['content'].count('<image>')
-%}
{%- set ns.text = ns.text + (' ' if not loop.first else '')
    + message['content'].replace('<image>\\n', '').replace('<image>', '') -%}
{%- if message['role'] == 'assistant' -%}
{%- set ns.text = ns.text + eos_token -%}
{%- endif -%}
{%- endfor -%}
{{- ns.images + (bos_token or '') + ns.text -}}
"""


@dataclasses.dataclass(frozen=True)
class ImageToken:
  """Where `<image>` stands in the exported vocabulary.

  Attributes:
    id: its token.
    rows: V of the exported tables.
    added: how many of them are new.
  """
  id: int
  rows: int
  added: int


def image_token(tokenizer: Any, rows: int) -> ImageToken:
  """A place for `<image>` in a vocabulary of `rows`.

  Raises:
    InputError: the tokenizer has tokens that the tables have no rows for.
  """
  known = tokenizer.get_vocab()
  if PLACEHOLDER in known and known[PLACEHOLDER] < rows:
    return ImageToken(known[PLACEHOLDER], rows, 0)
  taken = max(known.values()) + 1
  if taken > rows:
    raise InputError(f"the tokenizer has {taken:,} tokens, the model's tables "
                     f"{rows:,} rows")
  if taken < rows:
    return ImageToken(taken, rows, 0)
  whole = -(-(rows + 1) // _ROWS) * _ROWS
  return ImageToken(rows, whole, whole - rows)


def family_of_kind(kind: str) -> Family:
  """The family that writes a tower or a decoder of ours.

  Raises:
    InputError: there is none.
  """
  for name in FAMILIES.names():
    family = FAMILIES.get(name)
    if family.kind == kind and not family.parts:
      return family
  raise InputError(f"a {kind!r} has no layout in transformers to be written in")


def out_family(merged: Any, part: str) -> Family:
  """The family that a part is written in: its own, where that is one."""
  spec = merged.spec(part)
  if spec is not None and not spec.is_gguf:
    as_ = spec.family.written_as
    return FAMILIES.get(as_) if as_ else spec.family
  kind = getattr(merged.parts.config, part).kind
  return family_of_kind(spec.kind if spec is not None else kind)


def part_tensors(merged: Any, part: str, family: Family, prefix: str = ""
                 ) -> list[Tensor]:
  """A part of a model in a foreign layout, byte for byte where untrained.

  Args:
    merged: a `train.merged.Merged`.
    part: "tower", "connector" or "decoder".
    family: to be written in.
    prefix: of its keys.

  Raises:
    InputError: parameters that the family has no place for.
  """
  own = {p.removeprefix(f"{part}/"): s for p, s in merged.shapes.items()
         if p.startswith(f"{part}/") and not is_adapter(p)}
  if lost := sorted(set(own) - set(family.rules)):
    raise InputError(f"this layout has no place for: {', '.join(lost)}")
  placed = places(family, own)
  sharing: dict[str, list[str]] = {}
  for path, place in placed.items():
    sharing.setdefault(place.key, []).append(path)
  spec = merged.spec(part)
  known = {} if spec is None else spec.family.rules

  def same(paths: Sequence[str]) -> bool:
    """Whether a tensor of theirs was read as this one is written."""
    theirs = {p for p in known if p in own
              and known[p][0] == known.get(paths[0], ("",))[0]}
    return theirs == set(paths) and all(
        known[p][1] == family.rules[p][1] for p in paths)

  tensors = []
  for key, paths in sharing.items():
    count = own[paths[0]].shape[0] if "{n}" in key else 0
    for n, name in enumerate(expand(key, count)):
      full = [f"{part}/{p}" for p in paths]
      if same(paths) and not any(merged.touched(p, n) for p in full):
        reader, theirs = merged.foreign(full[0], n)
        tensors.append(raw(reader, theirs, prefix + name))
        continue
      dtype = functools.reduce(jnp.promote_types,
                               (own[p].dtype for p in paths))
      tensors.append(Tensor(
          prefix + name, placed[paths[0]].shape, np.dtype(dtype),
          functools.partial(_assembled, merged, part, paths, placed, n,
                            np.dtype(dtype))))
  return tensors


def raw(reader: Any, theirs: str, key: str) -> Tensor:
  """A tensor of an open file as it is, under another key."""
  shape = reader.shape(theirs)
  everything = tuple(slice(0, size) for size in shape)
  return Tensor(key, shape, reader.dtype(theirs),
                functools.partial(reader.read, theirs, everything))


def _assembled(merged: Any, part: str, paths: Sequence[str],
               placed: Mapping[str, Any], n: int,
               dtype: np.dtype) -> np.ndarray:
  """One foreign tensor out of those parameters of ours that it holds."""
  whole = np.empty(placed[paths[0]].shape, dtype)
  for path in paths:
    values = placed[path].transform.write(merged.value(f"{part}/{path}", n))
    whole[tuple(slice(o, o + size) for o, size in zip(
        placed[path].origin, values.shape))] = values
  return whole


def with_rows(tensors: Sequence[Tensor], keys: Sequence[str],
              token: ImageToken) -> list[Tensor]:
  """Tables over the vocabulary with the rows that `<image>` needs.

  An added row is the mean of the others. So its logit is the mean of theirs,
  and never the largest, head and table tied or not.
  """
  if not token.added:
    return list(tensors)

  def grown(tensor: Tensor) -> np.ndarray:
    table = tensor.make()
    mean = table.mean(0, dtype=np.float32).astype(table.dtype)
    return np.concatenate([table, np.tile(mean, (token.added, 1))])

  return [dataclasses.replace(
      t, shape=(token.rows, *t.shape[1:]), make=functools.partial(grown, t))
          if t.key in keys else t for t in tensors]


def tokens_of_image(parts: Any) -> int:
  """How many tokens one image takes, those around it included."""
  frame = parts.frame
  return parts.tokens_per_image + sum(map(len, (
      frame.before, frame.whole, frame.after)))


def write_processor(run: Any, token: ImageToken, folder: Path,
                    remote: str = "") -> None:
  """Tokenizer, image processor and chat template, as LlavaProcessor.

  Args:
    run: a `Run`; its parameters are not needed.
    token: where `<image>` stands.
    folder: where to.
    remote: the file beside it with our own processor, which is used where an
      image is not as many tokens as patches, or where the connector reads
      what is asked; "" where LLaVA's must do.

  Raises:
    InputError: what was written does not read as the run does.
  """
  import transformers

  tower = run.parts.config.tower
  config = run.parts.model.tower.config
  kept = config.class_token and not tower.class_token
  tokenizer = _tokenizer(run, token)
  images = run.parts.processor
  if images is None:
    plain = preprocessor(config) | {
        "size": {"height": config.image_size, "width": config.image_size},
        "do_center_crop": False}
    plain.pop("image_processor_type")
    images = transformers.CLIPImageProcessorPil(**plain)
  elif hasattr(images, "crop_to_patches"):
    # Ovis2's says beside the pixels how it cut them, which no LLaVA takes.
    images = transformers.CLIPImageProcessorPil(
        size=dict(images.size), resample=images.resample,
        do_center_crop=False)
  images.image_mean, images.image_std = list(config.mean), list(config.std)
  template = _BLIP if run.renderer.template == "blip" else (
      run.renderer.chat_template)
  if not run.renderer.typed:
    template = _FLATTEN + template
  processor = transformers.LlavaProcessor(
      image_processor=images, tokenizer=tokenizer,
      patch_size=config.patch_size, chat_template=template,
      vision_feature_select_strategy="default" if kept else "full",
      num_additional_image_tokens=int(config.class_token))
  processor.save_pretrained(folder)
  images.save_pretrained(folder)  # where transformers 4 looks for it
  module = run.parts.model.connector
  count, reads = tokens_of_image(run.parts), getattr(module, "text", False)
  tiled = run.config.data.tiling.kind
  if remote and (reads or tiled
                 or count != config.patches + tower.class_token):
    _write_own_processor(run, count, folder, remote)
  _check(run, token, folder, remote)


def _write_own_processor(run: Any, count: int, folder: Path,
                         remote: str) -> None:
  """Names our own processor in the place of LLaVA's, with what it needs.

  Raises:
    InputError: a connector that reads instructions, without a tokenizer.
  """
  file = folder / "processor_config.json"
  written = json.loads(file.read_text(encoding="utf-8"))
  module, tiling = run.parts.model.connector, run.config.data.tiling
  name = f"AlignJax{'Tiles' if tiling.kind else ''}Processor"
  written |= {"processor_class": name,
              "auto_map": {"AutoProcessor": f"{remote}.{name}"},
              "tokens_per_image": count}
  if tiling.kind:
    written["tiling"] = {
        "options": dict(tiling.options), "side": run.parts.image_size,
        "tokens": run.parts.tokens_per_image, "frame": run.parts.frame}
  if getattr(module, "text", False):
    if not module.tokenizer:
      raise InputError("the connector reads instructions: set "
                       "model.connector.options.tokenizer to the folder of "
                       "its tokenizer, which is written as well")
    from align_jax.hub.pretrained import load_tokenizer
    load_tokenizer(module.tokenizer).save_pretrained(folder / "instructions")
    if module.long == "left":
      written["instruction_length"] = module.instruction_length
  file.write_text(json.dumps(written, indent=2) + "\n")


def _tokenizer(run: Any, token: ImageToken) -> Any:
  """A copy of the run's tokenizer, with `<image>` and the run's bos."""
  import copy

  from tokenizers import AddedToken, processors

  tokenizer = copy.deepcopy(run.tokenizer)
  if tokenizer.convert_tokens_to_ids(PLACEHOLDER) != token.id or (
      PLACEHOLDER not in tokenizer.get_vocab()):
    tokenizer.add_tokens(
        [AddedToken(PLACEHOLDER, special=True, normalized=False)],
        special_tokens=True)
  if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.eos_token
  # The template of BLIP writes bos, behind the images.
  adds = run.renderer.adds_bos and run.renderer.template != "blip"
  if not adds and tokenizer.encode(""):
    # Training saw no bos but what the template wrote.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[])
  return tokenizer


def write_generation(run: Any, token: ImageToken, folder: Path) -> None:
  """generation_config.json: what ends an answer, and what is never said."""
  import transformers

  tokenizer = run.tokenizer
  # A row that was there before may be said here as it may in the run.
  never = list(range(token.rows - token.added, token.rows))
  written = {
      "bos_token_id": tokenizer.bos_token_id,
      "eos_token_id": list(run.stop),
      "pad_token_id": tokenizer.pad_token_id
      if tokenizer.pad_token_id is not None else run.stop[0],
      "suppress_tokens": never or None,
      "do_sample": False,
      "transformers_version": transformers.__version__,
  }
  (folder / "generation_config.json").write_text(json.dumps(
      {k: v for k, v in written.items() if v is not None}, indent=2) + "\n")


def _check(run: Any, token: ImageToken, folder: Path, remote: str) -> None:
  """Raises unless the written processor reads as the run does."""
  import transformers
  from PIL import Image

  from align_jax.api import question
  from align_jax.towers.pixels import normalise

  y, x = np.mgrid[:90, :120]
  picture = Image.fromarray(np.stack(
      [2 * y, 2 * x, 255 - y - x], -1).astype(np.uint8))
  if run.config.data.tiling.kind:  # so large that it is cut
    side = run.parts.image_size
    picture = picture.resize((3 * side // 2, 2 * side))
  words = "What is it?"
  rendered = run.prompt(question(words, [picture]))
  want = np.where(rendered.visual == -1, rendered.tokens, token.id)
  processor = transformers.AutoProcessor.from_pretrained(
      folder, trust_remote_code=bool(remote))
  got = processor.apply_chat_template(
      [{"role": "user", "content": [
          {"type": "image", "image": picture},
          {"type": "text", "text": words}]}],
      add_generation_prompt=True, tokenize=True, return_dict=True,
      return_tensors="np")
  ids = np.asarray(got["input_ids"])[0]
  if not np.array_equal(ids, want):
    raise InputError(
        f"{folder}: the processor that was written reads {ids.tolist()} where "
        f"the run reads {want.tolist()}; this tokenizer cannot be exported")
  if "image_places" in got and not np.array_equal(
      got["image_places"][0], rendered.visual[rendered.visual != -1]):
    raise InputError(f"{folder}: the processor that was written puts tiles "
                     "elsewhere than the run does")
  config = run.parts.model.tower.config
  pixels, boxes = run.read(picture)
  ours = np.asarray(normalise(jnp.asarray(pixels), boxes, config.mean,
                              config.std))
  theirs = np.asarray(got["pixel_values"]).transpose(0, 2, 3, 1)
  if ours.shape != theirs.shape or np.abs(ours - theirs).max() > 1e-4:
    raise InputError(f"{folder}: the image processor that was written gives "
                     "other pixels than the run reads")
