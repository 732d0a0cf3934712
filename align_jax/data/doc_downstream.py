"""DocDownstream-1.0, the instruction sets of ten document benchmarks.

  {"image": ["./imgs/DUE_Benchmark/DocVQA/pngs/rnbx0223_193.png"],
   "messages": [{"role": "user", "content": "<|image|>What is ...?"},
                {"role": "assistant", "content": "10.5 %"}],
   "task_name": "qa_sft", "dataset_name": "DocVQA"}

Source of the layout: X-PLUG/mPLUG-DocOwl, DocOwl1.5:
docowl_benchmark_evaluate.py and evaluation/benchmarks_eval.py (parser_line);
`train.jsonl` and `test/NAME_test.jsonl`, images relative to the data set's
folder. AlignVLM's third stage is trained on it.
"""

from align_jax.data.below import below
from align_jax.data.example import PLACEHOLDER, BadSample, Example
from align_jax.data.json_source import JsonSource
from align_jax.data.llava import turns

MARK = "<|image|>"


class DocDownstream(JsonSource):
  """A file of DocDownstream; `image_root` is the data set's folder."""

  def __getitem__(self, index: int) -> Example:
    """One record.

    Raises:
      BadSample: it is not as this module's docstring says, with the reason.
    """
    record, origin, line = self.record(index)
    names = record.get("image")
    if not isinstance(names, list):
      raise BadSample(origin, f"\"image\" is {names!r:.60}, not a list of "
                      "paths")
    messages = turns(record, "messages", origin, who="role", what="content")
    for message in messages:
      message["content"] = message["content"].replace(MARK, PLACEHOLDER)
    first = messages[0]
    # The image stands right before the words; a line of its own is ours.
    first["content"] = first["content"].replace(
        PLACEHOLDER, PLACEHOLDER + "\n", 1) if names else first["content"]
    return {
        "id": str(record.get("id", f"{self.path.stem}:{line}")),
        "origin": origin, "conversation": messages,
        "images": [below(self.image_root, name, origin) for name in names]}
