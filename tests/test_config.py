"""Configs: found by name or file, overridden, and refused in one error."""

import dataclasses
import json
from pathlib import Path

import pytest

from align_jax.config import (
  Config,
  config_names,
  differences,
  find_config,
  load_config,
  plain,
)
from align_jax.connectors import CONNECTORS
from align_jax.data import SOURCES
from align_jax.decoders import DECODERS
from align_jax.errors import ConfigError, InputError
from align_jax.evals.tasks import TASKS
from align_jax.objectives import OBJECTIVES
from align_jax.validate import check_rows, validate

GOLDEN = Path(__file__).parent / "golden" / "config_errors.txt"

CONFIG = '''
from ml_collections import ConfigDict


def get_config(arg="mlp"):
  return ConfigDict({
      "name": "tiny",
      "model": {
          "tower": {"kind": "clip", "config": {
              "image_size": 16, "patch_size": 8, "width": 8, "layers": 1,
              "heads": 1, "mlp_width": 8}},
          "decoder": {"weights": "configs"},
          "connector": {"kind": arg},
      },
      "data": {
          "sources": {"chats": {"kind": "llava", "options": {
              "path": "chats.json"}}},
          "rows": 4},
      "stages": [{
          "name": "align", "steps": 10, "train": {"connector/*": 1e-3},
          "data": {"chats": 1},
      }],
  })
'''

