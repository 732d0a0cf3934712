"""SEA's objective: what it draws, what it costs, on one device and many."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from align_jax.config import (
  Config,
  ConnectorConfig,
  DataConfig,
  MeshConfig,
  ModelConfig,
  PartConfig,
)
from align_jax.errors import InputError
from align_jax.labels.store import digest, read_words
from align_jax.objectives import patch_labels, sea, words
from align_jax.objectives.patch_cosine import PatchCosine
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh

B, N, SIDE, n, Q, V, D = 4, 2, 5, 3, 12, 30, 8
P = SIDE * SIDE


def keys(seed: int = 0, rows: int = B) -> jax.Array:
  return jax.random.split(jax.random.key(seed), rows)


def labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Words and scores [B,N,P,n]; a fifth of the patches has none."""
  rng = np.random.default_rng(seed)
  scores = rng.random((B, N, P, n)).astype(np.float32)
  scores[rng.random((B, N, P)) < 0.2] = 0
  ids = rng.integers(0, Q, (B, N, P, n)).astype(np.int32)
  return np.where(scores > 0, ids, -1), scores


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_one_labelled_token_of_each_window(window):
  ids, scores = labels()
  token, word, keep, _ = jax.jit(functools.partial(
      patch_labels.draw, tokens=P, window=window))(keys(), ids, scores)
  across = -(-SIDE // window)
  assert token.shape == (B, N * across * across)
  for b in range(B):
    for r in range(token.shape[1]):
      image, at = divmod(r, across * across)
      wy, wx = divmod(at, across)
      inside = [y * SIDE + x
                for y in range(wy * window, min((wy + 1) * window, SIDE))
                for x in range(wx * window, min((wx + 1) * window, SIDE))]
      labelled = [p for p in inside if scores[b, image, p].any()]
      assert bool(keep[b, r]) == bool(labelled)
      if labelled:
        patch = int(token[b, r]) - image * P
        assert patch in labelled
        assert int(word[b, r]) in ids[b, image, patch]


def test_every_patch_and_every_word_has_its_chance():
  """Eq 9: a word is drawn as often as its share of the patch's scores."""
  ids = np.arange(n, dtype=np.int32)[None, None, None]
  scores = np.array([0.6, 0.3, 0.1], np.float32)[None, None, None]
  ids, scores = (np.broadcast_to(x, (1, 1, 4, n)) for x in (ids, scores))
  many = jax.jit(jax.vmap(lambda key: patch_labels.draw(
      key[None], ids, scores, 4, 2)))(
          jax.random.split(jax.random.key(0), 4000))
  share = np.bincount(np.asarray(many.word).ravel(), minlength=n) / 4000
  np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.03)
  place = np.bincount(np.asarray(many.token).ravel(), minlength=4) / 4000
  np.testing.assert_allclose(place, 0.25, atol=0.03)


