"""The page in a real browser: nothing sticks out on a phone, a tablet or a desk, and nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from embedtune.report.html import build_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (360, 768, 1280)

MEASURE = """
<pre id="found"></pre>
<script>
const found = [];
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    for (const open of [false, true]) {
      page.querySelectorAll("details").forEach(details => { details.open = open; });
      found.push({width: root.clientWidth, needed: root.scrollWidth, open});
    }
    const cut = [...page.querySelectorAll("svg text")].filter(text => {
      const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
      return own.left < all.left - 2 || own.right > all.right + 2;
    });
    const requests = frame.contentWindow.performance.getEntriesByType("resource");
    found.push({cut: cut.map(text => text.textContent), requests: requests.map(request => request.name)});
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("results", ["full_results", "hostile_results", "eval_results"])
def test_nothing_sticks_out_at_any_width(results: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = measured(build_html(request.getfixturevalue(results), Path("run")), tmp_path)
    sizes = [entry for entry in found if "width" in entry]
    assert {entry["width"] for entry in sizes} == set(WIDTHS)
    assert [entry for entry in sizes if entry["needed"] > entry["width"]] == []
    for entry in found:
        assert entry.get("requests", []) == []
        assert entry.get("cut", []) == []


def measured(html: str, folder: Path) -> list[dict[str, Any]]:
    """What the browser says of the page in a frame of each width."""
    assert BROWSER is not None
    frames = [
        f'<iframe srcdoc="{escape(html)}" style="width:{width}px;height:900px;border:0"></iframe>' for width in WIDTHS
    ]
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8>{''.join(frames)}{MEASURE}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'user'}"]
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=3000", "--dump-dom", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    text = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[0]
    found: list[dict[str, Any]] = json.loads(unescape(text))
    return found
