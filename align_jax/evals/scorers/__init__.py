"""From answers' texts to a score; every rule has a name and says what it is.

A score means nothing without the rule that made it, so results carry the
scorer's `protocol` beside every figure. Where the authors' script and
lmms-eval or VLMEvalKit differ, each form is a scorer of its own.

  protocol                               what a scorer is
  exact                                  our own plain equality
  anls relaxed vqa due denotation        documents, charts and photographs
  tabfact tablevqa vcr gqa
  choice mmmu pope ocrbench demon        benchmarks of choices, and the like
  captions bleu cider rouge ptb          texts against references
  judged                                 what needs a judge; it says so
  nine                                   AlignVLM's average of nine sets
"""

from align_jax.evals.scorers.exact import exact_match
from align_jax.evals.scorers.protocol import Scorer
from align_jax.registry import Registry

_HERE = "align_jax.evals.scorers"
SCORERS = Registry("scorer", {
    name: f"{_HERE}.{place}" for name, place in {
        "exact": "exact:Exact",
        "anls": "anls:Anls",
        "anls_vlmevalkit": "anls:AnlsVLMEvalKit",
        "anls_due": "anls:AnlsDue",
        "relaxed": "relaxed:Relaxed",
        "relaxed_vlmevalkit": "relaxed:RelaxedVLMEvalKit",
        "vqa_official": "vqa:VqaOfficial",
        "vqa_evalai": "vqa:VqaEvalAI",
        "vqa_vlmevalkit": "vqa:VqaVLMEvalKit",
        "due_f1": "due:DueF1",
        "denotation": "denotation:Denotation",
        "denotation_due": "denotation:DenotationDue",
        "tabfact": "tabfact:TabFact",
        "tabfact_contains": "tabfact:TabFactContains",
        "tablevqa": "tablevqa:TableVqa",
        "vcr": "vcr:Vcr",
        "gqa": "gqa:Gqa",
        "gqa_lmms_eval": "gqa:GqaLmmsEval",
        "letter": "choice:Letter",
        "leading": "choice:Leading",
        "infer": "choice:Infer",
        "circular": "choice:Circular",
        "pairs": "choice:Pairs",
        "mmmu": "mmmu:Mmmu",
        "mmmu_lmms_eval": "mmmu:MmmuLmmsEval",
        "pope": "pope:Pope",
        "pope_lmms_eval": "pope:PopeLmmsEval",
        "ocrbench": "ocrbench:OcrBench",
        "ocrbench_lmms_eval": "ocrbench:OcrBenchLmmsEval",
        "coco": "captions:Coco",
        "sam": "captions:Sam",
        "rouge_l": "captions:RougeL",
        "demon_choice": "demon:DemonChoice",
        "demon_images": "demon:DemonImages",
        "mmvet_unjudged": "judged:MmVet",
        "capsbench_unjudged": "judged:CapsBench",
    }.items()})

__all__ = ["SCORERS", "Scorer", "exact_match"]
