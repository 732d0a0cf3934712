"""Order, resumption, processes, mixtures, quarantine."""

import dataclasses
import io
import json
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image

from align_jax.config import DataConfig, SourceConfig
from align_jax.data import SOURCES, BadSample
from align_jax.data.batch import batch_spec
from align_jax.data.images import ImageReader
from align_jax.data.llava import Llava
from align_jax.data.pipeline import (
  ON_BAD_SAMPLE,
  Pipeline,
  merge_states,
  open_source,
)
from align_jax.data.quarantine import Quarantine
from align_jax.data.render import TEMPLATES
from align_jax.errors import InputError
from align_jax.ops.stack import REMAT
from align_jax.typed import CHOICES
from tests.data.samples import example, mixed_examples, png

SIZE = 8
CONFIG = DataConfig(rows=4, row_length=96, images_per_row=3,
                    labels_per_row=16, streams=2, workers=2)


@pytest.fixture
def make(renderer):
  """Pipelines over lists of examples; their threads end with the test."""
  opened = []

  class Closing(Pipeline):
    def rows_for(self, rows):
      opened.append(super().rows_for(rows))
      return opened[-1]

  def make_(sources=None, mixture=None, seed=0, quarantine=None, extras=None,
            **fields):
    # Grain's shuffle of few examples is slow, so there are more than needed.
    sources = sources or {"a": mixed_examples(400)}
    config = dataclasses.replace(CONFIG, **fields)
    return Closing(config, mixture or dict.fromkeys(sources, 1.0), renderer,
                   ImageReader(None, SIZE, 10_000), seed, quarantine, sources,
                   extras)

  yield make_
  for batches in opened:
    batches.close()


def take(batches, count):
  return [next(batches) for _ in range(count)]


def equal(a, b):
  assert a.keys() == b.keys() and a["extras"] == b["extras"] == {}
  for name in a.keys() - {"extras"}:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def sample_order(batches, count):
  """Colours of images, as names of samples: unpacked rows of one image."""
  return [int(image[0, 0, 0]) for batch in take(batches, count)
          for image in batch["images"][:, 0]]


def numbered(count, start=0):
  return [example("<image> what?", "blue", images=[png(start + i)],
                  number=start + i) for i in range(count)]


def test_batches_are_as_specified(make):
  spec = batch_spec(CONFIG, SIZE)
  kinds = Counter()
  for batch in take(iter(make()), 10):
    assert batch.pop("extras") == {}
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items() if k != "extras"}
    for row in batch["image_segment_ids"]:
      kinds.update(Counter(row[row > 0].tolist()).values())
      kinds.update(["none"] * (not row.any()))
  assert kinds[1] and kinds[2]  # samples of one image and of two


SCORE = {"score": jax.ShapeDtypeStruct((4, 3, 2), np.int32)}  # [B,S,...]


def test_packed_samples_keep_their_extras(make):
  """Sample i has the colour i and the score [i, -i]; every third has none."""
  samples = [sample | {"extras": {"score": np.array([i, -i], np.int32)}
                       if i % 3 else {}}
             for i, sample in enumerate(numbered(250))]
  batches = iter(make({"a": samples}, extras=SCORE, images_per_row=8))
  full = 0
  for batch in take(batches, 8):
    scores = batch["extras"]["score"]
    assert scores.shape == (4, 3, 2) and scores.dtype == np.int32
    for row, segments in enumerate(batch["image_segment_ids"]):
      colours = batch["images"][row, segments > 0, 0, 0, 0].astype(int)
      want = [[i, -i] if i % 3 else [0, 0] for i in colours]
      want += [[0, 0]] * (3 - len(want))  # at most S samples in a row
      assert scores[row].tolist() == want
      full += len(colours) == 3
  assert full


@pytest.mark.parametrize("value, shown", [
    (np.zeros(3, np.int32), r"int32\[3\]"), (np.zeros(2), r"float64\[2\]")])
