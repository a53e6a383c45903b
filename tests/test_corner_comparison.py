"""Four corners compared: scores by hand, permutation tests against all permutations, planted heads found, and noise."""

import json
import re
from itertools import combinations, permutations, product

import numpy as np
import pytest
from PIL import Image

import compare_corner_heads
from analysis import head_responses
from analysis.corner_report import map_figure
from analysis.corner_study import (
    changes_most,
    correlations,
    head_rows,
    intervals,
    share_intervals,
    sharing,
    specialisation,
    study,
)
from analysis.corners import (
    CORNERS,
    MEAN,
    RESIDUAL,
    SHARED,
    UNIQUE,
    _minimum,
    _parts,
    call_heads,
    held_out,
    over_chance,
    read_corners,
    scores,
    typical_drop,
)
from analysis.runs import RunFolder
from analysis.statistics import DIFFERENCE, benjamini_hochberg, halves, mean_interval
from compare_corner_heads import main
from tests.runs import table
from tests.settings import configure

LAYERS, HEADS, PAIRS = 5, 6, 24
PLANTED_SHARED, PLANTED_LOSS = (2, 3), (3, 0)
PLANTED_UNIQUE = ((1, 1), (1, 4), (4, 2), (0, 5))  # one of each corner


def planted(seed=0, pairs=PAIRS):
    """Responses [corner, layer, head, pair]: noise of 0.02, and known heads that gain or lose 0.06."""
    signed = np.random.default_rng(seed).normal(0, 0.02, (4, LAYERS, HEADS, pairs))
    signed[:, *PLANTED_SHARED] += 0.06
    signed[:, *PLANTED_LOSS] -= 0.06
    for corner, head in enumerate(PLANTED_UNIQUE):
        signed[corner, *head] += 0.06
    return signed


def noise(rng, layers=3, heads=4):
    return rng.normal(size=(4, layers, heads, 12))


def loud_noise(seed, layers=6, heads=4, pairs=100):
    """Responses to nothing; in each layer one head is four times as loud as the others, the same in every corner."""
    values = np.random.default_rng(seed).normal(0, 0.02, (4, layers, heads, pairs))
    values[:, :, 1] *= 4
    return values


