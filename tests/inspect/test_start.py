"""The diagnosis of a connector's start."""

import json

import numpy as np
import pytest

from align_jax.cli.main import main
from align_jax.inspect import start
from align_jax.validate import validate
from tests.evals import tiny_run

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return tiny_run.config(tmp_path_factory.mktemp("start"), "align")


def test_more_gain_means_fewer_words_and_tokens_further_apart(config):
  config = validate(config)
  run = start.untrained(config)
  images = start.images_of(config, 3)
  own, sharp = start.measure(run, images, [6.0])
  assert own.gain == 1.0 and sharp.gain == 6.0
  assert own.effective_words > 3 * sharp.effective_words
  assert own.exp_entropy > 3 * sharp.exp_entropy
  assert sharp.apart > 2 * own.apart and sharp.cosine < own.cosine
  tokens = run.visual_tokens(images).reshape(-1, 16)
  unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
  pairs = [a @ b for i, a in enumerate(unit) for b in unit[:i]]
  np.testing.assert_allclose(own.cosine, np.mean(pairs), rtol=1e-4)


def test_the_verb_tells_of_any_connector(config, tmp_path, capsys):
  config = config | {"model": config["model"] | {"connector": {"kind": "mlp"}}}
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config))
  assert main(["inspect", "start", "--config", str(path), "--images", "2",
               "--json"]) == 0
  [found] = json.loads(capsys.readouterr().out)
  assert found["gain"] is None and found["entropy"] is None
  assert found["norm"] > 0


def test_a_config_goes_with_start_alone(tmp_path, capsys):
  assert main(["inspect", "run", str(tmp_path), "--config", "x"]) == 2
  assert "goes with `inspect start`" in capsys.readouterr().err
  assert main(["inspect", "start"]) == 2
  assert "needs --config FILE" in capsys.readouterr().err
