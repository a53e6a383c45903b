"""The embedded checkpoints of all families: how their training reads a picture and a question, how they start, and
what the checkpoints know."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from data.shapes import Shape, draw
from models.tiny import build_fuyu, build_qwen2_5_vl, build_qwen2_vl, packing
from models.tiny.build_llava import feed_forward_states, load_teacher, teacher_prefix, teacher_tokens
from models.tiny.learning import Learner, Student
from models.tiny.packing import IGNORE, pack
from models.tiny.questions import KINDS
from models.tiny.scenes import Layout, render
from models.tiny.score import accuracy, held_out_trials, real_trials, smallest_side
from models.tiny.train import save
from tests import shell

ROOT = Path(__file__).resolve().parents[1]
LEARNERS = {"llava": Learner, "qwen2_vl": Student, "qwen2_5_vl": Student, "fuyu": Student}
SHAPES = (Shape("red", "circle", 0.2, 0.3, 0.1, 0.1), Shape("blue", "square", 0.7, 0.6, 0.1, 0.1))
PAIRS = [("what colour is the square ?", "blue"), ("where is the red circle ?", "top left")]
STUDENTS = {"tiny-qwen2-vl": "qwen2-vl", "tiny-qwen2.5-vl": "qwen2.5-vl", "tiny-fuyu": "fuyu"}


@pytest.fixture(scope="module", params=LEARNERS)
def learner(request):
    family = importlib.import_module(f"models.tiny.build_{request.param}")
    made = LEARNERS[request.param](family, seed=0)
    made.model.set_attn_implementation("sdpa")
    return made


@pytest.fixture
def exact(monkeypatch):
    """Training's attention in float32 throughout."""
    monkeypatch.setattr(packing, "MIN_SDPA", 0)


@torch.no_grad()
def test_packed_questions_are_read_as_if_asked_alone(learner, exact, tmp_path):
    save(learner, tmp_path)
    learner.model.set_attn_implementation("sdpa")
    loaded, processor = models.load(str(tmp_path))
    scene = render(Layout(SHAPES, 100), 96, 12)
    packed = pack(learner.prefix, [PAIRS], learner.vocabulary, processor.tokenizer.pad_token_id)
    packed = replace(packed, mask=packed.mask.float())
    hidden = learner.decode(learner.embed(learner.tokens(learner.pixels([scene])), packed), packed)
    for number, (question, answer) in enumerate(PAIRS, 1):
        inputs, _ = loaded.prepare(processor, [Image.fromarray(scene.image)], question)
        length = inputs["input_ids"].shape[1]
        here = ((packed.segment[0] == 0) | (packed.segment[0] == number)).nonzero().flatten()
        assert packed.ids[0, here[:length]].tolist() == inputs["input_ids"][0].tolist()
        learnt = [learner.vocabulary[word] for word in (*answer.split(), learner.prefix.end)]
        assert packed.targets[0, here[length - 1 :]].tolist() == [*learnt, IGNORE]
        assert (packed.targets[0, here[: length - 1]] == IGNORE).all()
        expected = learner.model(**inputs).logits[0]
        assert torch.allclose(learner.model.lm_head(hidden[0, here[:length]]), expected, atol=1e-3)


@pytest.mark.parametrize("family", [build_qwen2_vl, build_qwen2_5_vl])
def test_fresh_qwen_tower_attends_to_its_neighbours(family):
    torch.manual_seed(0)
    model = family.build_model(family.build_processor().tokenizer.get_vocab())
    encoder, side = model.model.visual, family.PATCHES * 2
    places = torch.tensor([(row, column) for row in range(side) for column in range(side)])
    rotation = encoder.rotary_pos_emb(places.float(), places)
    attention = encoder.blocks[0].attn
    heads = attention.num_heads
    query, key = attention.qkv.bias.view(3, heads, -1)[:2].detach()  # content plays no part yet
    rotate = importlib.import_module(type(attention).__module__).apply_rotary_pos_emb_vision
    query, key = rotate(query.expand(len(places), -1, -1), key.expand(len(places), -1, -1), *rotation)
    patch = 7 * side + 9
    weights = torch.einsum("hc,phc->hp", query[patch], key).mul(attention.scaling).softmax(-1)
    assert weights.argmax(-1).tolist() == [patch - 1, patch + 1, patch - side, patch + side]
    assert weights.max(-1).values.min() > 0.8


@torch.no_grad()
def first_attention(model, prefix, pixels, family):
    """Weights [head, query, key] of the first decoder layer over the prefix."""
    model.set_attn_implementation("eager")
    embedded = model.get_input_embeddings()(torch.tensor([prefix[0]]))
    embedded[:, prefix[1]] = family.features(model, pixels)
    positions = family.prefix_positions(prefix[0])[:, None]
    output = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=positions if len(positions) > 1 else positions[0],
        output_attentions=True,
    )
    return output.attentions[0][0]


def blank(family):
    torch.manual_seed(0)
    vocabulary = family.build_processor().tokenizer.get_vocab()
    model = family.build_model(vocabulary).eval()
    return model, family.prefix(vocabulary), torch.full((1, 3, 96, 96), -1.0)


