"""ROUGE-L in the two forms papers mean by the name.

`coco` is pycocoevalcap 1.2 (rouge/rouge.py): the longest common subsequence,
best precision and best recall over the references, beta 1.2. `package` is
rouge 1.0.1 from PyPI (rouge/rouge_score.py, summary level): sentences end at
periods, unions of common subsequences are counted as sets of words, and the
F-measure has 1e-8 in its denominator. DEMON, lmms-eval's interleave bench and
SAM report the latter.
"""

from collections.abc import Sequence

BETA = 1.2
EPSILON = 1e-8


def _table(a: Sequence[str], b: Sequence[str]) -> list[list[int]]:
  """Lengths of the longest common subsequences of all beginnings."""
  rows = [[0] * (len(b) + 1)]
  for left in a:
    above, row = rows[-1], [0]
    for j, right in enumerate(b):
      row.append(above[j] + 1 if left == right
                 else max(above[j + 1], row[j]))
    rows.append(row)
  return rows


def coco(prediction: str, references: Sequence[str]) -> float:
  """pycocoevalcap's ROUGE-L of one sample; split at each single space."""
  said = prediction.split(" ")
  precision = recall = 0.0
  for reference in references:
    true = reference.split(" ")
    common = _table(true, said)[-1][-1]
    precision = max(precision, common / len(said))
    recall = max(recall, common / len(true))
  if not precision or not recall:
    return 0.0
  return ((1 + BETA ** 2) * precision * recall
          / (recall + BETA ** 2 * precision))


def _subsequence(a: Sequence[str], b: Sequence[str]) -> set[str]:
  """The words of one longest common subsequence, the package's choice."""
  rows, i, j = _table(a, b), len(a), len(b)
  out = set()
  while i and j:
    if a[i - 1] == b[j - 1]:
      out.add(a[i - 1])
      i, j = i - 1, j - 1
    elif rows[i - 1][j] > rows[i][j - 1]:
      i -= 1
    else:
      j -= 1
  return out


def package(prediction: str, reference: str) -> float:
  """rouge 1.0.1's rouge-l F-measure of one pair; 0 if either is empty."""
  sentences = lambda text: [" ".join(part.split()) for part in
                            text.split(".") if part]
  said, true = sentences(prediction), sentences(reference)
  if not said or not true:
    return 0.0
  words = lambda parts: {w for part in parts for w in part.split(" ")}
  union: set[str] = set()
  for sentence in true:
    for part in said:
      union |= _subsequence(sentence.split(" "), part.split(" "))
  recall, precision = (len(union) / len(words(x)) for x in (true, said))
  return 2 * (precision * recall / (precision + recall + EPSILON))
