"""CIDEr-D, BLEU, ROUGE-L and COCO's tokens, against their packages."""

import random
from pathlib import Path

import pytest

from align_jax.evals.scorers import SCORERS, captions, ptb, rouge
from align_jax.evals.scorers.bleu import bleu
from align_jax.evals.scorers.cider import cider
from align_jax.evals.tasks import Item

REFERENCES = ["a man rides a horse on the beach",
              "two dogs play with a red ball in the park",
              "the family ate cake at the birthday party"]
SAID = ["a man is riding a horse on the beach",
        "two dogs are playing in a park",
        "people celebrate a birthday with cake"]
SINGLE = [[r] for r in REFERENCES]


def items(references: list[list[str]]) -> list[Item]:
  return [Item(str(n), n, "", r[0], "", n, answers=tuple(r))
          for n, r in enumerate(references)]


def corpus(seed: int, samples: int = 12) -> tuple[list[str], list[list[str]]]:
  """Texts over few words, so that n-grams meet; some odd on purpose."""
  rng = random.Random(seed)
  words = "a the dog cat man runs on red mat . sits and".split()
  text = lambda: " ".join(rng.choices(words, k=rng.randint(1, 9)))
  return ([text() for _ in range(samples)],
          [[text() for _ in range(rng.randint(1, 5))]
           for _ in range(samples)])


def test_golden_cider():
  # pycocoevalcap 1.2, strings as they are.
  got = cider(SAID, SINGLE)
  assert got == pytest.approx(
      [5.549021939119808, 1.5917324609297392, 0.8520113918154257], rel=1e-12)
  assert sum(got) / 3 == pytest.approx(2.664255263954991, rel=1e-12)
  assert cider(REFERENCES, SINGLE) == pytest.approx([10] * 3)
  short = ["dog", "a dog", "a black cat sat"]
  assert cider(short, [[s] for s in short]) == pytest.approx([2.5, 5, 10])
  assert cider(["a dog"], [["a dog"]]) == [0]  # one sample has no weights


def test_golden_bleu_and_rouge():
  assert bleu(SAID, SINGLE) == pytest.approx(
      (0.5305700387268814, 0.3737565988102879, 0.27951521883121827,
       0.23005681174767942), rel=1e-12)
  assert [rouge.package(s, r) for s, r in zip(SAID, REFERENCES)] == (
      pytest.approx([0.7999999950222222, 0.470588230449827,
                     0.1538461488757398], rel=1e-12))


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocoevalcap(seed: int):
  package = pytest.importorskip("pycocoevalcap.cider.cider")
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.rouge.rouge import Rouge
  said, true = corpus(seed)
  if seed == 3:
    said[0], said[1] = "", "unseen words only"
  given = dict(enumerate(true)), {n: [s] for n, s in enumerate(said)}
  assert cider(said, true) == pytest.approx(
      list(package.Cider().compute_score(*given)[1]), rel=1e-12, abs=1e-15)
  assert bleu(said, true) == pytest.approx(
      Bleu(4).compute_score(*given, verbose=0)[0], rel=1e-12)
  assert [rouge.coco(s, t) for s, t in zip(said, true)] == pytest.approx(
      list(Rouge().compute_score(*given)[1]), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_package_rouge(seed: int):
  package = pytest.importorskip("rouge").Rouge()
  said, true = corpus(seed, samples=40)
  for a, b in zip(said, (t[0] for t in true)):
    if not a.replace(".", "").strip() or not b.replace(".", "").strip():
      continue  # the package raises, or counts an empty word
    assert rouge.package(a, b) == pytest.approx(
        package.get_scores(a, b)[0]["rouge-l"]["f"], rel=1e-12)
  assert rouge.package("", "a dog") == 0


def test_tokens_are_the_jars():
  lines = (Path(__file__).parent / "golden/ptb.tsv").read_text(
      encoding="utf-8").splitlines()[1:]
  assert len(lines) > 80
  for line in lines:
    sentence, jar = line.split("\t")
    want = [t for t in jar.split() if t not in ptb.DROPPED]
    assert ptb.caption_words(sentence).split() == want, sentence


def test_coco_protocol_takes_all_references_and_drops_punctuation():
  references = [["A man rides a horse!", "a rider on a beach"],
                ["Two dogs, playing.", "dogs in a park"]]
  said = ["a man rides a horse", "TWO DOGS PLAYING"]
  got = SCORERS.get("coco")().total(said, items(references))
  assert got["bleu4"] == pytest.approx(1, abs=1e-3) and got["rouge_l"] == 1
  assert got["cider"] == pytest.approx(
      sum(cider(said[:1] + ["two dogs playing"],
                [["a man rides a horse", "a rider on a beach"],
                 ["two dogs playing", "dogs in a park"]])) / 2)
  assert sum(SCORERS.get("coco")().scores(said, items(references))) / 2 == (
      got["cider"])


def test_sams_protocol():
  # McCartney01/SAM: evaluate_score.py (Eval.process)
  assert captions.sam_words("\"The dog's tail, wagging.\"\n") == (
      "the dog's tail wagging")
  assert captions.sam_words("red/white - 3.5 m") == "red white  3.5 m"
  assert captions.sam_words("1,000 red/white") == "1000 redwhite"
  assert captions.sam_words("a; b: c") == "a b: c"  # a colon stays
  got = SCORERS.get("sam")().total(
      SAID, items([[r, "never looked at"] for r in REFERENCES]))
  assert got["cider"] == pytest.approx(2.664255263954991)
  assert got["bleu4"] == pytest.approx(0.23005681174767942)
  assert got["rouge_l"] == pytest.approx(
      (0.7999999950222222 + 0.470588230449827 + 0.1538461488757398) / 3)
  assert SCORERS.get("sam")().total(
      ["", "x y", "z w"], items(SINGLE))["rouge_l"] == 0
