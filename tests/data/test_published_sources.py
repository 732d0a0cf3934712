"""Training sets in the form they are published, by hand-written records."""

import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.data import SOURCES, BadSample
from align_jax.data.images import ImageReader
from align_jax.errors import InputError


def png(shade: int = 9) -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (2, 2), (shade, 0, 0)).save(out, "PNG")
  return out.getvalue()


def shade(image: Any) -> int:
  """What an image shows, however it is given."""
  pixels, _ = ImageReader(None, 2)(image)
  return int(pixels[0, 0, 0])


def shard(path: Path, files: dict[str, bytes], mode: str = "w") -> str:
  with tarfile.open(path, mode) as tar:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return str(path)


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
  return str(path.parent)


def picture(value: int) -> dict[str, Any]:
  return {"bytes": png(value), "path": None}


def text_of(example: dict[str, Any]) -> list[str]:
  return [m["content"] for m in example["conversation"]]


# CC12M as img2dataset writes it, with a sample that lost its image.
SHARD = {
    "000000000.jpg": png(1), "000000000.txt": b"a red door \n",
    "000000000.json": b'{"url": "https://example.org/0.jpg"}',
    "000000001.txt": b"its image could not be had", "000000001.json": b"{}",
    "000000002.jpg": png(2), "000000002.txt": "caf\u00e9".encode(),
    "sub/000000003.png": png(3), "sub/000000003.txt": b"x",
    "sub/000000003.seg.png": png(4)}


def test_webdataset_shards(tmp_path):
  for number in range(2):
    shard(tmp_path / f"cc12m-train-{number:04d}.tar", SHARD)
  source = SOURCES.get("webdataset")(str(tmp_path / "cc12m-train-*.tar"))
  assert len(source) == 6
  assert source.skipped == {"no image": 2, "no caption": 0}
  first, second, third = source[0], source[1], source[5]
  assert text_of(first) == ["<image>", "a red door"]
  assert first["id"] == "cc12m-train-0000/000000000"
  assert first["origin"] == f"{tmp_path}/cc12m-train-0000.tar:000000000"
  assert text_of(second)[1] == "café" and shade(second["images"][0]) == 2
  assert third["id"] == "cc12m-train-0001/sub/000000003"
  assert shade(third["images"][0]) == 3
  asked = SOURCES.get("webdataset")(str(tmp_path / "*.tar"),
                                    prompt="Describe it.")
  assert text_of(asked[0])[0] == "<image>\nDescribe it."


