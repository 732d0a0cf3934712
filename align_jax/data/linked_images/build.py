"""Linked images -> array_record shards, by several processes, resumably.

Sample i is drawn from (seed, i) alone and a shard is written whole or not at
all, so what was built depends neither on the number of processes nor on
where a build was stopped. A record is a zip file: sample.json with {id,
img_list, instruction, output, kind, facts}, the published record with two
fields more, and the images that img_list names.
"""

import dataclasses
import io
import json
import multiprocessing
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from align_jax.data.linked_images.icons import icons
from align_jax.data.linked_images.kinds import KINDS, draw
from align_jax.data.linked_images.scenes import SIZE
from align_jax.errors import InputError
from align_jax.registry import nearest

MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of zip files, so that bytes do not vary


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is built.

  Attributes:
    samples: as many as MmLINK had, by default.
    seed: another seed gives other samples, for testing.
    kinds: drawn from, equally often.
    shard: samples in a file.
  """
  samples: int = 69_000
  seed: int = 0
  kinds: tuple[str, ...] = tuple(KINDS)
  shard: int = 1000

  def __post_init__(self) -> None:
    faults = [f"{name}: {getattr(self, name)} is below 1"
              for name in ("samples", "shard") if getattr(self, name) < 1]
    faults += [f"kinds: no kind {k!r}{nearest(k, KINDS)} (known: "
               f"{', '.join(KINDS)})" for k in self.kinds if k not in KINDS]
    if not self.kinds:
      faults.append("kinds: there is none")
    if faults:
      raise InputError("linked_images: " + "; ".join(faults))

  @property
  def shards(self) -> int:
    return -(-self.samples // self.shard)


def shard_name(shard: int, shards: int) -> str:
  return f"linked_images-{shard:05}-of-{shards:05}.array_record"


def encode(plan: Plan, index: int) -> bytes:
  """Sample `index` as a record."""
  kind, sample = draw(plan.seed, index, plan.kinds)
  names = [f"{index:06}_{i}.png" for i in range(len(sample.images))]
  record = {"id": index, "img_list": names,
            "instruction": sample.instruction, "output": sample.output,
            "kind": kind, "facts": sample.facts}
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as files:
    files.writestr(zipfile.ZipInfo("sample.json", _EPOCH),
                   json.dumps(record))
    for name, image in zip(names, sample.images):
      png = io.BytesIO()
      image.save(png, "PNG")
      files.writestr(zipfile.ZipInfo(name, _EPOCH), png.getvalue())
  return stream.getvalue()


def decode(record: bytes) -> tuple[dict[str, Any], list[bytes]]:
  """(the sample's fields, its images as PNG files)."""
  with zipfile.ZipFile(io.BytesIO(record)) as files:
    sample = json.loads(files.read("sample.json"))
    return sample, [files.read(name) for name in sample["img_list"]]


def build(plan: Plan, folder: str | Path, workers: int = 1,
          progress: Callable[[int], None] = lambda samples: None,
          ) -> dict[str, Any]:
  """Builds what of a plan is not there yet.

  Args:
    plan: what to build.
    folder: where the shards go, with manifest.json and contact_sheet.png.
    workers: processes that draw.
    progress: told after each shard how many samples it has.

  Returns:
    The manifest.

  Raises:
    InputError: the folder holds what another plan built, or the icons'
      package is not installed.
  """
  folder = Path(folder)
  icons()  # what is missing is said here, and once
  manifest = json.loads(json.dumps(
      dataclasses.asdict(plan) | {"shards": plan.shards, "note": (
          "a stand-in for MmLINK, not MmLINK")}))
  path = folder / MANIFEST
  if path.is_file():
    found = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{k}: there {found.get(k)!r}, now {v!r}"
             for k, v in manifest.items() if found.get(k) != v]
    if other:
      raise InputError(f"{folder} was built by another plan: "
                       + "; ".join(other))
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
  todo = [(plan, folder, shard) for shard in range(plan.shards)
          if not (folder / shard_name(shard, plan.shards)).exists()]
  if workers > 1 and len(todo) > 1:
    # Fresh processes: this one may have threads that a fork would break.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
      for count in pool.imap_unordered(_write, todo):
        progress(count)
  else:
    for task in todo:
      progress(_write(task))
  (folder / "contact_sheet.png").write_bytes(contact_sheet(plan))
  return manifest


def _write(task: tuple[Plan, Path, int]) -> int:
  """Writes one shard and gives the number of its samples."""
  from array_record.python import array_record_module as records

  plan, folder, shard = task
  target = folder / shard_name(shard, plan.shards)
  scratch = target.with_suffix(".writing")
  writer = records.ArrayRecordWriter(str(scratch), "group_size:1")
  first = shard * plan.shard
  indices = range(first, min(first + plan.shard, plan.samples))
  for index in indices:
    writer.write(encode(plan, index))
  writer.close()
  scratch.replace(target)
  return len(indices)


def contact_sheet(plan: Plan, rows: int = 12) -> bytes:
  """The first samples with question and answer, as a PNG to look at."""
  side, edge, text = SIZE // 2, 8, 30
  most = 5
  sheet = Image.new("RGB", (most * (side + edge) + edge, rows * (
      side + text + edge) + edge), "white")
  pen = ImageDraw.Draw(sheet)
  letters = ImageFont.load_default(11)
  for row in range(min(rows, plan.samples)):
    kind, sample = draw(plan.seed, row, plan.kinds)
    top = edge + row * (side + text + edge)
    for col, image in enumerate(sample.images):
      sheet.paste(image.resize((side, side), Image.LANCZOS),
                  (edge + col * (side + edge), top))
    pen.text((edge, top + side + 2), _fitted(
        letters, f"{kind}: {sample.instruction}", sheet.width), "black",
             letters)
    pen.text((edge, top + side + 15), _fitted(
        letters, sample.output, sheet.width), "#0b7a75", letters)
  stream = io.BytesIO()
  sheet.save(stream, "PNG")
  return stream.getvalue()


def _fitted(letters: Any, text: str, width: int) -> str:
  while letters.getlength(text) > width - 16:
    text = text[:-2].rstrip("…") + "…"
  return text


def in_folder(folder: str | Path) -> tuple[dict[str, Any], Sequence[str]]:
  """(manifest, shard files in order) of what was built.

  Raises:
    InputError: nothing was built there, or it is not finished.
  """
  folder = Path(folder)
  if not (folder / MANIFEST).is_file():
    raise InputError(f"no linked images in {folder}; build them with "
                     "`align-jax data build linked_images --data-dir DIR`")
  manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
  files = [folder / shard_name(i, manifest["shards"])
           for i in range(manifest["shards"])]
  missing = [f.name for f in files if not f.exists()]
  if missing:
    raise InputError(f"{folder} is not finished: {len(missing)} of "
                     f"{len(files)} shards are missing, first {missing[0]}; "
                     "give the same command again")
  return manifest, [str(f) for f in files]
