"""LoRA, prompt tokens and a connector of one's own, from training to export."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import align_jax
from align_jax.build import build, init_params
from align_jax.cli.main import main
from align_jax.config import MeshConfig
from align_jax.connectors.protocol import Context
from align_jax.errors import InputError
from align_jax.hub.connector_file import read_connector
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.train.loop import train
from align_jax.train.restore import restore
from align_jax.train.select import flatten
from align_jax.validate import validate
from tests.evals import tiny_run

pytest.importorskip("easy_vqa")
PROMPT = 3


def _config(folder: Path) -> dict:
  config = tiny_run.config(folder / "tokenizer", "align", steps=3)
  config["model"]["connector"]["options"] = dict(preset="released_code")
  config["model"] |= dict(lora=dict(rank=2, targets=["q", "o", "down"]),
                          prompt_tokens=PROMPT)
  config["stages"][0]["train"] = {
      "connector/*": 1e-2, "decoder/layers/*_lora_*": 1e-1,
      "prompt_xd": 1e-2}
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("adapters")
  train(validate(_config(folder)), folder / "run", show=False)
  return folder / "run"


@pytest.fixture(scope="module")
def loaded(run):
  return align_jax.load_run(run)


def test_what_is_trained_moves_and_comes_back(run):
  moved = json.loads((run / "audit" / "0.json").read_text())["moved"]
  assert "prompt_xd" in moved
  assert {p for p in moved if p.startswith("decoder/")} == {
      f"decoder/layers/{n}" for n in (
          "q_lora_dr", "q_lora_rhk", "o_lora_hkr", "o_lora_rd",
          "down_lora_fr", "down_lora_rd")}
  flat = flatten(restore(run).params)
  assert np.abs(flat["decoder/layers/q_lora_rhk"]).max() > 0


def test_the_prompt_stands_before_every_sample(loaded):
  example = {"id": "", "origin": "", "images": [], "conversation": [
      {"role": "user", "content": "what color"}]}
  visual = loaded.prompt(example).visual
  assert visual[:PROMPT].tolist() == [-2, -3, -4] and (
      visual[PROMPT:] == -1).all()
  changed = align_jax.api.Run(
      loaded.workdir, loaded.config, loaded.parts,
      loaded.params | {"prompt_xd": loaded.params["prompt_xd"] + 3}, 0)
  ids = [loaded.answer_tokens("blue")]
  score = lambda r: r.generator().score([r.prompt(example)], ids, r.read)
  assert np.abs(score(loaded) - score(changed)).max() > 1e-3


def test_a_run_answers_and_is_looked_into(loaded, tmp_path):
  image = np.full((16, 16, 3), 200, np.uint8)
  assert isinstance(loaded.generate(image, "what color", 2), str)
  assert loaded.distribution([image]).shape == (1, 4, 80)


def test_the_exported_decoder_is_the_one_with_its_adapters(
    run, loaded, tmp_path):
  assert main(["convert", "export", str(run), str(tmp_path), "--to",
               "hf-decoder"]) == 0
  whole = align_jax.load_decoder(tmp_path)
  assert not any("lora" in p for p in flatten(whole.params))
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  positions = np.tile(np.arange(6), (2, 1))

  def logits(model, params):
    def read(m):
      hidden, _ = m(m.embed(tokens), positions, np.ones_like(tokens))
      return m.logits(hidden)
    return np.asarray(model.apply({"params": params}, method=read))

  got = logits(whole.module, whole.params)
  decoder = loaded.model.decoder.clone(layout=Layout())
  own = jax.tree.map(np.asarray, loaded.params["decoder"])
  want = logits(decoder, own)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  bare = {k: v for k, v in own["layers"].items() if "lora" not in k}
  off = logits(decoder.clone(lora=None), own | {"layers": bare})
  assert np.abs(off - want).max() > 100 * np.abs(got - want).max()


def test_a_connector_alone_lands_on_another_mesh_with_the_same_outputs(
    run, loaded, tmp_path):
  folder = tmp_path / "connector"
  assert main(["convert", "export", str(run), str(folder), "--to",
               "connector"]) == 0
  spec = read_connector(folder)
  assert spec.config == {"connector": "align",
                         "options": {"preset": "released_code"}}
  config = _config(tmp_path)
  config["model"]["connector"]["weights"] = str(folder)
  config = validate(config)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  parts = build(config.model, Layout(mesh))
  params, origins = init_params(parts, mesh, ["connector/*"],
                                jax.random.key(7))
  assert origins["connector/w2_vd"].startswith(str(folder))
  assert tuple(params["connector"]["w2_vd"].sharding.spec) == (
      "tensor", "fsdp")

  features = np.random.default_rng(0).normal(size=(2, 1, 4, 16)).astype("f")
  embed = np.asarray(loaded.params["decoder"]["embed_vd"])

  def tokens(connector, params):
    context = Context(embed, np.ones((2, 1), np.int32), {}, embed)
    return np.asarray(jax.jit(lambda p: connector.apply(
        {"params": p}, features, None, context).tokens)(params))

  own = loaded.model.connector.clone(layout=Layout())
  want = tokens(own, jax.tree.map(np.asarray, loaded.params["connector"]))
  with jax.set_mesh(mesh):
    got = tokens(parts.model.connector, params["connector"])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_no_connector_is_refused(run, tmp_path, capsys):
  with pytest.raises(InputError, match="holds no connector"):
    read_connector(tmp_path)
  assert main(["convert", "export", str(run), str(tmp_path), "--to",
               "hf-llava"]) == 2
  assert "is not LLaVA's" in capsys.readouterr().err
  assert main(["convert", "export", str(run), str(tmp_path), "--to",
               "connector"]) == 0
  with pytest.raises(InputError, match="holds a connector 'align'"):
    read_connector(tmp_path, "mlp")
