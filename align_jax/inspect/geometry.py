"""Where visual tokens lie in the space of word embeddings."""

import dataclasses
from typing import Any

import numpy as np

LEVELS = (5, 25, 50, 75, 95)


@dataclasses.dataclass(frozen=True)
class Cloud:
  """A set of vectors.

  Attributes:
    norm: mean norm.
    norm_percentiles: at 5, 25, 50, 75 and 95.
    cosine: mean cosine between two of them; 1 means that all are alike.
    mean_norm: norm of their mean: how far off the origin the cloud lies.
  """
  norm: float
  norm_percentiles: tuple[float, ...]
  cosine: float
  mean_norm: float


def cloud(vectors_nd: Any) -> Cloud:
  """Norms and mutual cosines of f[n,D], without an array [n,n]."""
  x = np.asarray(vectors_nd, np.float64)
  norms = np.linalg.norm(x, axis=-1)
  unit = x / np.maximum(norms, 1e-12)[:, None]
  n = len(x)
  # The mean over pairs follows from the norm of the sum.
  pairs = ((unit.sum(0) ** 2).sum() - (unit ** 2).sum()) / max(n * (n - 1), 1)
  return Cloud(
      float(norms.mean()),
      tuple(float(v) for v in np.percentile(norms, LEVELS)),
      float(pairs) if n > 1 else 1.0,
      float(np.linalg.norm(x.mean(0))))


def compare(visual_nd: Any, table_vd: Any) -> dict[str, Any]:
  """Visual tokens f[n,D] beside the text embeddings f[V,D].

  Returns:
    `visual` and `text` (fields of `Cloud`), `norm_ratio`, and
    `cosine_of_means`, between the two clouds' centres.
  """
  visual, text = np.asarray(visual_nd), np.asarray(table_vd)
  a, b = cloud(visual), cloud(text)
  mean_v = visual.astype(np.float64).mean(0)
  mean_t = text.astype(np.float64).mean(0)
  cosine = mean_v @ mean_t / max(
      np.linalg.norm(mean_v) * np.linalg.norm(mean_t), 1e-12)
  return {
      "visual": dataclasses.asdict(a), "text": dataclasses.asdict(b),
      "norm_ratio": a.norm / max(b.norm, 1e-12),
      "cosine_of_means": float(cosine)}
