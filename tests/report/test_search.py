"""The page of a search: what it claims, that it is escaped, and that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedtune.report.search import build_page, cautions, headline, importance_caution
from tests.report.page import Page
from tests.report.test_browser import BROWSER, measured

HOSTILE = "<script>alert(1)</script>&\"'"


def trial(number: int | None, metric: float | None, lr: float, **changes: Any) -> dict[str, Any]:
    given = {
        "number": number, "state": "finished", "values": {"lr": lr, "batch-size": 16}, "seed": 0, "metric": metric,
        "dev": [0.5, metric or 0.4], "steps": 40, "best_step": 40, "seconds": 61.0, "reason": None,
    }  # fmt: skip
    return {**given, **changes}


def summary(*, best: float = 0.75, noise: float | None = 0.02) -> dict[str, Any]:
    trials = [
        trial(0, 0.7, 2e-3),
        trial(1, best, 1e-3),
        trial(2, None, 9e-3, state="pruned"),
        trial(3, None, 1e-2, state="failed", reason=HOSTILE, dev=[], steps=0),
    ]
    top = trials[1] if best > 0.7 else trials[0]
    return {
        "base_model": HOSTILE,
        "metric": "ndcg@10",
        "seed": 0,
        "task": "retrieval",
        "dev_items": 36,
        "planned": 5,
        "dials": [
            {"name": "lr", "default": 2e-3, "low": 4e-4, "high": 1e-2, "choices": ()},
            {"name": "batch-size", "default": 16, "low": 8, "high": 32, "choices": (8, 16, 32)},
        ],
        "trials": trials,
        "repeats": [] if noise is None else [trial(None, 0.7 - noise, 2e-3, seed=1)],
        "default": trials[0],
        "best": top,
        "gain": top["metric"] - 0.7,
        "noise": noise,
        "importances": {"lr": 0.9, "batch-size": 0.1},
    }


def test_a_gain_is_said_with_its_caution() -> None:
    found = summary()
    assert headline(found) == (
        "The best of 4 trials has dev NDCG@10 0.7500, 0.0500 more than the default recipe (0.7000)."
    )
    told = " ".join(cautions(found))
    assert "moved by 0.0200." in told
    assert "it may be chance" not in told
    assert "the figure is optimistic" in told
    assert "hint, no more" in importance_caution(found)


def test_a_gain_within_noise_is_called_so() -> None:
    assert "it may be chance" in " ".join(cautions(summary(best=0.71)))


def test_pairs_are_called_pairs() -> None:
    told = " ".join(cautions({**summary(), "task": "similarity"}))
    assert "selected by the 36 pairs of the dev split" in told


def test_where_nothing_is_better_nothing_is_claimed() -> None:
    found = summary(best=0.6)
    assert headline(found) == "The default recipe is the best of 4 trials: dev NDCG@10 0.7000."
    assert cautions(summary(best=0.6, noise=None)) == []


@pytest.mark.parametrize("found", [summary(), summary(best=0.6, noise=None), {**summary(), "importances": {}}])
def test_the_page_is_escaped_and_has_no_scripts(found: dict[str, Any]) -> None:
    html = build_page(found, Path("a b"))
    page = Page(html)
    assert "script" not in page.tags
    assert HOSTILE not in html
    assert page.says("alert(1)")
    assert page.says("embedtune train --config 'a b/best.toml' --out ANOTHER_FOLDER")
    assert not any(name in ("src", "onload", "onclick") for name, _ in page.attributes)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_nothing_sticks_out_at_any_width(tmp_path: Path) -> None:
    for entry in measured(build_page(summary(), Path("run")), tmp_path):
        assert entry.get("needed", 0) <= entry.get("width", 0)
        assert entry.get("requests", []) == []
        assert entry.get("cut", []) == []
