"""What a run's language model still knows: perplexity of plain text.

Language preservation (SEA, 2408.11813, section 4, asks it of MMLU): training
for images may cost words. The text is no conversation, so no template is
written around it.
"""

import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.errors import InputError
from align_jax.ops.chunked_loss import chunked_loss


def text_perplexity(decoder: nn.Module, params: Any, tokenizer: Any,
                    text: str, length: int = 512,
                    rows: int = 8) -> dict[str, float]:
  """exp of the mean loss over all tokens of a text but the first of each row.

  Args:
    decoder: `VLM.decoder`, or what `load_decoder` gives as `module`.
    params: its own.
    tokenizer: of the decoder.
    text: cut into rows of `length` tokens that do not overlap; each begins
      with bos where the tokenizer adds one, and then none is left out.
    length: tokens in a row.
    rows: at a time. Logits exist for a few hundred tokens at once.

  Returns:
    `perplexity`, `tokens` predicted, and `nats_per_byte`, which does not
    depend on the tokenizer.

  Raises:
    InputError: fewer than two tokens.
  """
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  added = tokenizer("", add_special_tokens=True)["input_ids"]
  bos = [t for t in added[:1] if t == tokenizer.bos_token_id]
  if len(bos) + len(ids) < 2:
    raise InputError(f"perplexity of a text of {len(ids)} tokens: at least "
                     "two are needed")
  size = length - len(bos)
  cut = [bos + ids[at:at + size] for at in range(0, len(ids), size)]
  loss, count = 0.0, 0
  for at in range(0, len(cut), rows):
    tokens, live = np.zeros((2, rows, length), np.int32)
    for row, part in enumerate(cut[at:at + rows]):
      tokens[row, :len(part)], live[row, :len(part)] = part, 1
    weights = (live[:, 1:] > 0).astype(np.float32)
    loss += float(_loss(decoder, params, tokens, live, weights))
    count += int(weights.sum())
  return {"perplexity": math.exp(loss / count), "tokens": count,
          "nats_per_byte": loss / len(text.encode())}


@functools.partial(jax.jit, static_argnums=0)
def _loss(decoder: nn.Module, params: Any, tokens: jax.Array, live: jax.Array,
          weights: jax.Array) -> jax.Array:
  """The summed loss of rows i32[B,L], each a text of its own."""
  def run(decoder: nn.Module) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = decoder(decoder.embed(tokens), positions, live)
    return chunked_loss(
        hidden[:, :-1], decoder.head_vd(), tokens[:, 1:], weights,
        layout=decoder.layout, soft_cap=decoder.config.logit_soft_cap)

  return nn.apply(run, decoder)({"params": params})


def preserved(run: Any, file: str | Path) -> dict[str, Any]:
  """A run's perplexity on a text file, beside that before training.

  Returns:
    `text_perplexity`'s figures; `before`, the same of the decoder that the
    run started from, None where it started from no weights; `file`, `step`.

  Raises:
    InputError: no such file.
  """
  from align_jax.hub.faces import load_decoder

  path = Path(file)
  if not path.is_file():
    raise InputError(f"no text file {path}")
  text = path.read_text(encoding="utf-8")
  found: dict[str, Any] = text_perplexity(
      run.model.decoder, run.params["decoder"], run.tokenizer, text)
  before, weights = None, run.config.model.decoder.weights
  if weights:
    first = load_decoder(weights, dtype=run.model.decoder.dtype)
    before = text_perplexity(first.module, first.params, run.tokenizer, text)
  return found | {"before": before, "file": str(path), "step": run.step}
