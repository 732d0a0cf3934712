"""Words of visual tokens, beside the slow way."""

import numpy as np
import pytest

from align_jax.inspect import words


@pytest.mark.parametrize("centred", [False, True])
def test_nearest_words_computed_slowly(centred: bool):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(30, 6)).astype("f") + 2.0
  tokens = rng.normal(size=(4, 6)).astype("f")
  got = words.nearest_words(tokens, table, k=3, centred=centred)
  mean = table.mean(0) if centred else np.zeros(6)
  for i, token in enumerate(tokens):
    cosines = [np.dot(token - mean, row - mean)
               / np.linalg.norm(token - mean) / np.linalg.norm(row - mean)
               for row in table]
    best = np.argsort(cosines)[::-1][:3]
    assert got.ids[i].tolist() == best.tolist()
    np.testing.assert_allclose(got.scores[i], np.array(cosines)[best],
                               atol=1e-5)


def test_a_word_is_nearest_to_itself():
  table = np.random.default_rng(1).normal(size=(20, 5))
  got = words.nearest_words(3.0 * table[[4, 9]], table, k=2)
  assert got.ids[:, 0].tolist() == [4, 9]
  np.testing.assert_allclose(got.scores[:, 0], 1.0, atol=1e-5)


def test_distribution():
  probs = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0],
                    [0.5, 0.06, 0.41, 0.03]])
  np.testing.assert_allclose(words.entropy(probs)[:2], [np.log(4), 0],
                             atol=1e-6)
  assert words.effective_words(probs).tolist() == [4, 1, 2]
  top = words.top_words(probs, 2)
  assert top.ids[2].tolist() == [0, 2]
  np.testing.assert_allclose(top.scores[2], [0.5, 0.41])


class _Tokenizer:
  pieces = ["Ġblue", "ing", "Ġ", "Ċ", "ĠĠ", "", "Ã", "Ġa\x00b", "<|end|>",
            "▁red", "7"]
  texts = [" blue", "ing", " ", "\n", "  ", "", "\ufffd", " a\x00b",
           "<|end|>", "red", "7"]

  def decode(self, ids, **options):
    return self.texts[ids[0]]

  def convert_ids_to_tokens(self, token):
    return self.pieces[token]


def test_every_entry_can_be_read():
  shown = [words.show(_Tokenizer(), i) for i in range(11)]
  assert shown == ["blue", "-ing", "␣", "\\n", "␣", "␣", "‹6›", "a\\x00b",
                   "<|end|>", "red", "7"]
