"""InstructBLIP and Ovis2 through `load_vlm`, against transformers; and the
connectors of whole models that are read in part."""

import json
import re
import shutil
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

import align_jax  # noqa: E402
from align_jax.build import build, init_params  # noqa: E402
from align_jax.cli.main import main  # noqa: E402
from align_jax.config import (  # noqa: E402
    ConnectorConfig,
    MeshConfig,
    ModelConfig,
    PartConfig,
)
from align_jax.connectors.ovis import Ovis  # noqa: E402
from align_jax.data import TILINGS  # noqa: E402
from align_jax.data.tiling import special  # noqa: E402
from align_jax.errors import InputError  # noqa: E402
from align_jax.hub.keymaps import ovis2  # noqa: E402
from align_jax.hub.pretrained import read_spec  # noqa: E402
from align_jax.parallel.mesh import make_mesh  # noqa: E402
from align_jax.train.select import flatten  # noqa: E402
from tests.hub import whole_folders as hf  # noqa: E402
from tests.parity.towers_reference import difference, randomise  # noqa: E402

WORDS = "what is the color of the circle?"
MADE = {
    "instructblip": lambda folder: hf.instructblip(folder),
    "ovis2": lambda folder: hf.ovis2(folder),
}
MORE = {
    # As published, with a row for the image token and without.
    "instructblip 128": lambda folder: hf.instructblip(folder, 128, seed=1),
    "instructblip no spare": lambda folder: hf.instructblip(
        folder, seed=2, rows=hf.ROWS + 1),
    "instructblip again": lambda folder: hf.instructblip(folder, seed=3),
    "ovis2 stride, tied": lambda folder: hf.ovis2(folder, 2, True, seed=1),
    "ovis2 larger": lambda folder: hf.ovis2(folder, seed=2, side=24, patch=8),
}


def agree(run: Any, model: Any, processor: Any) -> None:
  """The same logits, and the same answers token for token."""
  asked = [([hf.picture(20, 14, seed)], words) for seed, words in enumerate(
      (WORDS, "is there a red shape?", "yes"))]
  theirs = [hf.theirs(model, processor, *one) for one in asked]
  for one, (_, want) in zip(asked[:2], theirs):
    got = hf.logits_of(run, *one)
    assert got.shape == want.shape and want.std() >= 1
    assert np.abs(got - want).max() / max(1, want.std()) < 1e-4
  said = [words for words, _ in theirs]
  assert len(set(said)) > 1
  assert run.generate(*zip(*asked), max_new_tokens=8) == said


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any) -> Any:
  """name -> (folder, model, processor, our run), each made once."""
  made: dict[str, Any] = {}

  def of(name: str) -> Any:
    if name not in made:
      folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
      pair = (MADE | MORE)[name](folder)
      made[name] = (folder, *pair, align_jax.load_vlm(folder))
    return made[name]

  return of


@pytest.mark.parametrize("name", [
    *MADE, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE)])
def test_logits_and_answers(name: str, folders: Any) -> None:
  _, model, processor, run = folders(name)
  agree(run, model, processor)


def test_the_instruction_reaches_the_images(folders: Any) -> None:
  """InstructBLIP's visual tokens follow the question."""
  *_, run = folders("instructblip")
  image = hf.picture(20, 14)
  one, other = (run.visual_tokens([image], text)
                for text in (WORDS, "is there a red shape?"))
  assert one.shape == (1, hf.QUERIES, 24)
  assert np.abs(one - other).max() > 1e-2
  # An instruction longer than its positions is refused, not cut.
  with pytest.raises(Exception, match="instruction of .* tokens, more than"):
    run.visual_tokens([image], "color " * 60)