WRONG = {
    "nane": "tiny",
    "name": "tiny",
    "seed": "0",
    "imports": ["no_such_module"],
    "model": {
        "tower": {"layer": -1.5},
        "decoder": {"kind": "llama", "tokenizer": "no/such/folder",
                    "config": {"vocab_size": 16, "widht": 8, "layers": 1,
                               "heads": 1}},
        "connector": {"kind": "mpl"},
        "dtype": "bf16",
        "remat": "ful",
    },
    "data": {
        "sources": {"chats": {"kind": "lava"},
                    "shapes": {"kind": "views", "options": {
                        "copy": 2, "source": {
                            "kind": "easy_vqa",
                            "options": {"splits": "train"}}}}},
        "template": "caption",
        "rows": 6,
        "streams": 4,
        "row_length": 32,
        "labels_per_row": 64,
        "on_bad_sample": "quarantined",
        "pack": 1,
    },
    "mesh": {"data": -1, "fsdp": -1, "tensor": 0},
    "eval": {"task": "easy_vqa", "options": {"slpit": "test"}},
    "stages": [
        {"name": "align", "steps": 0, "train": {"conector/*": 1e-3},
         "data": {"chat": 1.0}},
        {"name": "align", "steps": 10, "train": {"connector/*": 0},
         "objectives": {"next_tokens": 1.0}, "accumulate": 4,
         "schedule": "cosin"},
        {"name": "pairs", "steps": 10, "train": {"tower/*": 1e-4},
         "objectives": {"contrastive": 1.0}, "accumulate": 2, "warmup": 20},
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  (tmp_path / "configs" / "mini").mkdir(parents=True)
  (tmp_path / "configs" / "mini" / "tiny.py").write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_every_fault_in_one_error(monkeypatch):
  # The lists of what is known grow; these are what the golden text shows.
  for table, names in ((CONNECTORS, ("align", "linear", "mlp")),
                       (SOURCES, ("easy_vqa", "llava", "views")),
                       (TASKS, ("easy_vqa",)), (DECODERS, ("llama",)),
                       (OBJECTIVES, ("contrastive", "next_token"))):
    monkeypatch.setattr(table, "_entries",
                        {name: table._entries[name] for name in names})
  with pytest.raises(ConfigError) as raised:
    validate(WRONG, "configs/wrong.py")
  assert str(raised.value) + "\n" == GOLDEN.read_text()


def faults(values: dict) -> list[str]:
  with pytest.raises(ConfigError) as raised:
    validate(values)
  return raised.value.faults


def clip() -> dict:
  sizes = {"width": 8, "layers": 1, "heads": 1, "mlp_width": 8}
  return {
      "name": "pairs",
      "model": {
          "kind": "clip",
          "tower": {"kind": "siglip", "config": {
              "image_size": 16, "patch_size": 8, **sizes}},
          "text": {"config": {"vocab_size": 16, "max_positions": 8,
                              "eos_token": 3, "embed_width": 8, **sizes}}},
      "data": {"sources": {"shapes": {"kind": "easy_vqa"}},
               "template": "caption", "pack": False},
      "stages": [{"name": "pairs", "steps": 10, "train": {"*": 1e-4},
                  "objectives": {"contrastive": 1.0}}]}


def test_a_clip_model_needs_one_image_and_caption_a_row():
  assert validate(clip()).data.images_per_row == 1
  given = clip()
  given["data"] |= {"template": "chat", "pack": True, "images_per_row": 2}
  given["stages"][0]["objectives"] = {"next_token": 1.0}
  assert faults(given) == [
      "data.template: a clip model needs 'caption', here it is 'chat'",
      "data.pack: a clip model needs False, here it is True",
      "data.images_per_row: a clip model needs 1, here it is 2",
      "stages[0].objectives: 'next_token' is for a vlm model, and model.kind "
      "is 'clip'"]


def test_an_objective_may_be_for_any_model(monkeypatch):
  class Own:
    coupled = False

  monkeypatch.setitem(OBJECTIVES._entries, "own", Own)
  given = clip()
  given["stages"][0]["objectives"] = {"own": 1.0}
  assert validate(given).stages[0].objectives == {"own": 1.0}


def test_sizes_of_parts_are_known_by_name():
  given = clip()
  tower = given["model"]["tower"]
  tower["config"]["patchsize"] = tower["config"].pop("patch_size")
  del given["model"]["text"]["config"]["embed_width"]
  found = faults(given)
  assert found[0].startswith("model.tower.config.patchsize: unknown field; "
                             "did you mean 'patch_size'? (known: image_size")
  assert found[1:] == ["model.tower.config.patch_size: missing",
                       "model.text.config.embed_width: missing"]
  tower["config"] |= {"patch_size": 8, "width": 7, "heads": 2}
  del tower["config"]["patchsize"]
  assert "width 7 is no multiple of heads 2" in faults(given)[0]
  tower["kind"] = "siglop"
  assert faults(given)[0].startswith(
      "model.tower.kind: unknown tower 'siglop'; did you mean 'siglip'?")


def test_weights_that_are_not_there(tmp_path):
  (tmp_path / "tower").mkdir()
  given = clip()
  given["model"]["tower"] = {"weights": str(tmp_path / "towers")}
  given["model"]["text"] = {}
  (fault,) = faults(given)
  assert fault.startswith("model.tower.weights: ")
  assert fault.endswith("did you mean 'tower'?")


def test_the_source_of_views_is_checked():
  given = clip()
  shapes = given["data"]["sources"]["shapes"] = {"kind": "views"}
  for source, words in (
      ({"kind": "lava"}, "source.kind: unknown source 'lava'"),
      ({"knid": "llava"}, "source.knid: unknown field"),
      ("llava", "source: expected fields")):
    shapes["options"] = {"source": source}
    assert faults(given)[0].startswith(
        f"data.sources.shapes.options.{words}")


def test_options_that_a_source_needs():
  with pytest.raises(ConfigError) as error:
    validate({"name": "x", "data": {"sources": {"chats": {"kind": "llava"}}}})
  assert "data.sources.chats.options.path: missing" in str(error.value)


def test_found_by_name_and_by_file(folder):
  path = folder / "configs" / "mini" / "tiny.py"
  for spec in ("mini/tiny", str(path), "configs/mini/tiny.py"):
    config = validate(load_config(spec))
    assert config.model.connector.kind == "mlp"
    assert config.stages[0].data == {"chats": 1.0}
    assert config.stages[0].objectives == {"next_token": 1.0}


def test_found_in_an_installed_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  package = tmp_path / "site" / "align_jax"
  (package / "configs").mkdir(parents=True)
  (package / "configs" / "own.py").write_text(CONFIG)
  monkeypatch.setattr("align_jax.config.__file__", str(package / "config.py"))
  assert find_config("own") == package / "configs" / "own.py"
  # A study is found likewise, and is no config.
  (package / "configs" / "which.py").write_text(
      "def get_study():\n  return None  # get_config would not do\n")
  assert find_config("which", "study") == package / "configs" / "which.py"
  assert (config_names(), config_names("study")) == (["own"], ["which"])


def test_argument_and_overrides(folder):
  config = validate(load_config("mini/tiny:align", [
      "data.rows=8", "stages[0].steps=20", "name=007", "data.pack=false",
      "stages[0].train.tower/layers[-1]/*=1e-5", "seed=3",
      "model.tower.config.width=16",
  ]))
  assert config.model.connector.kind == "align"
  assert config.data.rows == 8 and not config.data.pack
  assert config.stages[0].steps == 20
  assert config.stages[0].train == {
      "connector/*": 1e-3, "tower/layers[-1]/*": 1e-5}
  assert config.name == "007"
  assert config.model.tower.config["width"] == 16


def test_overrides_are_checked(folder):
  with pytest.raises(ConfigError, match="no place in a list of 1"):
    load_config("mini/tiny", ["stages[3].steps=20"])
  with pytest.raises(ConfigError, match="no group of fields"):
    load_config("mini/tiny", ["name.first=a"])
  with pytest.raises(ConfigError, match="FIELD=VALUE"):
    load_config("mini/tiny", ["name"])
  with pytest.raises(ConfigError) as raised:
    validate(load_config("mini/tiny", ["data.row=8", "data.rows=eight"]))
  assert raised.value.faults == [
      "data.row: unknown field; did you mean 'rows'?",
      "data.rows: expected int, got 'eight' (str)"]


def test_a_stage_has_a_batch_of_its_own(folder):
  config = validate(load_config("mini/tiny", [
      "data.template=plain", "stages[0].batch.rows=6",
      "stages[0].batch.template=chat"]))
  own = config.of(config.stages[0])
  assert (own.data.rows, own.data.template) == (6, "chat")
  assert (config.data.rows, config.data.template) == (4, "plain")
  assert own.data.sources == config.data.sources
  with pytest.raises(ConfigError, match="a microbatch of 6 rows"):
    check_rows(config, 4)
  with pytest.raises(ConfigError) as raised:
    validate(load_config("mini/tiny", [
        "stages[0].batch.row=6", "stages[0].batch.streams=2",
        "stages[0].batch.template=chats"]))
  assert [f[:60] for f in raised.value.faults] == [
      "stages[0].batch.row: a stage cannot set this; did you mean '",
      "stages[0].batch.streams: a stage cannot set this (it can set",
      "stages[0].batch.template: 'chats' is none of chat, processor"]
  with pytest.raises(ConfigError) as raised:
    validate(load_config("mini/tiny", [
        "data.streams=4", "stages[0].batch.rows=6", "stages[0].accumulate=4",
        "stages[0].batch.labels_per_row=900"]))
  assert raised.value.faults == [
      "stages[0].batch.labels_per_row: 900 labels cannot lie in a row of 256 "
      "tokens",
      "stages[0].batch.rows: 4 streams cannot fill 6 rows evenly",
      "stages[0].accumulate: 6 rows do not split into 4 equal microbatches"]


def test_unknown_config_names_the_nearest(folder):
  with pytest.raises(InputError, match="did you mean 'mini/tiny'"):
    load_config("mini/tinny")


def test_an_argument_nobody_takes(folder):
  (folder / "plain.py").write_text("def get_config():\n  return {}\n")
  with pytest.raises(InputError, match="takes no argument, got 'x'"):
    load_config("plain.py:x")
  (folder / "empty.py").write_text("")
  with pytest.raises(InputError, match="no get_config"):
    load_config("empty.py")


def test_resolved_config_reloads(folder):
  config = validate(load_config("mini/tiny"))
  (folder / "config.json").write_text(json.dumps(plain(config)))
  again = validate(load_config(str(folder / "config.json")))
  assert again == config
  assert isinstance(again, Config)


def test_a_users_own_connector(folder, monkeypatch):
  (folder / "my_connectors.py").write_text('''
from align_jax.connectors import CONNECTORS
from align_jax.connectors.protocol import Connector


@CONNECTORS.register("test_config_own")
class Own(Connector):
  depth: int = 2
''')
  monkeypatch.syspath_prepend(str(folder))
  monkeypatch.setattr(CONNECTORS, "_entries", dict(CONNECTORS._entries))
  given = plain(load_config("mini/tiny:test_config_own"))
  with pytest.raises(ConfigError, match="unknown connector"):
    validate(given)
  given["imports"] = ["my_connectors"]
  given["model"]["connector"]["options"] = {"depth": 3}
  assert validate(given).model.connector.options == {"depth": 3}
  given["model"]["connector"]["options"] = {"dept": 3}
  with pytest.raises(ConfigError, match="did you mean 'depth'"):
    validate(given)


def test_rows_must_be_shared_evenly(folder):
  config = validate(load_config("mini/tiny", ["stages[0].accumulate=2"]))
  check_rows(config, 2)
  with pytest.raises(ConfigError, match="microbatch of 2 rows"):
    check_rows(config, 4)


def test_differences_are_named():
  config = Config(name="a", model=None, data=None, stages=())
  other = dataclasses.replace(config, name="b", imports=("x",))
  assert differences(plain(config), plain(other)) == [
      "imports: saved [], given ['x']", "name: saved 'a', given 'b'"]
