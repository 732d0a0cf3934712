"""LLaVA files: the byte-offset index, and every way a record can be bad."""

import json
import os
import threading

import pytest

from align_jax.data import BadSample, records
from align_jax.data.llava import Llava

AWKWARD = 'quotes " and \\ and [{ ]} é \n'


def record(number: int, **fields) -> dict:
  return {"id": number, "image": f"{number}.png", "conversations": [
      {"from": "human", "value": f"<image>\n{AWKWARD}{number}?"},
      {"from": "gpt", "value": AWKWARD * (number % 3) + "so\n"}], **fields}


def write(folder, form, items):
  path = folder / f"data.{form}"
  if form == "json":
    path.write_text("\n\n" + json.dumps(items, indent=2, ensure_ascii=False))
  else:
    path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False)
                                for r in items))
  return path


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_every_record_is_found(tmp_path, form, chunk, monkeypatch):
  monkeypatch.setattr(records, "CHUNK", chunk)
  items = [record(i) for i in range(20)]
  path = write(tmp_path, form, items)
  source = Llava(str(path))
  assert len(source) == 20
  lines = path.read_text().splitlines()
  for i in (19, *range(20)):
    example = source[i]
    assert example["id"] == str(i)
    assert [m["content"] for m in example["conversation"]] == [
        t["value"].strip() for t in items[i]["conversations"]]
    assert example["conversation"][1]["role"] == "assistant"
    assert example["images"] == [tmp_path / f"{i}.png"]
    file, line = example["origin"].rsplit(":", 1)
    assert file == str(path)
    begins = "\n".join(lines[int(line) - 1:int(line) + 1]).lstrip()
    assert begins.startswith("{") and f'"id": {i}' in begins


def test_index_is_three_numbers_a_record(tmp_path):
  spans = records.index(write(tmp_path, "json", [record(0)] * 50))
  assert spans.shape == (50, 3) and spans.nbytes == 50 * 24


def test_image_may_be_a_string_a_list_or_absent(tmp_path):
  items = [record(0), record(1, image=["a.png", "b/c.png"]),
           record(2, image=None), record(3, image=[])]
  del items[2]["image"]
  source = Llava(str(write(tmp_path, "jsonl", items)))
  assert [len(source[i]["images"]) for i in range(4)] == [1, 2, 0, 0]


def test_byte_order_mark(tmp_path):
  for form in ("json", "jsonl"):
    path = write(tmp_path, form, [record(0), record(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    source = Llava(str(path))
    assert [source[i]["id"] for i in range(len(source))] == ["0", "1"]


def test_threads_do_not_move_each_others_place(tmp_path):
  source = Llava(str(write(tmp_path, "jsonl",
                           [record(i) for i in range(200)])))
  wrong = []

  def read(offset):
    for i in range(200):
      if source[(i * 7 + offset) % 200]["id"] != str((i * 7 + offset) % 200):
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(t * 50,)) for t in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


@pytest.mark.parametrize("text, message", [
    ('[{"id": 1}, 5, {"id": 2}]', "between two records, after line 1: '5'"),
    ('[{"id": 1}, "a", {"id": 2}]', "between two records"),
    ('[{"id": 1}, {"id": ', "ends inside its array.* line 1"),
    ('[{"id": 1}, {"id": "x', "ends inside a string"),
    ('[{"id": 1}]]', "closes nothing"),
])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_malformed_arrays(tmp_path, text, message, chunk, monkeypatch):
  monkeypatch.setattr(records, "CHUNK", chunk)
  path = tmp_path / "a.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as caught:
    Llava(str(path))
  assert str(path) in str(caught.value)


def test_missing_files(tmp_path):
  with pytest.raises(ValueError, match="none.json: No such file"):
    Llava(str(tmp_path / "none.json"))
  with pytest.raises(ValueError, match="image_root .* is no folder"):
    Llava(str(tmp_path / "none.json"), str(tmp_path / "images"))


@pytest.mark.parametrize("line, reason", [
    ('{"id": 1,}', "no valid JSON"),
    ('[1, 2]', "a record is an object"),
    ('{"id": 1}', 'no "conversations" list'),
    ('{"conversation": []}', "did you mean 'conversation'"),
    ('{"conversations": []}', 'no "conversations" list with turns'),
    ('{"conversations": [{"from": "bot", "value": "x"}]}', "from 'bot'"),
    ('{"conversations": ["x"]}', "turn 0 is from None"),
    ('{"conversations": [{"from": "gpt", "value": 3}]}', "value 3"),
    ('{"image": 3, "conversations": [{"from": "gpt", "value": "x"}]}',
     "an image is a path, not 3"),
])
def test_bad_records(tmp_path, line, reason):
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps(record(0)) + "\n\n" + line + "\n")
  source = Llava(str(path))
  source[0]
  with pytest.raises(BadSample, match=reason) as caught:
    source[1]
  assert caught.value.origin == f"{path}:3"
  assert str(caught.value).startswith(f"{path}:3: ")


def test_images_stay_in_their_folder(tmp_path):
  root, outside = tmp_path / "images", tmp_path / "outside"
  for folder in (root, root / "sub", outside):
    folder.mkdir()
  (outside / "secret.png").write_bytes(b"")
  (root / "inside.png").write_bytes(b"")
  os.symlink(outside / "secret.png", root / "link.png")
  os.symlink(outside, root / "folder")
  os.symlink(root / "inside.png", root / "alias.png")
  names = {
      "inside.png": True, "sub/../inside.png": True, "alias.png": True,
      str(root / "inside.png"): True,
      "../outside/secret.png": False, str(outside / "secret.png"): False,
      "link.png": False, "folder/secret.png": False, "..": False,
      "sub/../../outside/secret.png": False, "a\0b.png": False}
  path = write(tmp_path, "jsonl",
               [record(i, image=name) for i, name in enumerate(names)])
  source = Llava(str(path), str(root))
  for i, allowed in enumerate(names.values()):
    if allowed:
      assert source[i]["images"] == [root / "inside.png"]
    else:
      with pytest.raises(BadSample) as caught:
        source[i]
      assert caught.value.origin == f"{path}:{2 * i + 1}"
      assert "image '" in caught.value.reason
      assert list(names)[i].isprintable() is False or (
          "leaves the image folder" in caught.value.reason)
