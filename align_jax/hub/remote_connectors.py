"""Which connectors have a torch form, and how their weights are called there.

The form of a kind is `hub/remote/connector_FORM.py`: a class `Connector` that
is made from a config with `connector_options`. Names are those of the
published modules where there are any (`hub/keymaps/connectors.py`).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from align_jax.connectors.perceiver import FORMS
from align_jax.errors import InputError
from align_jax.hub.keymaps import Rules, prefixed, qformer
from align_jax.hub.keymaps import connectors as maps
from align_jax.hub.keymaps.connectors import affine, dense

FOLDER = Path(__file__).parent / "remote"


# Of a model's newline, or of one that its connector has.
NEWLINE = "newline"


class Sizes(NamedTuple):
  """What a connector is told of its model: P, C, D and V."""
  patches: int
  width: int
  dim_out: int
  vocab_size: int


class Form(NamedTuple):
  """A connector in torch.

  Attributes:
    file: hub/remote/connector_FILE.py.
    rules: our parameter -> (its name there, transform).
    options: (module, sizes) -> its options there.
    rename: (regular expression, what it becomes) of names, at the end.
  """
  file: str
  rules: Rules
  options: Callable[[Any, Sizes], dict[str, Any]]
  rename: Callable[[Any], Callable[[str], str]] = lambda module: str


_ALIGN: Rules = {
    "w1_cd": ("w1.weight", "d c -> c d"),
    "w1_bias_d": ("w1.bias", "d -> d"),
    **affine("norm1", "norm1", "d"),
    "w2_vd": ("w2.weight", "v d -> v d"),
    "w2_bias_v": ("w2_bias", "v -> v"),
    **affine("norm2", "norm2", "v"),
    **affine("out_norm", "out_norm", "d"),
}


def _align(module: Any, sizes: Sizes) -> dict[str, Any]:
  flags = module.flags()
  faults = [what for what, there in (
      ("keep_words", module.keep_words),
      ("a random table", module.table != "words"),
      # The gain is where the norm's scale starts; without one it stays.
      (f"logit_gain {flags.logit_gain:g} and no affine norms",
       flags.logit_gain != 1 and not flags.affine)) if there]
  if faults:
    raise InputError(f"an ALIGN connector with {' and with '.join(faults)} "
                     "has no torch form")
  return {name: getattr(flags, name) for name in (
      "relu", "out_norm", "tied_w2", "affine", "biases")}


_LINEAR: Rules = {"kernel_cd": ("linear.weight", "d c -> c d"),
                  "bias_d": ("linear.bias", "d -> d")}
_MLP: Rules = {
    **dense("in", "cf", "in_bias", "linear_1"),
    **affine("in_norm", "norm_1", "f"),
    **dense("out", "fd", "out_bias", "linear_2"),
    **affine("out_norm", "norm_2", "d"),
    "newline_xd": (NEWLINE, "x d -> x d"),
}


def _mlp(module: Any, sizes: Sizes) -> dict[str, Any]:
  return {"layers": 2, "hidden": module.hidden(sizes.width),
          "activation": module.activation, "norms": hasattr(module, "gain")}


def _perceiver(module: Any, sizes: Sizes) -> dict[str, Any]:
  size = {name: getattr(module, name) or published
          for name, published in FORMS[module.form].items()}
  guidance = None
  if hasattr(module, "layer_h"):
    l, k = module.guided_layers(size["depth"])
    guidance = _guidance(l, k, size["depth"], module.memory, 0)
  return {"form": module.form, "latents": module.latents,
          "in_width": module.in_width or 4 * sizes.dim_out,
          "guidance": guidance} | size


def _qformer(module: Any, sizes: Sizes) -> dict[str, Any]:
  guidance = None
  if hasattr(module, "layer_h"):
    guidance = _guidance(
        module.setting("layer_h"), module.setting("layer_c"), module.depth,
        module.setting("memory"),
        0 if module.setting("guide_text") else module.queries)
  return _fields(module, *_QFORMER, "text", "words", "positions") | {
      "guidance": guidance}


def _guidance(l: int, k: int, depth: int, memory: str,
              guided: int) -> dict[str, Any]:
  if memory == "elsewhere":
    raise InputError("SAM's control 'elsewhere' reads another row of the "
                     "batch and has no torch form")
  return {"l": l, "k": k, "depth": depth, "memory": memory, "guided": guided}


_QFORMER = ("queries", "depth", "period", "width", "heads", "mlp_width")


def _fields(module: Any, *names: str) -> dict[str, Any]:
  return {name: getattr(module, name) for name in names}


def _looks(module: Any) -> Callable[[str], str]:
  """Layers that look at the image, counted among all layers."""
  return lambda key: re.sub(
      r"encoder\.look\.(\d+)\.",
      lambda m: f"encoder.layer.{int(m[1]) * module.period}.", key)


_GUIDANCE: Rules = {
    "guidance/score_c": ("guidance.score.weight", "1 c -> c"),
    "guidance/score_bias": ("guidance.score.bias", "o -> o"),
    **dense("guidance/h", "eo", "guidance/h_bias", "guidance.h"),
    **dense("guidance/c", "eo", "guidance/c_bias", "guidance.c"),
}
_VPG_C: Rules = {
    **qformer.BLIP2,
    "again_queries_te": ("query_tokens_again", "1 t e -> t e"),
    **dense("again_ask", "de", "again_ask_bias", "ask"),
    **dense("again_tell", "ed", "again_tell_bias", "tell"),
}
_LATENTS: Rules = {
    **maps.PERCEIVER_FLAMINGO,
    **dense("out", "ed", "out_bias", "out"),
}

FORMS_IN_TORCH: Mapping[str, Form] = {
    "align": Form("align", _ALIGN, _align),
    "linear": Form("mlp", _LINEAR, lambda module, sizes: {"layers": 1}),
    "mlp": Form("mlp", _MLP, _mlp),
    "mlp_wide": Form("mlp", _MLP, _mlp),
    "mlp_ln": Form("mlp", _MLP, _mlp),
    "pixel_shuffle": Form(
        "pixel_shuffle",
        {**maps.PIXEL_SHUFFLE_INTERNVL, **maps.PIXEL_SHUFFLE_IDEFICS3},
        lambda module, sizes: _fields(module, "form", "factor")),
    "perceiver": Form("perceiver", _LATENTS, _perceiver),
    "ovis": Form(
        "ovis", {path: (key.removeprefix("vision_tower."), transform)
                 for path, (key, transform) in maps.OVIS2.items()},
        lambda module, sizes: _fields(module, "words", "stride",
                                      "indicators")),
    "h_reducer": Form("h_reducer", maps.H_REDUCER,
                      lambda module, sizes: _fields(module, "columns")),
    "c_abstractor": Form(
        "c_abstractor", maps.C_ABSTRACTOR,
        lambda module, sizes: {"patches": sizes.patches} | _fields(
            module, "latents", "width", "depth")),
    "d_abstractor": Form(
        "d_abstractor", maps.D_ABSTRACTOR,
        lambda module, sizes: {
            "patches": sizes.patches, "hidden": module.mlp_width} | _fields(
                module, "latents", "width", "depth", "heads", "points")),
    "qformer": Form("qformer", qformer.INSTRUCTBLIP, _qformer, _looks),
    "sam": Form("qformer", {**qformer.INSTRUCTBLIP, **_GUIDANCE}, _qformer,
                _looks),
    "guided_perceiver": Form("perceiver", {**_LATENTS, **_GUIDANCE},
                             _perceiver),
    "vpg_c": Form(
        "vpg_c", _VPG_C,
        lambda module, sizes: _fields(module, *_QFORMER) | {
            "look_again_after": module.feedback_layer}, _looks),
}


def form_of(kind: str, module: Any) -> Form:
  """The torch form of a connector.

  Raises:
    InputError: it has none.
  """
  if kind not in FORMS_IN_TORCH:
    raise InputError(f"connector {kind!r} has no torch form (there is one "
                     f"for: {', '.join(FORMS_IN_TORCH)})")
  form = FORMS_IN_TORCH[kind]
  if kind in ("qformer", "sam") and not module.text:
    return form._replace(rules={**qformer.BLIP2, **_GUIDANCE})
  if getattr(module, "form", "") == "idefics2":
    return form._replace(rules={
        **prefixed(maps.PERCEIVER_IDEFICS2, "", "connector."), **_GUIDANCE})
  return form
