"""Perplexity of plain text, against one row and one token at a time."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.cli.main import main
from align_jax.decoders.transformer import Decoder
from align_jax.errors import InputError
from align_jax.evals.plain_text import text_perplexity
from tests.tiny import DECODER

TEXT = "".join(chr(97 + i * i % 23) for i in range(75))


class Letters:
  """One token a letter, behind a bos where it adds one."""
  bos_token_id = 63

  def __init__(self, adds: bool):
    self.adds = adds

  def __call__(self, text, add_special_tokens):
    bos = [self.bos_token_id] if add_special_tokens and self.adds else []
    return {"input_ids": bos + [ord(c) - 97 for c in text]}


@pytest.fixture(scope="module")
def model():
  decoder = Decoder(DECODER, remat="none", dtype=jnp.float32)
  run = lambda m, ids: m.logits(m(m.embed(ids), jnp.zeros_like(ids),
                                  jnp.ones_like(ids))[0])
  params = nn.init(run, decoder)(jax.random.key(0), jnp.zeros((1, 4), int))[
      "params"]
  return decoder, jax.tree.map(lambda p: p * 3, params)


@pytest.mark.parametrize("adds", [True, False])
def test_it_is_the_mean_loss_of_every_token(model, adds):
  decoder, params = model
  found = text_perplexity(decoder, params, Letters(adds), TEXT, length=16,
                          rows=3)
  size, loss, count = 15 if adds else 16, 0.0, 0
  logits = jax.jit(lambda ids: nn.apply(
      lambda m: m.logits(m(m.embed(ids), jnp.arange(16)[None],
                           jnp.ones_like(ids))[0]), decoder)(
          {"params": params}))
  ids = [ord(c) - 97 for c in TEXT]
  for at in range(0, len(ids), size):
    row = ([63] if adds else []) + ids[at:at + size]
    padded = np.zeros((1, 16), int)  # later tokens are not seen by earlier
    padded[0, :len(row)] = row
    z = np.asarray(logits(padded), np.float64)[0]
    for here, token in enumerate(row[1:]):
      loss += math.log(np.exp(z[here] - z[here].max()).sum()) + (
          z[here].max() - z[here][token])
      count += 1
  assert count == found["tokens"] == (75 if adds else 75 - 5)
  assert found["perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-5)
  assert found["nats_per_byte"] == pytest.approx(loss / 75, rel=1e-5)
  assert abs(math.log(found["perplexity"]) - math.log(64)) > 0.05


def test_too_short_a_text_is_refused(model):
  with pytest.raises(InputError, match="at least two are needed"):
    text_perplexity(*model, Letters(False), "a")


@pytest.mark.slow
def test_verb(tmp_path, capsys):
  pytest.importorskip("easy_vqa")
  from tests.evals import tiny_run
  run, text = tiny_run.shared(), tmp_path / "text.txt"
  text.write_text("what is the color of the shape " * 40)
  assert main(["evaluate", str(run), "--perplexity", str(text), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["tokens"] > 200 and 1 < found["perplexity"] < 400
  assert found["before"] is None  # it started from no weights
  assert json.loads((run / "eval/perplexity.json").read_text()) == found
  assert main(["evaluate", str(run), "--perplexity", "no.txt"]) == 2
  assert "no text file no.txt" in capsys.readouterr().err