def test_a_pooled_token_learns_from_its_own_patches():
  ids, scores = labels()
  ids, scores = ids[:, :, :16], scores[:, :, :16]  # 4 x 4 patches, 2 x 2
  token, word, keep, _ = patch_labels.draw(keys(), ids, scores, 4, 1)
  for b, r in np.argwhere(np.asarray(keep)):
    image, at = divmod(int(token[b, r]), 4)
    y, x = divmod(at, 2)
    own = [(2 * y + i) * 4 + 2 * x + j for i in (0, 1) for j in (0, 1)]
    assert int(word[b, r]) in ids[b, image, own]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_token_of_each_word(groups):
  found = patch_labels.draw(keys(), *labels(), tokens=P, window=1)
  kept = patch_labels.first_of_each(keys(1), found, groups)
  for g in range(groups):
    rows = slice(g * B // groups, (g + 1) * B // groups)
    before = set(np.asarray(found.word[rows])[np.asarray(found.keep[rows])])
    after = np.asarray(kept.word[rows])[np.asarray(kept.keep[rows])]
    assert sorted(before) == sorted(after)
  # Which one stays is a matter of luck.
  other = patch_labels.first_of_each(keys(2), found, groups)
  assert (kept.keep != other.keep).any()


def test_labels_go_to_their_images():
  ids, scores = labels()
  rows = np.array([[1, 1], [1, 2], [2, 1], [0, 2]], np.int32)
  # Samples in segments, each with the labels of its images in order.
  extras = {"sea_words": np.full((B, 2, 2, P, n), -9, np.int32),
            "sea_scores": np.full((B, 2, 2, P, n), -9, np.float32)}
  for b in range(B):
    count = {1: 0, 2: 0}
    for slot in range(N):
      if s := int(rows[b, slot]):
        extras["sea_words"][b, s - 1, count[s]] = ids[b, slot]
        extras["sea_scores"][b, s - 1, count[s]] = scores[b, slot]
        count[s] += 1
  got, weight = patch_labels.of_slots(extras, rows)
  empty = (rows == 0)[..., None, None]
  np.testing.assert_array_equal(got, np.where(empty, -1, ids))
  np.testing.assert_array_equal(weight, np.where(empty, 0, scores))


@pytest.mark.parametrize("patches, tokens, reason", [
    (25, 17, "17 visual tokens form no square grid"),
    (26, 25, "26 patches form no square grid"),
    (25, 9, "do not pool 25 patches")])
def test_tokens_without_patches_of_their_own_are_refused(
    patches, tokens, reason):
  with pytest.raises(ValueError, match=reason):
    patch_labels.check_grid(patches, tokens)


class Letters:
  """A tokenizer of one token a letter; the space is no token."""

  def __call__(self, text, add_special_tokens):
    assert not add_special_tokens
    return {"input_ids": [ord(c) - 97 for c in text if c.isalpha()]}


def test_a_word_is_the_mean_of_its_sub_words():
  table = words.word_tokens(["cab", "a"], Letters())
  assert table.tolist() == [[2, 0, 1], [0, -1, -1]]
  embed = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
  got = words.word_embeddings(embed, table, jnp.array([[1, 0]]))
  np.testing.assert_allclose(got[0, 0], embed[0], rtol=1e-6)
  np.testing.assert_allclose(got[0, 1], embed[[2, 0, 1]].mean(0), rtol=1e-6)


def _sentencepiece() -> PreTrainedTokenizerFast:
  """Llama-2's normaliser: a space before the text, and each space a letter."""
  pieces = ["<unk>", "\u2581", "\u2581a", "\u2581dog", "\u2581cat", "s"]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(
      [(p, -float(len(pieces[1:]) - len(p))) for p in pieces], 0))
  made.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.Prepend("\u2581"),
      tokenizers.normalizers.Replace(" ", "\u2581")])
  return PreTrainedTokenizerFast(tokenizer_object=made)


