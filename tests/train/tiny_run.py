"""A run in miniature through every real part: files in, a workdir out."""

import json
from pathlib import Path

from tests.data.samples import png, word_tokenizer

CONFIG = '''
from ml_collections import ConfigDict

FOLDER = {folder!r}


def get_config(connector="mlp"):
  return ConfigDict(dict(
      name="tiny", seed=1, log_every=1, save_every=4,
      model=dict(
          tower=dict(kind="clip", config=dict(
              image_size=16, patch_size=8, width=16, layers=2, heads=2,
              mlp_width=32)),
          connector=dict(kind=connector),
          decoder=dict(kind="llama", tokenizer=FOLDER, config=dict(
              vocab_size={vocab}, width=16, layers=2, heads=4, kv_heads=2,
              mlp_width=32)),
          dtype="float32", remat="none"),
      data=dict(
          sources=dict(mixed=dict(kind="llava", options=dict(
              path=FOLDER + "/mixed.jsonl"))),
          rows=8, row_length=56, images_per_row=2, labels_per_row=24,
          streams=2),
      mesh=dict(data=-1),
      stages=[dict(name="align", steps=10,
                   train={{"connector/*": 1e-2,
                          "decoder/layers[-1]/*": 1e-3}})],
  ))
'''


def make(folder: Path, samples: int = 60) -> Path:
  """Writes tokenizer, data and config into a folder; the config's path."""
  tokenizer = word_tokenizer()
  tokenizer.save_pretrained(folder)
  lines = []
  for i in range(samples):
    images = [f"{i}_{k}.png" for k in range(i % 3)]
    for k, name in enumerate(images):
      (folder / name).write_bytes(png(40 * k + i))
    turns = [("human", "<image>\n" * len(images) + "what color ?"),
             ("gpt", ("blue", "red", "both")[i % 3])] * (1 + i % 2)
    turns = [(who, text if n == 0 else text.replace("<image>\n", ""))
             for n, (who, text) in enumerate(turns)]
    lines.append(json.dumps({
        "id": str(i), **({"image": images} if images else {}),
        "conversations": [{"from": w, "value": t} for w, t in turns]}))
  (folder / "mixed.jsonl").write_text("\n".join(lines) + "\n")
  path = folder / "tiny_config.py"
  path.write_text(CONFIG.format(folder=str(folder), vocab=len(tokenizer)))
  return path
