"""Published sizes: as the models' own cards say, and refused for training."""

import math

import jax
import pytest

from align_jax.build import build, init_params
from align_jax.config import (
  ConnectorConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.faces import decoder_shapes
from align_jax.hub.published import PUBLISHED, read_published
from align_jax.parallel.mesh import make_mesh
from align_jax.towers import TOWERS


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_entry_is_read_as_a_folder_of_it_would_be(name):
  kind, config = read_published(name)
  assert kind in TOWERS or isinstance(config, DecoderConfig)
  assert config.width == PUBLISHED[name].config["hidden_size"]
  assert config.layers == PUBLISHED[name].config["num_hidden_layers"]


def test_a_decoder_of_any_family_is_a_part():
  model = ModelConfig(
      tower=PartConfig(published="dinov2_l"),
      decoder=PartConfig(published="phi3_mini"),
      connector=ConnectorConfig("mlp"))
  parts = build(model)
  assert parts.tokens_per_image == 256
  assert parts.model.decoder.config.windows[0] == 2047


# As their model cards have it.
@pytest.mark.parametrize("name, millions", [
    ("llama3_8b", 8030.3), ("gemma_2b", 2506.2), ("phi3_mini", 3821.1),
    ("vicuna_13b", 13015.9)])
def test_language_models_have_as_many_parameters_as_published(name, millions):
  _, config = read_published(name)
  shapes = decoder_shapes(config)
  count = sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))
  assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_dinov2_reads_images_of_the_size_its_processor_makes():
  _, config = read_published("dinov2_l")
  assert (config.image_size, config.learnt_size) == (224, 518)
  assert (config.patches, config.width) == (256, 1024)


def test_an_unknown_model_is_told_the_nearest():
  with pytest.raises(InputError, match="did you mean 'llama31_8b'"):
    read_published("llama_31_8b", "decoder")


def test_training_without_the_weights_says_which_to_get():
  model = ModelConfig(
      tower=PartConfig(published="siglip_so400m_384"),
      decoder=PartConfig(published="llama31_8b"),
      connector=ConnectorConfig("mlp"))
  with pytest.raises(InputError, match="google/siglip-so400m-patch14-384"):
    init_params(build(model), make_mesh(MeshConfig(), jax.devices()[:1]),
                ["*"], jax.random.key(0))


def test_a_tower_is_no_decoder():
  model = ModelConfig(tower=PartConfig(published="llama31_8b"),
                      decoder=PartConfig(published="llama31_8b"))
  with pytest.raises(InputError, match="no tower"):
    build(model)


def test_weights_of_other_sizes_than_planned_are_refused():
  model = ModelConfig(
      tower=PartConfig(weights="pkg:align_jax/weights/mini_clip",
                       published="clip_l14_336"),
      decoder=PartConfig(published="smollm2_135m"))
  with pytest.raises(InputError, match="image_size 64 instead of 336"):
    build(model)
