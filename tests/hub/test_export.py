"""Runs out to transformers and back: keys, bytes, tokens, memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from safetensors.numpy import load_file, save_file  # noqa: E402

import align_jax  # noqa: E402
from align_jax.cli.convert import convert  # noqa: E402
from align_jax.cli.main import main  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.export_vlm import image_token  # noqa: E402
from tests.evals import tiny_run  # noqa: E402
from tests.hub import llava_folder as hf  # noqa: E402

WORDS = "what is the color of the circle?"


def loaded(folder: Path, kind: Any = None, **options: Any) -> tuple[Any, Any]:
  """(model, processor) by transformers, with not a key too many or few."""
  kind = kind or transformers.LlavaForConditionalGeneration
  model, report = kind.from_pretrained(folder, output_loading_info=True,
                                       **options)
  for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not report[what], (what, report[what])
  return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


def same_answers(run: Any, model: Any, processor: Any) -> None:
  """Greedy answers of both, token for token, to several questions."""
  for seed, words in enumerate((WORDS, "is there a red shape?")):
    images = [hf.picture(20, 14, seed)]
    said, logits = hf.theirs(model, processor, images, words)
    ours = hf.logits_of(run, images, words)
    rows = min(ours.shape[1], logits.shape[1])
    gap = np.abs(ours[:, :rows] - logits[:, :rows]).max()
    assert gap < 1e-4 * logits.std()
    assert run.generate(images, words, max_new_tokens=8) == said


def clip_run(folder: Path, kind: str) -> Path:
  """A trained run with a CLIP tower."""
  from align_jax.train.loop import train
  from align_jax.validate import validate
  given = tiny_run.config(folder / "words", kind)
  given["model"]["tower"]["kind"] = "clip"
  train(validate(given), folder / "run", show=False)
  return folder / "run"


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_run_generates_the_same_through_transformers(
    kind: str, tmp_path: Path) -> None:
  run = clip_run(tmp_path, kind)
  tmp_path = tmp_path / "out"
  done = convert(run, tmp_path)
  assert done["layout"] == "hf-llava" and done["steps"] == 2
  model, processor = loaded(tmp_path)
  ours = align_jax.load_run(run)
  same_answers(ours, model, processor)
  config = json.loads((tmp_path / "config.json").read_text())
  assert config["transformers_version"] == transformers.__version__
  assert config["text_config"]["vocab_size"] % 8 == 0
  # And we read our own export, with the same answers.
  back = align_jax.load_vlm(tmp_path)
  same_answers(back, model, processor)


def test_there_and_back_byte_for_byte(tmp_path: Path) -> None:
  """A folder of theirs through us: not a bit of any tensor changes."""
  for dtype in (torch.float32, torch.bfloat16, torch.float16):
    here = tmp_path / str(dtype)
    hf.save(here / "in", dtype=dtype, max_shard_size="20KB")
    convert(str(here / "in"), here / "out", "hf-llava", max_bytes=10_000)
    before = {k: v for f in (here / "in").glob("*.safetensors")
              for k, v in load_file(f).items()}
    files = sorted((here / "out").glob("*.safetensors"))
    after = {k: v for f in files for k, v in load_file(f).items()}
    assert len(files) > 3 and before.keys() == after.keys()
    for key, value in before.items():
      assert value.dtype == after[key].dtype, key
      assert value.tobytes() == after[key].tobytes(), key
    index = json.loads(
        (here / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == before.keys()


def test_a_norm_that_no_feature_goes_through_is_kept(tmp_path: Path) -> None:
  hf.save(tmp_path / "in", tower="siglip", vision_feature_layer=-1)
  convert(str(tmp_path / "in"), tmp_path / "out")
  loaded(tmp_path / "out")
  before = load_file(tmp_path / "in" / "model.safetensors")
  after = load_file(tmp_path / "out" / "model.safetensors")
  assert before.keys() == after.keys()
  assert all(before[k].tobytes() == after[k].tobytes() for k in before)


def test_frozen_parents_stay_as_they_were(tmp_path: Path) -> None:
  """Trained from a folder of theirs: only what was trained is another."""
  from align_jax.train.loop import train
  from align_jax.validate import validate
  hf.save(tmp_path / "in", dtype=torch.float16)
  given = tiny_run.config(tmp_path / "words")
  where = str(tmp_path / "in")
  given["model"].update(
      tower=dict(weights=where, layer=-2),
      connector=dict(kind="mlp", weights=where),
      decoder=dict(weights=where), dtype="float32")
  given["data"]["template"] = "processor"
  given["data"]["row_length"] = 64
  given["stages"][0]["train"] = {"connector/*": 1e-2,
                                 "decoder/layers[-1]/*": 1e-3}
  run = tmp_path / "run"
  train(validate(given), run, show=False)
  convert(run, tmp_path / "out")
  before = load_file(tmp_path / "in" / "model.safetensors")
  after = load_file(tmp_path / "out" / "model.safetensors")
  assert before.keys() == after.keys()
  for key, value in before.items():
    trained = "projector" in key or "language_model.model.layers.1." in key
    same = value.tobytes() == after[key].tobytes()
    assert same != trained, key
    assert (after[key].dtype == np.float32) == trained
  model, processor = loaded(tmp_path / "out", dtype=torch.float32)
  same_answers(align_jax.load_run(run), model, processor)


@pytest.mark.parametrize("kind", ["align", "mlp"])
def test_a_torch_file_of_ours(kind: str, tmp_path: Path) -> None:
  """Another connector, and features after a SigLIP tower's last norm."""
  run = tiny_run.shared(kind)
  done = convert(run, tmp_path)
  assert done["layout"] == "hf-remote"
  model, processor = loaded(
      tmp_path, transformers.AutoModelForImageTextToText,
      trust_remote_code=True)
  same_answers(align_jax.load_run(run), model, processor)
  code = (tmp_path / "modeling_align_jax.py").read_text()
  assert "align_jax" not in [line.split()[1].split(".")[0]
                             for line in code.splitlines()
                             if line.startswith(("import ", "from "))]


