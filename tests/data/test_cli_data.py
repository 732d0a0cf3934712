"""`align-jax data`, as it is called."""

import json
import re
from types import SimpleNamespace

import pytest

from align_jax.cli import data as verb
from align_jax.cli.main import main
from align_jax.config import Config, DataConfig, ModelConfig, SourceConfig
from align_jax.data.images import ImageReader
from align_jax.data.render import Renderer
from tests.data.samples import word_tokenizer


@pytest.fixture
def config(tmp_path, monkeypatch):
  """`show` with a config and parts that need no weights."""
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"id": i, "conversations": [
      {"from": "human", "value": "what color?"},
      {"from": "gpt", "value": "blue " * i}]}) + "\n" for i in (1, 2, 3))
                  + '{"id": 4, "conversations": []}\n')
  made = Config("x", ModelConfig(), DataConfig(sources={
      "pets": SourceConfig("llava", {"path": str(path)})}, row_length=64,
      labels_per_row=3), ())
  monkeypatch.setattr(verb, "load_config", lambda spec, overrides: {})
  monkeypatch.setattr("align_jax.validate.validate", lambda *_: made)
  monkeypatch.setattr("align_jax.build.build", lambda *_: print(
      "what a library says") or SimpleNamespace(
          tokenizer=word_tokenizer(),
          reader=lambda data: ImageReader(None, 8, data.max_pixels),
          renderer=lambda data: Renderer(word_tokenizer(), data.template, 4)))
  return path


def test_show(config, capsys):
  assert main(["data", "show", "--config", "x", "--n", "9"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("source pets: 4 examples\n\n1 (")
  assert f"1 ({config}:1)" in out
  assert re.search(r"\n +\d+ +\* +blue\n", out)
  assert "REFUSED in training: 4 supervised positions, more than" in out
  assert f"({config}:4)\nREFUSED in training: no \"conversations\"" in out


def test_show_as_json(config, capsys):
  assert main(["data", "show", "--config", "x", "--source", "pets", "--n",
               "4", "--json"]) == 0
  shown = json.loads(capsys.readouterr().out)["examples"]
  assert [s["source"] for s in shown] == ["pets"] * 4
  assert [bool(s["refused"]) for s in shown] == [False, False, True, True]
  assert len(shown[0]["tokens"]) == len(shown[0]["loss_weights"]) > 0


def test_show_an_unknown_source(config, capsys):
  assert main(["data", "show", "--config", "x", "--source", "pet"]) == 2
  assert "did you mean 'pets'" in capsys.readouterr().err


def test_build(tmp_path, capsys):
  command = ["data", "build", "easy_vqa", "--data-dir", str(tmp_path)]
  assert main([*command, "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == {
      "folder": str(tmp_path / "easy_vqa" / "1.0.0"),
      "splits": {"train": 4000, "test": 1000}}
  assert main(command) == 0
  assert "train 4,000, test 1,000 images" in capsys.readouterr().out
  assert main(["data", "build", "easyvqa"]) == 2
  assert "did you mean 'easy_vqa'" in capsys.readouterr().err
