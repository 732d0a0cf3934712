"""C11 and H6: greedy generation, beside transformers' generate."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from align_jax.bench import Options
from align_jax.bench.figure import Figure
from align_jax.bench.timing import paired
from align_jax.bench.versus_torch import device, imports
from align_jax.hub.faces import LoadedDecoder, load_decoder
from align_jax.plan.chips import chip_named

# parameters -> (vocabulary, width, layers, goal at one row); head width 64.
SIZES = {
    "7M": (8192, 256, 4, 688, 4.0),
    "58M": (32_000, 512, 8, 1376, 2.0),
    "167M": (32_000, 1024, 8, 2752, 1.05),
}
PROMPT, NEW = 32, 32


def run(options: Options) -> Iterator[Figure]:
  """Greedy tokens a second / transformers' generate, the same weights."""
  if jax.default_backend() == "gpu":
    yield from _large(options)
    return
  for name, (vocab, width, layers, mlp, goal) in SIZES.items():
    theirs, ours = _pair(options.seed, np.float32, vocab_size=vocab,
                         hidden_size=width, num_hidden_layers=layers,
                         intermediate_size=mlp,
                         num_attention_heads=width // 64)
    shapes = (f"decoder {layers} x {width}, V={vocab}; prompt {PROMPT}, "
              f"{NEW} new tokens")
    for rows in (1, 8):
      prompt = np.random.default_rng(rows).integers(0, vocab, (rows, PROMPT))
      both = {"hf": _theirs(theirs, prompt, NEW),
              "ours": _ours(ours, prompt, NEW)}
      same = float((both["hf"]() == both["ours"]()).mean())
      times = paired(both, options.rounds)
      about = dict(shapes=f"B={rows}; {shapes}", dtype="float32")
      yield Figure(
          f"c11_{name}_b{rows}", "tokens/s, ours / transformers generate",
          goal=goal if rows == 1 else 1.0, higher=True,
          **_speeds(times, rows * NEW), **about)
      yield Figure(
          f"c11_{name}_b{rows}_same", "share of equal greedy tokens", same,
          unit="share", goal=1.0, higher=True, **about)


def _large(options: Options) -> Iterator[Figure]:
  """One row of a 3B decoder in bf16: bandwidth, and HF's best."""
  theirs, ours = _pair(
      options.seed, "bfloat16", vocab_size=128_256, hidden_size=3072,
      num_hidden_layers=28, intermediate_size=8192, num_attention_heads=24,
      num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)
  new = 256
  prompt = np.random.default_rng(0).integers(0, 128_256, (1, PROMPT))
  static = dict(cache_implementation="static")
  times = paired({"eager": _theirs(theirs, prompt, new),
                  "static": _theirs(theirs, prompt, new, **static),
                  "ours": _ours(ours, prompt, new)}, options.rounds, warm=3)
  about = dict(dtype="bfloat16", shapes=f"B=1; decoder 28 x 3072, V=128256; "
               f"prompt {PROMPT}, {new} new tokens")
  size = sum(x.nbytes for x in jax.tree.leaves(ours.params))
  chip = chip_named(jax.devices()[0].device_kind)
  if chip:
    found = times.rate("ours", size * new / chip.bandwidth)
    yield Figure(
        "h6", "bytes of weights read / published bandwidth", unit="share",
        goal=0.60, higher=True, **about, **found | {"parts": {
            "tokens_per_second": new / times.median("ours")}})
  for name, goal in (("static", 1.0), ("eager", 3.0)):
    found = times.ratio(name, "ours")
    yield Figure(f"h6_{name}", f"tokens/s, ours / transformers, {name} cache",
                 goal=goal, higher=True, **found, **about)


def _pair(seed: int, dtype: Any, **sizes: Any) -> tuple[Any, LoadedDecoder]:
  """A random Llama of transformers, and the same weights here."""
  torch, transformers = imports()
  torch.manual_seed(seed)
  config = transformers.LlamaConfig(**{
      "tie_word_embeddings": False, "bos_token_id": None,
      "eos_token_id": None, "pad_token_id": None,
      "max_position_embeddings": 2048} | sizes)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():  # logits far enough apart for one greedy answer
    for name, weight in model.named_parameters():
      if weight.ndim > 1:
        weight.normal_(0.0, 0.5 if "embed" in name
                       else weight.shape[1] ** -0.5)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    ours = load_decoder(folder, dtype)
  if np.dtype(dtype) != np.float32:
    model = model.to(torch.bfloat16)
  return model.to(device()), ours


def _theirs(model: Any, prompt: np.ndarray, new: int,
            **options: Any) -> Callable[[], np.ndarray]:
  torch, _ = imports()
  ids = torch.tensor(prompt, device=device())

  def generate() -> np.ndarray:
    with torch.inference_mode():
      made = model.generate(ids, attention_mask=torch.ones_like(ids),
                            do_sample=False, max_new_tokens=new,
                            min_new_tokens=new, pad_token_id=0, **options)
    return made[:, prompt.shape[1]:].cpu().numpy()

  return generate


def _ours(model: LoadedDecoder, prompt: np.ndarray,
          new: int) -> Callable[[], np.ndarray]:
  return lambda: model.generate(prompt, max_new_tokens=new, eos=())


def _speeds(times: Any, tokens: int) -> dict[str, Any]:
  """A ratio of speeds: theirs over ours in seconds."""
  found = times.ratio("hf", "ours")
  return found | {"parts": {
      f"{name}_tokens_per_second": tokens / times.median(name)
      for name in ("ours", "hf")}}
