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
from align_jax.errors import ConfigError, InputError
from align_jax.objectives import OBJECTIVES
from align_jax.validate import check_rows, validate

GOLDEN = Path(__file__).parent / "golden" / "config_errors.txt"

CONFIG = '''
from ml_collections import ConfigDict


def get_config(arg="mlp"):
  return ConfigDict({
      "name": "tiny",
      "model": {
          "tower": {"kind": "clip", "config": {"width": 8}},
          "decoder": {"weights": "some/folder"},
          "connector": {"kind": arg},
      },
      "data": {"sources": {"chats": {"kind": "llava"}}, "rows": 4},
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
        "decoder": {"weights": "some/folder"},
        "connector": {"kind": "mpl"},
        "dtype": "bf16",
        "remat": "ful",
    },
    "data": {
        "sources": {"chats": {"kind": "lava"}},
        "rows": 6,
        "streams": 4,
        "row_length": 32,
        "labels_per_row": 64,
        "on_bad_sample": "quarantined",
        "pack": 1,
    },
    "mesh": {"data": -1, "fsdp": -1, "tensor": 0},
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
                       (SOURCES, ("easy_vqa", "llava")),
                       (OBJECTIVES, ("contrastive", "next_token"))):
    monkeypatch.setattr(table, "_entries",
                        {name: table._entries[name] for name in names})
  with pytest.raises(ConfigError) as raised:
    validate(WRONG, "configs/wrong.py")
  assert str(raised.value) + "\n" == GOLDEN.read_text()


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
      "model.decoder.config.width=16",
  ]))
  assert config.model.connector.kind == "align"
  assert config.data.rows == 8 and not config.data.pack
  assert config.stages[0].steps == 20
  assert config.stages[0].train == {
      "connector/*": 1e-3, "tower/layers[-1]/*": 1e-5}
  assert config.name == "007"
  assert config.model.decoder.config == {"width": 16}


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
