"""Instructions reach a connector: in training, generation and inspection."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from align_jax.build import build
from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.connectors import CONNECTORS
from align_jax.data import BadSample
from align_jax.errors import InputError
from align_jax.evals.generate import Generator
from align_jax.evals.prompts import Prompt, groups
from tests.data.samples import example, png

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "color", "is",
         "the", "shape", "?", "red", "blue", "[DEC]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
  """A BERT tokenizer of a few words."""
  path = tmp_path_factory.mktemp("bert")
  (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  vocab = {word: n for n, word in enumerate(WORDS)}
  transformers.BertTokenizer(vocab=vocab).save_pretrained(path)
  return path


def _annotate(folder: Path | str, **options: Any) -> Any:
  return CONNECTORS.get("qformer").annotator(
      tokenizer=str(folder), instruction_length=8,
      **({"words": len(WORDS)} | options))


def test_the_first_user_turn_is_read_without_images(folder: Path) -> None:
  ids = _annotate(folder)(example(
      "<image>\nwhat color?", "red", "is the shape blue?", "what?",
      images=1))["instruction"]
  said = [WORDS[i] for i in ids]
  assert said == ["[CLS]", "what", "color", "?", "[SEP]"] + ["[PAD]"] * 3
  assert ids.dtype == np.int32


def test_a_long_instruction_is_refused_or_loses_its_beginning(
    folder: Path) -> None:
  case = example("<image>\nwhat color is the shape? red", "blue", images=1)
  with pytest.raises(BadSample, match="9 tokens, more than .* = 8"):
    _annotate(folder)(case)
  ids = _annotate(folder, long="left")(case)["instruction"]
  assert [WORDS[i] for i in ids] == [
      "[CLS]", "color", "is", "the", "shape", "?", "red", "[SEP]"]
  with pytest.raises(InputError, match="did you mean 'left'"):
    _annotate(folder, long="lefft")


def test_a_sample_without_images_has_no_instruction_however_long(
    folder: Path) -> None:
  case = example("what color is the shape? red", "blue")
  np.testing.assert_array_equal(
      _annotate(folder)(case)["instruction"], np.zeros(8, np.int32))


def test_what_cannot_be_read_is_said(folder: Path) -> None:
  with pytest.raises(BadSample, match="options.tokenizer"):
    _annotate("")(example("<image>what?", "red", images=1))
  given = example("what?", "red") | {"extras": {"instruction": np.ones(8)}}
  assert _annotate("")(given) == {}  # the source's own counts
  with pytest.raises(InputError, match="14 tokens, the connector 9 words"):
    _annotate(folder, words=9)(example("<image>what?", "red", images=1))
  assert CONNECTORS.get("qformer").annotator(text=False) is None
  assert CONNECTORS.get("mlp").annotator() is None


def test_there_is_room_for_every_sample_of_a_row() -> None:
  def declared(images: int, pack: bool, **options: Any) -> dict:
    config = Config("", ModelConfig(connector=ConnectorConfig(
        "qformer", options)), DataConfig(
            rows=4, images_per_row=images, pack=pack), ())
    return {k: v.shape for k, v in CONNECTORS.get("qformer").extras(
        config).items()}

  assert declared(3, True) == {"instruction": (4, 3, 128)}
  assert declared(3, False) == {"instruction": (4, 1, 128)}
  assert declared(0, True, instruction_length=9) == {
      "instruction": (4, 1, 9)}
  assert declared(3, True, text=False) == {}


def test_images_are_encoded_once_for_each_instruction() -> None:
  ids = lambda *t: np.array(t, np.int32)
  ask = lambda images, said: Prompt(ids(1, 2), ids(0, -1), images,
                                    {"instruction": ids(*said)})
  found = groups([ask(0, (5,)), ask(0, (6,)), ask(0, (5,)), ask(1, (5,)),
                  Prompt(ids(1), ids(-1))])
  assert sorted((g.images is None, g.images or 0, g.members)
                for g in found) == [
      (False, 0, (0, 2)), (False, 0, (1,)), (False, 1, (3,)),
      (True, 0, (4,))]


@pytest.fixture(scope="module")
def world(folder: Path) -> tuple[Any, Any, Any]:
  """(parts, parameters, the instructions' reader) of a tiny InstructBLIP."""
  from align_jax.build import init_params
  from align_jax.config import MeshConfig
  from align_jax.parallel.mesh import make_mesh

  config = ModelConfig(
      tower=PartConfig(kind="clip", config=dict(
          image_size=16, patch_size=8, width=16, layers=1, heads=2,
          mlp_width=16)),
      connector=ConnectorConfig("sam", dict(
          queries=2, depth=2, width=8, heads=2, mlp_width=16, positions=8,
          words=len(WORDS), instruction_length=8, layer_h=1, layer_c=2,
          tokenizer=str(folder))),
      decoder=PartConfig(kind="llama", config=dict(
          vocab_size=40, width=16, layers=1, heads=2, mlp_width=16)),
      dtype="float32", frozen_dtype="float32", remat="none")
  parts = build(config)
  mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
  params, _ = init_params(parts, mesh, (), jax.random.key(0))
  rng = np.random.default_rng(0)
  params["connector"] = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype("f") * 0.7,
      params["connector"])
  params["connector"]["out_ed"] *= 5  # what the LLM sees differs clearly
  return parts, params, parts.annotate


