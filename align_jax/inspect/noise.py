"""How much noise on a tower's features moves what the connector makes of it.

AlignVLM (arXiv 2502.01341, section 5.4) compares the connector's outputs with
and without noise by their cosine. A connector whose outputs are nearly all
alike is perfectly robust by that measure, so the cosine is also taken after
the mean output is subtracted: of what tells tokens apart.

  align-jax inspect noise RUN --sigmas 0.5,1,2,3
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.api import Run

UNITS = ("spread_units", "absolute")


def measure(run: Run, images: Sequence[Any], sigmas: Sequence[float],
            seed: int = 0) -> dict[str, Any]:
  """Cosines between clean and noisy visual tokens.

  Args:
    run: of any connector.
    images: to look at.
    sigmas: standard deviations of Gaussian noise, in units of the standard
      deviation of each image's own features ("spread_units") and as they are
      ("absolute").
    seed: of the noise.

  Returns:
    `images`, `spread` (the mean standard deviation of an image's features),
    `pairwise` (mean cosine of two clean tokens: 1 is a constant connector),
    and for each unit {sigma: {"cosine", "distance" (the paper's, 1 - cosine),
    "centred"}}, means over tokens; "centred" is of tokens less the mean clean
    token.
  """
  features = run.features(images)
  spread = features.std(axis=(1, 2), keepdims=True)
  noise = np.random.default_rng(seed).standard_normal(features.shape, "f")
  clean = _flat(run.tokens_of(features))
  mean = clean.mean(0)
  unit = clean / np.maximum(np.linalg.norm(clean, axis=-1), 1e-12)[:, None]
  n = len(unit)
  found: dict[str, Any] = {
      "images": len(images), "spread": float(spread.mean()),
      "pairwise": float(((unit.sum(0) ** 2).sum() - n) / max(n * (n - 1), 1))}
  for name, scale in zip(UNITS, (spread, 1.0)):
    found[name] = {}
    for sigma in sigmas:
      noisy = _flat(run.tokens_of(features + sigma * scale * noise))
      whole = _cosine(clean, noisy)
      found[name][f"{sigma:g}"] = {
          "cosine": whole, "distance": 1 - whole,
          "centred": _cosine(clean - mean, noisy - mean)}
  return found


def table(found: dict[str, Any]) -> str:
  """What was measured, for people."""
  lines = [f"{found['images']} images; features spread {found['spread']:.3g}; "
           f"two clean tokens have cosine {found['pairwise']:.3f}",
           "noise                cosine  distance  cosine less the mean"]
  for name, what in zip(UNITS, ("x spread", "absolute")):
    lines += [f"{sigma:>5} {what:<12}  {row['cosine']:7.3f}  "
              f"{row['distance']:8.4f}  {row['centred']:20.3f}"
              for sigma, row in found[name].items()]
  return "\n".join(lines)


def _flat(tokens: np.ndarray) -> np.ndarray:
  return tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return float(((a * b).sum(-1) / np.maximum(norms, 1e-12)).mean())