def write_run(folder, signed, corner=None, prompt=None, layers=None, topk=2, names=None, skipped=(), **flags):
    """A folder as head_attention_stats_qwen2.py leaves it, of responses [layer, head, pair]."""
    layers = list(range(len(signed))) if layers is None else layers
    names = [f"pair_{i:05d}" for i in range(signed.shape[-1])] if names is None else names
    flags = {"max_new_tokens": 1, "load_4bit": False, "load_8bit": False} | flags
    model = {"revision": None, "family": "qwen2_vl", "dtype": "float32", "devices": [f"cuda:{len(folder.name)}"]}
    run = RunFolder.create(folder, {"flags": flags, "model": model}, ("full_image", "control_image"))
    for name in names:
        run.add(name)
    for name in skipped:
        run.skip(name, "full image missing")
    head_responses.save(folder, signed.astype(np.float32), np.zeros_like(signed, np.float32), topk, layers)
    prompt = f"is there anything in the {folder.name.replace('left', ' left').replace('right', ' right')} corner ?"
    summary = {"dataset": "data", "prompt": prompt, "corner": corner, "patch_size": None, "topk": topk}
    run.finish(summary | {"layers": layers, "pairs": names, "model": "tiny-qwen2-vl"} | flags.get("summary", {}))
    return folder


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    """The results of the script on planted heads."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    shuffled = (folders[2], folders[0], folders[3], folders[1])
    assert main(configure(compare_corner_heads, folders=shuffled, out_dir=str(out), top=1)) == 0
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [str(write_run(root / name, signed)) for name, signed in zip(CORNERS, planted(), strict=True)]


def test_scores_by_hand():
    """One layer, four heads: shared, unique to corner 1, lost in all corners, and unique by loss to corner 3."""
    maps = np.array([[3, 0, -2, 0], [5, 4, -1, 1], [2, 1, -3, 0], [6, -1, -2, -5]], float)[:, None]
    found = {key: (score[0].tolist(), way[0].tolist()) for key, (score, way) in scores(maps).items()}
    assert found[SHARED, None] == ([2, -1, 1, -1], [1, 1, -1, -1])
    assert found[UNIQUE, 1][0] == [-1, 3, -1, 1] and found[UNIQUE, 1][1][1] == 1
    assert found[UNIQUE, 3][0] == [1, 1, -1, 5] and found[UNIQUE, 3][1] == [1, -1, -1, -1]
    assert found[MEAN, None] == ([4, 1, 2, 1], [1, 1, -1, -1])
    assert found[RESIDUAL, 0] == ([1, 1, 0, 1], [-1, -1, 1, 1])


def test_counts_are_measured_from_chance():
    counts = np.zeros((4, 1, 4, 10))
    counts[:, 0, 0] = 1
    counts[:, 0, 1, :5] = 1
    np.testing.assert_allclose(over_chance(counts)[0, 0], [1 - 0.375, 0.5 - 0.375, -0.375, -0.375])


def test_correlation_is_pearsons():
    maps = np.random.default_rng(0).normal(size=(4, 3, 5))
    flat = (maps - maps.mean(-1, keepdims=True)).reshape(4, -1)
    literal = [np.corrcoef(flat[one], flat[other])[0, 1] for one, other in combinations(range(4), 2)]
    by_layer = [
        np.mean([np.corrcoef(maps[one, layer], maps[other, layer])[0, 1] for one, other in combinations(range(4), 2)])
        for layer in range(3)
    ]
    together, each = correlations(maps)
    assert together == pytest.approx(np.mean(literal)) and each == pytest.approx(by_layer)
    assert correlations(np.stack([maps, maps]))[0] == pytest.approx([np.mean(literal)] * 2)
    maps[1, 2] = 0.1  # one flat layer leaves the others
    assert np.isnan(correlations(maps)[1]).tolist() == [False, False, True] and np.isfinite(correlations(maps)[0])


def test_specialisation_against_every_permutation():
    """Two pairs of four corners: 24 x 24 ways, each with its own statistic, for the whole and for every head."""
    values = np.random.default_rng(1).normal(size=(4, 2, 3, 2))

    def squares(values):
        maps = values.mean(-1)
        return ((maps - maps.mean(0)) ** 2).mean(0)

    ways = np.array([
        squares(np.stack([values[list(first), ..., 0], values[list(second), ..., 1]], -1))
        for first, second in product(permutations(range(4)), repeat=2)
    ])  # fmt: skip
    found = specialisation(values)
    observed = squares(values)
    rms = np.sqrt(ways.mean((1, 2)))
    assert len(found["null"]) == 576 and np.sort(found["null"]) == pytest.approx(np.sort(rms))
    assert found["observed"] == pytest.approx(np.sqrt(observed.mean()))
    assert found["expected"] == pytest.approx(rms.mean())
    assert found["p"] == pytest.approx((1 + (rms >= np.sqrt(observed.mean()) - 1e-12).sum()) / 577)
    np.testing.assert_allclose(found["p_heads"], (1 + (ways >= observed - 1e-12).sum(0)) / 577)
    np.testing.assert_allclose(found["by_layer"], np.sqrt(observed.mean(-1)))


def test_flipped_signs_against_every_flip():
    values = np.random.default_rng(2).normal(size=(4, 2, 3, 5)) + 0.3

    def covariance(values):
        maps = values.mean(-1)
        maps = maps - maps.mean(-1, keepdims=True)
        return sum((maps[one] * maps[other]).sum() for one, other in combinations(range(4), 2))

    ways = np.array([covariance(values * signs) for signs in product((1, -1), repeat=5)])
    found = sharing(values, resamples=199)
    assert found["p_signs"] == pytest.approx((ways >= covariance(values) - 1e-12).mean())
    assert found["p"] == max(found["p_signs"], found["p_order"]) and found["n"] == 6


@pytest.mark.parametrize(("layers", "heads"), [(1, 3), (2, 2)])
def test_sharing_against_every_permutation(layers, heads):
    """Heads of every layer and corner in every order, 1,296 and 256 ways, with the correlation of each."""
    maps = np.random.default_rng(8).normal(size=(4, layers, heads)) + np.arange(heads)

    def correlation(maps):
        flat = (maps - maps.mean(-1, keepdims=True)).reshape(4, -1)
        return np.mean([np.corrcoef(flat[one], flat[other])[0, 1] for one, other in combinations(range(4), 2)])

    ways = np.array([
        correlation(np.stack([row[list(order)] for row, order in zip(maps.reshape(-1, heads), orders, strict=True)])
                    .reshape(maps.shape))
        for orders in product(permutations(range(heads)), repeat=4 * layers)
    ])  # fmt: skip
    found = sharing(np.repeat(maps[..., None], 2, axis=-1))
    assert np.unique(found["null"].round(6)).tolist() == pytest.approx(np.unique(ways.round(6)).tolist(), abs=1e-5)
    assert found["p_order"] == pytest.approx((ways >= correlation(maps) - 1e-12).mean(), abs=0.015)
    assert (found["null"].mean(), found["null"].std()) == pytest.approx((ways.mean(), ways.std()), abs=0.02)


def test_heads_are_permuted_within_their_layer():
    """One head of three stands out in every corner of one layer: it does so by chance in one of 27 ways."""
    values = np.zeros((4, 2, 3, 4))
    values[:, 0, 1] = 1.0
    values[:, 1] = 5.0  # a strong layer is no sharing
    found = sharing(values)
    assert found["correlation"] == pytest.approx(1) and found["p_order"] == pytest.approx(1 / 27, abs=0.01)
    assert np.isnan(found["by_layer"]).tolist() == [False, True]
    flat = sharing(np.ones((4, 2, 3, 4)), resamples=19)
    assert flat["p"] is None and np.isnan(flat["correlation"])


def test_planted_heads_are_found():
    calls = call_heads(planted())
    shared = {tuple(map(int, at)) for at in np.argwhere(calls.shared)}
    unique = [[tuple(map(int, at)) for at in np.argwhere(corner)] for corner in calls.unique]
    assert shared == {PLANTED_SHARED, PLANTED_LOSS}
    assert [PLANTED_UNIQUE[corner] in heads for corner, heads in enumerate(unique)] == [True] * 4
    assert sum(map(len, unique)) <= 5


def test_calls_that_are_both_or_neither():
    signed = planted()
    signed[2, *PLANTED_SHARED] += 0.06  # in all corners, most in one
    signed[:2, 4, 4] += 0.06  # in two of four
    signed[0, 0, 0] -= 0.06  # a loss in one corner alone
    made = study(signed, level=0.05, top=1, seed=3)
    assert made.call(PLANTED_SHARED, CORNERS) == "shared; most in bottomleft"
    assert made.call((4, 4), CORNERS) == "uneven" and made.call((0, 0), CORNERS) == "unique to topleft (less)"
    assert made.call((2, 0), CORNERS) == ""
    _, second = halves(PAIRS, np.random.default_rng(3))  # the heads of a figure are ranked on the first half
    found, by_hand = intervals(made, (2, 3)), mean_interval(signed[1, 2, 3, second], DIFFERENCE)
    assert found[1].tolist() == [by_hand[key] for key in ("mean", "low", "high")]


def test_noise_is_rarely_called_anything():
    """Calls at a rate of 5 % may come in 5 % of data sets that hold nothing; each permutation test, too."""
    rng = np.random.default_rng(3)
    called, p_values = [], []
    for index in range(40):
        values = noise(rng, layers=2, heads=3)
        calls = call_heads(values)
        called.append(calls.shared.any() or calls.unique.any())
        found = specialisation(values, index, 199)
        p_values.append((found["p"], sharing(values, index, 199)["p"], found["p_heads"][0, 0]))
    assert np.mean(called) <= 0.05
    assert (np.mean(np.array(p_values) <= 0.05, axis=0) <= 0.15).all()  # more than 6 of 40: 3 in 1,000 times
    assert 0.3 < np.median([p for p, _, _ in p_values]) < 0.7


def test_loud_heads_are_not_shared_heads():
    """Noise that is louder in some heads and moves heads together correlates between corners; signs tell it apart."""
    rng = np.random.default_rng(4)
    order, both = [], []
    for index in range(60):
        values = 0.3 * noise(rng) + rng.normal(size=(4, 1, 1, 12)) * np.array([[0, 3, 0, 0], [0, 0, 2, -2], [0] * 4])[
            ..., None
        ]
        found = sharing(values, index, 199)
        order.append(found["p_order"] <= 0.05)
        both.append(found["p"] <= 0.05)
    assert np.mean(order) > 0.12 and np.mean(both) <= 0.13


@pytest.mark.slow
def test_loud_noise_is_called_nothing(tmp_path):
    """Loud heads are among the top in every corner without any object: by counts that is described, and not called."""
    called = [call_heads(loud_noise(seed)) for seed in range(20)]
    assert np.mean([calls.shared.any() or calls.unique.any() for calls in called]) <= 0.05 + 3 * (0.0475 / 20) ** 0.5
    for name, signed in zip(CORNERS, loud_noise(0), strict=True):
        write_run(tmp_path / name, signed, topk=1)
    corners = read_corners([tmp_path / name for name in CORNERS])
    made = study(corners.signed, level=0.05, top=1, seed=0)
    rows = list(head_rows(corners, made))
    assert all(row[f"share_in_top_{corner}"] > 0.6 for row in rows if row["head"] == 1 for corner in CORNERS)
    assert {row["call"] for row in rows} == {""} and made.shared["p"] > 0.05
    assert [row["head"][1] for row in changes_most(corners)] == [1] * 4


def test_ties_between_corners_are_ties():
    """A head that answers alike in all corners is unique to none, however loud its layer is in one of them."""
    values = np.random.default_rng(6).integers(0, 2, (4, 1, 5, 60)).astype(float)
    values[:, 0, 0] = 1
    values[1, 0, 2:] = 1
    calls = call_heads(values)
    assert calls.shared[0, 0] and calls.q_unique[:, 0, 0].tolist() == [1] * 4


def test_what_was_chosen_is_scored_on_other_pairs():
    """On noise the score of the chosen head drops to nothing; a planted head keeps its score, and its interval."""
    rng = np.random.default_rng(5)
    rows = [row for _ in range(10) for row in held_out(0.1 * noise(rng), 1, 0)]
    unique = [row for row in rows if row["kind"] == UNIQUE]
    assert np.mean([row["selection"] for row in unique]) > 0.03 and np.mean([row["held_out"] for row in unique]) < 0.005
    for row in rows:
        assert row["drop"] == pytest.approx(row["selection"] - row["held_out"])
        assert row["low"] <= row["held_out"] <= row["high"]
    assert np.mean([row["p"] <= 0.05 for row in rows]) <= 0.1
    values = planted()
    first = {(row["kind"], row["corner"]): row for row in held_out(values, 2, 0) if row["rank"] == 1}
    for corner, head in enumerate(PLANTED_UNIQUE):
        row = first[UNIQUE, corner]
        assert (row["layer"], row["head"], row["direction"], row["rank_held_out"]) == (*head, 1, 1)
        assert 0 < row["low"] < 0.06 and row["held_out"] == pytest.approx(0.05, abs=0.025)
        assert row["p"] < 0.01 and row["p"] <= row["q"] < 0.05
    assert (first[SHARED, None]["layer"], first[SHARED, None]["head"]) in (PLANTED_SHARED, PLANTED_LOSS)


def test_interval_of_a_minimum_holds_it():
    """Four corners of equal mean 0.03: the smallest of four means lies below that, and so would a bootstrap of it."""
    rng = np.random.default_rng(10)
    held = []
    for _ in range(200):
        values = 0.03 + rng.normal(0, 0.05, (4, 10))
        found = _minimum(*_parts(values, SHARED, None), seed=0)
        held.append(found["low"] <= 0.03 <= found["high"])
    assert np.mean(held) >= 0.93
    parts, _ = _parts(np.arange(8.0).reshape(4, 2) / 10, UNIQUE, 3)
    np.testing.assert_allclose(parts, [[0.6, 0.7], [0.6, 0.6], [0.4, 0.4], [0.2, 0.2]])


def test_half_of_the_pairs_never_sees_the_other():
    """Pairs of one half carry a head, those of the other its opposite: what is chosen must fail where it is scored."""
    values = np.zeros((4, 2, 2, 8))
    first = np.sort(np.random.default_rng(7).permutation(8)[:4])
    values[:, 1, 0] = -1.0
    values[:, 1, 0, first] = 1.0
    row = next(row for row in held_out(values, 1, 7) if row["kind"] == SHARED)
    assert (row["layer"], row["head"], row["selection"], row["held_out"], row["drop"]) == (1, 0, 1, -1, 2)
    few = values[..., :3]
    assert held_out(few, 1, 7) is None and typical_drop(few, 7) is None
    many = typical_drop(values, 7)
    shared = many[SHARED]
    assert shared["drop"] > 0.3 and shared["drop"] == pytest.approx(shared["selection"] - shared["held_out"])
    kept = typical_drop(planted(), 0, splits=20)
    assert kept[UNIQUE]["again"] == 1 and abs(kept[UNIQUE]["drop"]) < 0.02


def test_the_script_on_planted_heads(compared):
    out = compared
    rows = {(int(row["layer"]), int(row["head"])): row for row in table(out, "heads.csv")}
    assert len(rows) == LAYERS * HEADS
    assert [rows[head]["call"] for head in (PLANTED_SHARED, PLANTED_LOSS)] == ["shared", "shared (less)"]
    assert [rows[head]["call"] for head in PLANTED_UNIQUE] == [f"unique to {corner}" for corner in CORNERS]
    own = rows[PLANTED_UNIQUE[1]]
    maps = [float(own[f"map_{corner}"]) for corner in CORNERS]
    assert maps == pytest.approx(planted()[:, *PLANTED_UNIQUE[1]].mean(-1), abs=1e-6)
    assert float(own["residual_topright"]) == pytest.approx(maps[1] - np.mean(maps), abs=1e-6)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["corners"]) == list(CORNERS) and summary["n"] == PAIRS
    best = summary["signed"]["best_unique"]["bottomleft"]
    row = next(row for row in table(out, "chosen.csv") if (row["corner"], row["kind"]) == ("bottomleft", "unique"))
    assert best["head"] == list(PLANTED_UNIQUE[2]) and best["held_out"] == pytest.approx(float(row["held_out"]))
    two = [summary["signed"][name] for name in ("sharing", "specialisation")]
    assert [test["q"] for test in two] == pytest.approx(benjamini_hochberg([test["p"] for test in two]).tolist())
    special, shared = summary["signed"]["specialisation"], summary["signed"]["sharing"]
    assert special["p"] == pytest.approx(1e-4) and special["ratio"] > 1.5 and shared["p"] < 0.01
    assert {row["corner"] for row in table(out, "chosen.csv")} == {"", *CORNERS}
    assert len(table(out)) == PAIRS
    report = (out / "report.md").read_text()
    assert "unique to top right" in report and "on the other half" in report
    assert report.count("Sharing:") == report.count("are called shared") == 1  # of responses; counts are only shown


def test_what_is_lost_is_said(tmp_path):
    """A head that loses attention in one corner is unique to it by losing: in tables, figure and summary, under the
    number that its layer has in the model."""
    signed = np.random.default_rng(9).normal(0, 0.01, (4, 2, 4, 12))
    signed[1, 1, 2] -= 0.9
    for name, corner in zip(CORNERS, signed, strict=True):
        write_run(tmp_path / name, corner, layers=[7, 12])
    out = tmp_path / "out"
    assert main(configure(compare_corner_heads, folders=of_corners(tmp_path), out_dir=str(out), top=1)) == 0
    report = (out / "report.md").read_text()
    assert "| unique to top right (less) | 1 | 12.2 |" in report
    assert report.count("score (in the chosen direction)") == 1
    best = json.loads((out / "summary.json").read_text())["signed"]["best_unique"]["topright"]
    assert (best["head"], best["direction"]) == ([12, 2], -1) and best["held_out"] == pytest.approx(0.89, abs=0.02)
    assert {row["layer"] for row in table(out, "heads.csv")} == {"7", "12"}
    assert {row["layer"] for row in table(out, "chosen.csv")} <= {"7", "12"}


def test_a_share_of_all_pairs_has_an_interval():
    """Wilson's of 4 of 4."""
    found = share_intervals(np.ones((4, 1, 1, 4)), (0, 0))
    np.testing.assert_allclose(found, [[1, 4 / (4 + 1.959964**2), 1]] * 4, rtol=1e-5)


