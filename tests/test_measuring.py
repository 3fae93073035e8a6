"""Which passages the dev questions are asked of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from embedtune.config import DataConfig
from embedtune.data.prepare import prepare
from embedtune.measuring import dev_task


def written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_dev_questions_are_asked_of_the_corpus_too_and_never_of_what_answers_the_test(tmp_path: Path) -> None:
    pairs = [{"question": f"question {n}", "passage": f"passage {n}"} for n in range(100)]
    further = [{"passage": f"further {n}"} for n in range(300)]
    corpus = written(tmp_path / "corpus.jsonl", [*further, {"passage": "passage 0"}])
    data = DataConfig(train=written(tmp_path / "pairs.jsonl", pairs), corpus=corpus, near_duplicates=0)
    splits = prepare(data, seed=0)
    train, dev, test = (np.unique(pairs.passage_ids) for pairs in (splits.train, splits.dev, splits.test))
    assert min(map(len, (train, dev, test))) > 0

    task = dev_task(splits, size=10_000, seed=0)
    assert set(task.passage_ids) == set(range(400)) - set(test.tolist())

    some = dev_task(splits, size=200, seed=0)
    assert len(some.passage_ids) == 200
    assert set(dev.tolist()) <= set(some.passage_ids.tolist())
    assert np.isin(some.passage_ids, train).sum() < 80 < 200 - len(dev)  # the corpus has its share
    assert np.array_equal(some.passage_ids, dev_task(splits, size=200, seed=0).passage_ids)
    assert not np.array_equal(some.passage_ids, dev_task(splits, size=200, seed=1).passage_ids)
    assert len(dev_task(splits, size=1, seed=0).passage_ids) == len(dev)