def _bytes() -> PreTrainedTokenizerFast:
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False)
  made.train_from_iterator(["a dog", "dogs", "a cat", "cat"] * 9,
                           tokenizers.trainers.BpeTrainer(
      show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("make", [_sentencepiece, _bytes])
def test_a_word_has_the_tokens_that_it_has_inside_a_sentence(make):
  tokenizer = make()
  of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
  table = words.word_tokens(["dog", "cats"], tokenizer)
  for word, row in zip(("dog", "cats"), table):
    own = [i for i in row.tolist() if i >= 0]
    assert of(f"a {word}") == of("a") + own
  assert (table[0] >= 0).sum() == 1  # no space by itself
  alone = words.word_tokens(["dog", "cats"], tokenizer, lead="")
  assert [i for i in alone[0].tolist() if i >= 0] == of("dog")


def test_a_bad_word_list_is_refused(tmp_path):
  with pytest.raises(InputError, match="no tokens in this LLM.*'42'"):
    words.word_tokens(["a", "42"], Letters())
  file = tmp_path / "words.txt"
  with pytest.raises(InputError, match="no word list"):
    read_words(file)
  file.write_text("")
  with pytest.raises(InputError, match="is empty"):
    read_words(file)
  file.write_text("dog\n\ncat\ndog\n")
  with pytest.raises(InputError) as error:
    read_words(file)
  assert ":2: empty" in str(error.value)
  assert ":4: 'dog' is on line 1 too" in str(error.value)


SIZES = dict(width=8, layers=1, heads=1, mlp_width=8)


def config(**model) -> Config:
  given = dict(
      tower=PartConfig(kind="clip", config=dict(
          image_size=10, patch_size=2, **SIZES)),
      connector=ConnectorConfig("linear"),
      decoder=PartConfig(kind="llama", config=dict(vocab_size=V, **SIZES)),
      scalars={"sea_log_scale": 0.0})
  return Config("toy", ModelConfig(**(given | model)),
                DataConfig(rows=B, images_per_row=N), ())


def write_labels(folder, **manifest):
  """What the objective reads of a folder of labels."""
  listed = [chr(97 + i) * (1 + i % 3) for i in range(Q)]
  (folder / "words.txt").write_text("".join(w + "\n" for w in listed))
  (folder / "index.npz").touch()
  (folder / "manifest.json").write_text(json.dumps(
      {"patches": P, "n": n, "crop": {"image_size": 10},
       "words_sha256": digest(listed)} | manifest))
  return folder


@pytest.fixture
def objective(tmp_path, monkeypatch) -> sea.Sea:
  folder = write_labels(tmp_path)
  monkeypatch.setattr("align_jax.build.Parts.tokenizer", Letters())
  return functools.partial(sea.Sea, labels=str(folder), n=n)


def step_of(tmp=None):
  ids, scores = labels()
  rng = np.random.default_rng(3)
  batch = {"image_segment_ids": np.array([[1, 2]] * B, np.int32), "extras": {
      "sea_words": ids[:, :, None], "sea_scores": scores[:, :, None]}}
  outputs = {"visual_tokens": rng.normal(size=(B, N, P, D)).astype(np.float32),
             "embed_vd": rng.normal(size=(V, D)).astype(np.float32),
             "scalars": {"sea_log_scale": np.float32(0.5)}}
  return batch, outputs


def test_the_loss_is_the_papers_sum_over_the_pairs(objective):
  made = objective(config())
  batch, outputs = step_of()
  pairs = made.pairs(batch, keys(), Layout())
  total = made.weight(batch, keys())
  assert total == np.asarray(pairs.keep).sum() > 3
  x, t = [], []
  for b, r in np.argwhere(np.asarray(pairs.keep)):
    image, place = divmod(int(pairs.token[b, r]), P)
    x.append(outputs["visual_tokens"][b, image, place])
    ids = made.table_qm[int(pairs.word[b, r])]
    t.append(outputs["embed_vd"][ids[ids >= 0]].mean(0))
  cos = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in t]
         for a in x]
  s = np.exp(0.5) * np.array(cos)
  want = sum(0.5 * (np.log(np.exp(s[i]).sum()) + np.log(np.exp(s[:, i]).sum()))
             - s[i, i] for i in range(len(x)))
  got = made(outputs, batch, keys(), Layout())
  assert float(got) == pytest.approx(want, rel=1e-5)


def test_at_a_random_start_the_loss_is_about_ln_n(objective):
  made = objective(config())
  batch, outputs = step_of()
  count = float(made.weight(batch, keys()))
  loss = float(made(outputs, batch, keys(), Layout())) / count
  assert abs(loss - np.log(count)) < 0.3 * np.log(count)


def test_words_are_constants_and_the_temperature_is_learnt(objective):
  made = objective(config())
  batch, outputs = step_of()
  grads = jax.grad(lambda o: made(o, batch, keys(), Layout()))(outputs)
  assert not np.asarray(grads["embed_vd"]).any()
  assert np.asarray(grads["visual_tokens"]).any()
  assert float(grads["scalars"]["sea_log_scale"]) != 0
  fixed = objective(config(scalars={}), log_scale=0.5)
  del outputs["scalars"]
  assert float(fixed(outputs, batch, keys(), Layout())) > 0


@pytest.mark.parametrize("scope", ["global", "per_device"])
def test_eight_devices_give_the_loss_of_one(objective, scope):
  made = objective(config(), scope=scope)
  batch, outputs = step_of()
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  of = lambda layout: jax.jit(jax.value_and_grad(
      lambda x: made(outputs | {"visual_tokens": x}, batch, keys(), layout)))(
          outputs["visual_tokens"])
  loss, grad = of(Layout(mesh))
  if scope == "global":
    want, same = of(Layout())
    np.testing.assert_allclose(grad, same, atol=1e-5)
  else:  # four shards of a row each, alone
    alone = objective(config())
    want = 0.0
    for b in range(B):
      cut = lambda x, b=b: x[b:b + 1]
      want += float(alone(
          outputs | {"visual_tokens": cut(outputs["visual_tokens"])},
          jax.tree.map(cut, batch), keys()[b:b + 1], Layout()))
  assert float(loss) == pytest.approx(float(want), rel=1e-5)