def test_the_page_holds_everything(compared):
    page = (compared / "pictures.html").read_text()
    pictures = list(compared.glob("*.png"))
    assert len(pictures) == 9
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) >= 300
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 9 and all(re.search(r'src="data:image/png;base64,.{100}', image) for image in images)
    assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 20 for image in images)
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_pairs_that_a_corner_lacks(tmp_path):
    """A pair that was skipped in one corner is left out of all, and the others stay in step."""
    signed = planted()
    names = [f"pair_{i:05d}" for i in range(PAIRS)]
    for corner, name in enumerate(CORNERS):
        lost = {"topright": [3]}.get(name, [])
        kept = [i for i in range(PAIRS) if i not in lost]
        measured, skipped = ([names[i] for i in some] for some in (kept, lost))
        write_run(tmp_path / name, signed[corner][..., kept], names=measured, skipped=skipped)
    corners = read_corners([tmp_path / name for name in CORNERS])
    assert corners.left_out == ((names[3], "not measured in topright"),) and len(corners.pairs) == PAIRS - 1
    np.testing.assert_allclose(corners.signed, np.delete(signed, 3, axis=-1), atol=1e-6)


def test_two_pairs_of_silent_heads(tmp_path):
    """Too few to split or to call anything, in one layer, with nothing to see: still a result."""
    for name in CORNERS:
        write_run(tmp_path / name, np.zeros((1, 3, 2)))
    assert main(configure(compare_corner_heads, folders=of_corners(tmp_path), out_dir=str(tmp_path / "out"))) == 0
    assert "too few pairs" in (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "out" / "chosen.csv").exists()
    assert all(not row["call"] for row in table(tmp_path / "out", "heads.csv"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["signed"]["sharing"]["p"] is None and summary["signed"]["specialisation"]["p"] == 1


def of_corners(root):
    return tuple(str(root / name) for name in CORNERS)


def wrong(folders, capsys, **flags):
    with pytest.raises(SystemExit) as stopped:
        main(configure(compare_corner_heads, folders=tuple(map(str, folders)), **flags))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_wrong_folders(folders, tmp_path, capsys):
    assert "3 folders were given; give four" in wrong(folders[:3], capsys)
    assert "is given twice" in wrong([*folders[:3], f"{folders[0]}/../topleft"], capsys)
    assert "holds no summary.json, so it is no finished run" in wrong([*folders[:3], tmp_path], capsys)
    copy = write_run(tmp_path / "again" / "topleft", planted()[0])
    assert "are both of the corner topleft" in wrong([*folders[:3], copy], capsys)
    assert "--top 0 must be" in wrong(folders, capsys, top=0) and "--level 1.5" in wrong(folders, capsys, level=1.5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    assert "is not empty" in wrong(folders, capsys, out_dir=str(tmp_path / "full"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"signed": planted()[3][:4]}, "differ in their layers: [0, 1, 2, 3, 4] and [0, 1, 2, 3]"),
        ({"signed": planted()[3][:, :4]}, "differ in their cubes (layers, heads): [5, 6] and [5, 4]"),
        ({"signed": planted()[3][..., :10]}, "differ in their pairs, skipped ones included: 24 and 10"),
        ({"layers": [0, 1, 2, 3, 9]}, "differ in their layers"),
        ({"topk": 1}, "differ in their topk: 2 and 1"),
        ({"max_new_tokens": 5}, "differ in their max new tokens: 1 and 5"),
        ({"summary": {"model": "other"}}, "differ in their model: 'tiny-qwen2-vl' and 'other'"),
        ({"summary": {"prompt": "what is at the bottom right ?"}}, "differ in their question"),
        ({"summary": {"corner": "bottomright", "patch_size": 2}}, "differ in their patch size: None and 2"),
        ({"names": [f"other_{i}" for i in range(PAIRS)]}, "have 0 pairs in common"),
    ],
)
def test_folders_that_cannot_be_compared(folders, tmp_path, capsys, change, sentence):
    last = write_run(tmp_path / "bottomright", **{"signed": planted()[3], **change})
    assert sentence in wrong([*folders[:3], last], capsys)


def test_cubes_that_cannot_be_read(folders, tmp_path, capsys):
    last = write_run(tmp_path / "bottomright", planted()[3])
    np.save(last / "count_LHN.npy", np.zeros((5, 6, 3), np.uint8))
    assert "do not fit each other" in wrong([*folders[:3], last], capsys)
    (last / "settings.json").write_text("{")
    np.save(last / "count_LHN.npy", np.zeros((5, 6, PAIRS), np.uint8))
    assert "has no settings.json of its run" in wrong([*folders[:3], last], capsys)


def test_one_scale_for_all_maps():
    maps = planted().mean(-1)
    figure = map_figure(maps.mean(0), maps, CORNERS, range(LAYERS), "response", "note", call_heads(planted()))
    limits = {image.get_clim() for axes in figure.axes for image in axes.get_images() if image.get_array().ndim == 2}
    top = np.abs(maps).max()
    assert (-top, top) in limits and len({limit for limit in limits if limit[0] < 0}) == 1
    assert len([axes for axes in figure.axes if axes.get_xlabel() == "head"]) == 5
