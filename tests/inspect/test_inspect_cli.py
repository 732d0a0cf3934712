"""`align-jax inspect run`: words, figures, pictures and the page."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import align_jax
from align_jax import api
from align_jax.cli.main import main
from align_jax.inspect import look, pictures, words
from align_jax.inspect.words import Words
from tests.evals import tiny_run
from tests.inspect.test_report import EVALUATION

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def align():
  """A run whose connector mixes words."""
  return align_jax.load_run(tiny_run.shared("align"))


@pytest.fixture
def loaded(align, monkeypatch: pytest.MonkeyPatch) -> Path:
  monkeypatch.setattr(api, "load_run", lambda workdir, **options: align)
  return align.workdir


def test_inspect_writes_everything(loaded: Path, capsys):
  assert main(["inspect", "run", str(loaded), "--images", "2",
               "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["tokens_per_image"] == 4 and len(result["pictures"]) == 2
  for file in result["pictures"]:
    assert min(Image.open(file).size) > 700
  page = Path(result["report"]).read_text()
  assert "Not evaluated yet" in page and "The distribution" in page
  assert page.count("data:image/png") == 2 + 2 + 1
  told = json.loads(Path(result["words"]).read_text())["images"]
  assert len(told) == 2 and len(told[0]) == 4
  token = told[0][0]
  assert len(token["nearest"]) == len(token["top"]) == 5
  assert 0 <= token["entropy"] <= math.log(80) + 1e-4
  assert 1 <= token["effective_words"] <= 80


def test_evaluated_questions_are_shown(loaded: Path, capsys):
  folder = loaded / "eval"
  folder.mkdir(exist_ok=True)
  lines = [{"image": i, "type": t, "question": f"{t}?", "answer": "no",
            "prediction": "unheard of", "right": False}
           for i in (5, 9) for t in ("a", "b", "c", "a", "a")]
  (folder / "easy_vqa.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in lines))
  (folder / "easy_vqa.json").write_text(json.dumps(EVALUATION | {
      "train": {"name": "tiny"}, "step": 2}))
  assert main(["inspect", "run", str(loaded), "--images", "1"]) == 0
  page = (loaded / "inspect" / "report.html").read_text()
  assert page.count("unheard of") == look.QUESTIONS
  assert len(list((loaded / "inspect").glob("image_*.png"))) == 1
  out = capsys.readouterr().out
  assert "entropy" in out
  assert out.splitlines()[-1].startswith(
      "tiny: 91.2 % of 500 test questions right, +24.2 points over what needs "
      "no looking; report: ")
  # An evaluation of another step is none of these weights.
  (folder / "easy_vqa.json").write_text(json.dumps(EVALUATION | {
      "train": {"name": "tiny"}, "step": 1}))
  assert main(["inspect", "run", str(loaded), "--images", "1"]) == 0
  page = (loaded / "inspect" / "report.html").read_text()
  assert "Not evaluated yet" in page and "unheard of" not in page
  captured = capsys.readouterr()
  assert "are of step 1, the run is at step 2: left out" in captured.err
  assert "test questions right" not in captured.out
  (folder / "easy_vqa.jsonl").unlink()
  (folder / "easy_vqa.json").unlink()


def test_own_images(loaded: Path, tmp_path: Path, capsys):
  Image.new("RGB", (30, 20), (9, 9, 200)).save(tmp_path / "mine.png")
  assert main(["inspect", "run", "--workdir", str(loaded), "--image",
               str(tmp_path / "mine.png"), "--json"]) == 0
  assert len(json.loads(capsys.readouterr().out)["pictures"]) == 1


def test_distribution_is_what_makes_the_token(align):
  pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  probs = align.distribution(list(pixels))
  assert probs.shape == (3, 4, 80)
  np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
      probs @ align.embeddings, align.visual_tokens(list(pixels)), atol=1e-5)
  seen = look.look(align, list(pixels), k=3)
  assert seen.top.ids.shape == (12, 3)
  np.testing.assert_allclose(seen.top.scores[:, 0],
                             probs.max(-1).reshape(-1), rtol=1e-5)
  figures = look.distribution(align, seen, k=7)
  assert figures["tokens"] == 12 and len(figures["words"]) == 7
  best = probs.reshape(-1, 80).mean(0).argmax()
  assert figures["words"][0][1] == pytest.approx(
      probs.reshape(-1, 80).mean(0)[best], rel=1e-4)


def test_a_class_token_lies_over_no_patch(align, monkeypatch):
  pixels = np.zeros((1, 16, 16, 3), np.uint8)
  seen = look.look(align, list(pixels), k=3)
  five = dataclasses.replace(  # a class token, then the four patches
      seen, tokens=np.zeros((1, 5, 16)), top=Words(
          np.arange(15).reshape(5, 3), np.ones((5, 3))))
  assert look.draw(align, five, 0) is None  # no class token in this tower
  tower = dataclasses.replace(align.config.model.tower, class_token=True)
  model = dataclasses.replace(align.config.model, tower=tower)
  run = dataclasses.replace(
      align, config=dataclasses.replace(align.config, model=model))
  drawn = []
  monkeypatch.setattr(pictures, "words_over_patches",
                      lambda *args: drawn.append(args) or b"png")
  assert look.draw(run, five, 0) == b"png"
  assert drawn[0][1][0][0] == words.show(run.tokenizer, 3)
  assert len(drawn[0][1]) == len(drawn[0][2]) == 4
  assert "Class token: " in drawn[0][4]


def test_losses_survive_a_torn_line(tmp_path: Path):
  (tmp_path / "metrics.jsonl").write_text(
      '{"step": 2, "loss": 1.5}\n{"step": 1, "loss": 2.0}\n'
      '{"step": 2, "loss": 1.4}\n{"step": 3, "lo')
  assert look.losses(tmp_path) == [(1.0, 2.0), (2.0, 1.4)]
  assert look.losses(tmp_path / "none") == []
