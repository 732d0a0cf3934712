"""GQA: the answer is one of a closed list, word for word (arXiv 1902.09506).

The GQA site's eval.py compares strings as they are. LLaVA brings its answers
there first (scripts/convert_gqa_for_eval.py: last periods off, lower
case); lmms-eval compares without letter case and punctuation
(lmms_eval/tasks/gqa/gqa.yaml: exact_match with ignore_case and
ignore_punctuation).
"""

import string

from align_jax.evals.scorers.protocol import Scorer
from align_jax.evals.tasks import Item

_MARKS = str.maketrans("", "", string.punctuation)


class Gqa(Scorer):
  """eval.py after LLaVA's conversion."""
  protocol = ("GQA eval.py: equal strings, the prediction in lower case "
              "without last periods (LLaVA's conversion)")

  def one(self, prediction: str, item: Item) -> float:
    return prediction.rstrip(".").lower() == item.answer


class GqaLmmsEval(Scorer):
  """lmms-eval's exact_match."""
  protocol = ("GQA: equal strings without letter case and ASCII punctuation "
              "(lmms-eval)")

  def one(self, prediction: str, item: Item) -> float:
    plain = lambda text: text.lower().translate(_MARKS)
    return plain(prediction) == plain(item.answer)
