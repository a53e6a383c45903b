"""Drawing tokens from a distribution, each sample by numbers of its own; fingerprints; what is counted of steering."""

import asyncio
import hashlib
import importlib
import json
import os
import sys
from collections import Counter
from contextlib import suppress

import pytest
import torch
import transformers
from scipy import stats
from transformers import utils
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from data.errors import SampleError
from models import answering as runners
from models.answering import Decoding, ModelBackend, Reply, RunnerBackend, own_seed
from models.folders import SAMPLES, WHOLE, content_hash, contents, fingerprint
from models.generation_settings import OwnNoise, sampling
from models.interventions import InterventionReport
from models.methods import same_for_all
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_var import PLANTED, PROMPTS, batch, different_sinks, generate, planted
from tests.models import TEMPLATE, llava, llava_processor, picture


def test_tokens_are_drawn_from_the_softmax():
    """Of 4,000 draws with as many keys, each token as often as it should be."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    keys = range(4000)
    noise = OwnNoise(0, keys, prompt_length=3)
    drawn = noise(torch.zeros(len(keys), 3), probabilities.log().expand(len(keys), -1)).argmax(1)
    counts = Counter(drawn.tolist())
    assert stats.chisquare([counts[token] for token in range(4)], 4000 * probabilities.numpy()).pvalue > 0.01


def test_noise_belongs_to_seed_key_and_step_alone():
    scores = torch.zeros(1, 50)

    def noise(seed, keys, step):
        return OwnNoise(seed, keys, 3)(torch.zeros(len(keys), 3 + step), scores.expand(len(keys), -1))

    alone = noise(0, ["b"], 2)
    assert torch.equal(noise(0, ["a", "b", "c"], 2)[1:2], alone) and torch.equal(noise(0, ["b"], 2), alone)
    others = [noise(1, ["b"], 2), noise(0, ["c"], 2), noise(0, ["b"], 3), noise(0, [("b", 1)], 2)]
    assert all((other - alone).abs().min() > 0 for other in others)
    excluded = OwnNoise(0, ["b"], 3)(torch.zeros(1, 5), torch.tensor([[0.0, float("-inf")]]))
    assert torch.isneginf(excluded[0, 1]) and torch.isfinite(excluded[0, 0])


def test_a_cold_draw_is_greedy_and_top_p_keeps_the_likeliest():
    model, processor = llava(), llava_processor()
    images, keys = [[picture()]] * 3, "abc"
    output = {
        settings: ModelBackend(model, processor, Decoding(6, *settings)).answer(keys, PROMPTS, images)
        for settings in ((0.0, 1.0), (1e-4, 1.0), (5.0, 1e-6), (5.0, 1.0))
    }
    assert output[0.0, 1.0] == output[1e-4, 1.0] == output[5.0, 1e-6] != output[5.0, 1.0]
    assert sampling(0.0, 0.9, 0, keys, 3) == []


def test_decode_rows_behind_an_answer_do_not_count():
    """Steps that only the rest of the batch needed; the answer that goes on keeps all of its own."""
    model, processor = llava(), llava_processor()
    inputs, report = batch(model, processor), InterventionReport()
    with planted(model, different_sinks(model, inputs)):
        generate(model, inputs, steering=PLANTED, report=report)  # four tokens: a prefill and three steps
    whole, cut = report.changed_rows(0, 0), report.changed_rows(0, 0, steps=1)
    assert whole.shape[1] - cut.shape[1] == 2 and torch.equal(whole[:, : cut.shape[1]], cut)
    assert report.changed_rows(0, 0, steps=9).equal(whole) and report.changed_rows(0, 2, steps=1).numel() == 0
    steps = {row["sample"]: row["pairs"] for row in report.table([0, 3, 3]) if row["layer"] == 0}
    assert steps[0] == int(whole[:, :-3].sum()) and steps[1] == int(report.changed_rows(0, 1).sum())


def test_an_end_token_ends_what_is_counted():
    """The same counts alone as beside answers that go on."""
    model, processor = llava(), llava_processor()
    images = [[picture(seed=seed)] for seed in range(3)]
    backend = ModelBackend(
        model, processor, Decoding(6), same_for_all(PLANTED.__class__((7, 40), tau=1.5, first_layer=0))
    )
    first = processor.tokenizer.convert_tokens_to_ids(backend.answer("a", PROMPTS[:1], images[:1])[0].text.split()[1])
    model.generation_config.eos_token_id = first
    together = backend.answer("abc", PROMPTS, images)
    single = zip("abc", PROMPTS, images, strict=True)
    alone = [backend.answer(key, [prompt], [image])[0] for key, prompt, image in single]
    assert together == alone and len({len(reply.text.split()) for reply in alone}) > 1
    for reply in alone:
        assert reply.changes["steered"] == 1 and any(row["pairs"] for row in reply.changes["layers"])


SYSTEM = "describe what is to the left"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_system_prompt_stands_before_the_prompt(family):
    model, processor = (make() for make in FAMILIES[family])
    inputs, layout = model.prepare(processor, [picture()], "where is the red circle ?", f" {SYSTEM} ")
    plain, before = model.prepare(processor, [picture()], "where is the red circle ?")
    assert SYSTEM in layout.text and SYSTEM not in before.text and layout.text.index(SYSTEM) < layout.prompt_start
    assert inputs["input_ids"].shape[1] > plain["input_ids"].shape[1]
    assert len(layout.word("red")) == len(before.word("red")) == 1
    words = [processor.tokenizer.decode(inputs["input_ids"][0, place]) for place in layout.word("red")]
    assert words == ["red"]
    with refused("special token in the prompt", SampleError):
        model.prepare(processor, [picture()], "what ?", f"now {model.image_token}")


USERS_ALONE = "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}" + TEMPLATE
OF_SYSTEM = "{% if messages[0]['role'] == 'system' %}"
TEMPLATES = {
    "dropped": (USERS_ALONE, "template-drops-system"),
    "refused": (
        OF_SYSTEM + "{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE,
        "template-refuses-system",
    ),
    "printed as a list": (
        OF_SYSTEM + "{{ messages[0]['content'] }}{% endif %}" + USERS_ALONE,
        "template-drops-system",
    ),
}


@pytest.mark.parametrize(("template", "reason"), TEMPLATES.values(), ids=TEMPLATES)
def test_templates_without_a_system_role_are_refused(template, reason):
    model, processor = llava(), llava_processor()
    processor.chat_template = template
    model.prepare(processor, [picture()], "what ?")
    with refused(reason):
        model.prepare(processor, [picture()], "what ?", SYSTEM)


def test_runners_of_other_forms(tmp_path, monkeypatch):
    for text in ("module:call", "python:module", "python::call", "http:a:b", "python:a:b:c"):
        with refused("runner-form"):
            runners.parse(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_runner.py").write_text("import nothing_of_the_kind")
    with pytest.raises(
        ValueError, match="could not be made: ModuleNotFoundError: No module named 'nothing_of_the_kind'"
    ):
        runners.load("python:broken_runner:make")
    (tmp_path / "leaving_runner.py").write_text("raise SystemExit(0)")
    for runner in ("sys:exit", "leaving_runner:make", "sys:gone"):
        with refused("runner-failed"):
            runners.load(f"python:{runner}")
    with refused("runner raised AttributeError", SampleError):
        RunnerBackend(object(), Decoding()).answer(["a"], ["what ?"], [[]])
    assert own_seed(0, "a") == own_seed(0, "a") != own_seed(0, "b") and own_seed(1, "a") != own_seed(0, "a")


class Says:
    """A runner that returns one thing, or raises it."""

    def __init__(self, answer):
        self.answer = answer

    def generate(self, prompt, images, **settings):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_what_a_runner_may_return_and_raise():
    def reply(answer):
        return RunnerBackend(Says(answer), Decoding()).answer(["a"], ["what ?"], [[]])[0]

    assert reply(" yes ") == Reply("yes", {}, None) and reply((" yes", True)) == Reply("yes", {}, True)
    assert reply(("yes", None)).cut is None
    for answer in (None, 3, ("yes", 1), ("yes",), (True, "yes"), ["yes", True]):
        with refused("runner returned no text", SampleError) as error:
            reply(answer)
        assert error.value.reason == "runner returned no text"
    for error in (SystemExit(0), SystemExit("out"), asyncio.CancelledError(), KeyError("a")):
        with pytest.raises(SampleError) as failure:
            reply(error)
        assert failure.value.reason == f"runner raised {type(error).__name__}"
    with pytest.raises(KeyboardInterrupt):
        reply(KeyboardInterrupt())


def test_a_cut_answer_has_no_end_token():
    """In a batch with one that ends, at every limit; the end token itself needs a place within it."""
    model, processor = llava(), llava_processor()
    images = [[picture(seed=seed)] for seed in range(3)]

    def replies(limit):
        return ModelBackend(model, processor, Decoding(limit)).answer("abc", PROMPTS, images)

    words = [reply.text.split() for reply in replies(6)]
    model.generation_config.eos_token_id = end = processor.tokenizer.convert_tokens_to_ids(words[0][2])
    place = [each.index(words[0][2]) if words[0][2] in each else 6 for each in words]
    assert place[0] == 2 and max(place) > 2, (place, end)
    for limit in range(1, 7):
        assert [reply.cut for reply in replies(limit)] == [limit <= each for each in place]
    model.generation_config.eos_token_id = None
    assert all(reply.cut for reply in replies(3))


def test_fingerprints_change_with_what_they_are_of(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text(json.dumps({"layers": 2}))
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("of no weight")
    assert fingerprint(tmp_path) == before and len(before) == 16
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path / "config.json") != fingerprint(tmp_path / "README.md")
    assert fingerprint(tmp_path / "nothing") is None and fingerprint("owner/name") is None
    assert contents(tmp_path / "nothing") == contents("owner/name") == {}
    assert contents(tmp_path / "README.md") == {"README.md": content_hash(b"of no weight")}
    assert content_hash(b"of no weight") == hashlib.sha256(b"of no weight").hexdigest()[:16]


def test_every_file_that_transformers_reads_is_in_a_fingerprint(tmp_path):
    """Those that its classes name: configs, templates, the vocabularies of all its tokenizers."""
    named = [getattr(utils, name) for name in dir(utils) if name.endswith(("_NAME", "_FILE"))]
    named = [name for name in named if isinstance(name, str) and "." in name and not name.endswith(".bin")]
    for kind in filter(None, TOKENIZER_MAPPING_NAMES.values()):
        with suppress(ImportError):  # of a tokenizer that needs a package more
            named += getattr(getattr(transformers, kind), "vocab_files_names", {}).values()
    named += ["model-00001-of-00002.safetensors", "additional_chat_templates/tool_use.jinja", "qwen.tiktoken"]
    assert {"chat_template.jinja", "chat_template.json", "vocab.txt", "merges.txt", "spiece.model"} < set(named)
    (tmp_path / "additional_chat_templates").mkdir()
    for name in named:
        (tmp_path / name).write_text("a")
    before = contents(tmp_path)
    assert set(before) == set(named)
    for name in named:
        (tmp_path / name).write_text("b")
        now = contents(tmp_path)
        assert [file for file in before if before[file] != now[file]] == [name]
        (tmp_path / name).write_text("a")


def test_the_code_of_a_runner_is_that_of_its_local_modules(tmp_path, monkeypatch):
    """Packages with and without __init__.py, relative imports, imports within functions; installed ones left out."""
    files = {
        "own_code": "import json, torch, numpy as np\nimport packed.inner\nfrom spread import deep",
        "packed/__init__": "from . import helper",
        "packed/inner": "from .sub.leaf import *",
        "packed/helper": "def f():\n    import late",
        "packed/sub/__init__": "",
        "packed/sub/leaf": "from ..helper import f\nfrom .... import nothing",
        "spread/deep": "import gone, own_code",
        "late": "x = 1",
        "unrelated": "",
        "broken_code": "import late\nif",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    before = runners.code("python:own_code:make")
    names = ["late", "own_code", "packed", "packed.helper", "packed.inner", "packed.sub", "packed.sub.leaf"]
    assert list(before) == [*names, "spread.deep"] and not before.keys() & sys.modules.keys()
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text + "\n")
        now, module = runners.code("python:own_code:make"), name.replace("/", ".").removesuffix(".__init__")
        assert [each for each in now if now[each] != before[each]] == ([module] if module in before else [])
        (tmp_path / f"{name}.py").write_text(text)
    assert list(runners.code("python:packed.sub.leaf:f")) == names[:1] + names[2:4] + names[5:]
    assert runners.code("python:sys:exit") == runners.code("python:gone:f") == {}
    assert list(runners.code("python:json:loads")) == ["json"]  # named, so its own file counts
    assert list(runners.code("python:broken_code:make")) == ["broken_code"] and os.getcwd() not in sys.path


def test_fingerprints_of_large_files_are_samples(tmp_path):
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.truncate(2 * WHOLE)
    before = fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(2 * WHOLE - 1)
        file.write(b"1")
    last = fingerprint(path)
    with open(path, "r+b") as file:  # as training does: everywhere
        for place in range(0, 2 * WHOLE, 2 * WHOLE // (4 * SAMPLES)):
            file.seek(place)
            file.write(b"1")
    assert len({before, last, fingerprint(path)}) == 3


def test_large_files_that_are_no_weights_are_read_whole(tmp_path):
    """A scanpath of 20 MB may change in one point."""
    path = tmp_path / "gaze.jsonl"
    path.write_bytes(bytes(WHOLE + 10**6))
    before, place = fingerprint(path), WHOLE // 2 + 12345
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"1")
    assert fingerprint(path) != before
