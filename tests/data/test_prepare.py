"""From files to train, dev and test pairs that share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedtune.config import DataConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.data.prepare import Splits, prepare, write_splits
from embedtune.data.read import read
from embedtune.errors import ConfigError, DataError

Link = tuple[str, str]


def write(path: Path, links: list[Link], **more: object) -> str:
    rows = [{"anchor": anchor, "positive": positive, **more} for anchor, positive in links]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def links_of(count: int, *, start: int = 0, share: int = 2) -> list[Link]:
    """`share` questions to a passage."""
    return [(f"question {row}", f"passage {row // share}") for row in range(start, start + count)]


def texts(pairs: Pairs, collection: Collection) -> list[Link]:
    return [
        (collection.queries[query], collection.passages[passage])
        for query, passage in zip(pairs.query_ids, pairs.passage_ids, strict=True)
    ]


def assert_nothing_shared(splits: Splits) -> None:
    parts = (splits.train, splits.dev, splits.test)
    for first, one in enumerate(parts):
        for other in parts[first + 1 :]:
            assert not set(one.query_ids.tolist()) & set(other.query_ids.tolist())
            assert not set(one.passage_ids.tolist()) & set(other.passage_ids.tolist())


def test_one_file_is_split_by_passage(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", links_of(400))
    splits = prepare(DataConfig(train=source), seed=0)
    assert_nothing_shared(splits)
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 400
    assert 40 <= len(splits.test) <= 42
    assert 36 <= len(splits.dev) <= 38
    assert splits.dropped == {"duplicate_pairs": 0, "leaked_pairs": 0}
    assert f"train: 400 pairs from {source} (questions: 'anchor', passages: 'positive')" in splits.notes
    assert f"test: {len(splits.test)} pairs cut off by passage (seed 0)" in splits.notes
    again, other = prepare(DataConfig(train=source), seed=0), prepare(DataConfig(train=source), seed=1)
    assert again.test.row_ids == splits.test.row_ids
    assert other.test.row_ids != splits.test.row_ids


def test_given_files_are_used_whole(tmp_path: Path) -> None:
    test, dev = links_of(30, start=1000), links_of(20, start=2000)
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", links_of(100)),
        test=write(tmp_path / "test.jsonl", test),
        dev=write(tmp_path / "dev.jsonl", dev),
    )
    splits = prepare(config, seed=0)
    assert texts(splits.train, splits.collection) == links_of(100)
    assert texts(splits.test, splits.collection) == test
    assert texts(splits.dev, splits.collection) == dev


def test_leaks_are_dropped_from_training_and_counted(tmp_path: Path) -> None:
    test = [("question 0", "another passage"), ("another question", "Passage  4"), ("new", "passage 5")]
    dev = [("question 30", "a dev passage")]
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", links_of(100)),
        test=write(tmp_path / "test.jsonl", test),
        dev=write(tmp_path / "dev.jsonl", dev),
    )
    splits = prepare(config, seed=0)
    assert_nothing_shared(splits)
    assert texts(splits.test, splits.collection) == test
    # Gone: question 0, both questions of passage 5, question 30; "Passage  4" is not "passage 4".
    assert splits.dropped["leaked_pairs"] == 4
    kept = texts(splits.train, splits.collection)
    assert kept == [link for link in links_of(100) if link[0] not in {f"question {row}" for row in (0, 10, 11, 30)}]


def test_a_dev_split_cut_off_does_not_leak_into_a_given_test_file(tmp_path: Path) -> None:
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", links_of(200)),
        test=write(tmp_path / "test.jsonl", [(f"test {row}", f"passage {row}") for row in range(0, 100, 5)]),
    )
    splits = prepare(config, seed=0)
    assert_nothing_shared(splits)
    assert splits.dropped["leaked_pairs"] == 40
    assert len(splits.train) + len(splits.dev) == 160


def test_the_dev_split_takes_a_limited_number_from_training(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", links_of(600, share=1))
    assert len(prepare(DataConfig(train=source, max_dev_pairs=20), seed=0).dev) == 20
    assert len(prepare(DataConfig(train=source), seed=0).dev) == 54


def test_a_dev_file_given_alone_is_not_limited(tmp_path: Path) -> None:
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", links_of(100)),
        dev=write(tmp_path / "dev.jsonl", links_of(50, start=1000)),
        max_dev_pairs=5,
    )
    splits = prepare(config, seed=0)
    assert len(splits.dev) == 50
    assert 10 <= len(splits.test) <= 12


def beir(folder: Path, splits: dict[str, list[int]]) -> str:
    """Row n: query n is answered by passage n // 2; twenty further passages answer nothing."""
    rows = sorted({row for split in splits.values() for row in split})
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "text": f"passage {n}"} for n in range(max(rows) // 2 + 21)]
    queries = [{"_id": f"q{n}", "text": f"question {n}"} for n in rows]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, split in splits.items():
        lines_of_split = "".join(f"q{n}\td{n // 2}\t1\n" for n in split)
        (folder / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines_of_split)
    return str(folder)


def test_a_beir_folder_brings_its_own_splits(tmp_path: Path) -> None:
    ranges = {"train": list(range(60)), "dev": list(range(60, 70)), "test": list(range(70, 90))}
    splits = prepare(DataConfig(train=beir(tmp_path / "beir", ranges)), seed=0)
    for name, rows in ranges.items():
        pairs: Pairs = getattr(splits, name)
        assert texts(pairs, splits.collection) == [(f"question {n}", f"passage {n // 2}") for n in rows]
    assert len(splits.collection.passages) == 44 + 21


def test_a_beir_folder_without_dev_gets_one_cut_from_training(tmp_path: Path) -> None:
    ranges = {"train": list(range(100)), "test": list(range(99, 120))}
    splits = prepare(DataConfig(train=beir(tmp_path / "beir", ranges)), seed=0)
    assert_nothing_shared(splits)
    assert len(splits.test) == 21
    assert splits.dropped["leaked_pairs"] == 2
    assert len(splits.dev) >= 9
    assert len(splits.train) + len(splits.dev) == 98


def test_a_given_test_file_replaces_the_folders_own(tmp_path: Path) -> None:
    source = beir(tmp_path / "beir", {"train": list(range(60)), "test": list(range(60, 80))})
    test = links_of(10, start=5000)
    splits = prepare(DataConfig(train=source, test=write(tmp_path / "t.jsonl", test)), seed=0)
    assert texts(splits.test, splits.collection) == test


def test_further_passages_are_searched_in(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a further passage"}\n{"text": "passage 0"}\n{"text": " "}\n')
    source = write(tmp_path / "pairs.jsonl", links_of(60))
    splits = prepare(DataConfig(train=source, corpus=str(corpus)), seed=0)
    assert splits.collection.passages[30:] == ["a further passage"]
    assert splits.dropped["empty_passages"] == 1


def test_what_is_dropped_is_counted_over_all_files(tmp_path: Path) -> None:
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", [*links_of(60), ("question 0", "passage 0"), ("", "passage 1")]),
        test=write(tmp_path / "test.jsonl", [*links_of(10, start=1000), ("question 1000", "passage 500")]),
    )
    splits = prepare(config, seed=0)
    assert splits.dropped == {"duplicate_pairs": 2, "leaked_pairs": 0, "empty_anchor": 1}


def test_a_question_is_answered_by_its_passages_in_all_files(tmp_path: Path) -> None:
    config = DataConfig(
        train=write(tmp_path / "train.jsonl", [*links_of(60), ("question 1000", "a training passage")]),
        test=write(tmp_path / "test.jsonl", links_of(10, start=1000)),
    )
    splits = prepare(config, seed=0)
    query = splits.collection.queries.index("question 1000")
    answers = {splits.collection.passages[passage] for passage in splits.collection.qrels[query]}
    assert answers == {"passage 500", "a training passage"}
    assert splits.dropped["leaked_pairs"] == 1


def test_training_data_that_is_all_leaked(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", links_of(60))
    with pytest.raises(DataError, match="no rows are left to train on"):
        prepare(DataConfig(train=source, test=source), seed=0)


def test_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match="no training data was given"):
        prepare(DataConfig(), seed=0)


def test_saved_splits_are_the_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", links_of(100), negative="a wrong passage")
    splits = prepare(DataConfig(train=source), seed=0)
    write_splits(splits, tmp_path / "out" / "splits")
    given = {name: str(tmp_path / "out" / "splits" / f"{name}.jsonl") for name in ("train", "dev", "test")}
    again = prepare(DataConfig(train=given["train"], dev=given["dev"], test=given["test"]), seed=9)
    for name in given:
        before, after = getattr(splits, name), getattr(again, name)
        assert after.row_ids == before.row_ids
        assert texts(after, again.collection) == texts(before, splits.collection)
    assert read(given["train"]).rows[0].negatives == ("a wrong passage",)