def test_webdataset_from_several_threads(tmp_path):
  source = SOURCES.get("webdataset")(shard(tmp_path / "a.tar", {
      name: data for n in range(50) for name, data in (
          (f"{n}.png", png(n)), (f"{n}.txt", str(n).encode()))}))
  wrong = []

  def read(step: int) -> None:
    for n in range(50):
      n = n * step % 50
      if shade(source[n]["images"][0]) != int(text_of(source[n])[1]):
        wrong.append(n)

  threads = [threading.Thread(target=read, args=(s,)) for s in (1, 3, 7, 9)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_a_shard_that_was_cut_is_not_taken_for_a_whole_one(tmp_path):
  whole = Path(shard(tmp_path / "a.tar", {
      name: data for n in range(20) for name, data in (
          (f"{n:02d}.png", png(n)), (f"{n:02d}.txt", b"x"))}))
  with tarfile.open(whole) as tar:
    begin = tar.getmember("05.png").offset
  data = whole.read_bytes()
  # At a header, inside it, and inside what it tells of.
  for cut in (begin, begin + 200, begin + tarfile.BLOCKSIZE + 10):
    whole.write_bytes(data[:cut])
    with pytest.raises(InputError, match="ends early|unexpected end"):
      SOURCES.get("webdataset")(str(whole))


def test_samples_that_are_left_out_are_told(tmp_path, caplog):
  path = shard(tmp_path / "a.tar", {"1.txt": b"x", "2.png": png(2),
                                    "2.txt": b"y"})
  assert len(SOURCES.get("webdataset")(path)) == 1
  assert "1 samples of" in caplog.text and "have no image" in caplog.text


def test_bad_shards(tmp_path):
  make = SOURCES.get("webdataset")
  with pytest.raises(InputError, match="no shard matches"):
    make(str(tmp_path / "*.tar"))
  (tmp_path / "a.tar").write_bytes(b"nothing")
  with pytest.raises(InputError, match="a.tar: no uncompressed tar"):
    make(str(tmp_path / "a.tar"))
  with pytest.raises(InputError, match="no uncompressed tar"):
    make(shard(tmp_path / "b.tar", SHARD, "w:gz"))
  with pytest.raises(InputError, match="'1' do not lie side by side"):
    make(shard(tmp_path / "c.tar", {"1.jpg": png(), "2.jpg": png(),
                                    "1.txt": b"x"}))
  source = make(shard(tmp_path / "d.tar", {
      "1.jpg": png(), "1.txt": b" ", "2.jpg": png(), "2.txt": b"\xff"}))
  for index, reason in enumerate(("is empty", "caption: ")):
    with pytest.raises(BadSample, match=f"d.tar:{index + 1}: .*{reason}"):
      source[index]


def test_llava_558k(tmp_path):
  (tmp_path / "images/00453").mkdir(parents=True)
  path = tmp_path / "blip_laion_cc_sbu_558k.json"
  records = [{"id": "004539375", "image": "00453/004539375.jpg",
              "conversations": [
                  {"from": "human", "value": "Render it.\n<image>"},
                  {"from": "gpt", "value": "select luxury furniture"}]}]
  path.write_text(json.dumps(records))
  source = SOURCES.get("llava_558k")(str(tmp_path))
  assert text_of(source[0]) == ["<image>", "select luxury furniture"]
  assert source[0]["images"] == [tmp_path / "images/00453/004539375.jpg"]
  asked = SOURCES.get("llava_558k")(str(tmp_path), plain=False)
  assert text_of(asked[0])[0] == "Render it.\n<image>"
  records[0]["conversations"].append({"from": "gpt", "value": "more"})
  path.write_text(json.dumps(records))
  with pytest.raises(BadSample, match="558k.json:1: not one question"):
    SOURCES.get("llava_558k")(str(tmp_path))[0]


def test_llava_next(tmp_path):
  turns = [{"from": "human", "value": "<image>\nWhat?"},
           {"from": "gpt", "value": "A cat."}]
  root = parquet(tmp_path / "data/train-00000-of-00001.parquet", [
      {"id": "1", "image": picture(n), "conversations": turns,
       "data_source": "coco"} for n in range(3)] + [
           {"id": "4", "image": None, "data_source": "sharegpt",
            "conversations": [{"from": "human", "value": "Hi"},
                              {"from": "gpt", "value": "Hello"}]}])
  source = SOURCES.get("llava_next")(root)
  assert len(source) == 4
  assert [shade(source[i]["images"][0]) for i in (2, 0, 1)] == [2, 0, 1]
  assert text_of(source[1]) == ["<image>\nWhat?", "A cat."]
  assert source[3]["images"] == [] and text_of(source[3])[1] == "Hello"
  assert source[1]["origin"].endswith("train-00000-of-00001.parquet, row 1")


def test_mantis_keeps_the_order_of_images(tmp_path):
  root = parquet(tmp_path / "nlvr2/train-00000-of-00001.parquet", [
      {"id": "a", "images": [picture(5), picture(6)], "source": "nlvr2",
       "conversation": [
           {"role": "user", "content": "<image> and <image>: which?"},
           {"role": "assistant", "content": "The first."}]},
      {"id": "b", "images": [picture(7), picture(8)], "source": "nlvr2",
       "conversation": [{"role": "user", "content": "Which?"},
                        {"role": "assistant", "content": "None."}]},
      {"id": "c", "images": [picture(7)], "source": "nlvr2",
       "conversation": [{"role": "user", "content": "<image><image>"},
                        {"role": "assistant", "content": "None."}]}])
  source = SOURCES.get("mantis")(root)
  assert [shade(i) for i in source[0]["images"]] == [5, 6]
  assert text_of(source[0])[0] == "<image> and <image>: which?"
  assert text_of(source[1])[0] == "<image><image>\nWhich?"
  with pytest.raises(BadSample, match="row 2: 2 <image> for 1 images"):
    source[2]


def test_bigdocs(tmp_path):
  (tmp_path / "coco").mkdir()
  (tmp_path / "coco/1.png").write_bytes(png(3))
  root = parquet(tmp_path / "ArxivTableCap/train-00000-of-00001.parquet", [
      {"sample_id": "s1", "image": picture(2), "query": ["Caption it."],
       "annotations": ["A table."]},
      {"sample_id": "s2", "image": {"bytes": None, "path": "1.png"},
       "query": ["a?", "b?"], "annotations": ["A", "B"]},
      {"sample_id": "s3", "image": picture(2), "query": ["a?", "b?"],
       "annotations": ["A"]},
      {"sample_id": "s4", "image": None, "query": ["a?"],
       "annotations": ["A"]}])
  source = SOURCES.get("bigdocs")(root, image_root=str(tmp_path / "coco"))
  assert text_of(source[0]) == ["<image>\nCaption it.", "A table."]
  assert text_of(source[1]) == ["<image>\na?", "A", "b?", "B"]
  assert [shade(source[i]["images"][0]) for i in (0, 1)] == [2, 3]
  for index, reason in ((2, "2 queries for 1"), (3, "there is no image")):
    with pytest.raises(BadSample, match=reason):
      source[index]
  with pytest.raises(BadSample, match="'1.png' is only named; give image_ro"):
    SOURCES.get("bigdocs")(root)[1]


def test_subsets_of_bigdocs_differ_in_their_columns(tmp_path):
  (tmp_path / "coco").mkdir()
  (tmp_path / "coco/7.png").write_bytes(png(3))
  asked = {"query": ["a?"], "annotations": ["A"]}
  parquet(tmp_path / "docs/cord/train-0.parquet", [
      {"sample_id": "s1", "image": picture(2), "extra": 1} | asked])
  parquet(tmp_path / "docs/coco/train-0.parquet", [
      {"sample_id": "s2", "img_id": "7.png"} | asked])
  source = SOURCES.get("bigdocs")(str(tmp_path / "docs"),
                                  image_root=str(tmp_path / "coco"))
  assert {source[i]["id"]: shade(source[i]["images"][0])
          for i in range(2)} == {"s1": 2, "s2": 3}
  lost = parquet(tmp_path / "lost/train-0.parquet", [{"sample_id": "s"}])
  with pytest.raises(InputError, match="no column 'image'; no column 'query'; "
                     "no column 'annotations'"):
    SOURCES.get("bigdocs")(lost)[0]


def test_vcr_wiki(tmp_path):
  rows = [dict(question_id=7, image=picture(1), stacked_image=picture(2),
               only_it_image=picture(3), only_it_image_small=picture(4),
               caption="a red door", crossed_text=[" red door", "of the"]),
          dict(question_id=8, image=picture(1), stacked_image=picture(2),
               only_it_image=picture(3), only_it_image_small=picture(4),
               caption="", crossed_text=[])]
  folder = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
  source = SOURCES.get("vcr_wiki")(folder)
  assert len(source) == 2
  example = source[0]
  asked, told = text_of(example)
  assert asked.startswith("<image>\nWhat is the covered texts in the image?")
  assert told == "red door, of the" and example["id"] == "7"
  assert [shade(i) for i in example["images"]] == [2]
  with pytest.raises(BadSample, match="row 1.*crossed_text"):
    source[1]


def test_doc_downstream(tmp_path):
  (tmp_path / "train.jsonl").write_text(json.dumps({
      "image": ["./imgs/a.png"], "task_name": "qa_sft",
      "dataset_name": "DocVQA", "messages": [
          {"role": "user", "content": "<|image|>What is it?"},
          {"role": "assistant", "content": "10.5 %"}]}) + "\n"
      + json.dumps({"image": "a.png", "messages": []}) + "\n")
  source = SOURCES.get("doc_downstream")(str(tmp_path / "train.jsonl"))
  assert text_of(source[0]) == ["<image>\nWhat is it?", "10.5 %"]
  assert source[0]["images"] == [tmp_path / "imgs/a.png"]
  with pytest.raises(BadSample, match="train.jsonl:2: \"image\" is 'a.png'"):
    source[1]


def record(**fields: Any) -> dict[str, Any]:
  return {"id": 3, "img_list": ["b.jpg", "a.jpg"],
          "instruction": "Both show {image#1}?", "output": "An acorn.",
          **fields}


def image_lists(tmp_path: Path, *records: dict[str, Any], **options: Any):
  path = tmp_path / "annotations.json"
  path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "]")
  return SOURCES.get("image_lists")(str(path), **options)


