"""Icons with their names, from the package fontawesomefree."""

import functools
import importlib.util
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from align_jax.errors import InputError

MISSING = ("linked images are drawn from the icons of the package "
           "fontawesomefree; install align-jax[linked-images]")

# Letters, signs and arrows, which have no name that a picture tells.
_NO_THINGS = frozenset(
    "archway asterisk at backward ban bars blog bold braille burst check "
    "clone code comment comments compress copy copyright crop cross "
    "crosshairs divide eject ellipsis equals exclamation expand explosion "
    "file fill filter font forward genderless grip hashtag heading highlighter "
    "icons indent infinity info italic jedi language list lungs male mars "
    "mercury minus neuter notdef note outdent pager paragraph paste pause "
    "percent play plus poo question radiation receipt repeat reply "
    "retweet scroll section share shuffle signal sitemap slash sliders sort "
    "spinner square stop strikethrough subscript superscript tarp terminal "
    "transgender underline venus water wifi xmark bong cannabis gun handcuffs "
    "democrat republican hamsa khanda om bahai ankh dharmachakra hanukiah "
    "gopuram menorah torah vihara synagogue mosque kaaba church bible quran "
    "circle diamond star heart text tag tags table user users vest video "
    "virus viruses window rss rotate route rug ruble rupee shekel won yen lira "
    "bitcoin brazilian euro peseta peso naira cedi guarani hryvnia kip manat "
    "tenge tugrik litecoin austral baht colon cruzeiro dong drachma florin "
    "franc indian mill bacteria bacterium children display desktop joint "
    "registered trademark memory message mobile maximize minimize store "
    "shapes signature timeline tty upload download landmark prescription poop "
    "restroom pallet spa splotch inbox industry database gauge link mound "
    "peace teeth music pills qrcode monument locust image pen".split())


@functools.cache
def icons() -> dict[str, str]:
  """Name -> character, of icons whose name is one word for one thing.

  Raises:
    InputError: fontawesomefree is not installed.
  """
  folder = _folder()
  families = json.loads(
      (folder / "metadata/icon-families.json").read_text(encoding="utf-8"))
  found = {}
  for name, about in families.items():
    free = about["familyStylesByLicense"]["free"]
    if (name.isalpha() and len(name) > 2 and name not in _NO_THINGS
        and any(s["style"] == "solid" for s in free)):
      found[name] = chr(int(about["unicode"], 16))
  # A plural beside its singular would be two right names of one thing.
  return {name: char for name, char in sorted(found.items())
          if not (name.endswith("s") and name[:-1] in found)}


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
  """The icons' font, `size` pixels high."""
  return ImageFont.truetype(
      str(_folder() / "webfonts/fa-solid-900.ttf"), size)


def icon(name: str, size: int, color: tuple[int, int, int]) -> Image.Image:
  """An icon in RGBA, cut to its ink and fitted into size x size."""
  ink = _ink(name, size)
  picture = Image.new("RGBA", ink.size, (*color, 0))
  picture.putalpha(ink)
  return picture


@functools.lru_cache(maxsize=4096)  # drawing letters costs most of a scene
def _ink(name: str, size: int) -> Image.Image:
  """An icon's opacity; not to be changed, since it is kept."""
  drawn = Image.new("L", (2 * size, 2 * size))
  ImageDraw.Draw(drawn).text((size, size), icons()[name], 255, font(size),
                             anchor="mm")
  ink = drawn.crop(drawn.getbbox())
  ink.thumbnail((size, size), Image.LANCZOS)
  return ink


def _folder() -> Path:
  spec = importlib.util.find_spec("fontawesomefree")
  if spec is None:
    raise InputError(MISSING)
  return (Path(spec.origin).parent / "static/fontawesomefree/js-packages"
          / "@fortawesome/fontawesome-free")