def test_what_makes_them_differ_matters(folders: Any) -> None:
  """Parity breaks without Ovis2's indicators, norms and table."""
  _, model, processor, run = folders("ovis2")
  image = [hf.picture(20, 14)]
  _, want = hf.theirs(model, processor, image, WORDS)
  for path in ("connector/table_vd", "connector/norm_scale_v",
               "tower/patch_norm_scale_c", "tower/layers/gate_cf"):
    part, _, rest = path.partition("/")
    tree = run.params[part]
    *above, last = rest.split("/")
    for name in above:
      tree = tree[name]
    kept = tree[last]
    # Of the table, the indicators alone.
    tree[last] = (kept.at[-5:].set(0) if last == "table_vd" else
                  jax.numpy.ones_like(kept))
    changed = hf.logits_of(run, image, WORDS)
    tree[last] = kept
    assert np.abs(changed - want).max() > 1e-2, path


@pytest.mark.parametrize("name", [
    "instructblip", pytest.param("ovis2", marks=pytest.mark.slow)])
def test_the_verbs_take_the_folder(
    name: str, folders: Any, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch) -> None:
  folder, model, processor, _ = folders(name)
  hf.picture(20, 14).save(tmp_path / "a.png")
  monkeypatch.chdir(tmp_path)
  assert main(["generate", str(folder), "--image", "a.png", "--prompt", WORDS,
               "--max-new-tokens", "8", "--json"]) == 0
  said = json.loads(capsys.readouterr().out)["answer"]
  assert said == hf.theirs(model, processor, [hf.picture(20, 14)], WORDS)[0]
  assert main(["inspect", "run", str(folder), "--image", "a.png",
               "--json"]) == 0
  assert Path(json.loads(capsys.readouterr().out)["report"]).is_file()
  assert main(["evaluate", str(folder), "--task", "easy_vqa", "--limit", "8",
               "--no-probe", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["n"] == 8


def parts(folder: Path, decoder: Any = None,
          **connector: Any) -> tuple[Any, Any]:
  """(our model's parts, its parameters) with a folder's connector."""
  config = ModelConfig(
      tower=PartConfig(kind="clip", config=dict(
          image_size=16, patch_size=4, width=16, layers=1, heads=2,
          mlp_width=8), class_token=True),
      connector=ConnectorConfig(weights=str(folder), **connector),
      decoder=decoder or PartConfig(kind="llama", config=dict(
          vocab_size=20, width=24, layers=1, heads=2, mlp_width=8)),
      dtype="float32", frozen_dtype="float32", remat="none")
  built = build(config)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  return built, init_params(built, mesh, (), jax.random.key(0))


def connected(built: Any, params: Any, features: np.ndarray) -> np.ndarray:
  """The connector alone, on features f[I,P,C]."""
  from align_jax.connectors.protocol import Context
  module = built.model.connector.clone(parent=None)
  marks = np.ones((1, len(features)), np.int32)
  out = jax.jit(lambda p, x: module.apply(
      {"params": p}, x[None], marks > 0, Context(
          np.zeros((20, 24), np.float32), marks)).tokens[0])
  return np.asarray(out(params["connector"], features))


def _blip2(text: str) -> Any:
  given = (dict(vocab_size=90, hidden_size=24, ffn_dim=24, num_hidden_layers=1,
                num_attention_heads=2, word_embed_proj_dim=24, pad_token_id=0)
           if text == "opt" else dict(vocab_size=90, **hf.TEXT))
  config = transformers.Blip2Config(
      vision_config=hf.VISION, qformer_config=hf.QFORMER,
      text_config=dict(model_type=text, **given), num_query_tokens=3,
      image_token_index=5)
  config._attn_implementation = "eager"
  return transformers.Blip2ForConditionalGeneration(config).eval()


SEEDS = pytest.mark.parametrize("seed", [
    0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])


@SEEDS
@pytest.mark.parametrize("text", ["opt", "llama"])
def test_blip2s_qformer(text: str, seed: int, tmp_path: Path) -> None:
  """Whatever its language model is; OPT and T5 are not implemented."""
  model = _blip2(text)
  randomise(model, seed)
  model.save_pretrained(tmp_path)
  options = dict(queries=3, depth=3, width=16, heads=4, mlp_width=24,
                 text=False)
  built, (params, origins) = parts(tmp_path, kind="qformer", options=options)
  assert ":qformer.encoder.layer." in origins["connector/stack/layers/q_ehk"]
  features = np.random.default_rng(seed).normal(size=(2, 17, 16)).astype("f")
  with torch.no_grad():
    queries = model.qformer(
        query_embeds=model.query_tokens.expand(2, -1, -1),
        encoder_hidden_states=torch.from_numpy(features))[0]
    want = model.language_projection(queries)
  assert difference(connected(built, params, features), want) < 1e-4
  with pytest.raises(InputError, match="parts of it can be named alone: "
                                       "connector,.*tower"):
    align_jax.load_vlm(tmp_path)
  assert read_spec(tmp_path, "tower").kind == "eva"


@SEEDS
def test_idefics2s_perceiver_and_decoder(seed: int, tmp_path: Path) -> None:
  latents = 5 + seed
  config = transformers.Idefics2Config(
      vision_config=hf.VISION, perceiver_config=dict(
          hidden_size=24, resampler_n_latents=latents, resampler_depth=2,
          resampler_n_heads=4, resampler_head_dim=6, num_key_value_heads=2),
      text_config=dict(model_type="mistral", vocab_size=20, **hf.TEXT),
      image_token_id=5)
  config._attn_implementation = "eager"
  model = transformers.Idefics2ForConditionalGeneration(config).eval()
  randomise(model, seed)
  model.save_pretrained(tmp_path)
  options = dict(form="idefics2", latents=latents, depth=2, heads=4, kv_heads=2,
                 head_width=6, in_width=40)
  built, (params, _) = parts(tmp_path, kind="perceiver", options=options,
                             decoder=PartConfig(weights=str(tmp_path)))
  patches = 17 - 5 * seed
  features = np.random.default_rng(seed).normal(
      size=(2, patches, 16)).astype("f")
  with torch.no_grad():
    want = model.model.connector(
        torch.from_numpy(features), torch.ones(2, patches, dtype=torch.long))
  assert difference(connected(built, params, features), want) < 1e-4
  tokens = np.random.default_rng(1).integers(6, 20, (2, 9))
  with torch.no_grad():
    said = model(torch.from_numpy(tokens)).logits
  assert difference(align_jax.load_decoder(tmp_path)(tokens), said) < 1e-4


@SEEDS
def test_internvls_projector_and_decoder(seed: int, tmp_path: Path) -> None:
  config = transformers.InternVLConfig(
      vision_config=hf.VISION | dict(image_size=[16, 16], patch_size=[4, 4]),
      text_config=dict(model_type="qwen2", vocab_size=20, **hf.TEXT),
      image_token_id=5, downsample_ratio=0.5)
  model = transformers.InternVLForConditionalGeneration(config).eval()
  randomise(model, seed)
  model.save_pretrained(tmp_path)
  config = ModelConfig(
      tower=PartConfig(kind="siglip", config=dict(
          image_size=16, patch_size=4, width=16, layers=1, heads=2,
          mlp_width=8)),
      connector=ConnectorConfig(kind="pixel_shuffle", weights=str(tmp_path)),
      decoder=PartConfig(weights=str(tmp_path)), dtype="float32",
      frozen_dtype="float32", remat="none")
  built = build(config)
  params, origins = init_params(built, make_mesh(
      MeshConfig(), jax.devices()[:1]), (), jax.random.key(0))
  assert origins["connector/in_cf"].endswith("projector.linear_1.weight")
  features = np.random.default_rng(seed).normal(size=(2, 16, 16)).astype("f")
  with torch.no_grad():
    x = model.model.pixel_shuffle(
        torch.from_numpy(features).reshape(2, 4, 4, 16), 0.5)
    want = model.model.multi_modal_projector(x.reshape(2, 4, -1))
  assert difference(connected(built, params, features), want) < 1e-4
  tokens = np.random.default_rng(1).integers(6, 20, (2, 9))
  with torch.no_grad():
    said = model(torch.from_numpy(tokens)).logits
  assert difference(align_jax.load_decoder(tmp_path)(tokens), said) < 1e-4


def test_sam_grows_out_of_instructblips_qformer(folders: Any) -> None:
  """The Q-Former is the checkpoint's, the guidance starts on its own."""
  folder, *_, run = folders("instructblip")
  config = run.config.model
  options = dict(config.connector.options) | dict(layer_h=1, layer_c=3)
  grown = ModelConfig(
      tower=config.tower, decoder=config.decoder, dtype="float32",
      frozen_dtype="float32", remat="none",
      connector=ConnectorConfig("sam", options, str(folder)))
  params, origins = init_params(build(grown), make_mesh(
      MeshConfig(), jax.devices()[:1]), (), jax.random.key(0))
  began = {p for p, o in origins.items() if o == "initialised"}
  assert began == {f"connector/guidance/{n}" for n in (
      "score_c", "score_bias", "h_eo", "h_bias_o", "c_eo", "c_bias_o")}
  np.testing.assert_array_equal(
      params["connector"]["stack"]["layers"]["q_ehk"],
      run.params["connector"]["stack"]["layers"]["q_ehk"])
  wrong = ConnectorConfig("sam", options | dict(queries=4), str(folder))
  with pytest.raises(InputError, match="queries 4 instead of 3"):
    build(ModelConfig(tower=config.tower, decoder=config.decoder,
                      connector=wrong))


def test_vpg_c_grows_out_of_instructblips_queries(folders: Any) -> None:
  """What reads text there is left, and nothing else."""
  folder, *_, run = folders("instructblip")
  config = run.config.model
  options = {name: value for name, value in config.connector.options.items()
             if name not in ("text", "words", "positions", "tokenizer")}
  built = build(ModelConfig(
      tower=config.tower, decoder=config.decoder, dtype="float32",
      frozen_dtype="float32", remat="none", connector=ConnectorConfig(
          "vpg_c", options | dict(layer=1), str(folder))))
  params, origins = init_params(built, make_mesh(
      MeshConfig(), jax.devices()[:1]), (), jax.random.key(0))
  began = {p for p, o in origins.items() if o == "initialised"}
  assert all(p.startswith("connector/again_") for p in began) and began
  theirs, ours = (flatten(p["connector"]) for p in (run.params, params))
  for path, value in theirs.items():
    if path in ours:
      np.testing.assert_array_equal(ours[path], value)
  gone = {p.removeprefix("stack/layers/") for p in theirs.keys() - ours.keys()}
  assert gone == {"words_ve", "positions_le"} | {f"text_{n}" for n in (
      "up_ef", "up_bias_f", "down_fe", "down_bias_e", "norm_scale_e",
      "norm_bias_e")}


def photo(width: int, height: int, name: str = "china.jpg") -> Any:
  """A real one, of another size."""
  return Image.fromarray(load_sample_image(name)).resize((width, height))


@pytest.mark.parametrize("options", [
    {}, dict(max_patches=4), dict(use_covering_area_grid=False),
    dict(use_covering_area_grid=False, min_patches=3, max_patches=6)])
def test_ovis2s_tiles_and_their_places(options: dict[str, Any]) -> None:
  """The processor's pixels, and its tokens one by one."""
  processor = transformers.Ovis2ImageProcessorPil(
      size=dict(height=96, width=96), crop_to_patches=True, **options)
  kind, ours = ovis2.tiling_of(processor.to_dict(), 96)
  tiling, frame = TILINGS.get(kind)(**ours), Ovis.frame()
  marks = {"<IMG_START>": frame.before, "<IMG_GRID>": frame.whole,
           "<IMG_COL>": frame.column, "<IMG_ROW>": frame.row,
           "<IMG_END>": frame.after}
  seen = set()
  for width, height in ((640, 427), (427, 640), (96, 96), (90, 30), (250, 100),
                        (100, 250), (300, 300), (150, 130), (1, 400), (3, 3)):
    for name in ("china.jpg", "flower.jpg"):
      image = photo(width, height, name)
      want = processor(image, do_rescale=False, do_normalize=False,
                       return_tensors="np")
      tiles, boxes = tiling.tiles(image, 96)
      np.testing.assert_array_equal(
          tiles.transpose(0, 3, 1, 2), want["pixel_values"])
      np.testing.assert_array_equal(boxes, [[0, 0, 96, 96]] * len(tiles))
    seen.add(tuple(want["grids"][0].tolist()))
    text = transformers.Ovis2Processor.replace_image_token(
        types.SimpleNamespace(image_seq_length=2), want, 0)
    places = tiling.places(height, width, 96, 2, frame)
    whole = [*special(frame.before), *places.visual, *special(frame.after)]
    atoms = iter(range(2 * len(tiles)))
    assert whole == [
        next(atoms) if token == "<IMG_ATOM>" else -2 - marks[token][0]
        for token in re.findall("<[A-Z_]+>", text)]
    assert places.slots == len(tiles)
  assert len(seen) > 3 and any(rows != columns for rows, columns in seen)


def check_tiles(folder: Path, model: Any, processor: Any,
                asked: list[Any]) -> None:
  """The same tokens in, the same logits and the same answers."""
  run = align_jax.load_vlm(folder)
  theirs = [hf.theirs(model, processor, *one) for one in asked]
  for one, (_, want) in zip(asked, theirs):
    got = hf.logits_of(run, *one)
    assert got.shape == want.shape and want.std() >= 1
    assert np.abs(got - want).max() / max(1, want.std()) < 1e-4
  said = [words for words, _ in theirs]
  assert len(set(said)) == len(said)
  assert run.generate(*zip(*asked), max_new_tokens=8) == said


def test_ovis2_in_tiles(tmp_path: Path) -> None:
  """Photos lying and standing, in grids that are no squares."""
  pair = hf.ovis2(tmp_path, tiles=6, seed=1)
  check_tiles(tmp_path, *pair, [
      ([photo(20, 9)], WORDS),
      ([photo(9, 20, "flower.jpg")], "is there a red shape?")])


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    dict(tiles=12, side=32, patch=8, stride=2),
    dict(tiles=9, use_covering_area_grid=False),
    dict(tiles=6, use_covering_area_grid=False, min_patches=4, tied=True)])
