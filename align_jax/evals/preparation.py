"""What a study's cells share, made once before them.

  DIR/prepared/NAME/            what a preparation makes
  DIR/prepared/NAME/done.json   written when it is done

A tower, a language model, labels, kept features: no cell trains them, all
read them. In a preparation's commands, in a cell's config and in its
overrides "{work}" stands for DIR.
"""

import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align_jax.config import load_config, plain
from align_jax.evals.lock import alone


@dataclasses.dataclass(frozen=True)
class Preparation:
  """Commands that make something in DIR/prepared/NAME.

  Attributes:
    name: of the folder.
    commands: as they are typed, without "align-jax".
  """
  name: str
  commands: tuple[tuple[str, ...], ...]


def trained(name: str, config: str, vocabulary: int, layout: str,
            text: Sequence[str], ends: bool = False) -> Preparation:
  """A tokenizer, a model trained with it, and NAME/model in others' layout.

  Args:
    name: of the folder.
    config: of the training; it takes "tokenizer=DIR" as its last argument.
    vocabulary: of the tokenizer.
    layout: as `align-jax convert export --to` takes it.
    text: sources of the tokenizer's text, in JSON.
    ends: the tokenizer adds <eos>, as a CLIP's.
  """
  folder = f"{{work}}/prepared/{name}"
  given = f"{config}{',' if ':' in config else ':'}"
  return Preparation(name, (
      ("data", "tokenizer", *(x for t in text for x in ("--source", t)),
       "--size", str(vocabulary), *(("--ends",) if ends else ()), "--out",
       f"{folder}/tokenizer"),
      ("train", "--config", f"{given}tokenizer={folder}/tokenizer",
       "--workdir", f"{folder}/run"),
      ("convert", "export", f"{folder}/run", f"{folder}/model", "--to",
       layout)))


def placed(value: Any, work: Path) -> Any:
  """The value with "{work}" replaced in all its texts."""
  if isinstance(value, str):
    return value.replace("{work}", str(work))
  if isinstance(value, dict):
    return {k: placed(v, work) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(placed(v, work) for v in value)
  return value


def prepare(wanted: Sequence[Preparation], work: Path,
            runner: Callable[[list[str]], str],
            progress: Callable[[str], None] = lambda line: None) -> str:
  """Makes what is not there yet, in the order given.

  Each stands on those before it: where one has changed, be it in a command
  or in a config that it names, it and all after it are made anew. What was
  there is moved aside. What another process is making is waited for.

  Returns:
    The signature of the last, which changes with any of them.
  """
  if not wanted:
    return ""
  with alone(work / "prepared.lock", progress):
    return _prepare(wanted, work, runner, progress)


def _prepare(wanted: Sequence[Preparation], work: Path,
             runner: Callable[[list[str]], str],
             progress: Callable[[str], None]) -> str:
  signature = ""
  for one in wanted:
    commands = placed(one.commands, work)
    signature = _signature(signature, commands)
    folder = work / "prepared" / one.name
    done = folder / "done.json"
    if done.is_file():
      found = json.loads(done.read_text(encoding="utf-8"))["signature"]
      if found == signature:
        continue
      aside = folder.with_name(f"{folder.name}.{found}")
      while aside.exists():
        aside = aside.with_name(f"{aside.name}.older")
      folder.rename(aside)
      progress(f"{one.name} was made otherwise than the study has it now; it "
               f"is made anew, and what was there is kept in {aside}")
    progress(f"preparing {one.name}")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for command in commands:
      print(runner(["align-jax", *command]), end="", file=sys.stderr)
    done.write_text(json.dumps({
        "signature": signature, "seconds": round(time.monotonic() - started),
        "commands": [shlex.join(["align-jax", *c]) for c in commands]},
        indent=1), encoding="utf-8")
  return signature


def _signature(before: str, commands: Sequence[Sequence[str]]) -> str:
  """Of what was made before, these commands, and the configs they name."""
  configs = []
  for command in commands:
    if "--config" in command[:-1]:
      configs.append(plain(load_config(
          command[command.index("--config") + 1],
          [word.removeprefix("--config.") for word in command
           if word.startswith("--config.")])))
  text = json.dumps([before, commands, configs], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
