"""Errors that a person causes and can mend: the message is all they need."""


class InputError(ValueError):
  """What was given is at fault. The command line shows no traceback."""


class ConfigError(InputError):
  """A config with faults, all of them listed.

  Attributes:
    faults: one line each, "where: what".
  """

  def __init__(self, source: str, faults: list[str]):
    self.source = source
    self.faults = list(faults)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    super().__init__(
        f"{source} has {count}:\n" + "\n".join(f"  {f}" for f in faults))
