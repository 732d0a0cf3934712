# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The quickstart's run, opened
#
# `make quickstart` joined a small vision tower to SmolLM2-135M by training
# one connector. This notebook loads that run and shows what its report shows:
# how well it answers, what it would score without looking, and what its
# visual tokens mean.
#
# Another run: set the environment variable `ALIGN_JAX_RUN` to its folder.

# %%
import json
import os
from pathlib import Path

import numpy as np
from IPython.display import HTML, Image, display

import align_jax
from align_jax.evals.tasks import TASKS
from align_jax.inspect import charts, look, pictures

folder = Path(os.environ.get("ALIGN_JAX_RUN", "runs/quickstart"))
if not folder.exists() and (Path("..") / folder).exists():
  folder = Path("..") / folder  # started from notebooks/

run = align_jax.load_run(folder)
print(run.config.name, "after", run.step, "steps;",
      run.parts.tokens_per_image, "visual tokens an image")

# %% [markdown]
# ## How well it answers
#
# Accuracy alone says little: half of all questions can be answered without
# looking. The **margin** over the better blind score is what looking adds.

# %%
results = folder / "eval" / f"{run.config.eval.task}.json"
if results.exists():
  found = json.loads(results.read_text())
  for name in ("accuracy", "question_prior_accuracy", "blind_accuracy",
               "margin"):
    if found[name] is not None:  # evaluated with --no-blind
      print(f"{name:<24} {100 * found[name]:5.1f}")
else:
  print(f"not evaluated yet: align-jax evaluate {folder}")

# %% [markdown]
# ## Questions and answers
#
# Test images chosen by a seed, not by success.

# %%
task = TASKS.get(run.config.eval.task)(**run.config.eval.options)
asked = look.questions(run, task, count=3)
images = [task.image(image) for image in asked]

for image, questions in zip(images, asked.values()):
  display(Image(pictures.thumbnail(run.read(image)[0][0], 128)))
  for q in questions:
    mark = "✓" if q["right"] else f"✗ (truth: {q['answer']})"
    print(f"  {q['question']}  {q['prediction']}  {mark}")

# %% [markdown]
# Ask it yourself. An image is a path, encoded bytes, a PIL image or an array.

# %%
run.generate(images[0], "what color is the shape?", max_new_tokens=8)

# %% [markdown]
# ## What the visual tokens say
#
# A visual token lies in the space of the LLM's word embeddings. Over each
# patch stand the words nearest to its token or, for a connector that mixes
# words (`align`), the likeliest words of the mixture.

# %%
seen = look.look(run, images)
for at, questions in enumerate(asked.values()):
  png = look.draw(run, seen, at, [
      (q["question"], q["prediction"], q["right"]) for q in questions])
  if png is not None:
    display(Image(png, width=900))

# %% [markdown]
# ## Where they lie
#
# Norms of visual tokens beside those of word embeddings. Nothing forces a free
# connector to stay among the words; a mixture of words cannot leave them.

# %%
figures, histogram = look.compare(run, seen)
print(f"visual tokens are {figures['norm_ratio']:.2f} times as long as words; "
      f"mean cosine between two of them {figures['visual']['cosine']:.2f}")
display(Image(histogram, width=700))

# %% [markdown]
# The numbers behind it are plain arrays.

# %%
tokens = run.visual_tokens(images)  # f32[I,T,D]
table = run.embeddings  # f32[V,D]
print(tokens.shape, table.shape,
      np.linalg.norm(tokens, axis=-1).mean().round(3))

# %% [markdown]
# ## Training

# %%
style = ("<style>.chart{max-width:760px} .chart text{font-size:12px} "
         ".chart .rule{stroke:#ddd} .chart path{fill:none} "
         ".chart .line{stroke:#0b7a75;stroke-width:2} "
         ".chart .raw{stroke:#0b7a7555}</style>")
display(HTML(style + charts.line(look.losses(folder), "step", "loss")))
