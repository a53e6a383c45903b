"""The pages of real runs in a real browser, over file://, with no network: what they show and what they refuse."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

import attention_rollout_llava
import gaze_generation_llava
import gaze_head_similarity_llava
from analysis.report import write_report
from data.twoshapes import generate
from tests.runs import run_samples
from tests.settings import configure
from tests.test_report import HOSTILE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
STRANGE = (*HOSTILE, "\u202eשלום עולם", "👩🏽‍🚀 emoji")
SAMPLES = 2

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of three scripts, as they leave them."""
    folder = tmp_path_factory.mktemp("runs")
    generate(folder / "data", count=SAMPLES, seed=0)
    about = {"data_root": str(folder / "data"), "limit": SAMPLES}
    rollout = configure(attention_rollout_llava,
        **about, prompt="describe the image .", through_tower=True, out_dir=str(folder / "rollout")
    )
    assert attention_rollout_llava.main(rollout) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "data")  # which holds no data/ of its own, whatever lies in the checkout's
        gaze = configure(gaze_generation_llava, limit=SAMPLES, pictures=SAMPLES, out_dir=str(folder / "gaze"))
        assert gaze_generation_llava.main(gaze) == 0
        heads = configure(gaze_head_similarity_llava, limit=4, out_dir=str(folder / "heads"))
        assert gaze_head_similarity_llava.main(heads) == 0
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def wrong():
    """What a page complains of, and what it asks of a network."""
    return []


@pytest.fixture
def visit(browser, wrong):
    """Opens a page; at the end, nothing may have gone wrong in it, and nothing may have been asked of a network."""
    contexts = []

    def visit(path, width=1400, scheme="light", height=1400):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url) else None)
        page.goto(Path(path).resolve().as_uri())
        if page.locator("#viewer").count():
            page.locator("#viewer").wait_for(state="visible")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def is_foreign(url):
    return not url.startswith(("file:", "data:", "blob:"))


def cell_centre(page, row, col, rows, cols, panel=0):
    """Where a cell of a picture that no crop cuts lies in the page."""
    box = page.locator(".frame").nth(panel).bounding_box()
    return box["x"] + (col + 0.5) / cols * box["width"], box["y"] + (row + 0.5) / rows * box["height"]


def reading(page):
    return [float(value) for value in re.findall(r": ([\d.e+-]+)\.(?: |$)", page.locator("#reading").inner_text())]