def test_extras_of_another_kind_are_a_bad_sample(make, value, shown):
  samples = [s | {"extras": {"score": value}} for s in numbered(8)]
  with pytest.raises(BadSample, match=rf"memory:.*'score'\] is {shown}, not "
                                      r"int32\[2\]"):
    next(iter(make({"a": samples}, extras=SCORE)))
  with pytest.raises(InputError, match="B = data.rows = 8 and S"):
    make({"a": samples}, rows=8, extras=SCORE)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_seed_decides_the_order(make, pack, workers):
  first = take(iter(make(pack=pack, workers=workers)), 5)
  again = take(iter(make(pack=pack, workers=0)), 5)
  for a, b in zip(first, again):
    equal(a, b)
  other = take(iter(make(pack=pack, seed=1)), 5)
  assert any((a["tokens"] != b["tokens"]).any() or
             (a["images"] != b["images"]).any()
             for a, b in zip(first, other))


def test_each_epoch_has_all_samples_in_another_order(make):
  batches = iter(make({"a": numbered(12)}, pack=False, streams=1))
  epochs = [sample_order(batches, 3) for _ in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_global_row_r_is_of_stream_r_mod_streams(make):
  batches = iter(make({"a": numbered(16)}, pack=False, streams=2))
  for batch in take(batches, 8):
    for row, image in enumerate(batch["images"][:, 0]):
      assert image[0, 0, 0] % 2 == row % 2


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_batches(make, streams,
                                                       processes):
  pipeline = make(streams=streams)
  whole = take(iter(pipeline), 4)
  parts = np.array_split(np.arange(4), processes)
  for rows in parts:
    for batch, mine in zip(whole, take(pipeline.rows_for(rows), 4)):
      equal({k: v if k == "extras" else v[rows] for k, v in batch.items()},
            mine)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7])
def test_resumes_bit_for_bit_from_anywhere(make, pack, workers, stop):
  samples = {"a": mixed_examples(300), "b": numbered(100)}
  samples["a"][4]["images"] = [b"broken"]
  setting = dict(sources=samples, mixture={"a": 2.0, "b": 1.0}, pack=pack,
                 workers=workers, on_bad_sample="quarantine")
  batches = iter(make(**setting))
  take(batches, stop)
  state = json.loads(json.dumps(batches.get_state()))
  later = take(batches, 8)
  resumed = iter(make(**setting))
  resumed.set_state(state)
  assert resumed.get_state() == state
  for a, b in zip(later, take(resumed, 8)):
    equal(a, b)
  # Back in time with the iterator that has read ahead.
  batches.set_state(state)
  for a, b in zip(later, take(batches, 8)):
    equal(a, b)
  assert batches.get_state() == resumed.get_state()


def test_resumes_in_a_later_epoch(make):
  setting = dict(sources={"a": numbered(6)}, pack=False)
  batches = iter(make(**setting))
  take(batches, 4)  # 16 samples of 6
  resumed = iter(make(**setting))
  resumed.set_state(batches.get_state())
  assert sample_order(batches, 4) == sample_order(resumed, 4)


def test_state_is_of_what_was_consumed_not_read_ahead(make):
  threaded, plain = iter(make(workers=4)), iter(make(workers=0))
  for _ in range(6):
    assert threaded.get_state() == plain.get_state()
    equal(next(threaded), next(plain))


@pytest.mark.parametrize("before, after", [(2, 1), (4, 2), (1, 4)])
def test_another_number_of_processes_resumes(make, before, after):
  pipeline = make(streams=4)
  whole = iter(pipeline)
  take(whole, 3)
  states = []
  for rows in np.array_split(np.arange(4), before):
    batches = pipeline.rows_for(rows)
    take(batches, 3)
    states.append(batches.get_state())
  merged = merge_states(states)
  assert merged == whole.get_state()
  expected = take(whole, 3)
  for rows in np.array_split(np.arange(4), after):
    batches = pipeline.rows_for(rows)
    batches.set_state(merged)
    for batch, mine in zip(expected, take(batches, 3)):
      np.testing.assert_array_equal(batch["tokens"][rows], mine["tokens"])


