"""Documents as pictures with questions, drawn when they are looked at.

Everything stands in a grid of 4 x 4 cells, a little out of its place:

  table, cover            form                chart
  .     power miles cyl   name    .  audi .       130
  audi  90    29    4     power   .  90   .   |     |  97
  ford  130   18    8     miles   .  29   .   |     |   |
  fiat  75    26    4     cyl     .  4    .   audi ford fiat
"""

import functools
import io
import random
from functools import partial

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from align_jax.data.documents.facts import (
  ACROSS,
  KINDS,
  SCRAP,
  Document,
  Question,
  ask,
  document,
  tables,
  transcription,
)
from align_jax.data.example import PLACEHOLDER, Example, Named
from align_jax.data.linked_images.scenes import pale
from align_jax.errors import InputError
from align_jax.registry import nearest

FORMS = ("captions", "questions", "turns", "told")
SPLITS = ("text", "tower", "train", "validation", "test")


class Documents:
  """Transcriptions of documents, or questions on them.

  Document i of a split is drawn from (seed, split, i) alone. The forms are
  those of `icon_scenes`: "captions" are transcriptions, "told" has one in
  place of the picture, with the covered word in it: whoever answers must have
  restored that.

  Attributes:
    split: as icon_scenes'.
    documents: how many there are.
    kinds: of documents, taken in turn.
    questions: asked of each.
    size: pixels, H = W.
  """

  def __init__(self, split: str = "train", form: str = "questions",
               documents: int = 10_000, kinds: tuple[str, ...] = KINDS,
               questions: int = 2, size: int = 128, seed: int = 0):
    faults = [f"{given!r} is none of {', '.join(allowed)}"
              f"{nearest(given, allowed)}"
              for given, allowed in ((split, SPLITS), (form, FORMS),
                                     *((kind, (*KINDS, SCRAP))
                                       for kind in kinds))
              if given not in allowed]
    faults += [f"{name} is {value} (at least {floor})"
               for name, value, floor in (
                   ("documents", documents, 1), ("questions", questions, 1),
                   ("size", size, 64)) if value < floor]
    if not kinds:
      faults.append("there is no kind")
    if faults:
      raise InputError("documents: " + "; ".join(faults))
    self.split, self.form, self.documents = split, form, documents
    self.kinds, self.questions = tuple(kinds), questions
    self.size, self.seed = size, seed
    tables()  # what is missing is said at once

  def __len__(self) -> int:
    return self.documents * (
        self.questions if self.form == "questions" else 1)

  def __getitem__(self, index: int) -> Example:
    place, number = divmod(
        index, self.questions if self.form == "questions" else 1)
    name = f"documents/{self.split}/{place}"
    said = transcription(self.document(place), covered=self.form != "told")
    if self.form == "captions":
      turns = [("", said)]
    else:
      turns = [q[1:3] for q in self.ask(place)]
      if self.form == "questions":
        name, turns = f"{name}/{number}", turns[number:number + 1]
    shown = said if self.form == "told" else PLACEHOLDER
    conversation = []
    for at, (asked, answer) in enumerate(turns):
      first = [] if at else [shown]
      user = "\n".join([*first, asked] if asked else first)
      conversation += [{"role": "user", "content": user},
                       {"role": "assistant", "content": answer}]
    return {"id": name, "origin": name, "conversation": conversation,
            "images": [self.picture(place)] if shown == PLACEHOLDER else []}

  def document(self, place: int) -> Document:
    """What a document says."""
    return document(self._rng(place, "document"),
                    self.kinds[place % len(self.kinds)])

  def ask(self, place: int) -> list[Question]:
    """`questions` questions on a document."""
    rng, shown = self._rng(place, "questions"), self.document(place)
    return [ask(rng, shown) for _ in range(self.questions)]

  def picture(self, place: int) -> Named:
    """A document's picture, not yet drawn."""
    return Named(f"documents/{self.seed}/{self.split}/{place}/{self.size}/"
                 f"{'-'.join(self.kinds)}", partial(self.image, place))

  def image(self, place: int) -> bytes:
    """The PNG of a document."""
    stream = io.BytesIO()
    draw(self.document(place), self.size,
         self._rng(place, "picture")).save(stream, "PNG")
    return stream.getvalue()

  def _rng(self, place: int, what: str) -> random.Random:
    return random.Random(f"documents/{self.seed}/{self.split}/{place}/{what}")


def draw(shown: Document, size: int, rng: random.Random) -> Image.Image:
  """A document's picture, size x size."""
  onto = Image.new("RGB", (size, size), pale(rng))
  pen, cell = ImageDraw.Draw(onto), size / ACROSS
  ink = tuple(rng.randint(0, 60) for _ in range(3))

  def write(text: str, row: int, column: int) -> None:
    size_of = next(s for s in range(round(0.45 * cell), 0, -1)
                   if _font(s).getlength(text) <= cell - 3)
    pen.text(((column + 0.5) * cell + rng.uniform(-1, 1),
              (row + 0.5) * cell + rng.uniform(-1, 1)), text, ink,
             _font(size_of), anchor="mm")

  for place, text in enumerate(shown.cells()):
    if text:
      write(text, *divmod(place, ACROSS))
  if shown.kind == "chart":
    values = [max(float(value), 0.0) for _, value in shown.rows]
    for column, value in enumerate(values, 1):
      tall = 2 * cell * value / max(*values, 1e-9)
      pen.rectangle((round((column + 0.3) * cell), round(3 * cell - tall),
                     round((column + 0.7) * cell), round(3 * cell)),
                    fill=tuple(rng.randint(60, 190) for _ in range(3)))
  if shown.covered:
    row, column = shown.covered[0] + 1, shown.covered[1]
    top = (row + (0.36 if shown.hard else 0.52)) * cell
    pen.rectangle((round(column * cell), round(top),
                   round((column + 1) * cell) - 1,
                   round((row + 1) * cell) - 1), fill=(128, 128, 128))
  return onto


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(
      findfont(FontProperties(family="DejaVu Sans", weight="bold")), size)
