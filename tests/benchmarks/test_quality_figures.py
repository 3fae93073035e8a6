"""Means, intervals and pairs; what a description says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.description import ablated, read_description
from benchmarks.quality.statistics import mean_of, over_data, paired
from benchmarks.quality.summary import OWN_QUESTIONS, SAME_QUESTIONS, Measured, compare, remarks, summarize
from embedtune.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "quality.toml"
    path.write_text(text, encoding="utf-8")
    return path


def measured(value: float, *, test: str = "same") -> Measured:
    return Measured(
        value=value,
        base=0.5,
        bm25=None,
        between_questions=None,
        forgetting={},
        train_seconds=1.0,
        peak_memory_bytes=1,
        test=test,
        device="a chip",
    )


def test_intervals_are_students() -> None:
    found = mean_of([0.1, 0.2, 0.3, 0.4])
    assert found is not None
    assert found.n == 4
    assert found.mean == pytest.approx(0.25)
    assert found.half_width == pytest.approx(3.182446 * 0.1290994 / 2, rel=1e-5)
    single = mean_of([0.1])
    assert single is not None
    assert single.half_width is None
    assert mean_of([]) is None
    assert paired({0: 1.0, 1: 2.0}, {1: 0.5, 2: 9.0}) == {1: 1.5}
    assert over_data([{0: 1.0, 1: 2.0}, {1: 4.0}]) == {1: 3.0}


def test_pairing_takes_the_spread_of_seeds_away() -> None:
    cells = {
        "first": {0: measured(0.6), 1: measured(0.7), 2: measured(0.8)},
        "other": {0: measured(0.61), 1: measured(0.712), 2: measured(0.811)},
        "absent": {},
    }
    first, other = summarize(cells, "first")
    assert first.difference is None
    assert other.difference is not None
    assert other.difference.half_width is not None
    assert other.value.half_width is not None
    assert other.difference.half_width < 0.003 < 0.2 < other.value.half_width
    (lost,) = [row for row in compare({"data": cells}, "first", lost=True) if row.by_data]
    assert lost.by_data["data"].mean == pytest.approx(-0.011)
    assert remarks(cells, "first") == [SAME_QUESTIONS]
    assert remarks({"first": {0: measured(0.6)}}, "first") == []
    own = {seed: measured(0.6, test=f"of {seed}") for seed in (0, 1)}
    assert remarks({"first": own, "other": own}, "first") == [OWN_QUESTIONS]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data.a]\ntrain = 'x'", r"there is no \[variant.NAME\]"),
        ("[data.a]\n[variant.b]", r"\[data.a\]: there is no 'train'"),
        ("[data.a]\ntrain = 'x'\ntset = 'y'\n[variant.b]", "unknown key 'tset'; the keys are train, test"),
        ("[data.a]\ntrain = 'x'\n[variant.b]\noptions = '--lr 1'", "a list of texts"),
        ("[data.a]\ntrain = 'x'\n[variant.'../b']", "the name is '../b', expected letters"),
        ("seeds = [0.5]\n[data.a]\ntrain = 'x'\n[variant.b]", r"seeds is \[0.5\], expected a list"),
        ("[data.a]\ntrain = 'x'\n[variant.b]\npeer = 'spacy'", "peer is 'spacy', expected one of sentence-transf"),
        ("[data.a]\ntrain = 'x'\n[variant.b]\npeer = 'sentence-transformers'", "every variant is a peer's"),
        (
            "[data.a]\ntrain = 'x'\n[variant.b]\n[variant.c]\npeer = 'sentence-transformers'\nlike = 'd'",
            "like is 'd', expected one of b",
        ),
        (
            "[data.a]\ntrain = 'x'\n[variant.b]\n[ablation]\nfull = 'c'\nparts = {d = []}",
            "full is 'c', expected one of b",
        ),
        ("[data", "not a readable TOML file"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_description(written(tmp_path, text))


def test_an_ablation_needs_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no \[ablation\]"):
        ablated(read_description(written(tmp_path, "[data.a]\ntrain = 'x'\n[variant.b]")))