def test_a_state_of_another_order_is_refused(make):
  with pytest.raises(ValueError, match="sizes {'a': 20}, here {'a': 21}"):
    state = iter(make({"a": numbered(20)})).get_state()
    iter(make({"a": numbered(21)})).set_state(state)
  state = iter(make(streams=1)).get_state()
  with pytest.raises(ValueError, match="stream_count 1, here 2; no state of"):
    iter(make(streams=2)).set_state(state)
  state = make().rows_for([0]).get_state()
  with pytest.raises(ValueError, match=r"no state of stream\(s\) 1"):
    iter(make()).set_state(state)
  with pytest.raises(ValueError, match="seed 0, here 1"):
    iter(make(seed=1)).set_state(iter(make()).get_state())


def test_mixture_weights(make):
  batches = iter(make({"a": numbered(20), "b": numbered(30, 100)},
                      {"a": 3.0, "b": 1.0}, pack=False))
  seen = Counter(order >= 100 for order in sample_order(batches, 20))
  assert seen == {False: 60, True: 20}


def test_weight_zero_and_empty_mixture(make):
  sources = {"a": numbered(20), "b": numbered(30, 100)}
  batches = iter(make(sources, {"a": 1.0, "b": 0.0}, pack=False))
  assert max(sample_order(batches, 10)) < 20
  batches = iter(make(sources, pack=False))
  assert max(sample_order(batches, 10)) >= 100


def said(number, question="<image> what?", answer="blue", image="good.png"):
  return json.dumps({"id": number, "image": image, "conversations": [
      {"from": "human", "value": question}, {"from": "gpt", "value": answer}]})


# Kind -> a line of a LLaVA file, and why it is refused.
BAD = {
    "missing": (said(0, image="none.png"), "none.png' does not exist"),
    "broken": (said(0, image="broken.png"), "broken.png' is broken"),
    "no_image": (said(0, image="a.jsonl"),
                 "a.jsonl' is not in a known image format"),
    "large": (said(0, image="large.png"), "large.png' has 101 x 100 = 10,100 "
              "pixels, more than max_pixels = 10,000"),
    "outside": (said(0, image="../../secret.png"),
                "'../../secret.png' leaves the image folder"),
    "placeholders": (said(0, image=[]),
                     "1 <image> placeholder(s) in the conversation for 0"),
    "unplaced": (said(0, "what?"), "0 <image> placeholder(s) in the"),
    "no_labels": (json.dumps({"id": 0, "conversations": [
        {"from": "human", "value": "what?"}]}), "no token is supervised"),
    "no_json": ('{"id": 0', "no valid JSON"),
    "long": (said(0, "<image>" + "what? " * 100),
             "tokens, more than data.row_length = 96"),
    "labels": (said(0, answer="blue " * 20),
               "21 supervised positions, more than data.labels_per_row = 16"),
    "images": (said(0, "<image>" * 4, image=["good.png"] * 4),
               "4 images, more than data.images_per_row = 3"),
}


@pytest.fixture
def llava(tmp_path):
  """Writes lines to a LLaVA file beside a few images; gives its path."""
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(noise).save(buffer, "PNG")
  for name, data in (("good", png(7)), ("large", png(0, (101, 100))),
                     ("broken", buffer.getvalue()[:2000])):
    (tmp_path / f"{name}.png").write_bytes(data)

  def write(*lines):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"

  return write


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_ends_the_run(make, llava, kind, workers):
  line, reason = BAD[kind]
  path = llava(*[said(i) for i in range(3)], line)
  batches = iter(make({"a": Llava(str(path))}, streams=1, workers=workers))
  with pytest.raises(BadSample) as caught:
    take(batches, 9)
  assert caught.value.origin == f"{path}:4"
  assert reason in caught.value.reason
  assert str(caught.value) == f"{path}:4: {caught.value.reason}"


