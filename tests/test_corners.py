"""Comparison of four corners: scores by hand, tests against all permutations, planted heads, noise, and the script."""

import re
from itertools import combinations, permutations, product

import numpy as np
import pytest

import compare_corner_heads
from analysis import head_responses
from analysis.corner_report import intervals, map_figure
from analysis.corners import (
    CORNERS,
    MEAN,
    RESIDUAL,
    SHARED,
    UNIQUE,
    call_heads,
    compare,
    correlations,
    held_out,
    minimum_test,
    over_chance,
    read_corners,
    score_parts,
    scores,
    sharing,
    specialisation,
)
from analysis.statistics import DIFFERENCE, benjamini_hochberg, halves, mean_interval
from compare_corner_heads import head_rows, main
from tests.errors import refused
from tests.runs import make_run, summary_of, table
from tests.settings import configure

LAYERS, HEADS, PAIRS = 5, 6, 24
NUMBERS = [3, 4, 5, 6, 9]  # of the layers in the model
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


def write_run(folder, signed, corner=None, layers=None, topk=2, names=None, skipped=(), summary=None, **flags):
    """Write a folder of head_attention_stats_qwen2.py, of responses [layer, head, pair]."""
    layers = list(range(len(signed))) if layers is None else layers
    names = [f"pair_{i:05d}" for i in range(signed.shape[-1])] if names is None else names
    flags = {"max_new_tokens": 1, "load_4bit": False, "load_8bit": False} | flags
    model = {"revision": None, "family": "qwen2_vl", "dtype": "float32", "devices": [f"cuda:{len(folder.name)}"]}
    run = make_run(folder, {"flags": flags, "model": model}, ("full_image", "control_image"))
    for name in names:
        run.add(name)
    for name in skipped:
        run.skip(name, "full image missing")
    head_responses.save(folder, signed.astype(np.float32), np.zeros_like(signed, np.float32), topk, layers)
    prompt = f"is there anything in the {folder.name.replace('left', ' left').replace('right', ' right')} corner ?"
    about = {"dataset": "data", "prompt": prompt, "corner": corner, "patch_size": None, "topk": topk}
    run.finish(about | {"layers": layers, "pairs": names, "model": "tiny-qwen2-vl"} | (summary or {}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        str(write_run(root / name, values, layers=NUMBERS)) for name, values in zip(CORNERS, planted(), strict=True)
    ]


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    """Results of the script on planted heads, with its settings."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    shuffled = (folders[2], folders[0], folders[3], folders[1])
    config = configure(compare_corner_heads, folders=shuffled, out_dir=str(out), top=1)
    assert main(config) == 0
    return out, config


def test_scores_by_hand():
    """One layer, four heads: shared, unique to corner 1, lost in all corners, and unique by loss to corner 3."""
    maps = np.array([[3, 0, -2, 0], [5, 4, -1, 1], [2, 1, -3, 0], [6, -1, -2, -5]], float)[:, None]
    found = {key: (score[0].tolist(), way[0].tolist()) for key, (score, way) in scores(maps).items()}
    assert found[SHARED, None] == ([2, -1, 1, -1], [1, 1, -1, -1])
    assert found[UNIQUE, 1][0] == [-1, 3, -1, 1] and found[UNIQUE, 1][1][1] == 1
    assert found[UNIQUE, 3][0] == [1, 1, -1, 5] and found[UNIQUE, 3][1] == [1, -1, -1, -1]
    assert found[MEAN, None] == ([4, 1, 2, 1], [1, 1, -1, -1])
    assert found[RESIDUAL, 0] == ([1, 1, 0, 1], [-1, -1, 1, 1])


def test_counts_are_relative_to_chance():
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
    maps[1, 2] = 0.1  # one layer of equal heads
    assert np.isnan(correlations(maps)[1]).tolist() == [False, False, True] and np.isfinite(correlations(maps)[0])


def test_specialisation_against_every_permutation():
    """Two pairs of four corners: 24 x 24 permutations, with the statistic of all heads and of every head."""
    values = np.random.default_rng(1).normal(size=(4, 2, 3, 2))

    def squares(values):
        maps = values.mean(-1)
        return ((maps - maps.mean(0)) ** 2).mean(0)

    drawn = np.array([
        squares(np.stack([values[list(first), ..., 0], values[list(second), ..., 1]], -1))
        for first, second in product(permutations(range(4)), repeat=2)
    ])  # fmt: skip
    found = specialisation(values)
    observed = squares(values)
    rms = np.sqrt(drawn.mean((1, 2)))
    assert len(found["null"]) == 576 and np.sort(found["null"]) == pytest.approx(np.sort(rms))
    assert found["observed"] == pytest.approx(np.sqrt(observed.mean()))
    assert found["expected"] == pytest.approx(rms.mean())
    assert found["p"] == pytest.approx((1 + (rms >= np.sqrt(observed.mean()) - 1e-12).sum()) / 577)
    np.testing.assert_allclose(found["p_heads"], (1 + (drawn >= observed - 1e-12).sum(0)) / 577)
    np.testing.assert_allclose(found["by_layer"], np.sqrt(observed.mean(-1)))


def test_sign_flips_against_every_flip():
    values = np.random.default_rng(2).normal(size=(4, 2, 3, 5)) + 0.3

    def covariance(values):
        maps = values.mean(-1)
        maps = maps - maps.mean(-1, keepdims=True)
        return sum((maps[one] * maps[other]).sum() for one, other in combinations(range(4), 2))

    drawn = np.array([covariance(values * signs) for signs in product((1, -1), repeat=5)])
    found = sharing(values, resamples=199)
    assert found["p_signs"] == pytest.approx((drawn >= covariance(values) - 1e-12).mean())
    assert found["p"] == max(found["p_signs"], found["p_order"]) and found["n"] == 6


def test_sharing_against_every_permutation():
    """Two layers of two heads: heads of every layer and corner in every order, 256 permutations."""
    maps = np.random.default_rng(8).normal(size=(4, 2, 2)) + np.arange(2)

    def correlation(maps):
        flat = (maps - maps.mean(-1, keepdims=True)).reshape(4, -1)
        return np.mean([np.corrcoef(flat[one], flat[other])[0, 1] for one, other in combinations(range(4), 2)])

    drawn = np.array([
        correlation(np.stack([row[list(order)] for row, order in zip(maps.reshape(-1, 2), orders, strict=True)])
                    .reshape(maps.shape))
        for orders in product(permutations(range(2)), repeat=8)
    ])  # fmt: skip
    found = sharing(np.repeat(maps[..., None], 2, axis=-1))
    assert np.unique(found["null"].round(6)).tolist() == pytest.approx(np.unique(drawn.round(6)).tolist(), abs=1e-5)
    assert found["p_order"] == pytest.approx((drawn >= correlation(maps) - 1e-12).mean(), abs=0.015)
    assert (found["null"].mean(), found["null"].std()) == pytest.approx((drawn.mean(), drawn.std()), abs=0.02)


def test_heads_are_permuted_within_their_layer():
    """One head of three has the only response of one layer in every corner: probability 1 / 27 under H0."""
    values = np.zeros((4, 2, 3, 4))
    values[:, 0, 1] = 1.0
    values[:, 1] = 5.0  # a layer of strong, equal heads does not count as sharing
    found = sharing(values)
    assert found["correlation"] == pytest.approx(1) and found["p_order"] == pytest.approx(1 / 27, abs=0.01)
    assert np.isnan(found["by_layer"]).tolist() == [False, True]
    flat = sharing(np.ones((4, 2, 3, 4)), resamples=19)
    assert flat["p"] is None and np.isnan(flat["correlation"])


def test_calls_that_are_both_or_neither():
    signed = planted()
    signed[2, *PLANTED_SHARED] += 0.06  # in all corners, most in one
    signed[:2, 4, 4] += 0.06  # in two of four
    signed[0, 0, 0] -= 0.06  # a loss in one corner
    found = compare(signed, level=0.05, top=1, seed=3)
    assert found.call(PLANTED_SHARED, CORNERS) == "shared; most in bottomleft"
    assert found.call((4, 4), CORNERS) == "uneven" and found.call((0, 0), CORNERS) == "unique to topleft (less)"
    assert found.call((2, 0), CORNERS) == ""
    _, second = halves(PAIRS, np.random.default_rng(3))  # the heads of a figure are ranked on the first half
    drawn, by_hand = intervals(found, (2, 3)), mean_interval(signed[1, 2, 3, second], DIFFERENCE)
    assert drawn[1].tolist() == [by_hand[key] for key in ("mean", "low", "high")]


def test_noise_is_rarely_called():
    """Calls at a rate of 5 % may come in 5 % of data sets without any response; each permutation test, too."""
    rng = np.random.default_rng(3)
    called, p_values = [], []
    for index in range(40):
        values = noise(rng, layers=2, heads=3)
        calls = call_heads(values)
        called.append(calls.shared.any() or calls.unique.any())
        found = specialisation(values, index, 199)
        p_values.append((found["p"], sharing(values, index, 199)["p"], found["p_heads"][0, 0]))
    assert np.mean(called) <= 0.05
    assert (np.mean(np.array(p_values) <= 0.05, axis=0) <= 0.15).all()  # more than 6 of 40: probability 0.003
    assert 0.3 < np.median([p for p, _, _ in p_values]) < 0.7


def test_loud_heads_are_not_shared_heads():
    """Noise that is larger in some heads correlates between corners; the test by sign flips is not significant."""
    rng = np.random.default_rng(4)
    order, both = [], []
    for index in range(60):
        values = (
            0.3 * noise(rng)
            + rng.normal(size=(4, 1, 1, 12)) * np.array([[0, 3, 0, 0], [0, 0, 2, -2], [0] * 4])[..., None]
        )
        found = sharing(values, index, 199)
        order.append(found["p_order"] <= 0.05)
        both.append(found["p"] <= 0.05)
    assert np.mean(order) > 0.12 and np.mean(both) <= 0.13


@pytest.mark.slow
def test_loud_noise_is_not_called(tmp_path):
    """A head with four times the noise of others is among the top in every corner, and is not called."""

    def loud_noise(seed, layers=6, heads=4, pairs=100):
        values = np.random.default_rng(seed).normal(0, 0.02, (4, layers, heads, pairs))
        values[:, :, 1] *= 4
        return values

    called = [call_heads(loud_noise(seed)) for seed in range(20)]
    assert np.mean([calls.shared.any() or calls.unique.any() for calls in called]) <= 0.05 + 3 * (0.0475 / 20) ** 0.5
    for name, signed in zip(CORNERS, loud_noise(0), strict=True):
        write_run(tmp_path / name, signed, topk=1)
    corners = read_corners([tmp_path / name for name in CORNERS])
    found = compare(corners.signed, level=0.05, top=1, seed=0)
    rows = list(head_rows(corners, found))
    assert all(row[f"share_in_top_{corner}"] > 0.6 for row in rows if row["head"] == 1 for corner in CORNERS)
    assert {row["call"] for row in rows} == {""} and found.sharing["p"] > 0.05


def test_ties_between_corners_are_ties():
    """A head with equal responses in all corners is unique to none, however strong its layer is in one of them."""
    values = np.random.default_rng(6).integers(0, 2, (4, 1, 5, 60)).astype(float)
    values[:, 0, 0] = 1
    values[1, 0, 2:] = 1
    calls = call_heads(values)
    assert calls.shared[0, 0] and calls.q_unique[:, 0, 0].tolist() == [1] * 4


def test_chosen_heads_are_scored_on_other_pairs():
    """On noise the score of the chosen head drops to 0; a planted head keeps its score, within its interval."""
    rng = np.random.default_rng(5)
    rows = [row for _ in range(10) for row in held_out(0.1 * noise(rng), 1, 0)]
    unique = [row for row in rows if row["kind"] == UNIQUE]
    assert np.mean([row["selection"] for row in unique]) > 0.03 and np.mean([row["held_out"] for row in unique]) < 0.005
    for row in rows:
        assert row["drop"] == pytest.approx(row["selection"] - row["held_out"])
        assert row["low"] <= row["held_out"] <= row["high"]
    assert np.mean([row["p"] <= 0.05 for row in rows]) <= 0.1
    first = {(row["kind"], row["corner"]): row for row in held_out(planted(), 2, 0) if row["rank"] == 1}
    for corner, head in enumerate(PLANTED_UNIQUE):
        row = first[UNIQUE, corner]
        assert (row["layer"], row["head"], row["direction"], row["rank_held_out"]) == (*head, 1, 1)
        assert 0 < row["low"] < 0.06 and row["held_out"] == pytest.approx(0.05, abs=0.025)
        assert row["p"] < 0.01 and row["p"] <= row["q"] < 0.05
    assert (first[SHARED, None]["layer"], first[SHARED, None]["head"]) in (PLANTED_SHARED, PLANTED_LOSS)


def test_halves_share_no_pair():
    """A head responds on one half of the pairs and has the opposite response on the other."""
    values = np.zeros((4, 2, 2, 8))
    first = np.sort(np.random.default_rng(7).permutation(8)[:4])
    values[:, 1, 0] = -1.0
    values[:, 1, 0, first] = 1.0
    row = next(row for row in held_out(values, 1, 7) if row["kind"] == SHARED)
    assert (row["layer"], row["head"], row["selection"], row["held_out"], row["drop"]) == (1, 0, 1, -1, 2)
    assert held_out(values[..., :3], 1, 7) is None


def test_interval_of_a_minimum_holds_it():
    """Four corners of equal mean 0.03: the smallest of four sample means, and its bootstrap, lie below 0.03."""
    rng = np.random.default_rng(10)
    held = []
    for _ in range(100):
        values = 0.03 + rng.normal(0, 0.05, (4, 10))
        found = minimum_test(*score_parts(values, SHARED, None), seed=0)
        held.append(found["low"] <= 0.03 <= found["high"])
    assert np.mean(held) >= 0.93
    parts, _ = score_parts(np.arange(8.0).reshape(4, 2) / 10, UNIQUE, 3)
    np.testing.assert_allclose(parts, [[0.6, 0.7], [0.6, 0.6], [0.4, 0.4], [0.2, 0.2]])


def test_planted_heads_in_the_tables(compared):
    out, _ = compared
    rows = {(NUMBERS.index(int(row["layer"])), int(row["head"])): row for row in table(out, "heads.csv")}
    assert len(rows) == LAYERS * HEADS
    assert [rows[head]["call"] for head in (PLANTED_SHARED, PLANTED_LOSS)] == ["shared", "shared (less)"]
    assert [rows[head]["call"] for head in PLANTED_UNIQUE] == [f"unique to {corner}" for corner in CORNERS]
    assert sum(row["call"].startswith("shared") for row in rows.values()) == 2
    maps = [float(rows[PLANTED_UNIQUE[1]][f"map_{corner}"]) for corner in CORNERS]
    assert maps == pytest.approx(planted()[:, *PLANTED_UNIQUE[1]].mean(-1), abs=1e-6)
    summary = summary_of(out)
    assert list(summary["corners"]) == list(CORNERS) and summary["n"] == len(table(out)) == PAIRS
    best = summary["signed"]["best_unique"]["bottomleft"]
    row = next(row for row in table(out, "chosen.csv") if (row["corner"], row["kind"]) == ("bottomleft", "unique"))
    layer, head = PLANTED_UNIQUE[2]
    assert best["head"] == [NUMBERS[layer], head] == [int(row["layer"]), int(row["head"])]
    assert best["held_out"] == pytest.approx(float(row["held_out"]))
    assert summary["signed"]["called_shared"] == [[NUMBERS[at], head] for at, head in (PLANTED_SHARED, PLANTED_LOSS)]
    two = [summary["signed"][name] for name in ("sharing", "specialisation")]
    assert [test["q"] for test in two] == pytest.approx(benjamini_hochberg([test["p"] for test in two]).tolist())
    special, shared = summary["signed"]["specialisation"], summary["signed"]["sharing"]
    assert special["p"] == pytest.approx(1e-4) and special["ratio"] > 1.5 and shared["p"] < 0.01


def test_planted_heads_on_the_page(compared):
    out, _ = compared
    layer, head = PLANTED_UNIQUE[1]
    assert f"| unique to top right | 1 | {NUMBERS[layer]}.{head} |" in (out / "report.md").read_text()
    page = (out / "pictures.html").read_text()
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {"signed_maps.png", "signed_heads.png", "signed_curves.png", "count_maps.png"}
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 4 and all(re.search(r'src="data:image/png;base64,.{100}', image) for image in images)
    assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 20 for image in images)
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_a_finished_comparison_is_kept(compared, folders, tmp_path, capsys):
    """The same settings and responses are status 0; other settings or responses are refused."""
    out, config = compared
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(config) == 0
    wrong(config.folders, capsys, "level", out_dir=str(out), top=1, level=0.1)
    other = write_run(tmp_path / "bottomright", planted(seed=1)[3], layers=NUMBERS)
    wrong((*config.folders[:2], str(other), config.folders[3]), capsys, "folders", out_dir=str(out), top=1)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_pairs_that_a_corner_lacks(tmp_path):
    """A pair that was skipped in one corner is left out of all; the others keep their order."""
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


def test_two_pairs_without_any_response(tmp_path):
    """Too few to split or to call anything, in one layer: still a result."""
    for name in CORNERS:
        write_run(tmp_path / name, np.zeros((1, 3, 2)))
    folders = tuple(str(tmp_path / name) for name in CORNERS)
    assert main(configure(compare_corner_heads, folders=folders, out_dir=str(tmp_path / "out"))) == 0
    assert not (tmp_path / "out" / "chosen.csv").exists()
    assert all(not row["call"] for row in table(tmp_path / "out", "heads.csv"))
    found = summary_of(tmp_path / "out")["signed"]
    assert found["sharing"]["p"] is None and found["specialisation"]["p"] == 1


def wrong(folders, capsys, word, **flags):
    """A usage error: status 2, and one sentence that names `word`."""
    with pytest.raises(SystemExit) as stopped:
        main(configure(compare_corner_heads, folders=tuple(map(str, folders)), **flags))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and word in error


def test_wrong_folders(folders, tmp_path, capsys):
    wrong(folders[:3], capsys, "3 folders")
    wrong([*folders[:3], tmp_path], capsys, "summary.json")
    copy = write_run(tmp_path / "again" / "topleft", planted()[0])
    wrong([*folders[:3], copy], capsys, "both of the corner topleft")
    wrong(folders, capsys, "--top", top=0)
    wrong(folders, capsys, "--level", level=1.5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    wrong(folders, capsys, "not empty", out_dir=str(tmp_path / "full"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"signed": planted()[3][:4], "layers": NUMBERS[:4]}, "layers"),
        ({"signed": planted()[3][:, :4]}, "cubes (layers, heads)"),
        ({"signed": planted()[3][..., :10]}, "pairs, skipped ones included"),
        ({"topk": 1}, "topk"),
        ({"max_new_tokens": 5}, "max new tokens"),
        ({"summary": {"model": "other"}}, "model"),
        ({"summary": {"prompt": "what is at the bottom right ?"}}, "question"),
        ({"summary": {"corner": "bottomright", "patch_size": 2}}, "patch size"),
    ],
)
def test_runs_that_differ(folders, tmp_path, change, name):
    last = write_run(tmp_path / "bottomright", **{"signed": planted()[3], "layers": NUMBERS, **change})
    with refused("runs-differ"):
        read_corners([*folders[:3], last])


def test_runs_that_cannot_be_read(folders, tmp_path):
    other = write_run(
        tmp_path / "a" / "bottomright", planted()[3], layers=NUMBERS, names=[f"other_{i}" for i in range(PAIRS)]
    )
    with refused("too-few-common-pairs"):
        read_corners([*folders[:3], other])
    last = write_run(tmp_path / "b" / "bottomright", planted()[3], layers=NUMBERS)
    (last / "settings.json").write_text("{")
    with refused("corner-without-settings"):
        read_corners([*folders[:3], last])
    np.save(last / "count_LHN.npy", np.zeros((5, 6, 3), np.uint8))
    with refused("results-do-not-fit"):
        read_corners([*folders[:3], last])


def test_one_scale_for_all_maps():
    maps = planted().mean(-1)
    figure = map_figure(maps, CORNERS, range(LAYERS), "response", "note", call_heads(planted()))
    limits = {image.get_clim() for axes in figure.axes for image in axes.get_images() if image.get_array().ndim == 2}
    top = np.abs(maps).max()
    assert (-top, top) in limits and len({limit for limit in limits if limit[0] < 0}) == 1
    assert len([axes for axes in figure.axes if axes.get_xlabel() == "head"]) == 5
