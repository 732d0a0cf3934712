"""Models by their id on the Hub, from a cache as the Hub's client keeps it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.cli.main import main
from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.faces import decoder_shapes, load_decoder
from align_jax.hub.hashes import sha256
from align_jax.hub.locate import hub_hash, locate, pinned, revision, unpinned
from align_jax.hub.pretrained import save_hf
from align_jax.hub.verify import verify
from align_jax.train.manifest import hash_files
from align_jax.validate import validate
from tests.evals import tiny_run

CONFIG = DecoderConfig(vocab_size=32, width=16, layers=2, heads=4, kv_heads=2,
                       mlp_width=24, tied_head=False)
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def cached(cache: Path, name: str, folder: Path, ref: str) -> Path:
  """Puts a folder into a cache: blobs by hash, links to them, a ref."""
  home = cache / f"models--{name.replace('/', '--')}"
  snapshot = home / "snapshots" / COMMITS[ref]
  snapshot.mkdir(parents=True)
  (home / "blobs").mkdir(exist_ok=True)
  (home / "refs").mkdir(exist_ok=True)
  (home / "refs" / ref).write_text(COMMITS[ref])
  for file in (f for f in folder.iterdir() if f.is_file()):
    data = file.read_bytes()
    large = file.suffix == ".safetensors"
    digest = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
    blob = home / "blobs" / digest
    blob.write_bytes(data)
    (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
  return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A cache with org/tiny at two revisions."""
  home = tmp_path / "cache"
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  for seed, ref in enumerate(COMMITS):
    folder = tmp_path / ref
    rng = np.random.default_rng(seed)
    save_hf({k: jnp.asarray(rng.normal(size=s.shape), jnp.float32)
             for k, s in _flat().items()}, "llama", CONFIG, folder)
    cached(home, "org/tiny", folder, ref)
  return home


def _flat() -> dict[str, Any]:
  from flax.traverse_util import flatten_dict
  return flatten_dict(decoder_shapes(CONFIG), sep="/")


def test_an_id_loads_and_its_revision_is_known(cache: Path) -> None:
  for given, commit in (("org/tiny", "a" * 40), ("org/tiny@v1", "b" * 40),
                        (f"org/tiny@{'b' * 40}", "b" * 40)):
    assert pinned(given) == f"org/tiny@{commit}"
    model = load_decoder(given)
    assert revision(model.spec.path) == f"org/tiny@{commit}"
  assert unpinned("org/tiny@v1") == "org/tiny"
  first, second = load_decoder("org/tiny"), load_decoder("org/tiny@v1")
  assert not np.array_equal(first.params["embed_vd"],
                            second.params["embed_vd"])


def test_hashes_come_from_the_hubs_metadata(
    cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  file = locate("org/tiny") / "model.safetensors"
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  assert hub_hash(file) == digest
  assert hub_hash(file.with_name("config.json")) == ""

  def never(path: Path) -> str:
    raise AssertionError(f"{path} was read")

  monkeypatch.setattr("align_jax.hub.hashes.computed", never)
  assert hash_files({"x": f"{file}:embed"}) == {str(file): digest}


def test_a_name_that_is_nowhere_says_so(cache: Path) -> None:
  with pytest.raises(InputError) as error:
    locate("org/tine")
  assert "there is no folder 'org/tine' here" in str(error.value)
  assert "Hub or its cache" in str(error.value)
  with pytest.raises(InputError, match="at revision 'v9'"):
    locate("org/tiny@v9")


def test_a_folder_comes_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  (tmp_path / "org" / "tiny").mkdir(parents=True)
  assert locate("org/tiny") == Path("org/tiny")
  assert pinned("org/tiny") == "org/tiny"


def test_verify_a_hub_model(cache: Path) -> None:
  done = verify("org/tiny")
  assert done["revision"] == f"org/tiny@{'a' * 40}"
  file = locate("org/tiny") / "model.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.resolve().write_bytes(data)
  with pytest.raises(InputError, match="is not what the Hub has"):
    verify("org/tiny")


def test_verify_leaves_hashes_that_hold_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  save_hf({k: jnp.zeros(s.shape) for k, s in _flat().items()}, "llama",
          CONFIG, tmp_path)
  file = tmp_path / "model.safetensors"
  done = verify(tmp_path)
  assert done["files"] == {
      "model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
  plain = hashlib.file_digest
  read = []
  monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: (
      read.append(stream.name), plain(stream, kind))[1])
  assert sha256(file) == done["files"]["model.safetensors"] and not read
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  assert sha256(file) != done["files"]["model.safetensors"] and read


def test_verify_names_what_does_not_fit(tmp_path: Path) -> None:
  params = {k: jnp.zeros(s.shape) for k, s in _flat().items()}
  save_hf(params, "llama", CONFIG, tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  config["num_hidden_layers"] = 3
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match="missing 'model.layers.2.mlp.up_proj"):
    verify(tmp_path)
  assert not (tmp_path / "sha256.json").exists()


def test_a_run_keeps_its_revision(cache: Path, tmp_path: Path) -> None:
  """Trained at main, gone on with after main has moved."""
  from align_jax.train.loop import train
  given = tiny_run.config(tmp_path / "words", steps=2)
  given["model"]["decoder"] = {"weights": "org/wide", "tokenizer":
                               given["model"]["decoder"]["tokenizer"]}
  wide = DecoderConfig(vocab_size=80, width=16, layers=1, heads=2,
                       mlp_width=16)
  for ref, value in (("main", 0.1), ("v1", 0.2)):
    folder = tmp_path / f"wide_{ref}"
    from flax.traverse_util import flatten_dict
    save_hf({k: jnp.full(s.shape, value) for k, s in flatten_dict(
        decoder_shapes(wide), sep="/").items()}, "llama", wide, folder)
    cached(cache, "org/wide", folder, ref)
  run = tmp_path / "run"
  train(validate(given), run, show=False)
  config = json.loads((run / "config.json").read_text())
  assert config["model"]["decoder"]["weights"] == f"org/wide@{'a' * 40}"
  about = json.loads((run / "manifest.json").read_text())
  assert set(about["revisions"].values()) == {f"org/wide@{'a' * 40}"}
  assert about["revisions"].keys() == about["files"].keys()
  (cache / "models--org--wide" / "refs" / "main").write_text("b" * 40)
  (run / "result.json").unlink()
  train(validate(given), run, show=False)  # the same run, the same weights
  assert verify(run)["kind"] == "run"


@pytest.mark.slow
def test_the_verbs_take_an_id_for_a_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  pytest.importorskip("torch")
  from tests.hub import llava_folder as hf
  home = tmp_path / "cache"
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  hf.save(tmp_path / "in")
  cached(home, "org/llava", tmp_path / "in", "v1")
  hf.picture(20, 14).save(tmp_path / "a.png")
  monkeypatch.chdir(tmp_path)
  said = []
  for run in ("in", "org/llava@v1"):
    assert main(["generate", run, "--image", "a.png", "--prompt", "what ?",
                 "--max-new-tokens", "4", "--json"]) == 0
    said.append(json.loads(capsys.readouterr().out)["answer"])
  assert said[0] == said[1]
  assert main(["inspect", "run", run, "--image", "a.png", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["report"] == (
      "runs/hub/org--llava/inspect/report.html")
  assert main(["evaluate", run, "--task", "easy_vqa", "--limit", "8",
               "--no-probe", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["n"] == 8