@pytest.mark.parametrize("name", ["rollout", "gaze", "heads"])
@pytest.mark.parametrize("width, scheme", [(400, "light"), (1600, "dark")])
def test_every_page_is_whole(visit, folder, name, width, scheme):
    page = visit(folder / name / "report.html", width, scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.locator("img:not([alt])").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    unnamed = "[...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    assert page.evaluate(unnamed) == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    for link in page.locator("a[href]").all():
        target = link.get_attribute("href")
        assert page.evaluate("(href) => new URL(href, document.baseURI).protocol", target) == "file:"


def test_what_it_shows_is_what_the_maps_hold(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    with np.load(folder / "rollout" / "shard0-0" / "maps.npz") as maps:
        heads, rollout, tokens = maps["heads"], maps["per_token"], maps["tokens"]
    layers, count, _, rows, cols = heads.shape
    assert page.locator("button.word").count() == len(tokens)
    generator = np.random.default_rng(0)
    for token, layer, head in ((0, 0, 0), (1, 3, 2), (2, 1, 3), (len(tokens) - 1, 2, 0), (3, layers - 1, count - 1)):
        page.locator("button.word").nth(token).click()
        page.locator(f'#matrix button[data-layer="{layer}"][data-head="{head}"]').click()
        expected = heads[layer, head, token]
        best = np.unravel_index(expected.argmax(), expected.shape)
        for row, col in (best, generator.integers((rows, cols))):
            page.mouse.move(*cell_centre(page, row, col, rows, cols))
            assert f"layer {layer}, head {head}, row {row}, column {col}" in page.locator("#reading").inner_text()
            step = float(expected.max()) / 500 + 1e-9
            assert reading(page) == pytest.approx([expected[row, col]], abs=step, rel=1e-3)
        page.mouse.move(0, 0)
        assert f"row {best[0]}, column {best[1]}" in page.locator(".frame").get_attribute("aria-label")
    for source, expected in (("mean", heads[3].mean(0)), ("rollout", rollout)):
        page.locator(f'input[value="{source}"]').check()
        page.mouse.move(*cell_centre(page, 5, 4, rows, cols))
        assert reading(page) == pytest.approx([expected[3, 5, 4]], abs=float(expected[3].max()) / 500 + 1e-9, rel=1e-3)


def test_gradient_maps_and_their_heads_are_there(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    with np.load(folder / "rollout" / "shard0-0" / "maps-gradient.npz") as maps:
        whole, heads = maps["per_token"][0], maps["heads"][2, 1, 0]
    page.locator('input[value="gradient-head"]').check()
    page.locator('#matrix button[data-layer="2"][data-head="1"]').click()
    assert page.locator('input[value="gradient-head"]').is_checked()
    for source, expected in (("gradient-head", heads), ("gradient", whole)):
        page.locator(f'input[value="{source}"]').check()
        row, col = np.unravel_index(expected.argmax(), expected.shape)
        page.mouse.move(*cell_centre(page, row, col, *expected.shape))
        assert reading(page) == pytest.approx([expected[row, col]], abs=float(expected.max()) / 500 + 1e-9, rel=1e-3)


def test_the_tower_is_there(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    with np.load(folder / "rollout" / "shard0-0" / "maps-tower.npz") as maps:
        expected = maps["per_token"][0]
    page.locator('input[value="encoder"]').check()
    page.mouse.move(*cell_centre(page, 6, 5, *expected.shape))
    assert reading(page) == pytest.approx([expected[6, 5]], abs=float(expected.max()) / 500 + 1e-9, rel=1e-3)


def test_hovering_shows_and_clicking_keeps(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    label = page.locator(".frame")
    words = page.locator("button.word")
    before = label.get_attribute("aria-label")
    words.nth(2).hover()
    assert label.get_attribute("aria-label") != before
    page.mouse.move(0, 0)
    assert label.get_attribute("aria-label") == before
    words.nth(2).click()
    page.mouse.move(0, 0)
    assert words.nth(2).get_attribute("aria-pressed") == "true" and label.get_attribute("aria-label") != before


def test_everything_by_keyboard(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    with np.load(folder / "rollout" / "shard0-0" / "maps.npz") as maps:
        expected = maps["per_token"]
    rows, cols = expected.shape[1:]
    page.locator("button.word").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.locator("button.word").nth(2).get_attribute("aria-pressed") == "true"
    page.locator(".frame").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    row, col = rows // 2 - 1, cols // 2 - 1
    assert f"row {row}, column {col}" in page.locator("#reading").inner_text()
    assert reading(page) == pytest.approx([expected[2, row, col]], abs=float(expected[2].max()) / 500, rel=1e-3)
    page.keyboard.press("Enter")
    shown = [float(word.get_attribute("data-on-cell")) for word in page.locator("button.word").all()]
    np.testing.assert_allclose(shown, expected[:, row, col], atol=expected.max() / 500)
    page.locator('#matrix button[data-layer="3"][data-head="0"]').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator('#matrix button[data-layer="2"][data-head="1"]').get_attribute("aria-pressed") == "true"


def test_with_and_without_gaze_side_by_side(visit, folder):
    page = visit(folder / "gaze" / "report.html")
    assert page.locator(".panel h3").all_inner_texts() == ["no gaze", "gaussian"]
    page.locator("#condition-b").select_option("non-gaussian")
    assert page.locator(".panel h3").all_inner_texts() == ["no gaze", "non-gaussian"]
    expected = []
    for condition in ("plain", "non-gaussian"):
        with np.load(folder / "gaze" / "shard0-0-first" / f"maps-{condition}.npz") as maps:
            expected.append(maps["per_token"][0])
    page.mouse.move(*cell_centre(page, 5, 6, *expected[0].shape))
    tolerance = float(max(map(np.max, expected))) / 500
    assert reading(page) == pytest.approx([each[5, 6] for each in expected], abs=tolerance, rel=1e-3)
    with np.load(folder / "gaze" / "shard0-0-first" / "masks.npz") as masks:
        page.locator('input[value="mask"]').check()
        page.mouse.move(*cell_centre(page, 5, 7, *expected[0].shape))
        assert reading(page) == pytest.approx([masks["non-gaussian"][5, 7]], abs=1 / 500)
    page.locator("#condition-b").select_option("")
    assert page.locator(".panel").count() == 1


def test_samples_sort_and_open(visit, folder):
    page = visit(folder / "rollout" / "report.html")
    header = page.locator("#table th", has_text="image_share")
    column = header.evaluate("(each) => each.cellIndex")
    for direction in ("ascending", "descending"):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == direction
        shares = [float(row.locator("td").nth(column).inner_text()) for row in page.locator("#table tbody tr").all()]
        assert shares == sorted(shares, reverse=direction == "descending") and len(shares) == SAMPLES
    page.get_by_role("button", name="View shard0/1").click()
    page.locator("#viewer img[alt='Image of shard0/1']").wait_for()
    with np.load(folder / "rollout" / "shard0-1" / "maps.npz") as maps:
        assert page.locator("button.word").count() == len(maps["tokens"])


def test_text_is_inert(visit, folder, tmp_path):
    """Names, prompts, words and answers that would be code in a careless page are read as they are."""
    text = (folder / "rollout" / "report.html").read_text()
    held = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    views = []
    for strange in STRANGE:
        content = copy.deepcopy(held["views"][0])
        content.update(name=strange, prompt=strange, conditions={strange: content["conditions"]["answer"]})
        condition = content["conditions"][strange]
        condition["answer"], condition["prompt"][1] = strange, strange
        condition["tokens"][0].update(text=strange, alternatives=[[strange, 0.5]])
        views.append(content)
    samples = [SimpleNamespace(name=strange) for strange in STRANGE]
    by_name = dict(zip(STRANGE, views, strict=True))
    run = run_samples(
        tmp_path / "run", samples, lambda batch: [{"answer": batch[0].name, "share": 1}], ("answer", "share"),
        unusable=[(STRANGE[0], STRANGE[0])], views=by_name,
    )  # fmt: skip
    page = visit(write_report(run.folder))
    for number, strange in enumerate(STRANGE):
        page.locator("#sample").select_option(str(number))
        page.locator(".panel h3", has_text=strange).wait_for()
        assert page.locator("#prompt").text_content() == strange
        assert strange in page.locator("button.word").first.text_content()
        assert strange in page.locator("#token").text_content() and strange in page.locator("#reading").text_content()
        assert page.locator("#table tbody tr").nth(number + 1).locator("td").nth(1).text_content() == strange
    assert page.locator('img[src="x"]').count() == 0 and page.locator("script").count() == 2


def test_an_injected_handler_would_not_run(visit, folder, wrong):
    """The page's own policy stops what escaping might one day let through."""
    page = visit(folder / "heads" / "report.html")
    button = '<button id=bad onclick="window.ran = 1">x</button>'
    page.evaluate("(button) => document.body.insertAdjacentHTML('beforeend', button)", button)
    page.locator("#bad").click()
    assert page.evaluate("window.ran") is None
    assert wrong and all("Content Security Policy" in each for each in wrong)
    wrong.clear()
