"""An example as tokens, with a mask of what is supervised.

The conversation becomes one string. Spans of characters say what is
supervised, and the tokens' offsets carry that over to tokens:

  <|im_start|>user\\n<image>\\nwhat shape?<|im_end|>\\n<|im_start|>assistant\\n
  circle<|im_end|>\\n
  ^^^^^^^^^^^^^^^^  supervised: the answer and its end of turn

  tokens        ... assistant \\n  circle  <|im_end|>  \\n
  targets       ...        \\n  circle <|im_end|> \\n      0
  loss_weights  ...         0    1      1         0      0

Spans: a template with {% generation %} blocks states them itself. Any other
is rendered for each answer twice, up to the point where the answer begins and
up to where it ends; both must be beginnings of the whole, which is checked.

`<image>` becomes T positions, and those of the connector's special tokens that
stand around an image. Our copy of the tokenizer has it as a special
token, so that it is never split and no other token runs across it; the
model's vocabulary needs none.
"""

import dataclasses
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from align_jax.data.example import PLACEHOLDER, BadSample, Example, Message
from align_jax.data.tiling import NO_FRAME, Frame, Places, special, uncut
from align_jax.errors import InputError
from align_jax.registry import nearest

TEMPLATES = ("chat", "processor", "plain", "blip", "caption")

# For base models: "{user}\n{assistant}{eos}\n{user}\n...". A generation
# prompt ends with the newline after the user's text.
PLAIN = ("{% for message in messages %}"
         "{% if message['role'] == 'assistant' %}{% generation %}"
         "{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
         "{% else %}{{ message['content'] }}{% endif %}{{ '\\n' }}"
         "{% endfor %}")

# As BLIP-2 and InstructBLIP: "{user} {assistant}{eos} {user} ...". The space
# before an answer is the answer's.
BLIP = ("{% for message in messages %}"
        "{% set said = (' ' if not loop.first else '') + message['content'] %}"
        "{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ said }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ said }}{% endif %}{% endfor %}")

# Placeholders with the end of their line, if they are all that it holds.
_PLACE = re.compile(rf"^(?:{PLACEHOLDER})+\n|{PLACEHOLDER}", re.MULTILINE)

# transformers keeps one compiled template a process, which collects the spans
# of {% generation %} in itself: two threads in it at once lose each other's.
_ONE_AT_A_TIME = threading.Lock()

# Images before all else.
_LEADING = re.compile(rf"(?:{PLACEHOLDER}\s*)*")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateError(InputError):
  """A chat template from which no loss mask can be found."""


@dataclasses.dataclass(frozen=True)
class Rendered:
  """One sample as tokens; all arrays have n entries.

  Attributes:
    tokens: i32; at visual positions a padding token, which the model ignores.
    targets: i32, the token that follows.
    loss_weights: f32, 1 where the token that follows is supervised.
    visual: i32, -1 for text; slot * T + t for visual token t of the sample's
      image `slot`; -2 - x for the connector's special token x.
    images: the sample's images, not yet read.
    text: what was rendered.
    slots: image slots that they take; a tile is one.
  """
  tokens: np.ndarray
  targets: np.ndarray
  loss_weights: np.ndarray
  visual: np.ndarray
  images: list[Any]
  text: str
  slots: int

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def n_images(self) -> int:
    return len(self.images)

  @property
  def n_labels(self) -> int:
    """How many positions are supervised."""
    return int(np.count_nonzero(self.loss_weights))


