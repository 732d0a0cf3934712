"""What connectors' weights are called where they were published.

Tables for `Family.rules`, relative to the connector on our side and to the
published module on theirs; `prefixed` moves them to their place in a whole
model. Layers that their names count from 1 are brought to 0 by RENAME_REG.
"""

from align_jax.hub.keymaps import Rules


def affine(ours: str, theirs: str, letters: str) -> Rules:
  """A norm's scale and bias, or what else is a weight and a bias vector."""
  scale, bias = (f"{ours}_{part}_{letters}" for part in ("scale", "bias"))
  return {scale: (f"{theirs}.weight", f"{letters} -> {letters}"),
          bias: (f"{theirs}.bias", f"{letters} -> {letters}")}


def dense(ours: str, letters: str, bias: str, theirs: str) -> Rules:
  """A torch Linear: `ours_letters` f[in,out] and its bias."""
  first, last = letters
  return {f"{ours}_{letters}": (f"{theirs}.weight",
                                f"{last} {first} -> {first} {last}"),
          f"{bias}_{last}": (f"{theirs}.bias", f"{last} -> {last}")}


# transformers' InternVLMultiModalProjector (multi_modal_projector.*).
PIXEL_SHUFFLE_INTERNVL: Rules = {
    **affine("norm", "layer_norm", "c"),
    **dense("in", "cf", "in_bias", "linear_1"),
    **dense("out", "fd", "out_bias", "linear_2"),
}

# transformers' Idefics3Connector (connector.*), also SmolVLM's.
PIXEL_SHUFFLE_IDEFICS3: Rules = {
    "kernel_cd": ("modality_projection.proj.weight", "d c -> c d")}

_FLAMINGO = "layers.{n}."

# open_flamingo's PerceiverResampler (perceiver.*); the map to the LLM's width,
# `out_ed` and `out_bias_d`, is ours alone.
PERCEIVER_FLAMINGO: Rules = {
    "latents_te": ("latents", "t e -> t e"),
    **affine("norm", "norm", "e"),
    **affine("layers/media_norm", _FLAMINGO + "0.norm_media", "e"),
    **affine("layers/latent_norm", _FLAMINGO + "0.norm_latents", "e"),
    "layers/q_ehk": (_FLAMINGO + "0.to_q.weight", "(h k) e -> e h k"),
    "layers/kv_ejhk": (_FLAMINGO + "0.to_kv.weight",
                       "(2 h k) e -> e 2 h k"),
    "layers/o_hke": (_FLAMINGO + "0.to_out.weight", "e (h k) -> h k e"),
    **affine("layers/mlp_norm", _FLAMINGO + "1.0", "e"),
    "layers/up_ef": (_FLAMINGO + "1.1.weight", "f e -> e f"),
    "layers/down_fe": (_FLAMINGO + "1.3.weight", "e f -> f e"),
}

_PROJECTION = "modality_projection."
_RESAMPLER = "perceiver_resampler."
_LAYER = _RESAMPLER + "layers.{n}."

# transformers' Idefics2Connector (connector.*).
PERCEIVER_IDEFICS2: Rules = {
    "in_gate_cf": (_PROJECTION + "gate_proj.weight", "f c -> c f"),
    "in_up_cf": (_PROJECTION + "up_proj.weight", "f c -> c f"),
    "in_down_fe": (_PROJECTION + "down_proj.weight", "e f -> f e"),
    "latents_te": (_RESAMPLER + "latents", "t e -> t e"),
    "norm_scale_e": (_RESAMPLER + "norm.weight", "e -> e"),
    "layers/media_norm_scale_e": (_LAYER + "input_context_norm.weight",
                                  "e -> e"),
    "layers/latent_norm_scale_e": (_LAYER + "input_latents_norm.weight",
                                   "e -> e"),
    "layers/q_ehk": (_LAYER + "self_attn.q_proj.weight", "(h k) e -> e h k"),
    "layers/k_egk": (_LAYER + "self_attn.k_proj.weight", "(g k) e -> e g k"),
    "layers/v_egk": (_LAYER + "self_attn.v_proj.weight", "(g k) e -> e g k"),
    "layers/o_hke": (_LAYER + "self_attn.o_proj.weight", "e (h k) -> h k e"),
    "layers/mlp_norm_scale_e": (_LAYER + "post_attention_layernorm.weight",
                                "e -> e"),
    "layers/gate_ef": (_LAYER + "mlp.gate_proj.weight", "f e -> e f"),
    "layers/up_ef": (_LAYER + "mlp.up_proj.weight", "f e -> e f"),
    "layers/down_fe": (_LAYER + "mlp.down_proj.weight", "e f -> f e"),
}

# transformers' Ovis2Model (model.*): the head lies in the vision tower.
OVIS2: Rules = {
    "head_cv": ("vision_tower.head_linear.weight", "v c -> c v"),
    **affine("norm", "vision_tower.head_norm", "v"),
    "table_vd": ("visual_embeddings_table.weight", "v d -> v d"),
}

# mPLUG-DocOwl 1.5's MplugDocOwlHReducerModel (model.vision2text.*).
H_REDUCER: Rules = {
    "before_jcf": ("reducer_before.0.weight", "f c 1 j -> j c f"),
    "before_bias_f": ("reducer_before.0.bias", "f -> f"),
    "reduce_jce": ("reducer.weight", "e c 1 j -> j c e"),
    "reduce_bias_e": ("reducer.bias", "e -> e"),
    **dense("out", "ed", "out_bias", "visual_fc"),
    "end_d": ("vit_eos", "1 1 d -> d"),
}
# Made there, never used.
H_REDUCER_IGNORED = (r"^ln_q\.",)


