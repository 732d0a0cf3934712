"""SEA's recipes: each is a config, and its numbers are the paper's."""

import importlib.util
import math
from pathlib import Path

import pytest

from align_jax.build import build
from align_jax.config import load_config
from align_jax.errors import InputError
from align_jax.hub.published import PUBLISHED
from align_jax.parallel import topology
from align_jax.validate import validate

FOLDER = Path(__file__).parents[2] / "configs" / "sea"


def plans(name: str) -> tuple[str, ...]:
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.PLANS


def read(name: str, arg: str = ""):
  path = f"{FOLDER / name}.py"
  return validate(load_config(f"{path}:{arg}" if arg else path), name)


def test_every_recipe_is_a_config_with_a_topology_of_its_size():
  names = set()
  for name in ("llava15", "prime"):
    for arg in plans(name):
      config = read(name, arg)
      names.add(config.name)
      count = topology.size(config.plan.topology)
      assert config.mesh.data * config.mesh.fsdp == count
      for stage in config.stages:
        assert config.of(stage).data.rows % count == 0
  assert len(names) == len(plans("llava15")) + len(plans("prime"))
  # With SEA and without: five LLMs, two more towers, the unfrozen one.
  assert len(plans("llava15")) == 16 and len(plans("prime")) == 5


def test_llava15_is_as_published():
  """scripts/v1_5/pretrain.sh, finetune.sh; App. B: "following LLaVA's"."""
  config = read("llava15")
  align, instruct = config.stages
  assert (align.steps, instruct.steps) == (2181, 5198)  # 558,128; 665,298
  first, second = config.of(align).data, config.of(instruct).data
  assert (first.rows, first.template) == (256, "plain")
  assert (second.rows, second.row_length, second.template) == (
      128, 2048, "chat")
  assert not first.pack and not second.pack
  assert align.train["connector/*"] == 1e-3
  assert instruct.train == {"connector/*": 2e-5, "decoder/*": 2e-5}
  for stage in config.stages:
    assert (stage.warmup, stage.weight_decay, stage.schedule) == (
        0.03, 0.0, "cosine")
  tower = config.model.tower
  assert (tower.published, tower.layer, tower.class_token) == (
      "clip_l14_336", -2, False)
  assert config.model.connector.kind == "mlp"


def test_sea_is_in_the_first_stage_alone_and_as_the_paper_has_it():
  config = read("llava15")
  align, instruct = config.stages
  assert align.objectives == {"next_token": 1.0, "sea": 1.0}
  assert instruct.objectives == {"next_token": 1.0}
  options = config.objective_options["sea"]
  assert (options["n"], options["window"]) == (10, 2)
  assert config.model.scalars == {"sea_log_scale": 0.0}
  assert "sea_log_scale" in align.train
  assert "sea_log_scale" not in instruct.train
  assert "decoder/*" not in align.train and "tower/*" not in align.train
  without = read("llava15", "sea=off")
  assert not without.objective_options and not without.model.scalars
  assert without.stages[0].train == {"connector/*": 1e-3}
  assert without.data.sources["captions"].kind == "llava_558k"
  assert [s.steps for s in without.stages] == [2181, 5198]


@pytest.mark.parametrize("tower, side, name", [
    ("clip", 24, "openai/clip-vit-large-patch14-336"),
    ("siglip", 27, "google/siglip-so400m-patch14-384"),
    ("dinov2", 16, "facebook/dinov2-large")])
def test_towers_and_the_pairs_of_a_batch(tower, side, name):
  """144 of 576 patches (section 3.2); 27 is no multiple of 2."""
  config = read("llava15", f"tower={tower}")
  assert PUBLISHED[config.model.tower.published].repo == name
  parts = build(config.model)
  assert parts.tokens_per_image == side * side
  from align_jax.objectives import make_objective
  align = config.stages[0]
  own = config.of(align)
  made = make_objective("sea", own, planned=True)
  pairs = own.data.rows * math.ceil(side / made.window) ** 2
  assert pairs == {"clip": 36_864, "siglip": 50_176, "dinov2": 16_384}[tower]
  # An image and a caption have room.
  assert own.data.row_length - side * side >= 128
  labels = config.data.sources["captions"].options["labels"]
  assert labels == config.objective_options["sea"]["labels"]


def test_llms_are_those_of_table_2():
  repos = {llm: PUBLISHED[read("llava15", f"llm={llm}").model.decoder.published
                          ].repo for llm in (
      "vicuna_7b", "vicuna_13b", "llama3_8b", "phi3_mini", "gemma_2b")}
  assert repos == {
      "vicuna_7b": "lmsys/vicuna-7b-v1.5",
      "vicuna_13b": "lmsys/vicuna-13b-v1.5",
      "llama3_8b": "meta-llama/Meta-Llama-3-8B-Instruct",
      "phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
      "gemma_2b": "google/gemma-2b"}


def test_table_4_and_prime_train_the_tower_too():
  for name, arg in (("llava15", "unfreeze=on"), ("prime", "")):
    config = read(name, arg)
    assert "tower/*" not in config.stages[0].train
    assert config.stages[1].train["tower/*"] == 2e-6
  prime = read("prime", "llm=llama3_8b")
  assert prime.model.tower.published == "siglip_so400m_384"
  assert [s.steps for s in prime.stages] == [9766, 54_688]  # 2.5M, 7M
  assert prime.stages[0].objectives["sea"] == 1.0
  assert prime.data.sources["captions"].options["source"]["kind"] == "llava"


def test_everything_swept_is_an_argument():
  config = read("llava15", "n=5,window=3,weight=0.3,scope=per_device,tau=0.07")
  options = config.objective_options["sea"]
  assert (options["n"], options["window"], options["scope"]) == (
      5, 3, "per_device")
  assert options["log_scale"] == pytest.approx(math.log(1 / 0.07))
  assert not config.model.scalars
  assert config.stages[0].objectives["sea"] == 0.3
  learnt = read("llava15", "sea=recommended,objective=sea_soft,log_scale=1.5")
  assert learnt.model.scalars == {"sea_log_scale": 1.5}
  assert "sea_soft" in learnt.stages[0].objectives
  cosine = read("llava15", "objective=patch_cosine")
  assert not cosine.model.scalars
  assert set(cosine.stages[0].train) == {"connector/*"}


@pytest.mark.parametrize("arg, said", [
    ("lm=gemma_2b", "no argument 'lm'; did you mean 'llm'"),
    ("llm=gemma_7b", "llm=gemma_7b; did you mean 'gemma_2b'"),
    ("sea=papr", "sea=papr; did you mean 'paper'"),
    ("n=abc,window=0", "n=abc is no int; window=0 is below 1"),
    ("weight=-1", "weight=-1 is below 0"),
    ("tau=0", "the paper's tau = 0 is log_scale=0"),
    ("tau=0.5,log_scale=2", "give one of them"),
    ("sea=off,n=5,weight=0.3", "so no n, weight"),
    ("objective=vlap", "objective=vlap is none of sea, "),
    ("objective=patch_cosine,tau=0.1", "has no temperature: tau")])
def test_arguments_that_there_are_not(arg, said):
  with pytest.raises(InputError, match=said):
    read("llava15", arg)
