"""Icon scenes as a task: its questions, and what else it measures."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fontawesomefree")

from align_jax.data.bpe import train_bpe  # noqa: E402
from align_jax.data.icon_scenes import IconScenes, concepts  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.evals.evaluation import Options, evaluate  # noqa: E402
from align_jax.evals.icon_scenes import (  # noqa: E402
  IconScenesTask,
  distractors,
)
from align_jax.evals.prompts import Prompt, bucket  # noqa: E402
from align_jax.evals.tasks import open_task  # noqa: E402
from align_jax.objectives.words import word_tokens  # noqa: E402


@pytest.fixture(scope="module")
def task() -> IconScenesTask:
  return open_task("icon_scenes", dict(
      split="validation", scenes=12, train_scenes=30, english=False))


@pytest.fixture(scope="module")
def tokenizer():
  return train_bpe([IconScenes("text", "told", scenes=300)], 512)


def test_questions_have_the_closed_set_of_their_kind(task):
  assert len(task.items) == 48 and len(task.training) == 120
  sizes = {"thing": len(concepts()), "color": 9, "there": 2, "count": 4}
  for item in task.items:
    assert item.answer in item.closed
    assert len(item.closed) == sizes[item.type]
    asked, said = task.example(item)["conversation"]
    assert asked["content"] == f"<image>\n{item.question}"
    assert said["content"] == item.answer


def test_every_scene_is_exchanged_for_another(task):
  partners = task.exchanged(0)
  assert sorted(partners) == list(range(12))
  assert all(a != b for a, b in enumerate(partners))


def test_what_was_trained_on_is_not_asked():
  with pytest.raises(InputError, match="is what was trained"):
    open_task("icon_scenes", {"split": "train"})


def test_likelihood_is_over_each_questions_own_set(task):
  asked = []

  class Always:
    """The last of the answers is the likeliest."""

    def score(self, prompts, answers, read, progress):
      assert len(answers) == len(prompts)
      (size,) = {len(own) for own in answers}
      asked.append((len(prompts), size))
      return np.tile(np.arange(size, dtype=float), (len(prompts), 1))

  run = SimpleNamespace(
      prompt=lambda example: Prompt(*np.zeros((2, 1), np.int32)), step=0,
      answer_tokens=lambda answer: [1], generator=lambda **kw: Always())
  bare = SimpleNamespace(
      name="t", scorer="exact", scoring="likelihood", max_new_tokens=1,
      beam=None, answers=(), training=(), items=task.items, n_images=12,
      example=task.example, image=task.image,
      exchanged=lambda seed: None, measures=lambda run: {"own": 1.0})
  result, samples = evaluate(run, bare, Options(probe=False))
  # Filled up to one of a few sizes, each of which is compiled once.
  assert sorted(size for _, size in asked) == sorted(
      {bucket(n) for n in (2, 4, 9, len(concepts()))})
  assert sum(count for count, _ in asked) == 48
  assert result["measures"] == {"own": 1.0}
  for row, item in zip(samples, task.items):
    assert row["prediction"] == item.closed[-1]


def test_tokens_that_are_true_words_hit_every_time(task, tokenizer,
                                                   monkeypatch):
  read = []
  monkeypatch.setattr("align_jax.evals.icon_scenes.integration",
                      lambda run, examples: read.append(examples) or 1.5)
  table = np.random.default_rng(0).normal(size=(512, 32)).astype(np.float32)
  mean = {w: table[[t for t in row if t >= 0]].mean(0) for w, row in zip(
      concepts(), word_tokens(concepts(), tokenizer, " "))}
  things = IconScenes("validation", "questions", scenes=12)
  tokens = np.zeros((12, 16, 32), np.float32) + 1e-3
  for scene in range(12):
    for patch, true in enumerate(things.truth(scene, 4)):
      if true:
        tokens[scene, patch] = 2 * mean[sorted(true)[0]]
  run = SimpleNamespace(visual_tokens=lambda images: tokens,
                        embeddings=table, tokenizer=tokenizer,
                        config=SimpleNamespace(objective_options={}))
  found = task.measures(run)
  assert found["words"] == len(concepts()) + 1000
  assert found["hit_rate"] == 1.0
  assert 0 < found["hit_chance"] < 0.003
  assert found["mir"] == 1.5
  assert [e["conversation"][-1]["content"] for e in read[0]] == [
      things.caption(i) for i in range(12)]
  # Scenes lie as their captions do: both are sums of the same words.
  assert found["cka"] > 0.5 and found["mutual_knn"] > 10 / 11
  run.visual_tokens = lambda images: tokens[:, ::-1]
  assert task.measures(run)["hit_rate"] < 0.5


def test_distractors_name_nothing_in_a_scene():
  words = distractors()
  assert len(set(words)) == 1000 and not set(words) & set(concepts())
