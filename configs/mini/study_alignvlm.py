"""AlignVLM's claim in miniature: is a mixture of words the better connector?

  align-jax study mini/study_alignvlm --workdir runs/mini_alignvlm
  align-jax study mini/study_alignvlm --workdir runs/mini_alignvlm \\
    --cells align-0

Designed before it was run: primary contrast, metric and control stand below.
`mlp_wide` has ALIGN's number of parameters. The controls ask what a win would
be worth: a norm before the language model, a W2 that knows no head, a table
that knows no words.

Which words carry the mass, and what is left when others are cut away, is asked
of a cell's run: `align-jax inspect words RUN --keep 64 --images 100`, then
`align-jax evaluate RUN --keep-words RUN/inspect/kept.json`.
"""

import json

from align_jax.config import load_config
from align_jax.evals.preparation import Preparation, trained
from align_jax.evals.study import Cell, Column, Study, Tuning

SEEDS = range(5)
PRIMARY = ("align", "mlp_wide", "mlp_ln", "align_random_w2",
           "align_random_table")
EXPLORATORY = ("mlp", "linear", "pixel_shuffle", "perceiver", "ovis",
               "h_reducer", "c_abstractor", "d_abstractor", "qformer")
NOISE = [0.5, 1.0, 2.0, 3.0]
AT = "{work}/prepared"
CELL = load_config("mini/alignvlm")
TEXT_MODEL = load_config("mini/lm:world=documents")


def source(**options: object) -> str:
  return json.dumps(dict(kind="documents", options=options))


def get_study() -> Study:
  cell = lambda arm, seed, exploratory: Cell(
      arm, f"mini/alignvlm:arm={arm},from={{work}}", seed,
      evaluate={"scoring": "both", "noise": NOISE}, exploratory=exploratory)
  return Study(
      name="mini_alignvlm",
      question="Does a softmax over the language model's words join a frozen "
      "tower to a frozen language model better than a free MLP of its size?",
      primary=("align", "mlp_wide"),
      cells={f"{arm}-{seed}": cell(arm, seed, False)
             for arm in PRIMARY for seed in SEEDS}
      | {f"{arm}-0": cell(arm, 0, True) for arm in EXPLORATORY},
      prepare=(
          trained("tower", "mini/doc_clip", 1024, "hf-clip", [source(
              split="tower", form="captions", documents=6000)], ends=True),
          trained("lm", "mini/lm:world=documents",
                  TEXT_MODEL.model.decoder.config.vocab_size, "hf-decoder",
                  [source(split="text", form=form, documents=6000)
                   for form in ("told", "said")]
                  + [TEXT_MODEL.data.sources.english.to_json()]),
          Preparation("features", ((
              "data", "features", "--tower", f"{AT}/tower/model", "--source",
              CELL.data.sources.turns.to_json(), "--out",
              f"{AT}/features/features"),)),
      ),
      tuning=Tuning(
          rates=(5e-4, 2e-3, 8e-3), field="stages[0].train.connector/*",
          overrides={"eval.options.split": "validation"}),
      columns=(
          Column("trained parameters", "train/trained_parameters", "count"),
          Column("accuracy", "accuracy", interval="ci95"),
          Column("by likelihood", "likelihood_accuracy"),
          Column("prior", "question_prior_accuracy"),
          Column("other documents", "blind_accuracy"),
          *(Column(f"kept at noise {sigma:g}", f"noise_kept/{sigma:g}")
            for sigma in NOISE),
          Column("covered, easy", "by_type/covered_easy/accuracy"),
          Column("covered, hard", "by_type/covered_hard/accuracy"),
      ),
      notes=(
          "Tables, forms, charts and tables with a covered word, of real "
          "tables cut to words of five letters; two questions on each of 500 "
          "test documents. A CLIP trained on documents with their "
          "transcriptions, and a language model of 2 million parameters "
          "trained on transcriptions with questions and on Python's manual, "
          "both frozen; eight learned prompt tokens in every arm; 500 steps.",
          "align_random_w2: W2 does not start as the head. "
          "align_random_table: a random table with the mean and covariance of "
          "the words'. Kept at noise s: of what looking gives, with Gaussian "
          "noise of s standard deviations of the features. Prior: the best "
          "training answer to each question.",
      ))
