"""From files to train, dev and test pairs that share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedtune.config import DataConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.data.prepare import Splits, prepare, write_splits
from embedtune.data.read import read
from embedtune.data.split import Leaks
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
    assert splits.dropped == {"duplicate_pairs": 0, "leaked_pairs": 0, "near_duplicate_pairs": 0}
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
    # Gone: question 0, both of passage 5, question 30; questions 1 and 31, whose passages answer 0 and 30; and
    # both of passage 4, which is nearly "Passage  4".
    assert (splits.dropped["leaked_pairs"], splits.dropped["near_duplicate_pairs"]) == (6, 2)
    gone = {f"question {row}" for row in (0, 1, 8, 9, 10, 11, 30, 31)}
    assert texts(splits.train, splits.collection) == [link for link in links_of(100) if link[0] not in gone]
    assert splits.warnings == (
        "1 of the 3 test passages and 1 of the 3 test questions are also in the training data; left out of training: "
        "6 pairs with held-out questions or passages, 2 with near-duplicates of held-out passages",
    )


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
    assert splits.dropped == {"duplicate_pairs": 2, "leaked_pairs": 0, "near_duplicate_pairs": 0, "empty_anchor": 1}


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


def story(number: int) -> list[str]:
    return [f"word{word}" for word in np.random.default_rng(number).integers(0, 5_000, 60)]


def chunks_of(count: int) -> list[Link]:
    """Two questions to a story, each about a chunk of it that overlaps with the other's."""
    parts = [" ".join(story(row // 2)[10 * (row % 2) :][:50]) for row in range(count)]
    return [(f"question {row}", part) for row, part in enumerate(parts)]


def test_overlapping_chunks_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", chunks_of(200))
    splits = prepare(DataConfig(train=source), seed=0)
    sides = [{int(query.split()[1]) // 2 for query, _ in texts(part, splits.collection)} for part in parts_of(splits)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100
    assert splits.near_duplicates is not None
    assert (splits.near_duplicates.passages, splits.near_duplicates.groups) == (200, 100)
    assert any("near-duplicates: 200 of 200 passages, in 100 groups" in note for note in splits.notes)
    assert len(splits.collection.passages) == 200

    apart = prepare(DataConfig(train=source, near_duplicates=0), seed=0)
    crossing = [{int(query.split()[1]) // 2 for query, _ in texts(part, apart.collection)} for part in parts_of(apart)]
    assert crossing[0] & crossing[2]
    assert apart.near_duplicates is None


def parts_of(splits: Splits) -> tuple[Pairs, Pairs, Pairs]:
    return splits.train, splits.dev, splits.test


def test_training_passages_that_overlap_with_test_passages_are_left_out(tmp_path: Path) -> None:
    links = chunks_of(200)
    train, test = links[:60] + links[60::2], links[61:101:2]
    config = DataConfig(train=write(tmp_path / "train.jsonl", train), test=write(tmp_path / "test.jsonl", test))
    splits = prepare(config, seed=0)
    assert len(splits.train) + len(splits.dev) == len(train) - 20
    assert (splits.dropped["leaked_pairs"], splits.dropped["near_duplicate_pairs"]) == (0, 20)
    assert splits.leaks == Leaks(near_duplicates=20)
    assert splits.warnings == (
        "left out of training: 0 pairs with held-out questions or passages, 20 with near-duplicates of held-out "
        "passages",
    )
    assert texts(splits.test, splits.collection) == test
    query = splits.collection.queries.index("question 61")
    assert len(splits.collection.qrels[query]) == 1


def test_passages_that_all_hang_together_are_split_with_a_warning(tmp_path: Path) -> None:
    template = story(0)
    source = write(tmp_path / "pairs.jsonl", [(f"q{row}", " ".join([*template, str(row)])) for row in range(60)])
    splits = prepare(DataConfig(train=source), seed=0)
    assert len(splits.test) == 6
    assert "most passages hang together through near-duplicates" in splits.warnings[0]


def test_labels_are_heeded_and_leave_the_split_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", links_of(100))
    before = prepare(DataConfig(train=source), seed=0)
    test, train = (texts(pairs, before.collection) for pairs in (before.test, before.train))
    (query, positive), (second, its_positive) = test[0], next(link for link in test if link[1] != test[0][1])
    one, other = train[0][1], train[-1][1]
    labels = tmp_path / "suspects.jsonl"
    also = {"query": query, "positive": positive, "candidate": one, "label": "also"}
    instead = {"query": second, "positive": its_positive, "candidate": other, "label": "instead"}
    labels.write_text(f"{json.dumps(also)}\n{json.dumps(instead)}\n")
    splits = prepare(DataConfig(train=source, labels=str(labels)), seed=0)
    collection = splits.collection
    assert splits.test.row_ids == before.test.row_ids
    answers = {
        text: {collection.passages[passage] for passage in collection.qrels[collection.queries.index(text)]}
        for text in (query, second)
    }
    assert answers == {query: {positive, one}, second: {other}}
    assert (second, other) in texts(splits.test, collection)
    # What now answers a test question is no longer trained on.
    assert not {one, other} & {passage for _, passage in texts(splits.train, collection)}
    left_out = len(before.train) + len(before.dev) - len(splits.train) - len(splits.dev)
    assert splits.dropped["leaked_pairs"] == left_out > 0


def test_without_a_cut_only_given_files_are_held_out(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", links_of(40))
    whole = prepare(DataConfig(train=train), seed=0, cut=False)
    assert [len(pairs) for pairs in whole.pairs.values()] == [40, 0, 0]
    test = write(tmp_path / "test.jsonl", links_of(10))
    rest = prepare(DataConfig(train=train, test=test), seed=0, cut=False)
    assert [len(pairs) for pairs in rest.pairs.values()] == [30, 0, 10]
    assert_nothing_shared(rest)


def test_a_corpus_that_joins_titles_otherwise_adds_no_second_answers(tmp_path: Path) -> None:
    """As SciFact's: its pairs have ". " between title and text, its corpus a space."""
    titled = [(f"question {n}", f"Title {n}. Text {n}, on berths") for n in range(200)]
    source, corpus = write(tmp_path / "pairs.jsonl", titled), tmp_path / "corpus.jsonl"
    beir = [{"_id": str(n), "title": f"Title {n}", "text": f"Text {n}, on berths"} for n in range(250)]
    corpus.write_text("".join(json.dumps(document) + "\n" for document in beir))
    splits = prepare(DataConfig(train=source, corpus=str(corpus), near_duplicates=0), seed=0)
    assert len(splits.collection.passages) == 250
    told = "passages: 200 came in several punctuations, each of which counts as one passage; the first: "
    assert f"{told}'Title 0 Text 0, on berths' and 'Title 0. Text 0, on berths'" in splits.notes
    without = prepare(DataConfig(train=source, near_duplicates=0), seed=0)
    assert not any("punctuations" in note for note in without.notes)
