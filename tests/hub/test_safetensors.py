"""Lazy reading into shards, strict matching, damaged and unsafe files."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from align_jax.decoders.transformer import DecoderConfig
from align_jax.errors import InputError
from align_jax.hub.faces import decoder_shapes, load_decoder
from align_jax.hub.pretrained import load_params, read_spec, save_hf
from align_jax.hub.safetensors import SafetensorsReader
from align_jax.train.manifest import hash_files, must_keep

CONFIG = DecoderConfig(vocab_size=32, width=16, layers=4, heads=4, kv_heads=2,
                       mlp_width=24, tied_head=False)


def _params(dtype: Any = jnp.float32) -> Any:
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda s: jnp.asarray(rng.normal(size=s.shape), dtype),
      decoder_shapes(CONFIG))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  save_hf(_params(), "llama", CONFIG, tmp_path)
  return tmp_path


def _sharded_shapes(rows: int, columns: int) -> Any:
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(rows, columns), ("d", "h"))
  specs = {
      "embed_vd": P("h", "d"), "head_vd": P("h", "d"), "final_norm_d": P(),
      "q_dhk": P(None, "d", "h"), "k_dgk": P(None, "d"),
      "v_dgk": P(None, "d"), "o_hkd": P(None, "h", None, "d"),
      "gate_df": P(None, "d", "h"), "up_df": P(None, "d", "h"),
      "down_fd": P(None, "h", "d"), "attn_norm_d": P("h"), "mlp_norm_d": P()}
  return jax.tree_util.tree_map_with_path(
      lambda path, s: jax.ShapeDtypeStruct(
          s.shape, s.dtype,
          sharding=NamedSharding(mesh, specs[path[-1].key])),
      decoder_shapes(CONFIG))


def test_no_device_gets_more_than_its_slice_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Every byte that is read belongs to a shard, and is read once."""
  sizes: dict[str, list[int]] = {}
  plain = SafetensorsReader.read

  def read(self: Any, key: str, index: Any) -> np.ndarray:
    found = plain(self, key, index)
    sizes.setdefault(key, []).append(found.size)
    return found

  monkeypatch.setattr(SafetensorsReader, "read", read)
  params, _ = load_params(read_spec(folder), _sharded_shapes(2, 4))
  jax.tree.map(np.testing.assert_array_equal, params, _params())
  layer = "model.layers.2.self_attn."
  assert sizes["model.embed_tokens.weight"] == [32 * 16 // 8] * 8
  assert sizes[layer + "q_proj.weight"] == [16 * 16 // 8] * 8
  assert sizes[layer + "o_proj.weight"] == [16 * 16 // 8] * 8
  # Replicated over four devices, read once for each of the two parts.
  assert sizes[layer + "k_proj.weight"] == [16 * 8 // 2] * 2
  # The stack cut by layer: a layer's norm is read by those who own it.
  assert sizes["model.layers.2.input_layernorm.weight"] == [16]
  for leaf in jax.tree.leaves(params):
    for shard in leaf.addressable_shards:
      assert shard.data.shape == leaf.sharding.shard_shape(leaf.shape)
  for key, parts in sizes.items():
    whole = np.prod(SafetensorsReader(folder).shape(key))
    assert sum(parts) == whole, key


def test_provenance_names_file_and_key(folder: Path) -> None:
  shapes = decoder_shapes(CONFIG)
  _, origins = load_params(read_spec(folder), shapes)
  file = folder / "model.safetensors"
  assert origins["embed_vd"] == f"{file}:model.embed_tokens.weight"
  assert origins["layers/q_dhk"] == (
      f"{file}:model.layers.{{0..3}}.self_attn.q_proj.weight")


def test_provenance_names_every_file_of_a_stack(tmp_path: Path) -> None:
  save_hf(_params(), "llama", CONFIG, tmp_path)
  whole = load_file(tmp_path / "model.safetensors")
  (tmp_path / "model.safetensors").unlink()
  late = {k for k in whole if ".layers.2." in k or ".layers.3." in k}
  shards = [tmp_path / f"model-{n}.safetensors" for n in (1, 2)]
  save_file({k: v for k, v in whole.items() if k not in late}, shards[0])
  save_file({k: whole[k] for k in late}, shards[1])
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({
      "weight_map": {k: shards[k in late].name for k in whole}}))
  _, origins = load_params(read_spec(tmp_path), decoder_shapes(CONFIG))
  assert origins["layers/up_df"] == (
      f"{shards[0]}:model.layers.{{0..1}}.mlp.up_proj.weight; "
      f"{shards[1]}:model.layers.{{2..3}}.mlp.up_proj.weight")
  stack = {"layers/up_df": origins["layers/up_df"]}
  assert hash_files(stack).keys() == set(map(str, shards))
  assert not must_keep("layers/up_df", stack, ())
  shards[1].unlink()
  assert must_keep("layers/up_df", stack, ())


def test_flat_trees_come_back_flat(folder: Path) -> None:
  flat = {"/".join(k.key for k in path): s for path, s in
          jax.tree_util.tree_leaves_with_path(decoder_shapes(CONFIG))}
  params, _ = load_params(read_spec(folder), flat)
  assert params.keys() == flat.keys()


def test_cast_on_the_way(folder: Path) -> None:
  params, _ = load_params(
      read_spec(folder), decoder_shapes(CONFIG, jnp.bfloat16))
  jax.tree.map(np.testing.assert_array_equal, params, _params(jnp.bfloat16))


def test_several_files_with_an_index(tmp_path: Path) -> None:
  want = _params(jnp.bfloat16)
  save_hf(want, "llama", CONFIG, tmp_path, max_bytes=3000)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(
      2 * leaf.size for leaf in jax.tree.leaves(want))
  got = load_decoder(tmp_path, jnp.bfloat16)
  jax.tree.map(np.testing.assert_array_equal, got.params, want)
  sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
  with pytest.raises(InputError, match="model-00002-of-.* is not there"):
    load_decoder(tmp_path)


def test_what_does_not_fit_is_listed_together(folder: Path) -> None:
  tensors = load_file(folder / "model.safetensors")
  layer = "model.layers.1."
  tensors[layer + "mlp.gate_prj.weight"] = tensors.pop(
      layer + "mlp.gate_proj.weight")
  tensors["model.norm.weight"] = np.zeros(17, np.float32)
  tensors[layer + "self_attn.q_proj.bias"] = np.zeros(16, np.float32)
  tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((24, 16), np.int8)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
  save_file(tensors, folder / "model.safetensors")
  with pytest.raises(InputError) as error:
    load_decoder(folder)
  assert str(error.value) == f"""{folder} does not fit the model:
  'model.norm.weight' has shape [17], our final_norm_d needs [16]
  missing 'model.layers.1.mlp.gate_proj.weight' (our layers/gate_df); did you \
mean 'model.layers.1.mlp.gate_prj.weight'?
  'model.layers.0.mlp.up_proj.weight' has a dtype that is not read
  unexpected 'model.layers.1.mlp.gate_prj.weight'
  unexpected 'model.layers.1.self_attn.q_proj.bias'"""


def test_a_tied_head_in_the_file_is_no_fault(tmp_path: Path) -> None:
  save_hf(_params(), "llama", CONFIG, tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  config["tie_word_embeddings"] = True
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert "head_vd" not in load_decoder(tmp_path).params


def test_keys_of_a_bare_model(folder: Path) -> None:
  save_file({k.removeprefix("model."): v for k, v in load_file(
      folder / "model.safetensors").items()}, folder / "model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, load_decoder(folder).params,
               _params())


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
def test_truncated_files(folder: Path, keep: float) -> None:
  file = folder / "model.safetensors"
  data = file.read_bytes()
  size = keep if isinstance(keep, int) else int(len(data) * keep)
  file.write_bytes(data[:size])
  with pytest.raises(InputError, match="model.safetensors is cut short"):
    load_decoder(folder)


def test_a_git_lfs_pointer(folder: Path) -> None:
  (folder / "model.safetensors").write_text(
      "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
  with pytest.raises(InputError, match="git lfs pull"):
    load_decoder(folder)


def test_pickles_are_refused(folder: Path) -> None:
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(InputError, match="pytorch_model.bin there is a pickle"):
    load_decoder(folder)
  with pytest.raises(InputError, match="is a pickle"):
    SafetensorsReader(folder / "pytorch_model.bin")


def test_parameters_without_a_place_are_refused(tmp_path: Path) -> None:
  with pytest.raises(InputError, match="no place for: embed_dv; did you mean "
                                       "'embed_vd'"):
    save_hf({"embed_dv": jnp.zeros((2, 2))}, "llama", CONFIG, tmp_path)


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02", b"\x80\x05"])
def test_a_pickle_with_another_name(folder: Path, head: bytes) -> None:
  (folder / "model.safetensors").write_bytes(head + b"\0" * 100)
  with pytest.raises(InputError, match="is a pickle, whatever its name.*"
                                       "save_pretrained"):
    load_decoder(folder)


@pytest.mark.parametrize("text, said", [
    ("{", "no readable \"weight_map\""),
    ("[]", "no readable \"weight_map\""),
    ('{"weight_map": {}}', "names no file"),
    ('{"weight_map": {"a": "../../etc/passwd"}}', "no \\*.safetensors beside"),
    ('{"weight_map": {"a": "pytorch_model-1.bin"}}', "pickle can run any code"),
    ('{"weight_map": {"a": "model.safetensors"}}', "does not hold it"),
])
def test_a_corrupted_index(folder: Path, text: str, said: str) -> None:
  (folder / "model.safetensors.index.json").write_text(text)
  with pytest.raises(InputError, match=said):
    load_decoder(folder)


def test_an_index_that_points_to_another_file(tmp_path: Path) -> None:
  save_hf(_params(), "llama", CONFIG, tmp_path, max_bytes=3000)
  path = tmp_path / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  files = index["weight_map"]
  key = "model.norm.weight"
  other = next(f for f in files.values() if f != files[key])
  was, files[key] = files[key], other
  path.write_text(json.dumps(index))
  with pytest.raises(InputError, match=f"'{key}' in {other}, it is in {was}"):
    load_decoder(tmp_path)


def test_a_tensor_in_two_files(folder: Path) -> None:
  (folder / "model.safetensors").rename(folder / "a.safetensors")
  (folder / "b.safetensors").write_bytes(
      (folder / "a.safetensors").read_bytes())
  with pytest.raises(InputError, match="is in a.safetensors and in b.safeten"):
    load_decoder(folder)


def test_large_arrays_are_filled_in_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """In pieces of a row or a head: the same arrays, no matrix read whole."""
  largest = 0
  plain = SafetensorsReader.read

  def read(self: Any, key: str, index: Any) -> np.ndarray:
    nonlocal largest
    found = plain(self, key, index)
    largest = max(largest, found.size)
    return found

  monkeypatch.setattr("align_jax.hub.fill.PIECE_BYTES", 64)
  monkeypatch.setattr(SafetensorsReader, "read", read)
  for rows, columns in ((2, 4), (4, 2)):
    params, _ = load_params(read_spec(folder), _sharded_shapes(rows, columns))
    jax.tree.map(np.testing.assert_array_equal, params, _params())
  jax.tree.map(np.testing.assert_array_equal, load_decoder(folder).params,
               _params())
  assert largest == 4 * 16  # a head of q; the matrices have 256 and more


def test_written_files_are_as_safetensors_writes_them(tmp_path: Path) -> None:
  from align_jax.hub.write import Tensor, write_safetensors
  rng = np.random.default_rng(0)
  want = {"scalar": np.float32(3).reshape(()),
          "half": rng.normal(size=(3, 5)).astype(np.float16),
          "wide": rng.normal(size=(2, 3)).astype(np.float64),
          "brain": np.asarray(jnp.asarray(rng.normal(size=7), jnp.bfloat16))}
  tensors = [Tensor(k, v.shape, v.dtype, lambda v=v: v)
             for k, v in want.items()]
  write_safetensors(tmp_path, tensors)
  got = load_file(tmp_path / "model.safetensors")
  assert got.keys() == want.keys()
  for key, value in want.items():
    assert got[key].dtype == value.dtype and got[key].shape == value.shape
    assert got[key].tobytes() == value.tobytes()
  write_safetensors(tmp_path, tensors, max_bytes=30)
  assert not (tmp_path / "model.safetensors").exists()
  write_safetensors(tmp_path, tensors)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]