def test_ovis2_in_other_tiles(options: dict[str, Any],
                              tmp_path: Path) -> None:
  """Two photos in a prompt; photos as they are; one that needs no tiles."""
  pair = hf.ovis2(tmp_path, seed=2, **options)
  check_tiles(tmp_path, *pair, [
      ([photo(60, 25), photo(31, 64, "flower.jpg")], WORDS),
      ([photo(640, 427, "flower.jpg")], "is there a red shape?"),
      ([photo(7, 8)], "yes")])


def test_tiles_that_would_be_ignored_are_refused(
    folders: Any, tmp_path: Path) -> None:
  for where, changes, said in (
      ("instructblip", {}, "cuts images into tiles"),
      ("ovis2", dict(resample=2, do_resize=False, size=dict(
          height=9, width=9)), "(?s)resample 2 is not implemented.*do_resize "
       "False.*not the tower's 8 pixels")):
    folder = tmp_path / where
    shutil.copytree(folders(where)[0], folder)
    file = folder / "processor_config.json"
    given = json.loads(file.read_text())
    given["image_processor"] |= dict(crop_to_patches=True) | changes
    file.write_text(json.dumps(given))
    with pytest.raises(InputError, match=said):
      align_jax.load_vlm(folder)


@pytest.mark.parametrize("where, change, said", [
    ("instructblip", {"qformer_config.hidden_act": "relu"},
     "hidden_act 'relu' is not implemented"),
    ("instructblip", {"text_config.model_type": "t5"},
     "text_config: .*'t5'"),
    ("ovis2", {"vision_config.tokenize_function": "st_argmax"},
     "tokenize_function 'st_argmax'"),
    ("ovis2", {"vision_config.qkv_bias": True}, "qkv_bias True"),
    ("ovis2", {"hidden_size": 99}, "hidden_size 99 is not the language"),
])
def test_what_is_not_implemented_is_refused_by_name(
    where: str, change: Any, said: str, folders: Any, tmp_path: Path) -> None:
  raw = json.loads((folders(where)[0] / "config.json").read_text())
  for path, value in change.items():
    at = raw
    *above, last = path.split(".")
    for name in above:
      at = at[name]
    at[last] = value
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(InputError, match=said):
    read_spec(tmp_path)
