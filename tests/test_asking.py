"""Drawing tokens from a distribution, each sample by numbers of its own; fingerprints; what is counted of steering."""

import json
from collections import Counter

import pytest
import torch
from scipy import stats

from models import runner as runners
from models.asking import Generation, ModelAsked, RunnerAsked, own_seed, redistributed
from models.errors import SampleError
from models.fingerprint import SAMPLES, WHOLE, fingerprint
from models.sampling import OwnNoise, sampling
from models.touched import Touched
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
    said = {
        settings: ModelAsked(model, processor, Generation(6, *settings)).ask(keys, PROMPTS, images)
        for settings in ((0.0, 1.0), (1e-4, 1.0), (5.0, 1e-6), (5.0, 1.0))
    }
    assert said[0.0, 1.0] == said[1e-4, 1.0] == said[5.0, 1e-6] != said[5.0, 1.0]
    assert sampling(0.0, 0.9, 0, keys, 3) == []


def test_decode_rows_behind_an_answer_do_not_count():
    """Steps that only the rest of the batch needed; the answer that goes on keeps all of its own."""
    model, processor = llava(), llava_processor()
    inputs, touched = batch(model, processor), Touched()
    with planted(model, different_sinks(model, inputs)):
        generate(model, inputs, steering=PLANTED, touched=touched)  # four tokens: a prefill and three steps
    whole, cut = touched.changed(0, 0), touched.changed(0, 0, steps=1)
    assert whole.shape[1] - cut.shape[1] == 2 and torch.equal(whole[:, : cut.shape[1]], cut)
    assert touched.changed(0, 0, steps=9).equal(whole) and touched.changed(0, 2, steps=1).numel() == 0
    steps = {row["sample"]: row["pairs"] for row in touched.table([0, 3, 3]) if row["layer"] == 0}
    assert steps[0] == int(whole[:, :-3].sum()) and steps[1] == int(touched.changed(0, 1).sum())


def test_an_end_token_ends_what_is_counted():
    """The same counts alone as beside answers that go on."""
    model, processor = llava(), llava_processor()
    images = [[picture(seed=seed)] for seed in range(3)]
    asker = ModelAsked(
        model, processor, Generation(6), redistributed(PLANTED.__class__((7, 40), tau=1.5, first_layer=0))
    )
    first = processor.tokenizer.convert_tokens_to_ids(asker.ask("a", PROMPTS[:1], images[:1])[0].text.split()[1])
    model.generation_config.eos_token_id = first
    together = asker.ask("abc", PROMPTS, images)
    alone = [asker.ask(key, [prompt], [image])[0] for key, prompt, image in zip("abc", PROMPTS, images, strict=True)]
    assert together == alone and len({len(reply.text.split()) for reply in alone}) > 1
    for reply in alone:
        assert reply.touched["steered"] == 1 and any(row["pairs"] for row in reply.touched["layers"])


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
    with pytest.raises(SampleError, match="special token"):
        model.prepare(processor, [picture()], "what ?", f"now {model.image_token}")


USERS_ALONE = "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}" + TEMPLATE
OF_SYSTEM = "{% if messages[0]['role'] == 'system' %}"
TEMPLATES = {
    "dropped": (USERS_ALONE, "the chat template drops the system prompt; put its text into the prompts"),
    "refused": (
        OF_SYSTEM + "{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE,
        "the chat template refuses a system prompt: no system role",
    ),
    "printed as a list": (
        OF_SYSTEM + "{{ messages[0]['content'] }}{% endif %}" + USERS_ALONE,
        "the chat template drops the system prompt",
    ),
}


@pytest.mark.parametrize(("template", "sentence"), TEMPLATES.values(), ids=TEMPLATES)
def test_templates_without_a_system_role_are_refused(template, sentence):
    model, processor = llava(), llava_processor()
    processor.chat_template = template
    model.prepare(processor, [picture()], "what ?")
    with pytest.raises(ValueError, match=sentence):
        model.prepare(processor, [picture()], "what ?", SYSTEM)


def test_runners_of_other_forms(tmp_path, monkeypatch):
    for text in ("module:call", "python:module", "python::call", "http:a:b", "python:a:b:c"):
        with pytest.raises(ValueError, match="is not of the form python:module:callable"):
            runners.parse(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_runner.py").write_text("import nothing_of_the_kind")
    with pytest.raises(
        ValueError, match="could not be made: ModuleNotFoundError: No module named 'nothing_of_the_kind'"
    ):
        runners.load("python:broken_runner:make")
    with pytest.raises(SampleError, match="the runner failed: AttributeError"):
        RunnerAsked(object(), Generation()).ask(["a"], ["what ?"], [[]])
    assert own_seed(0, "a") == own_seed(0, "a") != own_seed(0, "b") and own_seed(1, "a") != own_seed(0, "a")


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


def test_fingerprints_of_large_files_are_samples(tmp_path):
    path = tmp_path / "large"
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
