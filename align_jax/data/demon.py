"""DEMON's files: one task each, with its instructions (arXiv 2308.04152).

  {"metadata": {"dataset": "AESOP", "task_instruction": ["Finish it.", ...],
                "question_type": "open-ended", ...},
   "data": [{"sample_id": 0, "task_instruction_id": 2,
             "task_instance": {"context": "{image#1}Caption#1: ...{image#2}",
                               "images_path": ["0.jpg", "1.jpg"],
                               "choice_list": ["a", "b"]},
             "response": "..."}, ...]}

Source of the layout: DCDmllm/Cheetah, README of DEMON and its evaluation
scripts: core/core.json with core/images, full/full.json with full/images;
`choice_list` only in questions of the kind "multi-choice", or written in the
context alone, as in the READMEs' examples ("Choice List:['True','False']").
The text is an instruction and the context; "{image#n}" and
"{table#n}" stand for the images, in order.
"""

import ast
import re
from pathlib import Path

from align_jax.data.below import below, folder
from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.data.tables import Row, json_rows, json_value
from align_jax.errors import InputError

_PLACE = re.compile(r"\{(?:image|table)#(\d+)\}")
_CHOICES = re.compile(r"choice list:\s*(?=\[)", re.IGNORECASE)


class Demon:
  """A task of DEMON, its records held in memory.

  Attributes:
    path: the file; images lie in `images` beside it, or below `image_root`.
    interleave: images stand where the context has them; else all of them
      come first, and the context keeps its "{image#n}" as text.
    kind: "open-ended" or "multi-choice".
    dataset: the task's name.
  """

  def __init__(self, path: str, image_root: str = "",
               interleave: bool = True):
    self.path = Path(path).expanduser()
    self._rows = list(json_rows(self.path, "data"))
    about = Row(json_value(self.path, "metadata"), f"{self.path}, metadata")
    self._instructions = about.texts("task_instruction")
    self.kind = about.one_of("question_type", ("open-ended", "multi-choice"))
    self.dataset = about.text("dataset")
    self.image_root = folder(image_root or self.path.parent / "images")
    self.interleave = interleave

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    """One record.

    Raises:
      BadSample: a field is missing or of another kind, or the context names
        other images than there are.
    """
    row = self._rows[index]
    try:
      return self._example(row)
    except BadSample:
      raise
    except InputError as error:
      raise BadSample(row.origin, str(error).removeprefix(
          f"{row.origin}: ")) from error

  def choices(self, index: int) -> tuple[str, ...]:
    """What may be answered, from its own field or else from the context; ()
    for open questions.

    Raises:
      InputError: a choice with neither.
    """
    instance = self._instance(self._rows[index])
    if "choice_list" in instance.fields:
      return instance.texts("choice_list")
    found = _listed(instance.text("context"))
    if not found and self.kind == "multi-choice":
      raise instance.fault("no field 'choice_list', and no \"Choice List:"
                           "['...', '...']\" in the context")
    return found

  def _instance(self, row: Row) -> Row:
    return Row(row.get("task_instance", dict), f"{row.origin}, task_instance")

  def _example(self, row: Row) -> Example:
    instance = self._instance(row)
    names = instance.texts("images_path")
    number = row.get("task_instruction_id", int)
    if not 0 <= number < len(self._instructions):
      raise row.fault(f"field 'task_instruction_id' is {number}; there are "
                      f"{len(self._instructions)} instructions")
    context = instance.text("context")
    asked = f"{self._instructions[number]} {context}"
    # Instructions speak of the list as well; only the context can have it.
    if "choice_list" in instance.fields and not _CHOICES.search(context):
      listed = "', '".join(instance.texts("choice_list"))
      asked += f" Choice list:['{listed}']. Your answer is:"
    if self.interleave:
      asked = self._interleaved(row, asked, len(names))
    else:
      asked = PLACEHOLDER * len(names) + "\n" + asked
    return {
        "id": row.text("sample_id"), "origin": row.origin,
        "conversation": [{"role": "user", "content": asked},
                         {"role": "assistant",
                          "content": row.text("response")}],
        "images": [below(self.image_root, name, row.origin)
                   for name in names]}

  def _interleaved(self, row: Row, text: str, images: int) -> str:
    places = [int(n) for n in _PLACE.findall(text)]
    if places != list(range(1, images + 1)):
      raise row.fault(f"the context names the images {places}, and there are "
                      f"{images}")
    return _PLACE.sub(PLACEHOLDER, text)



def _listed(context: str) -> tuple[str, ...]:
  """The list of texts behind "Choice List:", or ()."""
  at = _CHOICES.search(context)
  for end in re.finditer(r"\]", context) if at else ():
    try:
      found = ast.literal_eval(context[at.end():end.end()])
    except (SyntaxError, ValueError):
      continue  # this bracket was part of a choice
    if isinstance(found, list) and all(isinstance(x, str) for x in found):
      return tuple(found)
  return ()