def test_quarantine_lists_and_counts(make, llava, tmp_path):
  lines = [said(i) for i in range(8)] + [line for line, _ in BAD.values()]
  path = llava(*lines)
  listed_in = tmp_path / "run" / "quarantine.jsonl"
  setting = dict(sources={"a": Llava(str(path))}, on_bad_sample="quarantine",
                 quarantine=listed_in, pack=False)
  batches = iter(make(**setting))
  assert set(sample_order(batches, 12)) == {7}  # good.png and nothing else
  assert batches.stats["quarantined"] == len(BAD)
  listed = [json.loads(r) for r in listed_in.read_text().splitlines()]
  assert sorted(r["origin"] for r in listed) == sorted(
      f"{path}:{9 + i}" for i in range(len(BAD)))
  reasons = dict(zip([f"{path}:{9 + i}" for i in range(len(BAD))],
                     [reason for _, reason in BAD.values()]))
  for r in listed:
    assert r["source"] == "a" and reasons[r["origin"]] in r["reason"]
  # A resumed run goes on with the same list.
  batches = iter(make(**setting))
  take(batches, 12)
  assert batches.stats["quarantined"] == len(BAD)
  assert len(listed_in.read_text().splitlines()) == len(BAD)


def test_quarantine_file_with_a_half_written_line(tmp_path):
  path = tmp_path / "quarantine.jsonl"
  first = Quarantine(path)
  first.add(BadSample("a:1", "x"), "s")
  first.add(BadSample("a:1", "x"), "s")
  path.write_text(path.read_text() + '{"origin": "a:')
  assert len(Quarantine(path)) == 1


def test_a_source_of_bad_samples_alone_ends_the_run(make):
  bad = [example("what?", number=i) for i in range(6)]
  batches = iter(make({"a": numbered(6), "b": bad},
                      on_bad_sample="quarantine"))
  with pytest.raises(ValueError, match="every sample of source 'b'"):
    take(batches, 20)


def test_stats(make):
  batches = iter(make({"a": numbered(8)}, pack=False))
  batch = next(batches)
  assert batches.stats == {
      "samples": 4, "images": 4, "quarantined": 0,
      "tokens": int((batch["segment_ids"] > 0).sum()),
      "supervised": int(batch["loss_weights"].sum()),
      "token_fill": (batch["segment_ids"] > 0).mean(), "image_fill": 1 / 3}


def test_packing_fills_rows(make):
  batches = iter(make({"a": mixed_examples(40)}))
  take(batches, 3)
  assert batches.stats["token_fill"] > 0.6
  assert batches.stats["samples"] > 4


def test_close_ends_the_threads(make):
  before = threading.active_count()
  batches = iter(make())
  next(batches)
  batches.close()
  for thread in threading.enumerate():
    if thread.name.startswith("grain-prefetch"):
      thread.join(5)
  assert threading.active_count() <= before


def test_choices_of_a_config_are_those_of_its_parts():
  """Written twice: reading a config must import neither jax nor grain."""
  assert CHOICES["data.on_bad_sample"] == ON_BAD_SAMPLE
  assert CHOICES["data.template"] == TEMPLATES
  assert CHOICES["model.remat"] == REMAT


def test_faults_of_the_config_are_listed_together(make):
  with pytest.raises(ValueError) as caught:
    make({"alpha": numbered(4)}, {"alpa": 1.0, "alpha": -1.0}, rows=5,
         on_bad_sample="quarantined")
  for part in ("'alpa'; did you mean 'alpha'", "'alpha' is negative",
               "data.rows = 5 is no multiple of data.streams = 2",
               "did you mean 'quarantine'"):
    assert part in str(caught.value)
  with pytest.raises(ValueError, match="fewer examples .* {'a': 1}"):
    make({"a": numbered(1)})
  with pytest.raises(ValueError, match=r"rows \[4\] of a batch of 4"):
    make().rows_for([4])


def test_sources_are_opened_by_their_registered_name(tmp_path):
  SOURCES.register("ten")(Ten)
  assert open_source("x", SourceConfig("ten", {"size": 3})).size == 3
  with pytest.raises(ValueError, match=r"data.sources.x \(tenn\): unknown"):
    open_source("x", SourceConfig("tenn"))
  with pytest.raises(ValueError, match="data.sources.x .*'sise'"):
    open_source("x", SourceConfig("ten", {"sise": 3}))


class Ten:
  def __init__(self, size: int = 10):
    self.size = size
