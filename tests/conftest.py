"""Every test runs on eight virtual CPU devices, offline, in full precision."""

import os
import pathlib
import sys
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):  # set in xdist's workers
  # Half of the quick tier's time was LLVM making fast code of what runs once;
  # the full tier runs what users run.
  _HASTE = "" if "--full" in sys.argv else "--xla_backend_optimization_level=0"
  os.environ["XLA_FLAGS"] = " ".join(
      [os.environ.get("XLA_FLAGS", ""), _FLAG, _HASTE])

import jax  # noqa: E402  (the variables above must be set first)
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def shared_compilations(
    tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  """What several tests compile is compiled once a session."""
  folder = tmp_path_factory.mktemp("xla")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  yield
  jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
  """Lets go of the programs that a file's tests compiled, where they are many.

  Each takes some of the 65,530 mappings that Linux gives a process. A worker
  of the full tier that had used them up died of a segmentation fault.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
    jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption("--full", action="store_true", help="the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
  if config.getoption("--full") or "slow" in (config.option.markexpr or ""):
    return
  kept = [i for i in items if "slow" not in i.keywords]
  config.hook.pytest_deselected(
      items=[i for i in items if "slow" in i.keywords])
  items[:] = kept
