"""`align-jax evaluate` and `generate`, and a run in Python, end to end."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import align_jax
from align_jax import api
from align_jax.cli import evaluate as cli
from align_jax.cli.main import main
from align_jax.data.render import Renderer
from align_jax.errors import InputError
from align_jax.evals import evaluation, tasks
from align_jax.evals.decoding import Beam
from align_jax.evals.evaluation import Options
from align_jax.evals.tasks import Item
from tests.data.samples import word_tokenizer
from tests.evals import tiny_run

pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def workdir() -> Path:
  return tiny_run.shared()


@pytest.fixture(scope="module")
def run(workdir: Path):
  return align_jax.load_run(workdir)


class _Task:
  """Two coloured squares, four questions; image 1 shows the other colour."""
  name, scorer, scoring, max_new_tokens = "squares", "exact", "generate", 0
  beam = None
  n_images = 2
  answers = ("red", "blue", "yes")
  training = [("what color is it?", "red"), ("what color is it?", "red"),
              ("is it red?", "yes")]
  items = [Item(f"{i}{j}", i, q, a, kind, 2 * i + j)
           for i, rows in enumerate((
               [("what color is it?", "red", "color"),
                ("is it red?", "yes", "yes/no")],
               [("what color is it?", "blue", "color"),
                ("is it red?", "no", "yes/no")]))
           for j, (q, a, kind) in enumerate(rows)]

  def example(self, item):
    return {"id": item.id, "origin": item.id, "images": [b""],
            "conversation": [
                {"role": "user", "content": "<image>\n" + item.question},
                {"role": "assistant", "content": item.answer}]}

  def image(self, image):
    color = [(255, 0, 0), (0, 0, 255)][image]
    return Image.new("RGB", (16, 16), color)

  def exchanged(self, seed):
    return [1, 0]

  def probe_images(self):
    images = [self.image(i % 2) for i in range(8)]
    names = ["red", "blue"] * 4
    return images, images[:4], {"color": (names, names[:3] + [""])}


def test_figures_follow_from_the_samples(run):
  result, samples = evaluation.evaluate(
      run, _Task(), Options(noise=(0.5,), scoring="both", rows=4))
  assert [s["id"] for s in samples] == ["00", "01", "10", "11"]
  share = lambda rows, key="right": np.mean([r[key] for r in rows])
  assert result["accuracy"] == share(samples)
  assert result["n"] == 4 and result["images"] == 2
  # "red" and "yes" are the best training answers: right on image 0 alone.
  assert result["question_prior_accuracy"] == 0.5
  assert result["majority_accuracy"] == 0.25
  assert [s["prior"] for s in samples] == ["red", "yes"] * 2
  assert [s["blind_image"] for s in samples] == [1, 1, 0, 0]
  blind = np.mean([s["blind_prediction"] == s["answer"] for s in samples])
  assert result["blind_accuracy"] == blind
  assert result["margin"] == pytest.approx(
      result["accuracy"] - max(0.5, blind))
  assert set(result["by_type"]) == {"color", "yes/no"}
  assert result["by_type"]["color"]["n"] == 2
  assert set(result["noise"]) == {"0.5"}
  assert all(s["likelihood_prediction"] in _Task.answers for s in samples)
  assert result["probe"] == {"color": 1.0}
  assert "exact match" in result["protocol"]


def test_noise_in_both_units_and_what_is_kept_of_looking(run):
  task = _Task()
  shown = []
  task.image = lambda image: shown.append(image) or _Task.image(task, image)
  result, samples = evaluation.evaluate(run, task, Options(
      noise=(0.0, 1.0), noise_absolute=(0.5,), probe=False))
  assert sorted(shown) == [0, 1]  # drawn once for all passes
  assert result["noise"]["0"] == result["accuracy"]
  assert set(result["noise_absolute"]) == {"0.5"}
  assert "noise_absolute_0.5_prediction" in samples[0]
  seen = result["accuracy"] - result["blind_accuracy"]
  for kind in ("noise", "noise_absolute"):
    if seen <= 0:  # then there is nothing to keep
      assert f"{kind}_kept" not in result
    else:
      assert result[f"{kind}_kept"] == {
          s: (v - result["blind_accuracy"]) / seen
          for s, v in result[kind].items()}


def test_closed_sets_of_several_sizes_are_scored_as_they_are(run):
  class Sets(_Task):
    items = [dataclasses.replace(
        item, closed=("red", "blue") if item.type == "color" else
        ("yes", "no", "red")) for item in _Task.items]

  _, samples = evaluation.evaluate(run, Sets(), Options(
      scoring="likelihood", probe=False, blind=False))
  for sample, item in zip(samples, Sets.items):
    prompt = dataclasses.replace(run.prompt(_Task().example(item)),
                                 images=item.image)
    scores = run.generator(rows=1).score(
        [prompt], [run.answer_tokens(a) for a in item.closed],
        lambda image: run.read(_Task().image(image)))
    assert sample["prediction"] == item.closed[int(scores[0].argmax())]


def test_the_probe_reads_a_kept_class_token():
  # The colour stands in the class token, and the mean over all hides it.
  def features(images):
    red = np.array([i.getpixel((0, 0))[0] > 0 for i in images], np.float32)
    return red[:, None, None] * np.array([1, -.25, -.25, -.25, -.25])[:, None]

  def ceiling(class_token: bool) -> float:
    tower = SimpleNamespace(class_token=class_token)
    config = SimpleNamespace(model=SimpleNamespace(tower=tower))
    found = evaluation.probe(
        SimpleNamespace(features=features, config=config), _Task())
    return found["color"]

  assert ceiling(True) == 1.0 and ceiling(False) < 1.0


def test_the_blind_pass_shows_the_other_image(run):
  # Exchanged twice is not exchanged: what the model says of image 0 when
  # asked blind is what it says of image 1 when asked the same.
  class Swapped(_Task):
    def image(self, image):
      return super().image(1 - image)

  options = Options(probe=False)
  _, plain = evaluation.evaluate(run, _Task(), options)
  _, swapped = evaluation.evaluate(run, Swapped(), options)
  assert ([s["blind_prediction"] for s in plain]
          == [s["prediction"] for s in swapped])


def test_likelihood_alone_is_the_headline(run):
  result, samples = evaluation.evaluate(
      run, _Task(), Options(scoring="likelihood", probe=False, blind=False))
  assert "closed set" in result["protocol"]
  assert "likelihood_accuracy" not in result
  assert all(s["prediction"] in _Task.answers for s in samples)
  assert result["blind_accuracy"] is None
  assert result["margin"] == pytest.approx(result["accuracy"] - 0.5)


def test_a_benchmark_without_training_has_no_prior(run):
  class Untrained(_Task):
    training = ()

  result, samples = evaluation.evaluate(
      run, Untrained(), Options(probe=False))
  assert result["majority_accuracy"] is None
  assert result["question_prior_accuracy"] is None
  assert result["margin"] == pytest.approx(
      result["accuracy"] - result["blind_accuracy"])
  assert "prior" not in samples[0]
  result["step"] = 2
  assert "question prior           –" in cli.table(result)
  result, _ = evaluation.evaluate(
      run, Untrained(), Options(probe=False, blind=False))
  assert result["margin"] is None and result["margin_ci95"] is None
  assert "margin" not in cli.table(result)


def test_a_task_may_ask_for_a_beam_search(run):
  class Searched(_Task):
    beam = Beam(3, 1.2, 1.0)

  result, _ = evaluation.evaluate(run, Searched(), Options(
      probe=False, blind=False, rows=4))
  assert result["protocol"].startswith(
      "beam search, 3 beams, repetition penalty 1.2, length penalty 1; ")


def test_sets_of_images_and_options(run):
  class Pairs(_Task):
    """Two images a question, or none; three letters for two options."""
    items = [Item("0", 0, "which is red?", "A", "pair", 0,
                  options=("first", "second")),
             Item("1", 1, "what is it?", "B", "none", 1,
                  options=("red", "blue"))]
    answers = ("A", "B", "C")
    training = ()

    def example(self, item):
      images = self.image(item.image)
      return {"id": item.id, "origin": item.id, "images": images,
              "conversation": [{
                  "role": "user",
                  "content": "<image>" * len(images) + item.question}]}

    def image(self, image):
      return [super(Pairs, self).image(i) for i in (0, 1)][:2 - 2 * image]

  result, samples = evaluation.evaluate(run, Pairs(), Options(
      probe=False, blind=False, scoring="likelihood"))
  assert result["n"] == 2 and result["scoring"] == "likelihood"
  assert all(s["prediction"] in "AB" for s in samples)


def test_likelihood_needs_a_closed_set(run):
  class Open(_Task):
    answers = ()

  with pytest.raises(InputError, match="no closed set"):
    evaluation.evaluate(run, Open(), Options(scoring="likelihood"))
  with pytest.raises(InputError, match="did you mean 'exact'"):
    evaluation.evaluate(run, Open(), Options(scorer="exakt"))


def test_options_list_their_faults():
  with pytest.raises(InputError) as error:
    Options(limit=-1, noise=(-0.5,), scoring="guess")
  assert str(error.value) == (
      "scoring 'guess' is not one of generate, likelihood, both; noise -0.5 "
      "is negative; limit -1 is negative; 0 takes all")


@pytest.fixture
def loaded(run, monkeypatch: pytest.MonkeyPatch) -> None:
  """Verbs find the run loaded: one of them reads it itself, below."""
  monkeypatch.setattr(api, "load_run", lambda workdir, **options: run)


def test_json_is_all_there_is_on_stdout(workdir: Path, capsys):
  assert main(["evaluate", "--workdir", str(workdir), "--limit", "12",
               "--noise", "1", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert {"accuracy", "ci95", "majority_accuracy", "question_prior_accuracy",
          "blind_accuracy", "by_type", "n", "margin", "probe"} <= set(result)
  assert result["n"] == 12 and result["limit"] == 12
  assert set(result["noise"]) == {"1"} and set(result["probe"]) == {
      "shape", "color"}
  assert result["train"]["steps"] == 2 and result["versions"]["jax"]
  lines = Path(result["samples"]).read_text().splitlines()
  assert len(lines) == 12
  assert json.loads((workdir / "eval" / "easy_vqa.json").read_text()) == result


def test_a_benchmark_in_its_published_layout(workdir: Path, loaded,
                                             tmp_path: Path, capsys):
  shutil.copytree(Path(__file__).parent / "fixtures/pope", tmp_path / "pope")
  (tmp_path / "pope/val2014").mkdir()
  Image.new("RGB", (9, 9)).save(
      tmp_path / "pope/val2014/COCO_val2014_000000310196.jpg")
  assert main(["evaluate", str(workdir), "--task", "pope", "--no-probe",
               "--option", f"folder={tmp_path / 'pope'}", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["n"] == 6 and result["scorer"] == "pope"
  assert set(result["scores"]) == {"accuracy", "precision", "recall", "f1",
                                   "yes_share"}
  assert result["question_prior_accuracy"] is None
  assert result["blind_accuracy"] is None  # no other image to show
  assert "the first sentence" in result["protocol"]
  assert set(result["by_type"]) == {"random", "popular", "adversarial"}
  assert main(["evaluate", str(workdir), "--task", "pope"]) == 2
  assert "task pope: missing a required argument: 'folder'" in (
      capsys.readouterr().err)
  assert main(["evaluate", str(workdir), "--option", "folder"]) == 2
  assert "'folder' is not NAME=VALUE" in capsys.readouterr().err


def test_table_for_people(workdir: Path, loaded, capsys):
  assert main(["evaluate", str(workdir), "--limit", "12", "--no-probe",
               "--no-blind"]) == 0
  out = capsys.readouterr().out
  assert "easy_vqa: 12 questions on" in out and "question prior" in out
  assert "ceiling" not in out


@pytest.mark.parametrize("argv, said", [
    (["{none}"], "there is no folder"),
    ([], "which run? give RUN or --workdir RUN"),
    (["{run}", "--workdir", "{none}"], "two runs were given"),
    (["{empty}"], "no run in"),
    (["{run}", "--task", "easy_vpa"], "did you mean 'easy_vqa'?"),
])
def test_errors_say_what_to_do(workdir: Path, tmp_path: Path, capsys, argv,
                               said: str):
  names = dict(run=workdir, none=tmp_path / "none", empty=tmp_path)
  assert main(["evaluate", *(a.format(**names) for a in argv)]) in (1, 2)
  captured = capsys.readouterr()
  assert said in captured.err and not captured.out


def test_an_unfinished_run_is_refused(workdir: Path, tmp_path: Path, capsys):
  copy = tmp_path / "run"
  copy.mkdir()
  for entry in workdir.iterdir():
    if entry.name != "result.json":
      (copy / entry.name).symlink_to(entry)
  assert main(["generate", str(copy), "--prompt", "what?"]) == 2
  assert "is not finished" in capsys.readouterr().err
  assert align_jax.load_run(copy, unfinished=True).step == 2


def test_generate(workdir: Path, run, loaded, tmp_path: Path, capsys):
  Image.new("RGB", (20, 20), (0, 200, 0)).save(tmp_path / "a.png")
  assert main(["generate", str(workdir), "--image", str(tmp_path / "a.png"),
               "--prompt", "what shape is it?", "--max-new-tokens", "3",
               "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  assert said["answer"] == run.generate(
      tmp_path / "a.png", "what shape is it?", max_new_tokens=3)


def test_a_run_in_python(run, workdir: Path):
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  picture = Image.fromarray(pixels)
  assert run.step == 2 and run.workdir == workdir
  assert run.features([picture, pixels]).shape == (2, 4, 16)
  tokens = run.visual_tokens(pixels)
  assert tokens.shape == (1, 4, 16)
  np.testing.assert_allclose(tokens, run.visual_tokens([picture]), rtol=1e-6)
  assert run.distribution(pixels) is None  # an MLP has none
  assert run.embeddings.shape == (80, 16)
  alone = [run.generate(i, p, 3) for i, p in (
      (pixels, "what is it?"), (None, "what is it?"))]
  assert run.generate([pixels, None], ["what is it?"] * 2, 3) == alone
  with pytest.raises(InputError, match="2 prompts need as many entries"):
    run.generate([pixels], ["a", "b"])


def test_answers_end_as_in_training(run):
  end = run.tokenizer.convert_tokens_to_ids("<|im_end|>")
  yes = run.tokenizer.convert_tokens_to_ids("yes")
  assert run.answer_tokens("yes") == [yes, end]
  assert run.stop == (end,)


def _stop(chat: str, **special: str) -> tuple[list[str], list[str]]:
  """What ends an answer with this template, and what training asks for."""
  tokenizer = word_tokenizer(chat, **special)
  tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
  run = api.Run(Path(), SimpleNamespace(data=None, stages=()), SimpleNamespace(
      tokenizer=tokenizer,
      renderer=lambda data: Renderer(tokenizer, "chat", 4)), {}, 0)
  name = tokenizer.convert_ids_to_tokens
  return name(list(run.stop)), name(run.answer_tokens("yes"))


def test_a_newline_behind_the_end_of_turn_ends_nothing():
  chat = (
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
      "{% if m['role'] == 'assistant' %}{% generation %}"
      "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
      "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}")
  stop, asked = _stop(chat)
  assert asked == ["yes", "<|im_end|>", "\n"]
  assert stop == ["<|im_end|>"]
  # An eos of the base model's stands beside the template's end of turn.
  assert set(_stop(chat, eos_token="<pad>")[0]) == {"<pad>", "<|im_end|>"}


def test_own_task_registers(run):
  tasks.TASKS.register("squares")(_Task)
  assert tasks.TASKS.get("squares") is _Task
  assert "squares" in tasks.TASKS.names()


def test_importing_costs_nothing():
  code = ("import sys, align_jax, align_jax.evals.tasks; "
          "print([m for m in ('jax', 'torch', 'tensorflow', 'transformers') "
          "if m in sys.modules], align_jax.__version__, "
          "'load_run' in dir(align_jax))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True,
                        text=True, check=True)
  assert done.stdout == "[] 0.1.0 True\n"
  with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
    _ = align_jax.load_rum


def test_an_option_is_read_as_the_task_has_it():
  assert cli._options("icon_scenes", [
      "scenes=100", "split=validation", "english=false"]) == dict(
          scenes=100, split="validation", english=False)
  assert cli._options("pope", ["folder=7"]) == dict(folder="7")
  with pytest.raises(InputError, match="'scenes' is not NAME=VALUE"):
    cli._options("icon_scenes", ["scenes"])