def test_fresh_qwen_decoder_tells_rows_and_columns_on_a_blank_picture():
    model, prefix, pixels = blank(build_qwen2_vl)
    first = first_attention(model, prefix, pixels, build_qwen2_vl)[:, prefix[1], 0].view(4, 12, 12)
    by_row, by_column = first[0, :, 5], first[1, 5]
    assert (by_row.diff() > 0).all() and by_row[0] < 0.1 and by_row[-1] > 0.9
    assert (by_column.diff() > 0).all() and by_column[0] < 0.15 and by_column[-1] > 0.85
    assert first[0, 5].std() < 0.05 and first[1, :, 5].std() < 0.05  # each head tells one axis only


def test_fresh_fuyu_decoder_tells_rows_and_columns_on_a_blank_picture():
    model, prefix, pixels = blank(build_fuyu)
    newlines = [index for index, token in enumerate(prefix[0]) if token == build_fuyu.NEWLINE]
    heeded = first_attention(model, prefix, pixels, build_fuyu)[:, prefix[1]][..., newlines].sum(-1).view(4, 12, 12)
    columns = heeded[:2, 6].T  # [column, head]: a cosine and a sine
    apart = torch.cdist(columns, columns) + torch.eye(12)
    assert apart.min() > 0.05  # no two columns alike
    assert (heeded[2:, 1:, 5].diff(dim=1) > 0).all()  # the farther down, the more


@pytest.mark.numerical
def test_fuyu_begins_with_the_teachers_attention():
    model, prefix, _ = blank(build_fuyu)
    torch.manual_seed(1)
    states = torch.randn(1, 6, 128)
    layer = model.model.language_model.layers[build_fuyu.FIRST_LAYERS + 1].self_attn
    source = load_teacher().model.language_model.layers[1].self_attn
    with torch.no_grad():
        query, key, value = layer._split_heads(layer.query_key_value(states))
        split = lambda linear: linear(states).view(1, 6, 4, 32)  # noqa: E731
        assert torch.allclose(value, split(source.v_proj), atol=1e-5)
        ours = torch.einsum("bihd,bjhd->bhij", query, key)
        theirs = torch.einsum("bihd,bjhd->bhij", split(source.q_proj), split(source.k_proj))
    assert torch.allclose(ours, theirs, atol=1e-3)  # before anything turns, the order of the channels does not matter


@pytest.mark.numerical
def test_teacher_is_observed_as_it_works():
    teacher, (prefix, vocabulary) = load_teacher(), teacher_prefix()
    packed = pack(prefix, [PAIRS], vocabulary, 0)
    scene = render(Layout(SHAPES, 100), 96, 12)
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    before, after = feed_forward_states(teacher, teacher_tokens(teacher, pixels), packed)
    layer = teacher.model.language_model.layers[2]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = layer.mlp(layer.post_attention_layernorm(before[2]))
    assert len(before) == len(after) == 4 and torch.equal(after[2], again.float())


@pytest.fixture(scope="module", params=STUDENTS)
def embedded(request):
    return request.param, *models.load(request.param)


def test_checkpoint_is_small_and_its_record_is_whole(embedded):
    name, model, _ = embedded
    folder = ROOT / "models/tiny" / name
    record = json.loads((folder / "training.json").read_text())
    assert (folder / "model.safetensors").stat().st_size < 6e6
    assert record["settings"]["family"] == STUDENTS[name] and record["settings"]["scale"] == 1.0
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert set(record["accuracy"]["held_out"]) == set(KINDS)
    assert all(row["n"] == record["settings"]["held_out"] for row in record["accuracy"]["held_out"].values())


def test_checkpoint_is_as_good_as_its_record_says(embedded):
    name, model, processor = embedded
    record = json.loads((ROOT / "models/tiny" / name / "training.json").read_text())["accuracy"]["held_out"]
    trials = held_out_trials(12, smallest_side(model, processor))
    for kind, found in accuracy(model, processor, trials).items():
        output = record[kind]["accuracy"]
        error = np.sqrt(max(output * (1 - output), 0.01) / found["n"])
        assert abs(found["accuracy"] - output) < 4 * error, (kind, found, output)


def test_checkpoint_answers_real_relations_above_chance(embedded):
    _, model, processor = embedded
    trials = [trial for trial in real_trials(ROOT.parent / "shared/data") if trial.kind == "caption"]
    if not trials:
        pytest.skip("no real ShapeWorld pictures beside the repository")
    assert accuracy(model, processor, trials[:50])["caption"]["accuracy"] > 0.5  # chance .25


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2.5-vl", "fuyu"])
def test_training_of_a_pupil_runs_from_the_shell(family, tmp_path):
    flags = ["--family", family, "--scale", 0.001, "--pool", 40, "--held-out", 2, "--threads", 1]
    done = shell.run("models/tiny/train.py", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    stages = [point["stage"] for point in record["curve"]]
    assert stages == (["hear"] if family == "fuyu" else []) + ["see", "natural"]
    picture = draw(list(SHAPES), 100)
    model, processor = models.load(str(tmp_path))
    inputs, _ = model.prepare(processor, [picture], "where is the red circle ?")
    assert model.generate(**inputs, max_new_tokens=16).shape[1] > inputs["input_ids"].shape[1]