def test_generation_sees_what_training_sees(world: Any) -> None:
  parts, params, annotate = world
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  boxes = np.tile(np.array([0, 0, 16, 16], np.int32), (2, 1))
  tokens = np.array([3, 0, 0, 0, 0, 5, 6], np.int32)
  visual = np.array([-1, 0, 1, 2, 3, -1, -1], np.int32)
  texts = ("what color?", "is the shape red?", "what color?")
  said = [annotate(example(f"<image>\n{t}", "red", images=1))["instruction"]
          for t in texts]
  prompts = [Prompt(tokens, visual, "both", {"instruction": ids})
             for ids in said]
  reads: list[Any] = []

  def read(key: Any) -> Any:
    reads.append(key)
    return images, boxes

  scores = Generator(parts.model, params, [39]).score(
      prompts, [[v] for v in range(40)], read)
  assert len(reads) == 2  # one a different instruction
  # In training both stand in one row, as samples 1 and 2.
  n = len(tokens)
  batch = dict(
      tokens=np.tile(tokens, 2)[None],
      visual_index=np.concatenate([visual, np.where(
          visual < 0, -1, visual + 4)])[None],
      positions=np.tile(np.arange(n), 2)[None],
      segment_ids=np.repeat([1, 2], n)[None],
      images=np.tile(images, (2, 1, 1, 1))[None],
      image_boxes=np.tile(boxes, (2, 1))[None],
      image_segment_ids=np.array([[1, 1, 2, 2]]),
      extras={"instruction": np.stack(said[:2])[None]})
  out = jax.jit(parts.model.apply)({"params": params}, batch)
  logits = np.asarray(out["hidden"][0] @ out["head_vd"].T)
  for sample, at in ((0, n - 1), (1, 2 * n - 1), (2, n - 1)):
    want = jax.nn.log_softmax(logits[at])
    np.testing.assert_allclose(scores[sample], want, rtol=0, atol=2e-5)
  # Two instructions differ by far more than these do.
  assert np.abs(scores[0] - scores[1]).max() > 5e-4


def test_a_run_takes_the_question_for_its_instruction(
    world: Any, tmp_path: Path) -> None:
  from align_jax.api import Run

  parts, params, _ = world
  run = Run(tmp_path, Config("", parts.config, DataConfig(images_per_row=1),
                             ()), parts, params, 0)
  picture = png(3)
  ask = lambda prompt: run.visual_tokens([picture, picture], prompt)
  one, other = ask("what color?")[0], ask("is the shape red?")[0]
  assert np.abs(one - other).max() > 1e-3
  both = ask(["what color?", "is the shape red?"])
  np.testing.assert_allclose(both[0], one, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(both[1], other, rtol=1e-5, atol=1e-6)
  assert np.abs(ask("")[0] - one).max() > 1e-3
  with pytest.raises(InputError, match="2 images need as many prompts"):
    ask(["what color?"])
  assert run.features([picture]).shape == (1, 4, 16)
