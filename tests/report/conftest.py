"""Results with everything that they may hold.

`full_results.json` is the demo's run: base, tuned, BM25, hybrid, the curves, the breakdown, the questions, the sizes
and the blend are as measured. Made up are the further model's name, the second general task and the counts of leaks,
near-duplicates and dropped rows.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

LONG_WORD = "supercalifragilistic" * 500
MARKUP = "</title><script>alert('x')</script><img src=http://evil.example/a.png>\"'&"
TURNED = "\N{RIGHT-TO-LEFT OVERRIDE}מימין לשמאל \N{LEFT-TO-RIGHT OVERRIDE} 👩‍👩‍👧‍👦🚢 "


@pytest.fixture
def full_results() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(Path(__file__).with_name("full_results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture
def eval_results(full_results: dict[str, Any]) -> dict[str, Any]:
    """As of `embedtune eval --against`."""
    kept = ("schema", "embedtune", "seed", "environment", "bm25", "hybrid", "delta", "delta_to", "further", "test")
    renamed = json.dumps({key: full_results[key] for key in ("recall_curve", "breakdown", "queries")})
    return {
        **{key: full_results[key] for key in kept},
        **json.loads(renamed.replace('"base"', '"against"').replace('"tuned"', '"model"')),
        "base_model": "/home/somebody/run/model",
        "against_model": "some/encoder",
        "model": full_results["tuned"],
        "against": full_results["base"],
        "data": {"test_queries": 168, "corpus_passages": 168, "dropped": {"duplicate_pairs": 0}},
    }


@pytest.fixture
def hostile_results(full_results: dict[str, Any]) -> dict[str, Any]:
    """Texts and names that would break a careless page."""
    results = copy.deepcopy(full_results)
    case = results["queries"]["regressions"][0]
    results["queries"]["regressions"] = [
        {"query": LONG_WORD, "positive": MARKUP, "rank": {"base": 1, "tuned": None}, "above": []},
        {**case, "query": TURNED + MARKUP, "above": [{"text": LONG_WORD, "score": 0.5}]},
        *[{**case, "query": f"{MARKUP} {number}", "positive": TURNED * 100} for number in range(18)],
    ]
    results["suspects"]["examples"][0].update(query=LONG_WORD, candidate=MARKUP, positive=TURNED)
    for name in (LONG_WORD, MARKUP, TURNED):
        results["further"].append({**results["further"][0], "model": name})
    results["base_model"] = LONG_WORD
    results["environment"]["device_name"] = MARKUP
    results["data"]["dropped"][LONG_WORD] = 3
    results["forgetting"]["sets"][1]["name"] = LONG_WORD
    results["breakdown"][0]["bins"][0]["label"] = LONG_WORD
    return results