class Renderer:
  """Renders examples for one tokenizer and template.

  Attributes:
    tokenizer: a transformers fast tokenizer.
    template: "chat" the tokenizer's own chat template; "processor" the same as
      transformers' processors of whole models use it, with bos where the
      tokenizer adds one and the template does not; "plain" for base
      models, `{bos}{user}\\n{answer}{eos}\\n...` with bos where the tokenizer
      adds one; "blip" for models that were given an instruction and nothing
      else, `{images}{bos}{user} {answer}{eos} ...`, or bos and the text with
      its images inside where a sample's do not all come first; "caption" for
      contrastive training, `{bos}{answer}{eos}` without visual tokens or
      labels.
    tokens_per_image: T.
    prompt_tokens: how many learned tokens stand before a sample, after its
      bos: the first special tokens of its row.
    frame: numbers of the connector's special tokens, which follow those, that
      stand around and inside an image.
    images_first: images stand before the text of the first user turn.
    prompt_length: with "blip", how many words a prompt has in training at
      most, in tokens and with bos: of a longer one the last are kept, as
      InstructBLIP does. Answers are generated from whole prompts, as there. 0:
      any.
    chat_template: in Jinja, whichever the template.
    typed: whether it wants contents as lists of parts with a type.
  """

  def __init__(self, tokenizer: Any, template: str, tokens_per_image: int,
               prompt_tokens: int = 0,
               frame: Frame = NO_FRAME, images_first: bool = False,
               prompt_length: int = 0):
    if template not in TEMPLATES:
      raise InputError(f"template {template!r} is not one of "
                       f"{', '.join(TEMPLATES)}{nearest(template, TEMPLATES)}")
    chat = template in ("chat", "processor")
    if chat and not tokenizer.chat_template:
      raise TemplateError("the tokenizer has no chat template; for a base "
                          "model set data.template to 'plain'")
    if not chat and tokenizer.eos_token_id is None:
      raise TemplateError(f"template {template!r} ends answers with the "
                          "tokenizer's eos token, and it has none")
    self.tokenizer = tokenizer
    self.template = template
    self.tokens_per_image = tokens_per_image
    self.prompt_tokens = prompt_tokens
    self.prompt_length = prompt_length
    self.frame, self.images_first = frame, images_first
    # A copy of our own: it has a placeholder token, threads share it, and
    # nobody else's truncation or padding settings can reach it.
    self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    self._backend.no_truncation()
    self._backend.no_padding()
    if PLACEHOLDER not in tokenizer.get_added_vocab():
      self._backend.add_special_tokens(
          [AddedToken(PLACEHOLDER, special=True, normalized=False)])
    self._placeholder = self._backend.token_to_id(PLACEHOLDER)
    self.chat_template = tokenizer.get_chat_template() if chat else (
        BLIP if template == "blip" else PLAIN)
    self._marked = bool(_GENERATION.search(self.chat_template))
    added = self._backend.encode("", add_special_tokens=True).ids
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    # A chat template writes its own bos.
    adds = bos if added[:1] == bos else []
    self._bos = {"chat": [], "caption": bos}.get(template, adds)
    self._pad = next((i for i in (tokenizer.pad_token_id,
                                  tokenizer.eos_token_id) if i is not None), 0)
    self.typed = chat and self._wants_typed()

  @property
  def adds_bos(self) -> bool:
    """Whether bos comes before what the template writes."""
    return bool(self._bos)

  def __call__(self, example: Example,
               places: Sequence[Places] | None = None) -> Rendered:
    """The example with its labels.

    Args:
      example: to be rendered.
      places: of its images, where they are not one slot of T tokens each.

    Raises:
      BadSample: placeholders and images differ in number, nothing is
        supervised, or the chat template refuses the conversation.
      TemplateError: no mask can be found with this template.
    """
    self._check(example)
    example = self._placed(example)
    messages = example["conversation"]
    if self.template == "caption":
      return self._caption(example)
    text, spans = self._spans(example, messages)
    rendered = self._tokens(example, text, spans, places)
    if not rendered.n_labels:
      raise BadSample(example["origin"], "no token is supervised: the "
                      "conversation has no assistant text")
    return rendered

  def prompt(self, example: Example,
             places: Sequence[Places] | None = None) -> Rendered:
    """The example up to where the model is to answer; nothing is supervised.

    An answer at the end of the conversation is left out; `places` as above.

    Raises:
      BadSample: placeholders and images differ in number.
    """
    messages = list(example["conversation"])
    if messages and messages[-1]["role"] == "assistant":
      messages.pop()
    example = {**example, "conversation": messages}
    self._check(example)
    example = self._placed(example)
    text = self._render(example, example["conversation"], generation=True)
    return self._tokens(example, text, None, places)

  def _check(self, example: Example) -> None:
    written = sum(m["content"].count(PLACEHOLDER)
                  for m in example["conversation"])
    if written != len(example["images"]):
      raise BadSample(
          example["origin"], f"{written} {PLACEHOLDER} placeholder(s) in the "
          f"conversation for {len(example['images'])} image(s)")

  def _placed(self, example: Example) -> Example:
    """The example with its images where they shall stand.

    Raises:
      BadSample: images are to come first, and no user speaks.
    """
    blip = self.template == "blip"
    if not example["images"]:
      return example
    leading = _LEADING.match(example["conversation"][0]["content"])[0]
    lead = leading.count(PLACEHOLDER) == len(example["images"])
    if not (self.images_first or blip and lead):
      return example
    bare = [{**m, "content": _PLACE.sub("", m["content"])}
            for m in example["conversation"]]
    if blip:  # they are no part of the text, see `_tokens`
      return {**example, "conversation": bare}
    first = next((m for m in bare if m["role"] == "user"), None)
    if first is None:
      raise BadSample(example["origin"], "images come first in the first user "
                      "turn, and the conversation has none")
    first["content"] = (PLACEHOLDER * len(example["images"]) + "\n"
                        + first["content"])
    return {**example, "conversation": bare}

  def _render(self, example: Example, messages: Sequence[Message],
              generation: bool) -> str:
    return self._jinja_render(example, messages,
                              add_generation_prompt=generation)[0]

  def _jinja_render(self, example: Example, messages: Sequence[Message],
                    **options: bool) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the {% generation %} spans in it if they are asked for."""
    turns = [{**m, "content": typed(m["content"])} if self.typed else m
             for m in messages]
    try:
      with _ONE_AT_A_TIME:
        texts, spans = render_jinja_template(
            [turns], chat_template=self.chat_template, **options,
            **self.tokenizer.special_tokens_map)
    except jinja2.TemplateError as error:
      # Many templates raise for turns that do not alternate, for example.
      raise BadSample(example["origin"], "the chat template refuses the "
                      f"conversation: {error}") from error
    return texts[0], [tuple(span) for span in spans[0]] if spans else []

  def _wants_typed(self) -> bool:
    """Whether the template reads contents as lists of parts with a type.

    Found by trying: one that wants lists loses the words of a string, and
    one that wants strings cannot join a list. One that reads both may write
    images otherwise for lists, which transformers' processors are given.
    """
    if not self._reads(str):
      return self._reads(typed)
    return self.template == "processor" and self._reads(typed, answered=True)

  def _reads(self, form: Callable[[str], Any], answered: bool = False) -> bool:
    """Whether the template writes out contents of this form."""
    turns = [{"role": "user", "content": form(f"{PLACEHOLDER}\nprobe")}]
    turns += answered * [{"role": "assistant", "content": form("reply")}]
    try:
      with _ONE_AT_A_TIME:
        (found,), _ = render_jinja_template(
            [turns], chat_template=self.chat_template,
            **self.tokenizer.special_tokens_map)
    except (jinja2.TemplateError, TypeError):
      return False
    return (PLACEHOLDER in found and "probe" in found
            and (not answered or "reply" in found and "'type'" not in found))

  def _spans(self, example: Example, messages: Sequence[Message],
             ) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as one string, and the supervised spans in it."""
    speakers = [m["role"] for m in messages if m["role"] != "system"]
    if speakers[:1] == ["assistant"]:
      raise BadSample(example["origin"],
                      "the conversation begins with the assistant")
    if self._marked:
      return self._marked_spans(example, messages)
    whole = self._render(example, messages, generation=False)
    spans = []
    for turn, message in enumerate(messages):
      if message["role"] != "assistant":
        continue
      before = self._render(example, messages[:turn], generation=True)
      after = self._render(example, messages[:turn + 1], generation=False)
      for part, what in ((before, "with its generation prompt"),
                         (after, "with its answer")):
        if not whole.startswith(part):
          raise TemplateError(
              f"{example['origin']}: the chat template cannot be masked: "
              f"rendered up to turn {turn} {what}, the conversation is no "
              "beginning of the whole conversation. Give the template "
              "{% generation %} blocks around the answers. They part at: "
              f"{_parting(whole, part)}")
      # What a template writes after the end of turn is not the answer's.
      spans.append((len(before), len(after.rstrip())))
    return whole, spans

  def _marked_spans(self, example: Example, messages: Sequence[Message],
                    ) -> tuple[str, list[tuple[int, int]]]:
    """The spans that {% generation %} states.

    White space between the generation prompt and an answer is the answer's:
    the model has to write it.
    """
    whole, spans = self._jinja_render(example, messages,
                                      return_assistant_tokens_mask=True)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if len(turns) != len(spans):
      return whole, spans
    found = []
    for turn, (start, end) in zip(turns, spans):
      if turn and whole[start - 1:start].isspace():
        before = self._render(example, messages[:turn], generation=True)
        if whole.startswith(before) and whole[len(before):start].isspace():
          start = len(before)
      found.append((start, end))
    return whole, found

  def _tokens(self, example: Example, text: str,
              spans: Sequence[tuple[int, int]] | None,
              places: Sequence[Places] | None = None) -> Rendered:
    """Tokens of one string, with the marks that its spans give.

    Without spans it is a prompt, of which nothing is cut.
    """
    size = self.tokens_per_image
    if places is None:
      places = [uncut(size, self.frame)] * len(example["images"])
    inside = np.zeros(len(text) + 1, bool)
    for start, end in spans or ():
      inside[start:end] = True
    begins = {start for start, end in spans or () if start < end}
    coded = self._backend.encode(text, add_special_tokens=False)
    entries = list(zip(coded.ids, coded.offsets))
    if spans is not None:
      entries = self._cut(entries, spans)
    start = 0  # where bos stands
    first = self.template == "blip" and PLACEHOLDER not in text
    if first:
      entries = [(self._placeholder, (0, 0))] * len(example["images"]) + entries
    written = sum(token == self._placeholder for token, _ in entries)
    if written != len(example["images"]):
      raise TemplateError(f"{example['origin']}: the chat template writes "
                          f"{written} {PLACEHOLDER} for "
                          f"{len(example['images'])} image(s)")
    ids, marks, visual = [], [], []
    images = slots = 0
    for token, (begin, end) in entries:
      if token == self._placeholder:
        taken, indices = places[images]
        shown = np.concatenate([special(self.frame.before), indices,
                                special(self.frame.after)])
        shown = np.where(shown >= 0, shown + slots * size,
                         shown - self.prompt_tokens).tolist()
        ids += [self._pad] * len(shown)
        marks += [False] * len(shown)
        visual += shown
        slots += taken
        images += 1
        start = len(ids) if first else 0
        continue
      if begins.intersection(range(begin + 1, end)):
        raise BadSample(
            example["origin"], f"the token {text[begin:end]!r} spans the "
            "border of prompt and answer, so that the model could never write "
            "it; strip the answer's leading white space")
      ids.append(token)
      marks.append(bool(inside[begin]))
      visual.append(-1)
    # bos where the tokenizer adds one, and the text does not have it already.
    bos = [] if ids[start:start + 1] == self._bos else self._bos
    learned = [-2 - x for x in range(self.prompt_tokens)]
    ids[start:start] = bos + [self._pad] * len(learned)
    marks[start:start] = [False] * (len(bos) + len(learned))
    visual[start:start] = [-1] * len(bos) + learned
    return _rendered(ids, marks, visual, example["images"], text,
                     slots)

  def _cut(self, entries: list[tuple[int, tuple[int, int]]],
           spans: Sequence[tuple[int, int]],
           ) -> list[tuple[int, tuple[int, int]]]:
    """What `prompt_length` leaves of a text's tokens: its images, the last
    words before its first answer, with room for bos, and all from there on."""
    if not self.prompt_length:
      return entries
    answer = min((start for start, _ in spans), default=None)
    words = [n for n, (token, (begin, _)) in enumerate(entries)
             if token != self._placeholder
             and (answer is None or begin < answer)]
    spare = len(words) + len(self._bos) - self.prompt_length
    gone = set(words[:max(spare, 0)])
    return [entry for n, entry in enumerate(entries) if n not in gone]

  def _caption(self, example: Example) -> Rendered:
    text = " ".join(m["content"] for m in example["conversation"]
                    if m["role"] == "assistant").replace(PLACEHOLDER, "")
    text = text.strip()
    if not text:
      raise BadSample(example["origin"], "no caption: the conversation has "
                      "no assistant text")
    ids = (self._bos
           + self._backend.encode(text, add_special_tokens=False).ids
           + [self.tokenizer.eos_token_id])
    return _rendered(ids, [False] * len(ids), [-1] * len(ids),
                     example["images"], text, len(example["images"]))


