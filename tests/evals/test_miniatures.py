"""The miniatures end to end: everything that a study's command does, tiny."""

import contextlib
import dataclasses
import importlib.util
import io
import json

import pytest

pytest.importorskip("fontawesomefree")

from align_jax.cli.main import main  # noqa: E402
from align_jax.config import load_config  # noqa: E402
from align_jax.evals import study  # noqa: E402
from align_jax.evals.preparation import Preparation  # noqa: E402
from align_jax.validate import validate  # noqa: E402

FEW = "24"
# Sizes of the preparations' models, by what they are trained from.
TINY = {
    "mini/lm": ("model.decoder.config.width=32",
                "model.decoder.config.layers=3",
                "model.decoder.config.heads=2",
                "model.decoder.config.mlp_width=32", "data.rows=2"),
    "mini/icon_clip": ("model.tower.config.width=16",
                       "model.tower.config.layers=2",
                       "model.text.config.width=16", "data.rows=8"),
    "mini/doc_clip": ("model.tower.config.width=20",
                      "model.tower.config.layers=2",
                      "model.text.config.width=16", "data.rows=8"),
    "mini/sam": ("data.rows=4",),
}


def in_this_process(command: list[str]) -> str:
  """Runs `align-jax ...` here, which spares the imports."""
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    assert main(command[1:]) == 0, command
  return said.getvalue()


def small(preparation: Preparation) -> Preparation:
  """The same with few scenes, few steps and small models."""
  commands = []
  for command in preparation.commands:
    if command[:2] == ("data", "tokenizer"):
      commands.append(command)  # of a few scenes words would be cut to letters
      continue
    command = [few(word) for word in command]
    for name, sizes in TINY.items():
      if any(word.startswith(f"{name}:") for word in command):
        given = load_config(command[command.index("--config") + 1])
        command += [f"--config.{size}" for size in (
            *sizes, *(f"stages[{at}].steps=2"
                      for at in range(len(given.stages))),
            *(f"data.sources.{s}={few(source.to_json())}"
              for s, source in given.data.sources.items()))]
    commands.append(tuple(command))
  return dataclasses.replace(preparation, commands=tuple(commands))


def few(text: str) -> str:
  """A source in JSON with 24 scenes or sets; any other text as it is."""
  if not text.startswith('{"'):
    return text
  source = json.loads(text)
  inner = source
  while inner:  # of a source that reads another, that one has the samples
    options = inner.get("options", {})
    for name in ("scenes", "sets", "documents"):
      if name in options:
        options[name] = int(FEW)
    if options.get("known"):  # more words than so few samples have
      options["known"] = options["words"]
    inner = options.get("source")
  return json.dumps(source)


def run_one(name: str, cell: str, overrides: dict, tmp_path, monkeypatch):
  """The results of a study of which one tiny cell was run."""
  monkeypatch.syspath_prepend(str(tmp_path))
  plan = study.load_study(name)
  one = plan.cells[cell]
  own = load_config(one.config)
  sources = {f"data.sources.{n}": few_of(source.to_dict())
             for n, source in own.data.sources.items()}
  one = dataclasses.replace(one, overrides={
      **overrides, **sources, "eval.batch": 4})
  plan = dataclasses.replace(
      plan, cells=plan.cells | {cell: one}, tuning=None,
      prepare=tuple(map(small, plan.prepare)))
  return study.run_study(plan, tmp_path / "work", tmp_path / "results", cell,
                         runner=in_this_process)


def few_of(source: dict) -> dict:
  if "source" in source["options"]:
    source["options"]["source"] = few_of(source["options"]["source"])
    return source
  return json.loads(few(json.dumps(source)))


@pytest.mark.slow
def test_a_cell_of_sea(tmp_path, monkeypatch):
  results = run_one("mini/study_sea", "recommended-0", {
      "stages[0].steps": 3, "stages[1].steps": 2, "data.rows": 2,
      "eval.options": {"scenes": 12, "train_scenes": 20}},
      tmp_path, monkeypatch)
  figures = results["cells"]["recommended-0"]["figures"]
  measured = figures["measures"]
  assert {"hit_rate", "modality_gap", "tacs", "norm_ratio",
          "perplexity", "label_hit_rate",
          "label_chance"} <= measured.keys()
  assert measured["tokens"] >= 50_000 and measured["words"] >= 1200
  assert figures["train"]["stages"]["pretrain"]["weight_sea"] > 1
  assert 0 <= figures["likelihood_accuracy"] <= 1
  # What was prepared is there for the other arms.
  made = sorted(p.name for p in (tmp_path / "work/prepared").iterdir())
  assert made == ["features", "labels_minus", "labels_paper",
                  "labels_recommended", "labels_shuffled", "labels_true",
                  "lm", "tower", "words"]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ("sam-0", "vpg_c-0", "stories_sam-0"))
def test_a_cell_of_sam(tmp_path, monkeypatch, cell):
  results = run_one("mini/study_sam", cell, {
      "stages[0].steps": 2, "data.rows": 4, "eval.options": dict(
          sets=4, train_sets=20, things=6, words=112)}, tmp_path, monkeypatch)
  figures = results["cells"][cell]["figures"]
  story = cell.startswith("stories")
  assert figures["measures"]["chance"] == 0.25
  assert ("cider" in figures["measures"]) == story
  assert set(figures["by_type"]) == {
      f"{n + story} pictures" for n in (2, 3, 4)}
  e, c, d = 64, 16, 32
  assert figures["train"]["trained_parameters"] == (
      3 * e + d * e + e + e * d + d if cell == "vpg_c-0"
      else 2 * (e * e + e) + c + 1)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ("align_random_table-0", "c_abstractor-0"))
def test_a_cell_of_alignvlm(tmp_path, monkeypatch, cell):
  if importlib.util.find_spec("vega_datasets") is None:
    pytest.skip("vega-datasets is not installed")
  results = run_one("mini/study_alignvlm", cell, {
      "stages[0].steps": 2, "data.rows": 2, "data.images_per_row": 2,
      "eval.options": {"documents": 6, "train_documents": 20}},
      tmp_path, monkeypatch)
  figures = results["cells"][cell]["figures"]
  assert set(figures["noise"]) == {"0", "0.5", "1", "2", "3"}
  assert 0 <= figures["likelihood_accuracy"] <= 1
  assert figures["train"]["trained_parameters"] > 8 * 32


@pytest.mark.parametrize("name, folder", (
    ("mini/study_sea", "mini/sea"), ("mini/study_sam", "mini/sam"),
    ("mini/study_alignvlm", "mini/alignvlm")))
def test_every_cell_is_a_config_that_can_be(name, folder, tmp_path):
  plan = study.load_study(name)
  for one in plan.cells.values():
    assert one.config.startswith(f"{folder}:")
  # Apart from what is prepared, which is not there yet.
  from align_jax.errors import ConfigError
  for spec in {cell.config for cell in plan.cells.values()}:
    try:
      validate(load_config(spec.replace("{work}", str(tmp_path))), spec)
    except ConfigError as error:
      lines = [line for line in str(error).splitlines()[1:] if line.strip()]
      assert lines and all(str(tmp_path) in line for line in lines), error