def test_sams_records(tmp_path):
  source = image_lists(tmp_path, record(), images=2)
  assert source[0]["images"] == [tmp_path / "b.jpg", tmp_path / "a.jpg"]
  assert text_of(source[0]) == ["<image><image>\nBoth show {image#1}?",
                                "An acorn."]
  assert source[0]["id"] == "3"


@pytest.mark.parametrize("fields, reason", [
    (dict(img_list=[]), 'no "img_list"'),
    (dict(img_list="a.jpg"), 'no "img_list"'),
    (dict(img_list=["a.jpg"] * 3), "3 images, not 2"),
    (dict(img_list=["a.jpg", 4]), "an image is a path, not 4"),
    (dict(img_list=["a.jpg", "../b.jpg"]), "leaves the image folder"),
    (dict(output=" "), "'output' is ' ', not a text"),
    (dict(instruction=None), "'instruction' is None"),
])
def test_bad_sam_records(tmp_path, fields, reason):
  source = image_lists(tmp_path, record(), record(**fields), images=2)
  with pytest.raises(BadSample, match=reason) as error:
    source[1]
  assert error.value.origin == f"{tmp_path}/annotations.json:3"


def demon(tmp_path: Path, **instance: Any):
  (tmp_path / "images").mkdir(exist_ok=True)
  path = tmp_path / "core.json"
  path.write_text(json.dumps({
      "metadata": {"dataset": "X", "task_instruction": ["Do.", "Go."],
                   "question_type": "open-ended"},
      "data": [{"sample_id": 5, "task_instruction_id": 1, "response": "yes",
                "task_instance": {
                    "context": "{image#1} or {table#2}?",
                    "images_path": ["0.jpg", "1.png"]} | instance}]}))
  return str(path)