def typed(content: str) -> list[dict[str, str]]:
  """A content with placeholders as parts with a type, for templates that
  write the placeholders themselves.

  >>> typed("<image>\\nwhat is it?")
  [{'type': 'image'}, {'type': 'text', 'text': 'what is it?'}]
  """
  first, *others = content.split(PLACEHOLDER)
  parts = [{"type": "text", "text": first}] if first else []
  for text in others:
    parts.append({"type": "image"})
    if text := text.removeprefix("\n"):
      parts.append({"type": "text", "text": text})
  return parts


def _rendered(ids: list[int], marks: list[bool], visual: list[int],
              images: list[Any], text: str, slots: int) -> Rendered:
  tokens = np.asarray(ids, np.int32)
  following = np.asarray(marks[1:] + [False], np.float32)
  return Rendered(tokens=tokens, targets=np.append(tokens[1:], 0).astype(
      np.int32), loss_weights=following,
                  visual=np.asarray(visual, np.int32), images=list(images),
                  text=text, slots=slots)


def _parting(whole: str, part: str) -> str:
  """Where two strings cease to be equal, for an error message."""
  same = next((i for i, (a, b) in enumerate(zip(whole, part)) if a != b),
              min(len(whole), len(part)))
  return (f"{whole[max(same - 20, 0):same + 20]!r} against "
          f"{part[max(same - 20, 0):same + 20]!r}")


