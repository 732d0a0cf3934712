"""The page stands alone, escapes what it shows, and leaves out what is not."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from align_jax.inspect import charts, geometry, pictures, report
from align_jax.inspect.report import Report

EVALUATION = {
    "accuracy": 0.912, "ci95": [0.89, 0.93], "n": 500, "images": 52,
    "majority_accuracy": 0.373, "question_prior_accuracy": 0.67,
    "protocol": "greedy", "blind_accuracy": 0.631, "margin": 0.242,
    "margin_ci95": [0.2, 0.28], "probe": {"shape": 0.99},
    "noise": {"0.5": 0.88},
    "by_type": {"color": {"n": 9, "accuracy": 0.9, "blind_accuracy": 0.1,
                          "question_prior_accuracy": 0.2}}}


class _Balanced(HTMLParser):
  """Every tag that is opened is closed, in order."""
  void = {"meta", "img", "br", "link", "input"}

  def __init__(self):
    super().__init__()
    self.open, self.faults, self.text = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag not in self.void:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.faults.append((tag, self.getpos()))

  def handle_data(self, data):
    self.text.append(data)


def _page(**fields) -> tuple[str, str]:
  page = report.html(Report("a <run>", **fields))
  parser = _Balanced()
  parser.feed(page)
  assert not parser.faults and not parser.open
  return page, " ".join("".join(parser.text).split())


def _full() -> dict:
  rng = np.random.default_rng(0)
  png = pictures.thumbnail(np.zeros((4, 4, 3), np.uint8))
  return dict(
      subtitle="tower → mlp", evaluation=EVALUATION, words_note="how to read",
      samples=[{"image": png, "questions": [
          {"question": "<script>?", "prediction": "", "answer": "x&y",
           "right": False},
          {"question": "b?", "prediction": "yes", "answer": "yes",
           "right": True}]}],
      pictures=[png, png],
      distribution={"tokens": 4, "vocabulary": 49152, "uniform": 10.8,
                    "entropy": 9.1, "effective_words": 31,
                    "effective_range": [1, 99], "largest": 0.2,
                    "words": [("blue", 0.1)]},
      geometry=geometry.compare(rng.normal(size=(6, 3)),
                                rng.normal(size=(9, 3))),
      norms=png, losses=[(i, 3 / (i + 1)) for i in range(100)],
      facts=[("commit", "c0ffee")])


def test_a_full_page_stands_alone():
  page, text = _page(**_full())
  # Nothing is fetched: every picture is inside, no script, no link.
  sources = re.findall(r'src="([^"]*)"', page)
  assert len(sources) == 4
  assert all(s.startswith("data:image/png;base64,") for s in sources)
  assert not re.search(r"<script|<link|https?://|url\(", page)
  for expected in ("91.2 %", "+24.2", "67.0 %", "63.1 %", "88.0 % at 0.5",
                   "truth: x&y", "(nothing)", "c0ffee", "49,152", "blue"):
    assert expected in text, expected
  assert "&lt;script&gt;?" in page and "a &lt;run&gt;" in page
  assert '<svg class="chart"' in page


def test_what_is_missing_is_left_out():
  page, text = _page()
  assert "Not evaluated yet" in text
  for absent in ("<svg", "<img", "The distribution", "Where visual tokens"):
    assert absent not in page


@pytest.mark.parametrize("key", [
    "margin", "blind_accuracy", "probe", "noise", "ci95",
    "question_prior_accuracy", "majority_accuracy"])
def test_an_evaluation_without(key: str):
  values = {k: v for k, v in EVALUATION.items() if k != key}
  _, text = _page(evaluation=values)
  assert "91.2 %" in text


def test_a_score_that_is_no_share():
  _, text = _page(evaluation=EVALUATION | {
      "headline": "cider", "share": False, "accuracy": 1.234})
  assert "1.23" in text and "cider, 500 questions" in text
  assert "123.4" not in text


def test_line_chart():
  svg = charts.line([(0, 4.0), (5, float("nan")), (10, 2.0)], "step", "loss")
  assert svg.count("<path") == 1  # too few points to smooth
  assert "nan" not in svg
  assert charts.line([(1, 1.0)], "step", "loss") == ""
  many = charts.line([(i, np.sin(i) + 2) for i in range(200)], "a<b", "y")
  assert many.count("<path") == 2 and "a&lt;b" in many


@pytest.mark.parametrize("low, high", [(0, 1), (0, 4.4), (0, 12_000),
                                       (0.9, 0.95), (-3, 3)])
def test_ticks_are_round_and_inside(low: float, high: float):
  ticks = charts._ticks(low, high)
  assert 2 <= len(ticks) <= 8
  assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
  assert all(len(f"{t:g}") <= 6 for t in ticks)


def test_smoothing_keeps_a_constant():
  np.testing.assert_allclose(charts._smooth(np.full(80, 2.5)), 2.5)