def test_a_layout_without_a_place_is_refused(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="--to hf-remote"):
    convert(tiny_run.shared("align"), tmp_path, "hf-llava")
  with pytest.raises(InputError, match="after the last norm.*hf-remote"):
    convert(tiny_run.shared("mlp"), tmp_path, "hf-llava")
  with pytest.raises(InputError, match="hf-clip is for CLIP runs"):
    convert(tiny_run.shared("mlp"), tmp_path, "hf-clip")
  assert not any(tmp_path.iterdir())


def test_orbax_has_every_parameter(tmp_path: Path) -> None:
  from orbax.checkpoint import v1 as ocp

  from align_jax.train.select import flatten
  run = tiny_run.shared("mlp")
  convert(run, tmp_path, "orbax")
  convert(run, tmp_path, "orbax", max_bytes=3000)  # anew, in some pieces
  found = ocp.load(tmp_path / "params")
  from align_jax.train.restore import restore
  want = flatten(restore(run).params)
  assert found.keys() == want.keys()
  for path, value in want.items():
    np.testing.assert_array_equal(np.asarray(found[path]), value)


def test_parents_that_changed_are_not_merged(tmp_path: Path) -> None:
  from align_jax.train.loop import train
  from align_jax.validate import validate
  hf.save(tmp_path / "in")
  given = tiny_run.config(tmp_path / "words", steps=1)
  given["model"]["tower"] = dict(weights=str(tmp_path / "in"))
  train(validate(given), tmp_path / "run", show=False)
  file = tmp_path / "in" / "model.safetensors"
  tensors = load_file(file)
  tensors["vision_tower.pre_layrnorm.bias"] += 1
  save_file(tensors, file)
  for layout in ("orbax", "hf-llava"):
    with pytest.raises(InputError, match="weights changed since the run"):
      convert(tmp_path / "run", tmp_path / "out", layout)
  with pytest.raises(InputError, match="has changed"):
    from align_jax.hub.verify import verify
    verify(tmp_path / "run")


class _Words:
  """A tokenizer of so many tokens."""

  def __init__(self, count: int, image: int | None = None):
    self.vocab = {str(i): i for i in range(count)}
    if image is not None:
      self.vocab["<image>"] = image

  def get_vocab(self) -> dict[str, int]:
    return self.vocab


def test_where_the_image_token_goes() -> None:
  assert image_token(_Words(80), 100).id == 80
  assert image_token(_Words(80), 100).added == 0
  assert image_token(_Words(100, image=7), 100).id == 7
  full = image_token(_Words(100), 100)
  assert (full.id, full.rows, full.added) == (100, 128, 28)
  with pytest.raises(InputError, match="101 tokens, the model's tables 100"):
    image_token(_Words(101), 100)


def test_added_rows_are_never_the_answer() -> None:
  """The mean of the rows has the mean of their logits."""
  from align_jax.hub.export_vlm import ImageToken, with_rows
  from align_jax.hub.write import Tensor
  table = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  (grown,) = with_rows([Tensor("e", (5, 3), table.dtype, lambda: table)],
                       ["e"], ImageToken(5, 8, 3))
  rows = grown.make()
  assert rows.shape == grown.shape == (8, 3)
  np.testing.assert_array_equal(rows[:5], table)
  hidden = np.random.default_rng(1).normal(size=(1000, 3)) - 5
  logits = hidden @ rows.T
  assert (logits[:, 5:].max(-1) < logits[:, :5].max(-1)).all()


def test_the_verbs_take_a_folder_for_a_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  """Also with an added row, as the vocabulary here has no spare one."""
  hf.save(tmp_path / "in")
  hf.picture(20, 14).save(tmp_path / "a.png")
  monkeypatch.chdir(tmp_path)
  assert main(["generate", "in", "--image", "a.png", "--prompt", WORDS,
               "--max-new-tokens", "4", "--json"]) == 0
  said = json.loads(capsys.readouterr().out)["answer"]
  run = align_jax.load_vlm(tmp_path / "in")
  assert run.generate("a.png", WORDS, 4) == said
  assert main(["inspect", "run", "in", "--image", "a.png", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["report"] == (
      "runs/hub/in/inspect/report.html")
  assert main(["evaluate", "in", "--json"]) == 2
  assert "names no task; give --task" in capsys.readouterr().err
  assert main(["evaluate", "in", "--task", "easy_vqa", "--limit", "8",
               "--no-probe", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["n"] == 8
  assert (tmp_path / "runs/hub/in/eval/easy_vqa.json").is_file()
  assert main(["generate", "no/where", "--prompt", "x"]) == 2
  assert "Hub or its cache" in capsys.readouterr().err