def test_what_cannot_be_is_refused_when_it_is_made(objective):
  with pytest.raises(InputError, match="needs model.scalars"):
    objective(config(scalars={}))
  with pytest.raises(InputError, match="none of global, per_device"):
    objective(config(), scope="devices")
  with pytest.raises(InputError, match="window: 0 is below 1"):
    objective(config(), window=0)
  tower = PartConfig(kind="clip", class_token=True, config=dict(
      image_size=10, patch_size=2, **SIZES))
  with pytest.raises(InputError, match="connector 'linear'.*class token"):
    objective(config(tower=tower))


@pytest.mark.parametrize("kind, options", [
    ("perceiver", dict(latents=25, depth=1, heads=2, head_width=4)),
    ("qformer", dict(queries=25, depth=1, width=8, heads=2, mlp_width=8,
                     words=11, positions=8, text=False))])
def test_tokens_that_look_wherever_they_like_are_refused(
    objective, kind, options):
  """As many as patches, and yet of none: a square number is not enough."""
  with pytest.raises(InputError, match=f"{kind!r} looks wherever.*mlp"):
    objective(config(connector=ConnectorConfig(kind, options)))


def test_labels_of_other_patches_are_refused(objective, tmp_path):
  write_labels(tmp_path, patches=9, crop={"image_size": 12})
  with pytest.raises(InputError) as error:
    objective(config())
  assert "patches: the labels' 9, this run's 25" in str(error.value)
  assert "crop: the labels' {'image_size': 12}" in str(error.value)
  write_labels(tmp_path)
  with (tmp_path / "words.txt").open("a") as file:
    file.write("another\n")
  with pytest.raises(InputError, match="words_sha256: the labels' "):
    objective(config())


def test_patch_cosine_has_the_same_pairs_and_no_negatives(
    tmp_path, monkeypatch, objective):
  made = PatchCosine(config(scalars={}), labels=str(tmp_path), n=n)
  batch, outputs = step_of()
  x, t, keep = objective(config()).vectors(outputs, batch, keys(), Layout())
  want = sum(1 - float(x[b, r] @ t[b, r]) / np.linalg.norm(x[b, r])
             / np.linalg.norm(t[b, r]) for b, r in np.argwhere(
                 np.asarray(keep)))
  got = made(outputs, batch, keys(), Layout())
  assert float(got) == pytest.approx(want, rel=1e-5)


def test_what_it_measures_is_of_the_first_row_among_all_words(objective):
  made = objective(config())
  batch, outputs = step_of()
  seen = jax.jit(lambda o, b, k: (
      made.vectors(o, b, k, Layout()), made.pairs(b, k, Layout()).token))
  (_, t, keep), token = jax.tree.map(np.asarray, seen(outputs, batch, keys()))
  first = keep[0].argmax()  # this one is made to hit
  outputs["visual_tokens"].reshape(B, -1, D)[0, token[0, first]] = t[0, first]
  (x, t, keep), _ = jax.tree.map(np.asarray, seen(outputs, batch, keys()))
  got = jax.jit(lambda o, b, k: made.measures(o, b, k, Layout()))(
      outputs, batch, keys())
  unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
  words, hits, cosines = unit(t[keep]), [], []
  for a, own in zip(unit(x[0][keep[0]]), unit(t[0][keep[0]])):
    cosines.append(a @ own)
    hits.append(a @ own >= max(a @ w for w in words) - 1e-6)
  assert any(hits) and not all(hits)
  assert got["hit_rate"] == pytest.approx(np.mean(hits))
  assert got["cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
  assert got["pairs"] == keep.sum()


def test_it_is_planned_without_labels():
  made = sea.Sea.planned(config(), labels="not/there/yet", n=n)
  batch, outputs = step_of()
  found = jax.eval_shape(lambda o: made(o, batch, keys(), Layout()), outputs)
  assert found.shape == ()


def test_its_fields_are_declared():
  options = {"sea": dict(labels="not/there/yet", n=n)}
  fields = sea.Sea.extras(Config(
      "toy", config().model, DataConfig(rows=B, images_per_row=N), (),
      objective_options=options))
  assert {k: v.shape for k, v in fields.items()} == {
      "sea_words": (B, N, 1, P, n), "sea_scores": (B, N, 1, P, n)}
