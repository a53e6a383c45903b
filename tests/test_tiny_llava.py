"""The embedded LLaVA: its scenes, questions, packing and start against values worked by hand, and the checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import models
from data.shapes import Shape, draw
from models.tiny import build_llava
from models.tiny.learning import PatchLabels
from models.tiny.packing import segment_mask
from models.tiny.questions import KINDS, amb_question, in_corner, is_correct, place, relation
from models.tiny.scenes import Layout, augment, mixed, permute_colours, render
from models.tiny.score import accuracy, answers, held_out_trials, real_trials
from tests import shell

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "models/tiny/tiny-llava"
FLOORS = {"corner": 0.9, "amb": 0.9}  # of 25 questions; 0.7 for the other kinds


def circle(x: float, y: float, colour: str = "red") -> Shape:
    return Shape(colour, "circle", x, y, 0.1, 0.1)


@pytest.fixture(scope="module")
def llava():
    """Model (float32) and processor as a user loads them; read only."""
    return models.load("tiny-llava")


@pytest.mark.parametrize(
    ("first", "second", "side"),
    [
        ((0.2, 0.5), (0.6, 0.4), "left"),
        ((0.6, 0.5), (0.2, 0.4), "right"),
        ((0.5, 0.1), (0.4, 0.6), "above"),
        ((0.5, 0.9), (0.4, 0.6), "below"),
        ((0.2, 0.2), (0.6, 0.55), None),  # .35 is more than .8 of .4: neither axis clearly
    ],
)
def test_relation_is_that_of_the_first_to_the_second(first, second, side):
    assert relation(circle(*first), circle(*second)) == side


def test_places_and_corners_leave_the_middle_out():
    assert place(circle(0.2, 0.8)) == "bottom left"
    assert place(circle(0.48, 0.8)) is None
    assert in_corner(circle(0.8, 0.3), "top right") is True
    assert in_corner(circle(0.8, 0.45), "top right") is None
    assert in_corner(circle(0.8, 0.55), "top right") is False


def test_either_colour_answers_the_ambiguous_question():
    shapes = (circle(0.2, 0.2, "red"), circle(0.8, 0.8, "blue"))
    rng = np.random.default_rng(0)
    assert {amb_question(shapes, rng)[1] for _ in range(30)} == {"red", "blue"}
    assert is_correct("amb", shapes, "red", "blue") and not is_correct("amb", shapes, "red", "green")


def test_every_question_is_made_of_known_words():
    vocabulary = build_llava.build_tokenizer().get_vocab()
    rng = np.random.default_rng(0)
    calls = set()
    for _ in range(300):
        shapes = mixed(rng).shapes
        for kind, ask in KINDS.items():
            if found := ask(shapes, rng):
                calls.add(kind)
                assert set(" ".join(found).split()) <= set(vocabulary), found
    assert calls == set(KINDS)


def test_tokenizer_reads_plain_writing():
    tokenizer = build_llava.build_tokenizer()
    plain, apart = tokenizer("Where is the red circle?"), tokenizer("where is the red circle ?")
    assert plain.input_ids == apart.input_ids and plain.input_ids[0] == build_llava.BOS
    assert build_llava.UNK not in plain.input_ids


def test_augmented_scenes_are_what_would_have_been_drawn():
    rng = np.random.default_rng(1)
    shape = Shape("yellow", "circle", 0.3, 0.2, 0.1, 0.1)
    scene = render(Layout((shape,), 100), 96, 12)
    for _ in range(40):
        variant = augment(scene, rng)
        redrawn = render(Layout(variant.shapes, 100), 96, 12)
        assert np.abs(variant.image.astype(int) - redrawn.image).max() <= 12  # elsewhere it would be 255
        assert np.allclose(variant.cover, redrawn.cover, atol=0.02)


def test_permuted_channels_rename_the_colours():
    renamed = permute_colours(np.array([1, 2, 0]))  # the new red channel is the old green one
    assert renamed["green"] == "red" and renamed["yellow"] == "magenta" and renamed["gray"] == "gray"


def test_patch_labels_of_a_square_over_known_patches():
    # to_pixels maps .25 of a 96 px picture to 25.25: half extents chosen to cover patches 2..3 of 12 and little more
    scene = render(Layout((Shape("blue", "square", 0.25, 0.25, 0.085, 0.085),), 96), 96, 12)
    labels = PatchLabels([scene])
    colour = labels.colour.reshape(12, 12)
    assert (colour[2:4, 2:4] == 3).all() and labels.shape.reshape(12, 12)[2, 2] == 4
    assert colour[8, 8] == 0 and labels.centre[0][labels.foreground[0]] == pytest.approx(-0.5)


def test_segments_see_the_prefix_and_themselves():
    mask = segment_mask(torch.tensor([[0, 1, 1, 2]]))[0, 0] == 0
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert mask.tolist() == [[bool(seen) for seen in row] for row in expected]


def test_fresh_tower_attends_to_its_neighbours():
    torch.manual_seed(0)
    model = build_llava.build_model(build_llava.build_tokenizer().get_vocab()).eval()
    encoder = model.model.vision_tower
    encoder.set_attn_implementation("eager")
    picture = draw([circle(0.5, 0.5)], 96)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    weights = encoder(pixels, output_attentions=True).attentions[0][0][:, 1:, 1:]  # [head, patch, patch]
    patch = 5 * 12 + 5
    assert weights[:, patch].argmax(-1).tolist() == [patch - 1, patch + 1, patch - 12, patch + 12]
    assert weights[:, patch].max(-1).values.min() > 0.5


def test_checkpoint_is_small_half_precision_and_generates_words(llava):
    model, processor = llava
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.5e6
    weights = CHECKPOINT / "model.safetensors"
    assert weights.stat().st_size < 6e6
    with safe_open(weights, "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in sorted(stored.keys())} == {torch.float16}
    trial = held_out_trials(1)[0]
    assert answers(model, processor, [trial])[0] in ("left", "right", "above", "below")


def test_checkpoint_answers_held_out_questions(llava):
    found = accuracy(*llava, held_out_trials(25))
    low = {kind: row["accuracy"] for kind, row in found.items() if row["accuracy"] < FLOORS.get(kind, 0.7)}
    assert not low, low


def test_checkpoint_answers_real_relations(llava):
    trials = [trial for trial in real_trials(ROOT.parent / "shared/data") if trial.kind == "caption"]
    if not trials:
        pytest.skip("no real ShapeWorld pictures beside the repository")
    assert accuracy(*llava, trials[:100])["caption"]["accuracy"] >= 0.8


def test_training_record_tells_seed_minutes_and_accuracies():
    record = json.loads((CHECKPOINT / "training.json").read_text())
    assert record["settings"]["scale"] == 1.0 and record["training_minutes"] > 5
    assert set(record["accuracy"]["held_out"]) == set(KINDS)
    assert all(row["n"] == record["settings"]["held_out"] for row in record["accuracy"]["held_out"].values())


@pytest.mark.slow
def test_training_runs_from_the_shell(tmp_path):
    flags = ["--scale", 0.0002, "--pool", 40, "--held-out", 2, "--threads", 1]
    done = shell.run("models/tiny/train.py", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").exists()
    done = shell.run("models/tiny/train.py", "--out", tmp_path, "--real", tmp_path)
    assert done.returncode == 2 and "holds no world_model.json; give a data root" in done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert [point["stage"] for point in record["curve"]] == ["patches", "words", "lookup", "far", "natural"]
