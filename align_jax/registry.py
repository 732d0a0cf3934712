"""Names to classes: one table a kind, filled lazily, open to users' modules.

A table maps a short name to a class or to a dotted `module:attribute` that is
imported on first use, so that listing connectors imports none of them. A
user's module, named in a config's `imports`, calls `register` on a table.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any


def nearest(name: str, allowed: Iterable[str]) -> str:
  """A hint for an error: the allowed name closest to `name`, or ""."""
  found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
  return f"; did you mean {found[0]!r}?" if found else ""


class Registry:
  """A table of one kind of thing, such as connectors."""

  def __init__(self, kind: str, entries: dict[str, str]):
    self.kind = kind
    self._entries: dict[str, Any] = dict(entries)

  def names(self) -> list[str]:
    return sorted(self._entries)

  def __contains__(self, name: str) -> bool:
    return name in self._entries

  def register(self, name: str) -> Callable[[Any], Any]:
    """Decorator that adds a user's own entry.

    Raises:
      ValueError: the name is taken by something else.
    """

    def add(thing: Any) -> Any:
      taken = self._entries.get(name)
      same = (taken is thing) or (
          getattr(taken, "__qualname__", 0) == thing.__qualname__
          and getattr(taken, "__module__", 0) == thing.__module__)
      if taken is not None and not same:
        raise ValueError(f"{self.kind} {name!r} is already registered")
      self._entries[name] = thing
      return thing

    return add

  def get(self, name: str) -> Any:
    """The entry of that name.

    Raises:
      KeyError: there is none; the message lists what there is.
    """
    if name not in self._entries:
      raise KeyError(
          f"unknown {self.kind} {name!r}{nearest(name, self._entries)} "
          f"(known: {', '.join(self.names())})")
    entry = self._entries[name]
    if isinstance(entry, str):
      module, attribute = entry.split(":")
      entry = getattr(importlib.import_module(module), attribute)
      self._entries[name] = entry
    return entry
