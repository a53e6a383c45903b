"""Screenshot of the viewer of a run's report page.

    python -m docs.page_picture RUN/report.html OUT.png
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from models.doctor import BROWSERS


def main(page: Path, out: Path) -> None:
    with sync_playwright() as playwright:
        installed = filter(None, map(shutil.which, BROWSERS))
        browser = playwright.chromium.launch(executable_path=next(installed, None), args=["--no-sandbox"])
        size = {"width": 1200, "height": 900}
        # The page forbids styles that are not its own, and this adds a margin.
        tab = browser.new_context(viewport=size, device_scale_factor=1.5, bypass_csp=True).new_page()
        tab.goto(page.resolve().as_uri())
        tab.locator("#viewer").wait_for(state="visible")
        tab.locator("#sample").select_option("shard0/1 second")
        tab.locator("img[alt='Image of shard0/1 second']").first.wait_for()
        tab.locator("#way-b").select_option("non-gaussian")
        tab.locator("#colours").select_option("turbo")
        tab.locator('#matrix button[data-layer="2"]:not([data-head])').click()
        tab.add_style_tag(content="#view { padding: 16px; }")
        tab.mouse.move(0, 0)
        tab.locator("#view").screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