def _reg_block(ours: str, theirs: str, short: bool = False) -> Rules:
  """timm's Bottleneck."""
  rules: Rules = {
      f"{ours}conv1_cf": (theirs + "conv1.conv.weight", "f c 1 1 -> c f"),
      **affine(ours + "norm1", theirs + "conv1.bn", "f"),
      f"{ours}conv2_ijf": (theirs + "conv2.conv.weight", "f 1 i j -> i j f"),
      **affine(ours + "norm2", theirs + "conv2.bn", "f"),
      f"{ours}squeeze_fs": (theirs + "se.fc1.weight", "s f 1 1 -> f s"),
      f"{ours}squeeze_bias_s": (theirs + "se.fc1.bias", "s -> s"),
      f"{ours}excite_sf": (theirs + "se.fc2.weight", "f s 1 1 -> s f"),
      f"{ours}excite_bias_f": (theirs + "se.fc2.bias", "f -> f"),
      f"{ours}conv3_fe": (theirs + "conv3.conv.weight", "e f 1 1 -> f e"),
      **affine(ours + "norm3", theirs + "conv3.bn", "e"),
  }
  if short:
    rules |= {
        f"{ours}short_ce": (theirs + "downsample.conv.weight",
                            "e c 1 1 -> c e"),
        **affine(ours + "norm_short", theirs + "downsample.bn", "e")}
  return rules


# Honeybee's CAbstractor (abstractor.*). Its tower and its blocks are equally
# wide, or b1 of the first stage is the one with a shortcut of its own.
C_ABSTRACTOR: Rules = {
    "position_pc": ("pos_emb", "1 p c -> p c"),
    **_reg_block("before/first/", "net.0.first.", short=True),
    **_reg_block("before/layers/", "net.0.{n}."),
    **_reg_block("after/layers/", "net.2.{n}."),
    **dense("in", "ed", "in_bias", "readout.0"),
    "out_dd": ("readout.2.weight", "o d -> d o"),
    "out_bias_d": ("readout.2.bias", "d -> d"),
}


def rename_reg(widened: bool, depth: int = 9) -> tuple[tuple[str, str], ...]:
  """`Family.rename` for blocks b1, b2 ...

  Args:
    widened: the first stage's b1 goes from the tower's width to another.
    depth: the most blocks of a stage.
  """
  names = []
  if widened:
    names.append((r"^net\.0\.b1\.", "net.0.first."))
  for n in range(1, depth + 1):
    names.append((rf"^net\.0\.b{n}\.", f"net.0.{n - 1 - widened}."))
    names.append((rf"^net\.2\.b{n}\.", f"net.2.{n - 1}."))
  return tuple(names)


_DETR = "layers.{n}."


def _heads(ours: str, theirs: str) -> Rules:
  """A Linear whose outputs are heads."""
  return {f"layers/{ours}_ehk": (_DETR + theirs + ".weight",
                                 "(h k) e -> e h k"),
          f"layers/{ours}_bias_hk": (_DETR + theirs + ".bias",
                                     "(h k) -> h k")}


# Honeybee's DAbstractor (abstractor.*), with one feature level.
D_ABSTRACTOR: Rules = {
    **dense("in", "ce", "in_bias", "input_proj.0"),
    "position_pe": ("v_pos_emb", "1 p e -> p e"),
    "queries_me": ("query_position_embeddings.weight", "m e -> m e"),
    "points_mx": ("reference_points", "1 m x -> m x"),
    **dense("out", "ed", "out_bias", "output_proj"),
    **_heads("q", "self_attn.q_proj"),
    **_heads("k", "self_attn.k_proj"),
    **_heads("v", "self_attn.v_proj"),
    "layers/o_hke": (_DETR + "self_attn.out_proj.weight", "e (h k) -> h k e"),
    "layers/o_bias_e": (_DETR + "self_attn.out_proj.bias", "e -> e"),
    **affine("layers/norm1", _DETR + "self_attn_layer_norm", "e"),
    **_heads("value", "encoder_attn.value_proj"),
    "layers/offset_ehox": (_DETR + "encoder_attn.sampling_offsets.weight",
                           "(h o x) e -> e h o x"),
    "layers/offset_bias_hox": (_DETR + "encoder_attn.sampling_offsets.bias",
                               "(h o x) -> h o x"),
    "layers/share_eho": (_DETR + "encoder_attn.attention_weights.weight",
                         "(h o) e -> e h o"),
    "layers/share_bias_ho": (_DETR + "encoder_attn.attention_weights.bias",
                             "(h o) -> h o"),
    "layers/look_hke": (_DETR + "encoder_attn.output_proj.weight",
                        "e (h k) -> h k e"),
    "layers/look_bias_e": (_DETR + "encoder_attn.output_proj.bias", "e -> e"),
    **affine("layers/norm2", _DETR + "encoder_attn_layer_norm", "e"),
    **dense("layers/up", "ef", "layers/up_bias", _DETR + "fc1"),
    **dense("layers/down", "fe", "layers/down_bias", _DETR + "fc2"),
    **affine("layers/norm3", _DETR + "final_layer_norm", "e"),
}
