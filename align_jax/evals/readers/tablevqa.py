"""TableVQA-Bench on the Hugging Face hub, four subsets.

  data/{fintabnetqa,vtabfact,vwtq,vwtq_syn}-*.parquet, columns qa_id, image,
  question, gt, text_html_table, text_markdown_table

Source of the layout: terryoo/TableVQA-Bench as naver-ai/tablevqabench loads
it (src/evaluate.py, inference_examples.ipynb); `gt` is a text, in vtabfact 1
or 0 (src/evaluate_tablevqa_dataset.py). The prompts' instructions are ours in
one sentence each; the authors' hold worked examples.
"""

from functools import partial

from align_jax.data.parquet import Parquet, find
from align_jax.evals.readers.benchmark import SHORT, Benchmark

ASK = {
    "vwtq": "\nSeparate several answers with ||.",
    "vwtq_syn": "\nSeparate several answers with ||.",
    "vtabfact": "\nIs the statement True or False? Answer with one word.",
    "fintabnetqa": "\nAnswer with the unit, such as $, % or million.",
}


class TableVqa(Benchmark):
  """Each subset by its own rule."""
  name, scorer, max_new_tokens = "tablevqa", "tablevqa", 32

  def read(self) -> None:
    for subset, ask in ASK.items():
      table = Parquet(find(self.folder, f"**/{subset}-*.parquet"))
      for number, row in enumerate(table.rows(["qa_id", "question", "gt"])):
        ending = ask if subset == "vtabfact" else SHORT + ask
        self.add(row, f"{subset}/{row.text('qa_id')}/{number}",
                 row.text("question") + ending, row.text("gt"),
                 [partial(table.image, number, "image")],
                 name=(subset, number), kind=subset)
