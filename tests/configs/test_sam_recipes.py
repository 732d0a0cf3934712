"""SAM's recipe and its rivals: what is trained, and how prompts are made."""

import math
from pathlib import Path

import jax
import pytest

from align_jax.build import build, param_shapes
from align_jax.config import MeshConfig, load_config
from align_jax.connectors.sam import PRESETS
from align_jax.errors import InputError
from align_jax.parallel import topology
from align_jax.parallel.mesh import make_mesh
from align_jax.train.select import trainables
from align_jax.validate import validate

FILE = (Path(__file__).parents[2] / "configs" / "sam"
        / "instructblip_vicuna_7b.py")


def read(arg: str = ""):
  return validate(load_config(f"{FILE}:{arg}" if arg else str(FILE)), "sam")


def trained(config) -> tuple[dict[str, int], int]:
  """(sizes of what is trained, parameters of all) at full size."""
  mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
  (stage,) = config.stages
  shapes = param_shapes(build(config.model), mesh, list(stage.train))
  size = {k: math.prod(s.shape) for k, s in shapes.items()}
  return ({k: size[k] for k in trainables(shapes, stage.train)},
          sum(size.values()))


def test_six_tensors_are_trained_and_no_more():
  found, whole = trained(read())
  assert sorted(found) == [f"connector/guidance/{name}" for name in (
      "c_bias_o", "c_eo", "h_bias_o", "h_eo", "score_bias", "score_c")]
  assert sum(found.values()) == 1_182_593
  # ViT-g, the Q-Former with queries, projection and the six, Vicuna-7B with
  # its table and head padded from 32,000 rows to 32,064.
  assert whole == (985_952_256 + 185_660_160 + 24_576 + 3_149_824 + 1_182_593
                   + 6_738_415_616 + 2 * 64 * 4096)


@pytest.mark.parametrize("kind, count", [
    ("vpg_c", 6_320_896), ("qformer", 185_660_160 + 24_576 + 3_149_824)])
def test_rivals_train_what_they_train(kind, count):
  assert sum(trained(read(f"connector={kind}"))[0].values()) == count


def test_the_data_the_prompt_and_the_loss_are_sams():
  for kind in ("sam", "vpg_c", "qformer"):
    config = read(f"connector={kind}")
    assert config.data.template == "blip"  # images, bos, instruction, answer
    assert config.data.prompt_length == 128
    assert config.data.sources["sets"].kind == "linked_images"
    (stage,) = config.stages
    assert stage.objectives == {"next_token": 1.0}
    assert math.prod(v for v in (config.mesh.data, config.mesh.fsdp)) == (
        topology.size(config.plan.topology))
    if kind != "vpg_c":
      options = config.model.connector.options
      assert (options["instruction_length"], options["long"]) == (128, "left")
  assert read().model.connector.options["preset"] == "released_code"
  released = PRESETS["released_code"]
  assert (released["layer_h"], released["layer_c"], released["memory"],
          released["guide_text"], released["dropout"]) == (
              12, 12, "all", True, 0.1)


@pytest.mark.parametrize("arg, said", [
    ("conector=sam", "did you mean 'connector'"),
    ("connector=vpgc", "did you mean 'vpg_c'")])
def test_arguments_that_there_are_not(arg, said):
  with pytest.raises(InputError, match=said):
    read(arg)
