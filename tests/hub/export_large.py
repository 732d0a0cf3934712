"""Exports a large model and tells the memory that took.

  python export_large.py TINY LARGE OUT SHARD_GB LAYOUT     prints JSON

Run by test_memory.py in a process of its own, whose memory it watches.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from align_jax.cli.convert import convert
from tests.hub.load_large import Watch


def main(tiny: str, large: str, out: str, shard_gb: str,
         layout: str) -> None:
  from pathlib import Path
  convert(tiny, Path(out) / "tiny", layout)  # imports what there is
  watch = Watch()
  watch.start()
  convert(large, Path(out) / "large", layout,
          int(float(shard_gb) * 2**30))
  watch.done = True
  watch.join()
  print(json.dumps({"peak": watch.peak}))


if __name__ == "__main__":
  main(*sys.argv[1:])