def test_demon(tmp_path):
  make = SOURCES.get("demon")
  source = make(demon(tmp_path))
  assert text_of(source[0]) == ["Go. <image> or <image>?", "yes"]
  assert source[0]["images"] == [tmp_path / "images/0.jpg",
                                 tmp_path / "images/1.png"]
  first = make(demon(tmp_path), interleave=False)
  assert text_of(first[0])[0] == (
      "<image><image>\nGo. {image#1} or {table#2}?")
  listed = make(demon(tmp_path, choice_list=["yes", "no"]))
  assert text_of(listed[0])[0].endswith(
      "? Choice list:['yes', 'no']. Your answer is:")
  assert listed.choices(0) == ("yes", "no") and source.choices(0) == ()


@pytest.mark.parametrize("instance, reason", [
    (dict(context="{image#2}{image#1}"), r"names the images \[2, 1\]"),
    (dict(context="{image#1}"), r"names the images \[1\], and there are 2"),
    (dict(images_path=[]), "field 'images_path' is"),
    (dict(context=""), "field 'context' is empty"),
    (dict(choice_list=[1]), "field 'choice_list'"),
])
def test_bad_demon_records(tmp_path, instance, reason):
  source = SOURCES.get("demon")(demon(tmp_path, **instance))
  with pytest.raises(BadSample, match=reason) as error:
    source[0]
  assert error.value.origin.endswith("core.json:1")


def test_options_of_sources_are_checked(tmp_path):
  with pytest.raises(InputError, match="is no folder"):
    SOURCES.get("mantis")(parquet(
        tmp_path / "train-0.parquet", [{"id": "a"}]),
        image_root=str(tmp_path / "none"))
  with pytest.raises(InputError, match="no column 'images'"):
    SOURCES.get("mantis")(str(tmp_path))[0]