def show(rendered: Rendered, tokenizer: Any) -> str:
  """A rendered sample for people, one token a line.

    at     a position; visual tokens of one image share a line
    learn  "*" where the token is supervised
  """
  lines = [f"{'at':>9}  learn  token"]
  marks = np.append(0.0, rendered.loss_weights[:-1])
  at = 0
  while at < len(rendered):
    slot = rendered.visual[at]
    if slot == -1:
      token = tokenizer.convert_ids_to_tokens(int(rendered.tokens[at]))
      token = token.replace("\n", "\\n")
      lines.append(f"{at:>9}  {'*' if marks[at] else ' ':^5}  {token}")
      at += 1
      continue
    step = 1 if slot >= 0 else -1  # special tokens count downwards
    end = at + 1
    while end < len(rendered) and rendered.visual[end] != -1 and (
        rendered.visual[end] == rendered.visual[end - 1] + step):
      end += 1
    last = rendered.visual[end - 1]
    what = (f"visual tokens {slot}-{last}" if slot >= 0 else
            f"special tokens {-2 - slot}-{-2 - last}")
    lines.append(f"{f'{at}-{end - 1}':>9}  {'':^5}  {what}")
    at = end
  lines.append(f"{len(rendered)} positions, {rendered.n_labels} supervised, "
               f"{rendered.n_images} image(s)"
               + (f" in {rendered.slots} tiles"
                  if rendered.slots != rendered.n_images else ""))
  return "\n".join(lines)
