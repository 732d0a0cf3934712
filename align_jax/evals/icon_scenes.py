"""Icon scenes as a task: what stands there, in which colour, how many.

Beside accuracy it measures what SEA is about, on held-out scenes whose every
patch is known: whether a visual token's nearest word is true, how near it is,
and what became of the language model.
"""

import re
from collections import Counter
from typing import Any

import numpy as np

from align_jax.data.english import English
from align_jax.data.icon_scenes import IconScenes, answers, concepts
from align_jax.evals import alignment
from align_jax.evals.drawn import DrawnTask
from align_jax.evals.integration import integration
from align_jax.evals.plain_text import text_perplexity
from align_jax.evals.tasks import Item
from align_jax.labels.known import foreground
from align_jax.labels.store import Labels, read_words
from align_jax.objectives.words import word_tokens

# Words of plain English that no scene shows.
_DISTRACTORS = 1000
# Scenes whose visual tokens are looked at, and those whose way through the
# language model is: MIR's authors take 100.
_LOOKED_AT, _READ = 200, 100
# K of TACS, as in the paper; of all tokens of a scene, if they are fewer.
_TACS = 10
# Tokens in a row of held-out English, no longer than rows of training.
_ROW = 128


class IconScenesTask(DrawnTask):
  """Four questions on each of some scenes that nothing was trained on.

  Attributes:
    split: that is asked: "test", or "validation" for choosing a learning
      rate.
    scenes: how many.
    train_scenes: of the split "train", for the question prior.
    english: whether to measure perplexity.
    scene: further options of the scenes, such as how many things are in one.
    alignment: whether to measure anything beside accuracy.
  """
  name = "icon_scenes"

  def __init__(self, split: str = "test", scenes: int = 250,
               questions: int = 4, size: int = 96, train_scenes: int = 4000,
               english: bool = True, scene: dict[str, Any] | None = None,
               alignment: bool = True):
    super().__init__(split)
    shape = dict(questions=questions, size=size) | (scene or {})
    self.split, self.english, self.alignment = split, english, alignment
    self.source = IconScenes(split, "questions", scenes, **shape)
    train = IconScenes("train", "questions", train_scenes, **shape)
    self.n_images = scenes
    self.training = [q[1:] for scene in range(train_scenes)
                     for q in train.ask(scene)]
    closed = answers(shape.get("words", 0))
    self.items = [
        Item(f"{self.name}/{split}/{scene}/{number}", scene, asked, answer,
             kind, index=scene * questions + number,
             closed=closed.get(kind, ()))
        for scene in range(scenes)
        for number, (kind, asked, answer) in enumerate(
            self.source.ask(scene))]

  def measures(self, run: Any) -> dict[str, Any]:
    """Nearest words, gap, TACS and norms; perplexity of plain English.

    Of words, the world's own and a thousand others. SEA's objective trains
    the first three directly; it does not train MIR, and not how near scenes
    are to one another (mutual k-NN, CKA), beside the means of their captions'
    tokens. Where there are labels, how good they are.
    """
    if not self.alignment:
      return {}
    scenes = range(min(self.n_images, _LOOKED_AT))
    tokens_itd = run.visual_tokens([self.image(i) for i in scenes])
    words = [*concepts(), *distractors()]
    table = run.embeddings
    mean = lambda texts, lead: np.stack([
        table[[t for t in row if t >= 0]].mean(0)
        for row in word_tokens(texts, run.tokenizer, lead)])
    words_wd = mean(words, " ")
    place = {word: i for i, word in enumerate(words)}
    flat = tokens_itd.reshape(-1, tokens_itd.shape[-1])
    found: dict[str, Any] = {
        "words": len(words),
        "modality_gap": alignment.modality_gap(flat, words_wd),
        "norm_ratio": alignment.norm_ratio(flat, words_wd)}
    grid = round(tokens_itd.shape[1] ** 0.5)
    if grid * grid == tokens_itd.shape[1]:
      truth = [{place[w] for w in patch} for i in scenes
               for patch in self.source.truth(i, grid)]
      found["hit_rate"] = alignment.hit_rate(
          alignment.nearest_words(flat, words_wd), truth)
      found["hit_chance"] = float(np.mean(
          [len(t) for t in truth if t]) / len(words))
    captions = [table[run.tokenizer(
        self.source.caption(i), add_special_tokens=False)["input_ids"]]
        for i in scenes]
    found["tacs"] = float(np.mean([
        alignment.tacs(tokens_itd[i], captions[i], min(_TACS, len(
            tokens_itd[i]))) for i in scenes]))
    sides = tokens_itd.mean(1), np.stack([c.mean(0) for c in captions])
    found["cka"] = alignment.cka(*sides)
    if len(scenes) > 10:
      found["mutual_knn"] = alignment.mutual_knn(*sides)
    said = IconScenes(self.split, "captions", self.n_images,
                      size=self.source.size)
    found["mir"] = integration(run, [said[i] for i in scenes[:_READ]])
    if labels := run.config.objective_options.get("sea", {}).get("labels"):
      found |= _teacher(labels)
    if self.english:
      found |= text_perplexity(
          run.model.decoder, run.params["decoder"], run.tokenizer,
          "\n".join(English("held_out").passages), length=_ROW)
    return found


def _teacher(folder: str, most: int = 200) -> dict[str, float]:
  """How often labels are true of training scenes, where something stands.

  Returns:
    `label_hit_rate`, one of a patch's words is true; `label_chance`, of as
    many words drawn at random.
  """
  labels = Labels(folder)
  made = labels.manifest["source"]["options"]
  found = foreground(labels, IconScenes(**made),
                     read_words(labels.words_file), most)
  return {"label_hit_rate": found["hit_rate"],
          "label_chance": found["chance"]}


def distractors(count: int = _DISTRACTORS) -> list[str]:
  """The most frequent words of plain English that name nothing in a scene."""
  counts: Counter[str] = Counter()
  for text in English("held_out").passages:
    counts.update(re.findall(r"\b[a-z]{4,}\b", text))
  own = {*concepts(), *(f"{c}s" for c in concepts())}
  ordered = sorted(counts, key=lambda w: (-counts[w], w))
  return [word for word in ordered if word not in own][:count]
