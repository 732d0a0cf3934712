"""Fixtures of the data tests."""

from typing import Any

import pytest

from align_jax.data.render import Renderer
from tests.data.samples import word_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
  return word_tokenizer()


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
  return Renderer(tokenizer, "chat", tokens_per_image=4)
