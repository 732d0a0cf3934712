"""A trained run in Python: no flags, no global state.

  run = align_jax.load_run("runs/quickstart")
  run.generate("shape.png", "what color is the circle?")        # "blue"
  run.generate([None, ["a.png", "b.png"]], ["Hello!", "Compare them."])
  run.visual_tokens("shape.png")                                # f32[1,T,D]
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from align_jax.build import Parts
from align_jax.config import Config, MeshConfig
from align_jax.connectors import CONNECTORS
from align_jax.data.example import PLACEHOLDER, Example
from align_jax.data.images import ImageLike, ImageReader, listed
from align_jax.data.render import Renderer
from align_jax.data.rows import ENTRY, annotated, extras_of
from align_jax.errors import InputError
from align_jax.evals.generate import Generator
from align_jax.evals.prompts import Prompt, rows_for, stack_extras
from align_jax.hub.pretrained import is_checkpoint
from align_jax.train.select import flatten, unflatten

_NOTHING = Prompt(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True)
class Run:
  """A model with its weights, and what is needed to talk to it.

  Attributes:
    workdir: the run's folder.
    config: what it was trained with.
    parts: modules, tokenizer and sizes; see `align_jax/build.py`.
    params: {"tower", "connector", "decoder"}, arrays on their devices.
    step: training steps behind these weights.
    ends: tokens that end an answer, beside those that `stop` finds.
    origins: of a checkpoint of others, path -> "file:key".
  """
  workdir: Path
  config: Config
  parts: Parts
  params: Any
  step: int
  ends: tuple[int, ...] = ()
  origins: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def model(self) -> nn.Module:
    """The `VLM`; `model.apply({"params": run.params}, ...)`."""
    return self.parts.model

  @property
  def tokenizer(self) -> Any:
    """The decoder's transformers tokenizer."""
    return self.parts.tokenizer

  @functools.cached_property
  def renderer(self) -> Renderer:
    """Conversations to tokens, as in training's last stage."""
    stages = self.config.stages
    config = self.config.of(stages[-1]) if stages else self.config
    return self.parts.renderer(config.data)

  @functools.cached_property
  def reader(self) -> ImageReader:
    """Images to pixels, as in training."""
    return self.parts.reader(self.config.data)

  @functools.cached_property
  def stop(self) -> tuple[int, ...]:
    """Tokens that end an answer: eos, and the template's end of turn.

    The end of turn is the special token training asks for after an answer.
    Text that a template writes behind it, such as a newline, ends nothing.

    Raises:
      InputError: there is neither.
    """
    known = self.tokenizer.added_tokens_decoder
    special = {i for i, token in known.items() if token.special}
    special |= set(self.tokenizer.all_special_ids)
    ends = [t for t in self.answer_tokens("yes") if t in special][:1]
    stop = {*ends, *self.ends, self.tokenizer.eos_token_id} - {None}
    if not stop:
      raise InputError("nothing would end an answer: the tokenizer has no eos "
                       "token, and the template writes no special token after "
                       "an answer")
    return tuple(sorted(stop))

  @property
  def embeddings(self) -> np.ndarray:
    """The language model's embedding table, f32[V,D]."""
    return np.asarray(self.params["decoder"]["embed_vd"], np.float32)

  def generate(
      self,
      images: ImageLike | Sequence[Any] | None,
      prompt: str | Sequence[str],
      max_new_tokens: int = 32,
  ) -> str | list[str]:
    """Greedy answers.

    Args:
      images: with one prompt: None, an image, or a list of images (paths,
        encoded bytes, PIL images or u8[H,W,3]). With a list of prompts: a
        list with one of these for each.
      prompt: what the user says. Images come first, unless the text has an
        `<image>` for each of them.
      max_new_tokens: answers are cut there.

    Returns:
      The answer, or a list of them.
    """
    if isinstance(prompt, str):
      return self.generate([images], [prompt], max_new_tokens)[0]
    if len(images) != len(prompt):
      raise InputError(f"{len(prompt)} prompts need as many entries in "
                       f"images, not {len(images)}")
    sets = [listed(entry) for entry in images]
    prompts = [self.prompt(question(text, shown), key if shown else None)
               for key, (text, shown) in enumerate(zip(prompt, sets))]
    ids = self.generator().generate(
        prompts, lambda key: self.read(sets[key]), max_new_tokens)
    return [self.text(answer) for answer in ids]

  def features(self, images: Any) -> np.ndarray:
    """What the tower gives for images: f32[I,P,C]."""
    return self._look(images, "features")["features"]

  def visual_tokens(self, images: Any,
                    prompt: str | Sequence[str] = "") -> np.ndarray:
    """What the language model reads of images, each alone: f32[I,T,D].

    Args:
      images: one or a list.
      prompt: what is asked, or a list with what is asked of each image: for
        connectors that read it.
    """
    return self._look(images, "tokens", prompt)["tokens"]

  def tokens_of(self, features: np.ndarray) -> np.ndarray:
    """What the language model reads of a tower's features f[I,P,C], be they
    what the tower gave or not: f32[I,T,D]. Nothing is asked."""
    bare = dataclasses.replace(_NOTHING, extras=self.extras(
        question("", [None])))
    boxes = np.zeros((len(features), 4), np.int32)
    return self._encoded("tokens", [bare] * len(features), lambda at: (
        np.asarray(features[at], np.float32), boxes[at]))["tokens"]

  def distribution(self, images: Any,
                   prompt: str | Sequence[str] = "") -> np.ndarray | None:
    """Of a connector that mixes words, its weights f32[I,T,V]; else None."""
    return self._look(images, "probs_tv", prompt).get("probs_tv")

  def generator(self, **options: Any) -> Generator:
    """Batched generation and scoring; options as `Generator` takes them."""
    return Generator(self.model, self.params, self.stop,
                     **({"rows": self.config.eval.batch} | options))

  def keeping(self, words: Sequence[int]) -> "Run":
    """The same run with an ALIGN that mixes these words alone.

    The logits stay those of the whole vocabulary; the softmax is over the
    words that are kept.

    Raises:
      InputError: a connector that mixes no words.
    """
    connector = self.model.connector
    if not hasattr(connector, "keep_words"):
      raise InputError(f"connector {self.config.model.connector.kind!r} mixes "
                       "no words of which some could be kept")
    model = self.model.clone(connector=connector.clone(
        keep_words=tuple(int(w) for w in words)))
    return dataclasses.replace(
        self, parts=dataclasses.replace(self.parts, model=model))

  def prompt(self, example: Example, key: Any = None) -> Prompt:
    """An example up to its answer; `key` names its set of images."""
    renderer = self.renderer
    _, places = self.reader.places(
        example["images"], renderer.tokens_per_image, renderer.frame)
    rendered = renderer.prompt(example, places)
    return Prompt(rendered.tokens, rendered.visual, key,
                  self.extras(example) if rendered.images else {})

  def extras(self, example: Example) -> dict[str, np.ndarray]:
    """What the connector reads of an example beside its images."""
    kind = CONNECTORS.get(self.config.model.connector.kind)
    wanted = {name: jax.ShapeDtypeStruct((1, 1, *spec.shape[2:]), spec.dtype)
              for name, spec in kind.extras(self.config).items()}
    entries = extras_of(annotated(example, self.parts.annotate), wanted)
    return {name: entries[ENTRY + name][0] for name in wanted}

  def answer_tokens(self, answer: str) -> list[int]:
    """What the model must write to say this: the answer and its end."""
    turns = [{"role": "user", "content": "?"},
             {"role": "assistant", "content": answer}]
    rendered = self.renderer({"id": "", "origin": "an answer", "images": [],
                              "conversation": turns})
    return rendered.targets[rendered.loss_weights > 0].tolist()

  def text(self, tokens: Sequence[int]) -> str:
    """Generated tokens as text."""
    return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

  def read(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images u8[I,H,W,3] as the tower sees them, and their valid boxes.

    Where images are cut into tiles, the tiles of all, one after the other.
    """
    return self.reader.slots(listed(images))

  def _look(self, images: Any, what: str,
            prompt: str | Sequence[str] = "") -> dict[str, np.ndarray]:
    """Images one a row."""
    images = listed(images)
    asked = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
    if len(asked) != len(images):
      raise InputError(f"{len(images)} images need as many prompts, not "
                       f"{len(asked)}")
    asked = [_NOTHING if what == "features" else dataclasses.replace(
        _NOTHING, extras=self.extras(question(text, [image])))
             for text, image in zip(asked, images)]

    def read(at: slice) -> tuple[np.ndarray, np.ndarray]:
      # Of an image in tiles the first, which is all of it.
      slots = [self.reader.slots([image]) for image in images[at]]
      return tuple(np.stack([part[0] for part in parts])
                   for parts in zip(*slots))

    return self._encoded(what, asked, read)

  def _encoded(self, what: str, asked: Sequence[Prompt],
               read: Callable[[slice], tuple[np.ndarray, np.ndarray]],
               ) -> dict[str, np.ndarray]:
    """Runs the model up to `what`, in batches of one size.

    Args:
      what: see `_encode`.
      asked: of each image.
      read: some images -> u8[n,H,W,3] or features f32[n,P,C], boxes i32[n,4].
    """
    rows = rows_for(len(asked), self.config.eval.batch)
    out = []
    for at in range(0, len(asked), rows):
      pixels, boxes = read(slice(at, at + rows))
      count = len(pixels)
      pad = lambda x, n=rows - count: np.pad(
          x, [(0, n)] + [(0, 0)] * (x.ndim - 1))[:, None]
      batch = {"images": pad(pixels), "image_boxes": pad(boxes),
               "image_segment_ids": pad(np.ones(count, np.int32)),
               "extras": stack_extras(asked[at:at + rows], rows)}
      got = _encode(self.model, what, self.params, batch)
      out.append({k: np.asarray(v[:count, 0], np.float32)
                  for k, v in got.items()})
    return {k: np.concatenate([o[k] for o in out]) for k in out[0]}


def load_run(workdir: str | Path, mesh: MeshConfig | None = None,
             unfinished: bool = False) -> Run:
  """Loads a run's last checkpoint, laid out and cast to be read.

  A Hugging Face folder or id in the place of a run is read by `load_vlm`.

  Frozen parts come from where the run took them or from its checkpoint.
  Matrices are cast to the dtype of the computation, once; vectors stay as
  they are, since norms use them in f32.

  Args:
    workdir: a folder that `align-jax train` wrote.
    mesh: how the model lies on the devices; by default tensor-parallel over
      all of them as far as the decoder has KV heads, and replicated beyond.
    unfinished: take the last checkpoint of a run that is not at its end.

  Raises:
    InputError: no run there, no checkpoint yet, or a run that is not
      finished.
  """
  from align_jax.build import build
  from align_jax.parallel.mesh import inference_mesh, make_mesh
  from align_jax.train.restore import restore, run_config

  if is_checkpoint(workdir):
    from align_jax.hub.whole import load_vlm
    return load_vlm(workdir, mesh=mesh)
  workdir = Path(workdir)
  config = run_config(workdir)
  if config.model.kind != "vlm":
    raise InputError(f"{workdir} trained a {config.model.kind!r} model, which "
                     "answers no questions; only 'vlm' runs do")
  if not unfinished and not (workdir / "result.json").is_file():
    raise InputError(
        f"the run in {workdir} is not finished: `align-jax train --workdir "
        f"{workdir}` goes on with it, and --unfinished (unfinished=True in "
        "Python) takes its last checkpoint as it is")
  heads = build(config.model).model.decoder.config.kv_heads
  found = restore(workdir,
                  make_mesh(mesh) if mesh else inference_mesh(heads))
  cast = jax.jit(functools.partial(_cast_matrices, dtype=config.model.dtype),
                 donate_argnums=0)
  return Run(workdir, found.config, found.parts, cast(found.params),
             found.step)


def _cast_matrices(params: Any, dtype: str) -> Any:
  """Matrices, stacked or not, in another dtype; vectors as they are."""
  flat = flatten(params)
  return unflatten({
      path: x.astype(dtype) if x.ndim - ("/layers/" in path) > 1 else x
      for path, x in flat.items()})


def question(text: str, images: Sequence[Any]) -> Example:
  """A user's turn about images, which come first unless the text has them."""
  if PLACEHOLDER not in text and images:
    text = PLACEHOLDER * len(images) + "\n" + text
  return {"id": "", "origin": "your prompt", "images": list(images),
          "conversation": [{"role": "user", "content": text}]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(model: nn.Module, what: str, params: Any,
            batch: dict[str, Any]) -> dict[str, jax.Array]:
  """{what: f[B,1,...]} for "features", "tokens" or something in aux.

  What the connector does not report is left out.
  """
  apply = lambda method, *args: model.apply(
      {"params": params}, *args, method=method)
  features = apply("features", batch)
  if what == "features":
    return {what: features}
  visual = apply("connect", features, batch["image_segment_ids"],
                 batch["extras"])
  found = {"tokens": visual.tokens} | visual.aux
  return {what: found[what]} if what in found else {}
