"""Every connector in torch: the exported folder says what the run says."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from safetensors.numpy import load_file  # noqa: E402

from align_jax.api import Run  # noqa: E402
from align_jax.build import build, init_params, param_shapes  # noqa: E402
from align_jax.cli.convert import convert  # noqa: E402
from align_jax.config import MeshConfig  # noqa: E402
from align_jax.connectors import CONNECTORS  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.export_remote import export_remote  # noqa: E402
from align_jax.hub.remote_connectors import (  # noqa: E402
    FORMS_IN_TORCH,
    Sizes,
    form_of,
)
from align_jax.parallel.mesh import make_mesh  # noqa: E402
from align_jax.train import merged as merging  # noqa: E402
from align_jax.train.select import flatten, unflatten  # noqa: E402
from align_jax.validate import validate  # noqa: E402
from tests.evals import tiny_run  # noqa: E402
from tests.hub import llava_folder as hf  # noqa: E402
from tests.hub import whole_folders  # noqa: E402

WORDS = "what is the color of the circle?"
_PERCEIVER = dict(latents=3, depth=2, heads=2, head_width=6)
_QFORMER = dict(queries=3, depth=3, width=16, heads=2, mlp_width=24,
                words=90, positions=40, instruction_length=20)

# name: (kind, options, transformers' name of the decoder or "" for ours)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "align": ("align", dict(preset="released_code"), ""),
    "ovis": ("ovis", dict(words=30, stride=2), ""),
    "sam": ("sam", dict(_QFORMER, layer_h=2, layer_c=3), ""),
    "vpg_c": ("vpg_c", dict(_QFORMER, text=False, layer=1), ""),
    "align in tiles": ("align", {}, ""),
}
MORE = {
    "align on gemma": ("align", {}, "Gemma"),
    "align tied": ("align", dict(tied_w2=True), ""),
    "linear": ("linear", {}, ""),
    "mlp": ("mlp", dict(activation="gelu_tanh"), ""),
    "mlp_wide": ("mlp_wide", {}, ""),
    "mlp_ln": ("mlp_ln", {}, ""),
    "pixel_shuffle": ("pixel_shuffle", {}, ""),
    "pixel_shuffle idefics3": ("pixel_shuffle", dict(form="idefics3"), ""),
    "perceiver": ("perceiver", _PERCEIVER, ""),
    "perceiver idefics2": ("perceiver", dict(
        _PERCEIVER, form="idefics2", kv_heads=1), ""),
    "guided_perceiver": ("guided_perceiver", _PERCEIVER, ""),
    "guided_perceiver idefics2": ("guided_perceiver", dict(
        _PERCEIVER, form="idefics2", kv_heads=1, depth=3, layer_c=2,
        memory="all"), ""),
    "ovis bare": ("ovis", dict(words=30, stride=1, indicators=0), ""),
    "h_reducer": ("h_reducer", dict(columns=2), ""),
    "c_abstractor": ("c_abstractor", dict(latents=4, width=12, depth=2), ""),
    "d_abstractor": ("d_abstractor", dict(
        latents=4, width=12, depth=2, heads=2, points=2, mlp_width=20), ""),
    "qformer": ("qformer", _QFORMER, ""),
    "qformer, no text": ("qformer", dict(_QFORMER, text=False), ""),
    "sam paper": ("sam", dict(_QFORMER, layer_h=1, layer_c=2,
                              memory="all", guide_text=True), ""),
    "vpg_c on gemma": ("vpg_c", dict(_QFORMER, text=False, layer=2), "Gemma"),
    "ovis in tiles": ("ovis", dict(words=30, stride=2), ""),
    "mlp in tiles": ("mlp", dict(newline=True), ""),
    "sam in tiles": ("sam", dict(_QFORMER, layer_h=2, layer_c=3), ""),
    "vpg_c in tiles": ("vpg_c", dict(
        _QFORMER, queries=4, text=False, layer=1), ""),
}
_ANYRES = dict(kind="anyres", options=dict(grid=[[16, 32], [32, 16]]))
_COVERAGE = dict(kind="coverage", options=dict(max_tiles=4))
# name: (how images are cut, whether the model has a newline of its own)
TILED = {
    "align in tiles": (_COVERAGE, False),
    "ovis in tiles": (dict(kind="canvas", options=dict(max_tiles=6)), False),
    "mlp in tiles": (_ANYRES, False),
    "sam in tiles": (_COVERAGE, False),
    "vpg_c in tiles": (_ANYRES, True),
}


def config_of(folder: Path, name: str) -> Any:
  """A config with this connector, on 16 patches an image."""
  kind, options, decoder = (CASES | MORE)[name]
  given = tiny_run.config(folder / "words", kind, steps=1)
  model = given["model"]
  model["tower"]["config"] |= dict(image_size=16, patch_size=4)
  if options.get("text", kind in ("qformer", "sam")):
    options = dict(options, tokenizer=str(folder / "words"))
  model["connector"]["options"] = options
  layers = model["decoder"]["config"]["layers"] = 1 + options.get("layer", 0)
  if decoder:
    torch.manual_seed(0)
    whole = getattr(transformers, f"{decoder}ForCausalLM")(getattr(
        transformers, f"{decoder}Config")(
            vocab_size=80, hidden_size=16, intermediate_size=16,
            num_hidden_layers=layers, num_attention_heads=2, head_dim=8,
            num_key_value_heads=1))
    hf.scaled(whole, 0).save_pretrained(folder / "words")
    model["decoder"] = dict(weights=str(folder / "words"))
  given["data"]["row_length"] = 96
  if name in TILED:
    given["data"]["tiling"], model["newline"] = TILED[name]
    if model["newline"]:
      given["stages"][0]["train"]["newline_xd"] = 1e-3
  return validate(given)


def made(folder: Path, name: str) -> tuple[Any, Any]:
  """(a run of no steps, its parameters where they lie).

  Every parameter of the connector is far from where it starts: many start at
  zero or one, which would hide what is not there.
  """
  config = config_of(folder, name)
  parts = build(config.model)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  shapes = param_shapes(parts, mesh)
  params, origins = init_params(parts, mesh, (), jax.random.key(0))
  flat, rng = flatten(params), np.random.default_rng(0)
  for path, x in flat.items():
    if path.startswith("connector/"):
      flat[path] = x + 0.3 * rng.normal(size=x.shape).astype(x.dtype)
  held = {p: x for p, x in flat.items() if ":" not in origins[p]}
  merged = merging.Merged(config, parts, shapes, held,
                          merging._sources(parts, shapes))
  return Run(folder, config, parts, unflatten(flat), 0), merged


def check(folder: Path, name: str) -> None:
  ours, merged = made(folder, name)
  export_remote(ours, merged, folder / "out")
  for file in (folder / "out").glob("*.py"):  # it needs nothing of ours
    assert not re.search(r"^\s*(from|import) align_jax", file.read_text(),
                         re.MULTILINE), file
  model, report = transformers.AutoModelForImageTextToText.from_pretrained(
      folder / "out", trust_remote_code=True, output_loading_info=True)
  for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not report[what], (what, report[what])
  processor = transformers.AutoProcessor.from_pretrained(
      folder / "out", trust_remote_code=True)
  images = [hf.picture(*size, seed) for seed, size in enumerate(
      [(40, 22), (13, 25), (16, 16)] if name in TILED else [(20, 14)] * 3)]
  asked = [([images[0]], WORDS), (images, "is there a red shape?")]
  theirs = [hf.theirs(model.eval(), processor, *one) for one in asked]
  mine, logits = hf.logits_of(ours, *asked[1]), theirs[1][1]
  rows = min(mine.shape[1], logits.shape[1])
  gap = abs(mine[:, :rows] - logits[:, :rows]).max()
  assert gap < 1e-4 * max(1, logits.std()), gap
  assert ours.generate(*zip(*asked), max_new_tokens=8) == [
      said for said, _ in theirs]


@pytest.mark.parametrize("name", CASES)
def test_the_folder_says_what_the_run_says(name: str, tmp_path: Path) -> None:
  check(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_does_every_other_connector(name: str, tmp_path: Path) -> None:
  check(tmp_path, name)


def test_every_connector_has_a_torch_form() -> None:
  tested = {kind for kind, *_ in (CASES | MORE).values()}
  assert tested == set(FORMS_IN_TORCH) == set(CONNECTORS.names())
  with pytest.raises(InputError, match="'mine' has no torch form"):
    form_of("mine", None)


def test_what_has_no_torch_form_says_so() -> None:
  for kind in ("sam", "guided_perceiver"):
    module = CONNECTORS.get(kind)(dim_out=8, memory="elsewhere")
    with pytest.raises(InputError, match="another row of the batch"):
      form_of(kind, module).options(module, Sizes(16, 8, 8, 80))
  for options, what in ((dict(keep_words=(1, 2)), "keep_words"),
                        (dict(table="random"), "a random table"),
                        (dict(logit_gain=3.0, affine=False),
                         "logit_gain 3 and no affine norms")):
    module = CONNECTORS.get("align")(dim_out=8, vocab_size=9, **options)
    with pytest.raises(InputError, match=f"with {what} has no torch form"):
      form_of("align", module).options(module, Sizes(16, 8, 8, 80))


@pytest.mark.slow
def test_a_second_look_is_asked_for_by_the_prompt_alone(
    tmp_path: Path) -> None:
  """With labels it is where they begin that asks; padding never does."""
  ours, merged = made(tmp_path, "vpg_c")
  export_remote(ours, merged, tmp_path / "out")
  load = dict(pretrained_model_name_or_path=tmp_path / "out",
              trust_remote_code=True)
  model = transformers.AutoModelForImageTextToText.from_pretrained(
      **load).eval()
  processor = transformers.AutoProcessor.from_pretrained(**load)
  images = [hf.picture(20, 14)]
  batch = whole_folders.asked(processor, images, WORDS)
  length, begins = batch["input_ids"].shape[1], 12
  labels = batch["input_ids"].clone()
  labels[:, :begins] = -100
  with torch.no_grad():
    theirs = model(**batch, labels=labels).logits[0].numpy()
    at_the_end = model(**batch).logits[0].numpy()
  weights = np.zeros((1, length), np.float32)
  weights[:, begins - 1:-1] = 1  # where the next token is learned
  mine = hf.logits_of(ours, images, WORDS, loss_weights=weights)
  rows = mine.shape[1]
  assert abs(mine - theirs[:, :rows]).max() < 1e-4 * max(1, theirs.std())
  assert abs(mine - at_the_end[:, :rows]).max() > 1e-2
  for left in (0, 5):  # padding before and behind
    pad = torch.nn.functional.pad
    by = (left, 5 - left)
    with torch.no_grad():
      padded = model(
          input_ids=pad(batch["input_ids"], by),
          attention_mask=pad(batch["attention_mask"], by),
          pixel_values=batch["pixel_values"]).logits[0].numpy()
    assert abs(padded[left:left + length] - at_the_end).max() < 1e-4


@pytest.mark.parametrize("kind", ["instructblip", "ovis2"])
def test_whole_models_of_others_go_round(kind: str, tmp_path: Path) -> None:
  """In, out with a torch file of ours, and the same answers; not a bit of
  any tensor changes."""
  made = getattr(whole_folders, kind)(tmp_path / "in")
  convert(str(tmp_path / "in"), tmp_path / "out")
  model = transformers.AutoModelForImageTextToText.from_pretrained(
      tmp_path / "out", trust_remote_code=True).eval()
  processor = transformers.AutoProcessor.from_pretrained(
      tmp_path / "out", trust_remote_code=True)
  for seed, words in enumerate((WORDS, "is there a red shape?")):
    images = [hf.picture(20, 14, seed)]
    want, reference = whole_folders.theirs(*made, images, words)
    said, logits = hf.theirs(model, processor, images, words)
    rows = reference.shape[1]
    assert abs(logits[:, :rows] - reference).max() < 1e-4 * reference.std()
    assert said == want
  before = load_file(tmp_path / "in" / "model.safetensors")
  after = load_file(tmp_path / "out" / "model.safetensors")
  bits = sorted(x.tobytes() for x in before.values())
  assert bits == sorted(x.tobytes() for x in after.values())


def test_no_instructions_without_their_tokenizer(tmp_path: Path) -> None:
  run, merged = made(tmp_path, "sam")
  module = run.parts.model.connector.clone(tokenizer="", parent=None)
  parts = dataclasses.replace(
      run.parts, model=run.parts.model.clone(connector=module))
  with pytest.raises(InputError, match="options.tokenizer"):
    export_remote(dataclasses.replace(run, parts=parts), merged,
                  tmp_path / "out")
