"""No question and no passage crosses a split, whatever the rows share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Pairs
from embedtune.data.read import read
from embedtune.data.split import Leaks, connected_groups, drop_leaks, split_by_passage, write_pairs
from embedtune.data.table import Row, Table
from embedtune.errors import ConfigError, DataError, OutputError


def pairs_of(links: list[tuple[int, int]]) -> Pairs:
    return Pairs(
        query_ids=np.array([query for query, _ in links], dtype=np.int64),
        passage_ids=np.array([passage for _, passage in links], dtype=np.int64),
        negative_ids=((),) * len(links),
        row_ids=tuple(f"r{row}" for row in range(len(links))),
    )


def rows_of(pairs: Pairs) -> list[int]:
    return [int(row_id[1:]) for row_id in pairs.row_ids]


def test_groups_are_linked_over_third_rows() -> None:
    groups = connected_groups(pairs_of([(0, 0), (1, 5), (1, 0), (2, 7), (9, 5), (3, 8)]))
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert len({groups[0], groups[3], groups[5]}) == 3
    assert connected_groups(pairs_of([])).shape == (0,)


def test_a_question_and_a_passage_of_the_same_number_are_not_linked() -> None:
    groups = connected_groups(pairs_of([(0, 1), (1, 2), (2, 0)]))
    assert len(set(groups.tolist())) == 3


@given(
    links=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=80, unique=True),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_split_keeps_all_rows_and_shares_nothing(links: list[tuple[int, int]], fraction: float, seed: int) -> None:
    pairs = pairs_of(links)
    try:
        rest, held_out = split_by_passage(pairs, fraction=fraction, seed=seed)
    except DataError:
        assume(False)
    assert sorted(rows_of(rest) + rows_of(held_out)) == list(range(len(pairs)))
    assert rows_of(rest) == sorted(rows_of(rest))
    assert rows_of(held_out) == sorted(rows_of(held_out))
    assert len(rest) > 0
    assert len(held_out) > 0
    assert not set(rest.query_ids.tolist()) & set(held_out.query_ids.tolist())
    assert not set(rest.passage_ids.tolist()) & set(held_out.passage_ids.tolist())
    assert drop_leaks(rest, held_out)[1] == Leaks()
    again = split_by_passage(pairs, fraction=fraction, seed=seed)
    assert (again[0].row_ids, again[1].row_ids) == (rest.row_ids, held_out.row_ids)


def test_size_and_seed() -> None:
    pairs = pairs_of([(row, row // 3) for row in range(900)])
    rest, held_out = split_by_passage(pairs, fraction=0.1, seed=0)
    assert 90 <= len(held_out) <= 92
    assert len(rest) == 900 - len(held_out)
    assert split_by_passage(pairs, fraction=0.1, seed=1)[1].row_ids != held_out.row_ids


def test_a_large_group_stays_with_the_rest() -> None:
    pairs = pairs_of([(row, 0) for row in range(60)] + [(100 + row, 1 + row) for row in range(40)])
    for seed in range(10):
        rest, held_out = split_by_passage(pairs, fraction=0.1, seed=seed)
        assert len(held_out) == 10
        assert 0 in rest.passage_ids


def test_few_rows_are_split_even_if_every_group_overshoots() -> None:
    pairs = pairs_of([(row, row // 2) for row in range(8)])
    rest, held_out = split_by_passage(pairs, fraction=0.1, seed=0)
    assert (len(rest), len(held_out)) == (6, 2)


@pytest.mark.parametrize("links", [[(0, row) for row in range(20)], [(0, 0)], []])
def test_rows_that_hang_together_cannot_be_split(links: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match=r"hang together through shared questions or passages.*--test FILE"):
        split_by_passage(pairs_of(links), fraction=0.1, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 10.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=f"Received {fraction}"):
        split_by_passage(pairs_of([(0, 0), (1, 1)]), fraction=fraction, seed=0)


def test_leaks_are_dropped_over_all_held_out_rows() -> None:
    train = pairs_of([(0, 0), (1, 1), (2, 2), (3, 3)])
    test, dev = pairs_of([(9, 0), (1, 8)]), pairs_of([(2, 7)])
    kept, leaks = drop_leaks(train, test, dev)
    assert rows_of(kept) == [3]
    assert leaks == Leaks(pairs=3, test_passages=1, test_queries=1)
    assert drop_leaks(train)[1] == Leaks()


def test_near_duplicates_are_leaks_of_their_own_kind() -> None:
    train, test = pairs_of([(0, 0), (1, 1), (2, 2), (3, 3)]), pairs_of([(9, 8), (1, 7)])
    leaders_D = np.arange(9)
    leaders_D[8] = 0  # a near-duplicate of what row 0 is trained on; row 1's question is tested
    kept, leaks = drop_leaks(train, test, leaders_D=leaders_D)
    assert rows_of(kept) == [2, 3]
    assert leaks == Leaks(pairs=1, near_duplicates=1, test_queries=1)


def test_a_passage_that_answers_a_test_question_is_held_out_whichever_row_it_comes_from() -> None:
    train, test = pairs_of([(0, 5), (1, 5), (2, 6)]), pairs_of([(0, 4)])
    kept, leaks = drop_leaks(train, test, qrels={0: {4: 1.0, 5: 1.0}, 1: {5: 1.0}, 2: {6: 1.0}})
    assert rows_of(kept) == [2]
    assert leaks.pairs == 2


def test_near_duplicates_stay_on_one_side() -> None:
    pairs = pairs_of([(row, row) for row in range(40)])
    leaders_D = np.arange(40) // 2 * 2
    groups = connected_groups(pairs, leaders_D)
    assert groups.tolist() == (np.arange(40) // 2).tolist()
    rest, held_out = split_by_passage(pairs, fraction=0.2, seed=0, leaders_D=leaders_D)
    assert not set(leaders_D[rest.passage_ids]) & set(leaders_D[held_out.passage_ids])


def test_hard_negatives_may_be_test_passages() -> None:
    train = Pairs(query_ids=np.array([0]), passage_ids=np.array([0]), negative_ids=((5,),), row_ids=("r0",))
    assert drop_leaks(train, pairs_of([(1, 5)]))[1] == Leaks()


def test_written_pairs_are_read_back(tmp_path: Path) -> None:
    rows = [
        Row("What\u2028is «it»? 🔎", 'p "one"\n', negatives=("n1", "n\\2"), id="x"),
        Row("q2", "p2"),
    ]
    builder = CollectionBuilder()
    clean = builder.add(Table(rows=rows, source="a.jsonl"))
    path = tmp_path / "train.jsonl"
    path.write_text("old")
    write_pairs(path, clean.pairs, builder.finish())
    assert "«it»? 🔎" in path.read_text(encoding="utf-8")
    assert [(row.id, row.anchor, row.positive, row.negatives) for row in read(str(path)).rows] == [
        ("x", "What\u2028is «it»? 🔎", 'p "one"', ("n1", "n\\2")),
        ("a-000002", "q2", "p2", ()),
    ]
    assert json.loads(path.read_bytes().split(b"\n")[0]).keys() == {
        "id", "anchor", "positive", "negative_1", "negative_2",
    }  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.jsonl"]


def test_pairs_that_cannot_be_written(tmp_path: Path) -> None:
    builder = CollectionBuilder()
    clean = builder.add(Table(rows=[Row("q", "p")], source="a.jsonl"))
    with pytest.raises(OutputError, match="can't be written"):
        write_pairs(tmp_path / "missing" / "train.jsonl", clean.pairs, builder.finish())


def test_packed_pairs_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    builder = CollectionBuilder()
    clean = builder.add(Table(rows=[Row("«q»", "p", ("n",), id="x")], source="a.jsonl"))
    written = []
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_pairs(tmp_path / name, clean.pairs, builder.finish())
        written.append((tmp_path / name).read_bytes())
        assert [(row.id, row.anchor, row.negatives) for row in read(str(tmp_path / name)).rows] == [
            ("x", "«q»", ("n",))
        ]
    assert written[0] == written[1]
