"""The quickstart's connectors, side by side: `mlp` and `align`.

Same frozen tower and language model, same examples in the same order, same
steps, and the same learning rate, chosen for neither by search; the whole test
split. One seed: whether another seed would say the same is not known, and the
table says so.
"""

from align_jax.evals.study import Cell, Column, Study

# Both arms are asked alike: every test question, without and with noise on
# the tower's features; scored as they answer, and over the closed set.
EVALUATE = {"limit": 0, "noise": [1.0], "scoring": "both"}


def get_study() -> Study:
  return Study(
      name="quickstart_connectors",
      question="Does a softmax over the LLM's words (ALIGN) serve a frozen "
      "small LLM better than a free MLP?",
      primary=("align", "mlp"),
      cells={arm: Cell(arm=arm, config=f"quickstart:connector={arm}",
                       evaluate=EVALUATE) for arm in ("mlp", "align")},
      columns=(
          Column("trained parameters", "train/trained_parameters", "count"),
          Column("steps", "train/steps", "count"),
          Column("training", "train/seconds", "seconds"),
          Column("accuracy", "accuracy", interval="ci95"),
          Column("by likelihood", "likelihood_accuracy"),
          Column("prior", "question_prior_accuracy"),
          Column("blind", "blind_accuracy"),
          Column("noise 1", "noise/1"),
      ),
      notes=(
          "easy-VQA, the official test split (9,673 questions on 1,000 "
          "images); SmolLM2-135M-Instruct and a CLIP-architecture tower "
          "trained on synthetic shapes, both frozen; 17 visual tokens an image "
          "(the class token is kept); template: plain. The connector alone is "
          "trained, at the same learning rate in both arms, chosen for "
          "neither by search.",
          "By likelihood: the likeliest of the 13 answers, instead of the one "
          "that is written. Prior: the best training answer to each question. "
          "Blind: each image exchanged for one of another shape and colour. "
          "Noise: Gaussian, on the tower's features, in units of their own "
          "standard deviation. Brackets: 95 %, redrawing images.",
      ))
