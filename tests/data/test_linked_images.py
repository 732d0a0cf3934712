"""Linked images: what they share, how they are built, read and refused."""

import io
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontawesomefree")

from align_jax.cli.main import main  # noqa: E402
from align_jax.data import SOURCES  # noqa: E402
from align_jax.data.linked_images import build, kinds, scenes  # noqa: E402
from align_jax.data.linked_images.icons import icon, icons  # noqa: E402
from align_jax.errors import InputError  # noqa: E402

PLAN = build.Plan(samples=11, shard=4)


def draws(kind: str, count: int = 40):
  return [kinds.KINDS[kind](random.Random(i)) for i in range(count)]


@pytest.mark.parametrize("kind", ["icon_grid", "composite"])
def test_exactly_one_thing_is_in_all_images(kind):
  counts = set()
  for sample in draws(kind):
    inside = [set(names) for names in sample.facts["images"]]
    assert set.intersection(*inside) == {sample.facts["shared"]}
    # Nothing else is in two of them either.
    rest = [n for names in inside for n in names - {sample.facts["shared"]}]
    assert len(rest) == len(set(rest))
    assert sample.facts["shared"] in sample.output
    assert not re.search(r"\ba [aeio]|\ban [^aeio]", sample.output)
    counts.add(len(sample.images))
  assert counts == {2, 3, 4}


def test_covers_share_author_or_genre_and_not_both():
  by = set()
  for sample in draws("cover"):
    (author, genre), (other, another) = sample.facts["images"]
    assert (author == other) != (genre == another)
    assert sample.facts["shared"] in (author, genre)
    # Nor do they share their ink, which the band above is in.
    one, two = (image.getpixel((2, 2)) for image in sample.images)
    assert one != two
    by.add(sample.facts["by"])
  assert by == {"author", "genre"}


def test_a_storys_end_depends_on_its_earlier_panels():
  for sample in draws("story"):
    *earlier, last = sample.facts["images"]
    assert 3 <= len(sample.images) <= 5 and last[1] == "box"
    assert [thing for _, thing in earlier] == sample.facts["packed"]
    assert all(thing in sample.output for thing in sample.facts["packed"])
    assert len({hero for hero, _ in sample.facts["images"]}) == 1


def test_icons_are_many_and_differ():
  assert len(icons()) >= 200
  assert len(set(icons().values())) == len(icons())
  drawn = {name: icon(name, 24, (0, 0, 0)).resize((24, 24)).tobytes()
           for name in icons()}
  assert len(set(drawn.values())) == len(drawn)


def test_images_are_of_one_size_and_not_blank():
  for kind in kinds.KINDS:
    for sample in draws(kind, 3):
      for image in sample.images:
        assert image.size == (scenes.SIZE, scenes.SIZE)
        assert np.asarray(image).std() > 5


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp("linked")
  told = []
  manifest = build.build(PLAN, folder, progress=told.append)
  assert told == [4, 4, 3] and manifest["shards"] == 3
  return folder


def test_stopped_or_shared_out_it_is_the_same(built, tmp_path):
  first = build.shard_name(0, 3)
  (tmp_path / first).write_bytes((built / first).read_bytes())
  (tmp_path / "linked_images-00001-of-00003.writing").write_bytes(b"half")
  told = []
  build.build(PLAN, tmp_path, workers=2, progress=told.append)
  assert sorted(told) == [3, 4]
  for shard in range(3):
    name = build.shard_name(shard, 3)
    assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_a_seed_gives_its_own_samples():
  other = build.Plan(samples=11, seed=1)
  assert build.encode(PLAN, 3) == build.encode(PLAN, 3)
  assert build.encode(PLAN, 3) != build.encode(other, 3)
  grids = build.Plan(samples=11, kinds=("icon_grid",))
  assert {build.decode(build.encode(grids, i))[0]["kind"]
          for i in range(5)} == {"icon_grid"}


def test_records_are_the_published_ones(built):
  source = SOURCES.get("linked_images")(str(built))
  assert len(source) == 11
  for i in (0, 5, 10):
    sample, images = source.sample(i)
    assert {"id", "img_list", "instruction", "output"} <= set(sample)
    assert sample["id"] == i and len(sample["img_list"]) == len(images)
    example = source[i]
    asked, said = example["conversation"]
    assert asked["content"].count("<image>") == len(example["images"])
    assert asked["content"].endswith(sample["instruction"])
    assert said["content"] == sample["output"]
    assert example["images"] == images
    assert Image.open(io.BytesIO(images[0])).size == (scenes.SIZE,) * 2
  between = SOURCES.get("linked_images")(str(built), "interleaved")[0]
  assert between["conversation"][0]["content"].startswith(
      "Image 1: <image> Image 2: <image>")


def test_a_contact_sheet_to_look_at(built):
  sheet = Image.open(built / "contact_sheet.png")
  assert np.asarray(sheet).std() > 20 and sheet.height > sheet.width


def test_bad_input(built, tmp_path):
  with pytest.raises(InputError) as error:
    build.Plan(samples=0, kinds=("storys",))
  assert "samples: 0 is below 1" in str(error.value)
  assert "did you mean 'story'" in str(error.value)
  with pytest.raises(InputError, match="seed: there 0, now 1"):
    build.build(build.Plan(samples=11, shard=4, seed=1), built)
  make = SOURCES.get("linked_images")
  with pytest.raises(InputError, match="no linked images in"):
    make(str(tmp_path))
  with pytest.raises(InputError, match="none of images_first, interleaved"):
    make(str(built), "mixed")
  (tmp_path / "manifest.json").write_text(json.dumps({"shards": 2}))
  with pytest.raises(InputError, match="2 of 2 shards are missing"):
    make(str(tmp_path))


def test_verb(tmp_path, capsys):
  argv = ["data", "build", "linked_images", "--data-dir", str(tmp_path),
          "--samples", "3", "--json"]
  assert main(argv) == 0
  told = json.loads(capsys.readouterr().out)
  assert told == {"folder": str(tmp_path), "samples": 3, "shards": 1}
  assert main([*argv, "--seed", "2"]) == 2
  assert "seed: there 0, now 2" in capsys.readouterr().err
  assert main(["data", "build", "easy_vqa", "--samples", "3"]) == 2
  assert "easy_vqa takes no --samples" in capsys.readouterr().err
