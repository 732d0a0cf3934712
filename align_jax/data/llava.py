"""LLaVA's conversation files, JSON or JSONL, as a source of examples.

  {"id": "1", "image": "a/b.jpg",
   "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                     {"from": "gpt", "value": "A cat."}]}

`image` is a path, a list of paths, or absent. Each image has one `<image>`
in the conversation.
"""

from typing import Any

from align_jax.data.below import below
from align_jax.data.example import BadSample, Example, Message
from align_jax.data.json_source import JsonSource
from align_jax.registry import nearest

ROLES = {"human": "user", "user": "user", "gpt": "assistant",
         "assistant": "assistant", "system": "system"}


class Llava(JsonSource):
  """A LLaVA file."""

  def __getitem__(self, index: int) -> Example:
    """One record.

    Raises:
      BadSample: it is not as this module's docstring says, with the reason.
    """
    record, origin, line = self.record(index)
    names = record.get("image")
    names = [] if names is None else (
        names if isinstance(names, list) else [names])
    return {
        "id": str(record.get("id", f"{self.path.stem}:{line}")),
        "origin": origin,
        "conversation": turns(record, "conversations", origin),
        "images": [below(self.image_root, name, origin) for name in names],
    }


def turns(record: dict[str, Any], field: str, origin: str,
          who: str = "from", what: str = "value") -> list[Message]:
  """The conversation of a record, `who` and `what` naming a turn's fields.

  Raises:
    BadSample: there is none, or a turn is not as it must be.
  """
  given = record.get(field)
  if not isinstance(given, list) or not given:
    hint = nearest(field, record)
    raise BadSample(origin, f"no \"{field}\" list with turns" + hint)
  messages: list[Message] = []
  for number, turn in enumerate(given):
    role = turn.get(who) if isinstance(turn, dict) else None
    value = turn.get(what) if isinstance(turn, dict) else None
    if role not in ROLES:
      raise BadSample(origin, f"turn {number} is from {role!r}, not from one "
                      f"of {', '.join(ROLES)}")
    if not isinstance(value, str):
      raise BadSample(origin, f"turn {number} has the value {value!r:.60}, "
                      "not a string")
    # White space around a turn is the file's, not the speaker's.
    messages.append({"role": ROLES[role], "content": value.strip()})
  return messages
