"""How near visual tokens are to words: measures of alignment, in NumPy.

SEA's own (2408.11813): `nearest_words` (eq 4), `modality_gap` (eq 5), `tacs`
(eq 14). SEA trains the first and the last, so a gain in them is no surprise;
those of others say more: `mir` (2410.07167), `mutual_knn` and `cka`
(2405.07987), and `norm_ratio`, since a loss of cosines moves no norms.

Letters: X visual tokens, W words or text tokens, D their width.
"""

from collections.abc import Sequence

import numpy as np

from align_jax.errors import InputError


def unit(x: np.ndarray) -> np.ndarray:
  """Rows at length one; a zero row stays zero."""
  norm = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.maximum(norm, 1e-12)


def nearest_words(visual_xd: np.ndarray, words_wd: np.ndarray) -> np.ndarray:
  """The word of the largest cosine, i[X] (SEA, eq 4)."""
  return np.concatenate([
      (unit(part) @ unit(words_wd).T).argmax(-1)
      for part in _parts(visual_xd)])


def hit_rate(nearest_x: np.ndarray, truth: Sequence[set[int]]) -> float:
  """Share of the tokens whose nearest word is one that is true of them.

  Args:
    nearest_x: i[X] of `nearest_words`.
    truth: for each token its true words; tokens without any are left out.

  Raises:
    InputError: no token has a true word.
  """
  hits = [int(word) in true for word, true in zip(nearest_x, truth) if true]
  if not hits:
    raise InputError("no visual token has a true word to be measured by")
  return float(np.mean(hits))


def modality_gap(visual_xd: np.ndarray, words_wd: np.ndarray) -> float:
  """Mean distance to the nearest word, not its cosine (SEA, eq 5)."""
  square = np.square(words_wd).sum(-1)
  nearest = [
      (np.square(part).sum(-1)[:, None] - 2 * part @ words_wd.T
       + square).min(-1) for part in _parts(visual_xd)]
  return float(np.sqrt(np.maximum(np.concatenate(nearest), 0)).mean())


def tacs(visual_xd: np.ndarray, caption_wd: np.ndarray,
         top: int = 10) -> float:
  """Mean of the `top` visual tokens' largest cosines (SEA, eq 14).

  Args:
    visual_xd: of one image.
    caption_wd: embeddings of its caption's tokens.
    top: K, 10 in the paper.

  Raises:
    InputError: there are fewer visual tokens than K.
  """
  if len(visual_xd) < top:
    raise InputError(f"TACS of the {top} best tokens, but there are "
                     f"{len(visual_xd)}")
  best = (unit(visual_xd) @ unit(caption_wd).T).max(-1)
  return float(np.sort(best)[-top:].mean())


def norm_ratio(visual_xd: np.ndarray, words_wd: np.ndarray) -> float:
  """Mean norm of visual tokens over mean norm of words."""
  return float(np.linalg.norm(visual_xd, axis=-1).mean()
               / np.linalg.norm(words_wd, axis=-1).mean())


def mir(visual_lxd: Sequence[np.ndarray],
        text_lwd: Sequence[np.ndarray]) -> float:
  """Modality integration rate (2410.07167); lower is better integrated.

  Args:
    visual_lxd: per layer of the LLM, without the embeddings (layer 0), the
      hidden states at visual positions of all images, f[X,D].
    text_lwd: likewise at text positions.

  Returns:
    log10 of the layers' summed Fréchet distances. The steps are upstream's
    (github.com/shikiw/Modality-Integration-Rate, mir.py and mir_util.py);
    the matrix root is exact, as in its mode "accurate".
  """
  total = 0.0
  for visual, text in zip(visual_lxd, text_lwd, strict=True):
    scale = 1 / np.linalg.norm(text, axis=-1).mean()
    total += frechet(_tamed(scale * visual), _tamed(scale * text))
  return float(np.log10(total))


def _tamed(x: np.ndarray) -> np.ndarray:
  """Tokens of outlying norm replaced by the median of each coordinate."""
  norms = np.linalg.norm(x, axis=-1)
  # Of an even count, the lower of the middle two, as torch.median.
  middle = lambda a: np.sort(a, axis=0)[(len(a) - 1) // 2]
  far = np.abs(norms - middle(norms)) > 3 * norms.std(ddof=1)
  return np.where(far[:, None], middle(x), x)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Fréchet distance of two Gaussians fitted to f[A,D] and f[B,D]."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  cov_a, cov_b = (np.cov(x, rowvar=False) for x in (a, b))
  # tr sqrt(Sa Sb) by the eigenvalues of the symmetric sqrt(Sa) Sb sqrt(Sa).
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  shared = np.linalg.eigvalsh(root @ cov_b @ root)
  return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a)
               + np.trace(cov_b) - 2 * np.sqrt(np.maximum(shared, 0)).sum())


def mutual_knn(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
  """Share of the k nearest that two views of the same N things agree on.

  Args:
    a: f[N,C], one view, such as the mean visual token of each image.
    b: f[N,D], the other, such as the mean embedding of each caption.
    k: nearest by cosine, 10 in 2405.07987.

  Raises:
    InputError: different counts, or no more than k things.
  """
  _check_pairs(a, b)
  if len(a) <= k:
    raise InputError(f"{k} nearest of {len(a)} things")

  def nearest(x: np.ndarray) -> np.ndarray:
    near = unit(x) @ unit(x).T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1, kind="stable")[:, :k]

  return float(np.mean([len(set(p) & set(q)) / k
                        for p, q in zip(nearest(a), nearest(b))]))


def cka(a: np.ndarray, b: np.ndarray) -> float:
  """Linear centred kernel alignment (1905.00414) of f[N,C] and f[N,D].

  Raises:
    InputError: different counts.
  """
  _check_pairs(a, b)
  a, b = (np.asarray(x, np.float64) - x.mean(0) for x in (a, b))
  norm = np.linalg.norm
  return float(norm(a.T @ b) ** 2 / max(
      norm(a.T @ a) * norm(b.T @ b), 1e-30))


def _check_pairs(a: np.ndarray, b: np.ndarray) -> None:
  if len(a) != len(b):
    raise InputError(f"{len(a)} things in one view and {len(b)} in the other")


def _parts(x: np.ndarray, size: int = 4096) -> list[np.ndarray]:
  """Pieces of rows, so that no [X,W] of all tokens is held."""
  return [x[i:i + size] for i in range(0, len(x), size)]
