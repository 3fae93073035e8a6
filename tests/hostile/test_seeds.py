"""What fuzzing found once stays fixed: a file in `seeds/` is one input, of the target that its name begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.starts import starts
from tests.hostile.targets import TARGETS, check

SEEDS = sorted(Path(__file__).with_name("seeds").iterdir())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.stem)
def test_a_finding_stays_fixed(seed: Path, tmp_path: Path) -> None:
    assert check(TARGETS[seed.name.split("-")[0]], seed.read_bytes(), tmp_path / "input") is not None


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_starts_from_inputs_that_are_right(name: str, tmp_path: Path) -> None:
    assert check(TARGETS[name], starts()[name], tmp_path / "input") is None
