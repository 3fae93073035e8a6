"""Hard negatives against a plain reference that scores everything, and what must never be one."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from embedtune.config import MiningConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.data.near import NearDuplicates
from embedtune.data.prepare import Splits
from embedtune.data.spelling import text_key
from embedtune.mining import candidates, mine, scores
from embedtune.mining.filters import REASONS
from embedtune.mining.mine import Mined
from embedtune.mining.pool import Pool, training_pool
from embedtune.models.judge import load_judge
from embedtune.progress import SilentReporter
from embedtune.retrieval.bm25 import bm25_search
from embedtune.retrieval.topk import search

WORDS = ["bador", "kefin", "ligal", "mohem", "nujin", "rakor", "sholat"]


@dataclass(frozen=True)
class Case:
    """Training rows with all that may happen to them, and embeddings."""

    splits: Splits
    pool: Pool
    queries_QE: Tensor
    passages_DE: Tensor

    def mine(self, config: MiningConfig, **options: Any) -> Mined:
        given = {"seed": 0, "reporter": SilentReporter(), **options}
        return mine.mine(self.splits, self.pool, self.queries_QE, self.passages_DE, config, **given)


def case(seed: int, *, queries: int = 14, passages: int = 40) -> Case:
    """Embeddings of few different numbers, so that scores tie; some scores are below 0."""
    draw, generator = random.Random(seed), np.random.default_rng(seed)
    texts = [f"{' '.join(draw.choices(WORDS, k=3))} {number}" for number in range(passages)]
    asked = [f"{' '.join(draw.choices(WORDS, k=2))} q{number}" for number in range(queries)]
    asked[0], asked[1] = texts[3], "nothing known"
    links = [(query, draw.randrange(passages - 8)) for query in range(queries) for _ in range(draw.choice((1, 1, 3)))]
    links = [link for link in dict.fromkeys(links) if link != (0, 3)]
    qrels: dict[int, dict[int, float]] = {query: {} for query in range(queries)}
    for query, passage in links:
        qrels[query][passage] = 1.0
    held_out = {queries - 1}
    qrels[queries - 1].update(dict.fromkeys(range(passages - 5, passages), 1.0))  # answers that no test row names
    train = [link for link in links if link[0] not in held_out and link[1] not in qrels[queries - 1]]
    test = [link for link in links if link[0] in held_out]
    qrels[2][draw.randrange(passages)] = 1.0  # an answer that no row names
    leaders_D = np.arange(passages)
    for one, other in ((4, 9), (4, 17), (5, 11), (20, 25)):
        leaders_D[other] = one
    splits = Splits(
        collection=Collection(queries=asked, passages=texts, qrels=qrels),
        train=rows(train, qrels, draw, passages),
        dev=rows([], qrels, draw, passages),
        test=rows(test, qrels, draw, passages),
        dropped={},
        near_duplicates=NearDuplicates(threshold=0.6, leaders_D=leaders_D),
    )
    pool = training_pool(splits)
    numbers = generator.integers(-2, 4, size=(queries + passages, 3)) + 0.25
    embeddings = torch.nn.functional.normalize(torch.tensor(numbers, dtype=torch.float32), dim=1)
    used = np.unique(splits.train.query_ids)
    return Case(splits, pool, embeddings[:queries][used], embeddings[queries:][pool.passage_ids])


def rows(links: list[tuple[int, int]], qrels: dict[int, dict[int, float]], draw: random.Random, passages: int) -> Pairs:
    negatives = []
    for query, _ in links:
        given = draw.sample(range(passages), draw.choice((0, 0, 2)))
        negatives.append(tuple(passage for passage in given if passage not in qrels[query]))
    return Pairs(
        query_ids=np.array([query for query, _ in links], dtype=np.int64),
        passage_ids=np.array([passage for _, passage in links], dtype=np.int64),
        negative_ids=tuple(negatives),
        row_ids=tuple(f"r{row}" for row in range(len(links))),
    )


def held_out_passages(splits: Splits) -> set[int]:
    answers = {passage for query in splits.test.query_ids.tolist() for passage in splits.collection.qrels[query]}
    return answers | set(splits.test.passage_ids.tolist())


def reference(
    given: Case, config: MiningConfig, judged: Callable[[int, int], float] | None = None
) -> tuple[list[list[int]], Counter[str]]:
    """For each row the candidates that are left, the best first, by scoring each question with each passage."""
    splits, collection = given.splits, given.splits.collection
    assert splits.near_duplicates is not None
    leaders = splits.near_duplicates.leaders_D
    train = splits.train
    training = set(train.passage_ids.tolist()).union(*train.negative_ids)
    allowed = sorted(training - held_out_passages(splits))
    query_place = {query: place for place, query in enumerate(np.unique(train.query_ids).tolist())}
    passage_place = {passage: place for place, passage in enumerate(given.pool.passage_ids.tolist())}
    dense = (given.queries_QE.double() @ given.passages_DE.double().T).float().double().numpy()

    def score(query: int, passage: int) -> float:
        return float(dense[query_place[query], passage_place[passage]])

    by_word = bm25_search(collection.queries, [collection.passages[p] for p in allowed], len(allowed))
    left, refused = [], Counter[str]()
    for row, query in enumerate(train.query_ids.tolist()):
        by_model = sorted(allowed, key=lambda passage: (-score(query, passage), passage))
        worded = zip(by_word.ids_QK[query].tolist(), by_word.scores_QK[query].tolist(), strict=True)
        words = [allowed[place] for place, value in worded if value > 0]
        ranked = {"model": by_model, "bm25": words}.get(config.mine_from, [])
        if config.mine_from == "both":
            longest = max(len(by_model), len(words))
            in_turn = [one[n] for n in range(longest) for one in (by_model, words) if n < len(one)]
            ranked = list(dict.fromkeys(in_turn))
        answers = collection.qrels[query]
        leading = {leaders[answer] for answer in answers}
        measure = judged or score
        positive = measure(query, int(train.passage_ids[row]))
        kept: list[int] = []
        looked_at = 0
        for passage in ranked:
            if looked_at == config.mine_depth:
                break
            if passage in answers:
                refused["known_answers"] += 1
            elif leaders[passage] in leading:
                refused["near_duplicates"] += 1
            elif text_key(collection.passages[passage]) == text_key(collection.queries[query]):
                refused["same_as_question"] += 1
            else:
                looked_at += 1
                value = measure(query, passage)
                if looked_at <= config.mine_skip:
                    refused["skipped"] += 1
                elif passage in train.negative_ids[row]:
                    refused["given_already"] += 1
                elif value > positive - (1 - config.max_score_ratio) * abs(positive):
                    refused["above_score_ratio"] += 1
                elif config.score_margin > 0 and value > positive - config.score_margin:
                    refused["within_score_margin"] += 1
                else:
                    kept.append(passage)
        left.append(kept)
    return left, refused


SETTINGS: list[dict[str, Any]] = [
    {"mine_from": source, "mine_depth": depth, "mine_skip": skip, "hard_negatives": count, **bounds}
    for source, (depth, skip, count), bounds in itertools.product(
        ("model", "bm25", "both"),
        ((30, 0, 2), (6, 3, 3), (2, 1, 1), (60, 0, 40)),
        ({}, {"max_score_ratio": 100.0}, {"max_score_ratio": 1.0, "score_margin": 0.3}, {"max_score_ratio": 0.5}),
    )
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_mined_is_what_scoring_everything_gives(settings: dict[str, Any]) -> None:
    for seed in range(4):
        given = case(seed)
        config = MiningConfig(**settings)
        left, refused = reference(given, config)
        mined, train = given.mine(config), given.splits.train
        expected = [(*own, *kept[: config.added]) for own, kept in zip(train.negative_ids, left, strict=True)]
        assert list(mined.pairs.negative_ids) == expected
        assert {reason: count for reason, count in mined.facts["refused"].items() if count} == +refused
        assert mined.facts["short_rows"] == sum(len(kept) < config.added for kept in left)

        drawn = given.mine(replace(config, mine_sampling="random"))
        for own, kept, found in zip(train.negative_ids, left, drawn.pairs.negative_ids, strict=True):
            added = found[len(own) :]
            assert found[: len(own)] == own
            assert len(added) == len(set(added)) == min(config.added, len(kept))
            assert [passage for passage in kept if passage in added] == list(added)


def test_the_cases_have_all_that_may_happen() -> None:
    """Otherwise the test above would show nothing."""
    refused = Counter[str]()
    for seed, settings in itertools.product(range(4), SETTINGS[::5]):
        refused += reference(case(seed), MiningConfig(**settings))[1]
    assert refused.keys() == set(REASONS)
    several = [Counter(case(seed).splits.train.query_ids.tolist()).most_common(1)[0][1] for seed in range(4)]
    assert max(several) > 1
    answers_of_no_row = [
        set().union(*splits.train.negative_ids) & held_out_passages(splits) - set(splits.test.passage_ids.tolist())
        for splits in (case(seed).splits for seed in range(4))
    ]
    assert any(answers_of_no_row)


@pytest.mark.parametrize("source", ["model", "bm25", "both"])
def test_answers_their_copies_the_question_and_held_out_passages_are_never_mined(source: Any) -> None:
    everything = MiningConfig(mine_from=source, hard_negatives=200, mine_depth=200, max_score_ratio=100.0)
    for seed in range(20):
        given = case(seed)
        splits, mined = given.splits, given.mine(everything)
        assert splits.near_duplicates is not None
        leaders, collection = splits.near_duplicates.leaders_D, splits.collection
        training = set(splits.train.passage_ids.tolist()).union(*splits.train.negative_ids)
        for row, (query, own) in enumerate(
            zip(splits.train.query_ids.tolist(), splits.train.negative_ids, strict=True)
        ):
            added = set(mined.pairs.negative_ids[row][len(own) :])
            assert added <= training - held_out_passages(splits)
            assert not {leaders[p] for p in added} & {leaders[p] for p in collection.qrels[query]}
            assert text_key(collection.queries[query]) not in {text_key(collection.passages[p]) for p in added}
            assert not added & set(own)


@pytest.mark.parametrize("sampling", ["top", "random"])
@pytest.mark.parametrize("source", ["model", "bm25", "both"])
def test_how_much_is_done_at_a_time_changes_nothing(
    source: Any, sampling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(1)
    config = MiningConfig(mine_from=source, mine_sampling=sampling, mine_depth=9)
    whole = given.mine(config)
    asked: list[int] = []

    def counted(queries_QE: Tensor, corpus_DE: Tensor, k: int) -> Any:
        asked.append(len(queries_QE) * k)
        return search(queries_QE, corpus_DE, k, chunk_size=5)

    monkeypatch.setattr(candidates, "search", counted)
    monkeypatch.setattr(scores, "PAIRS_AT_A_TIME", 7)
    for questions, ranked in ((1, 10**6), (3, 10**6), (100, 40), (100, 1)):
        monkeypatch.setattr(mine, "QUESTIONS_AT_A_TIME", questions)
        monkeypatch.setattr(mine, "RANKED_AT_A_TIME", ranked)
        asked.clear()
        assert_same(given.mine(config), whole)
        longest = 9 + max(map(len, given.splits.collection.qrels.values())) + 4
        assert all(size <= max(ranked, longest) and size <= questions * longest for size in asked)


def assert_same(one: Mined, other: Mined) -> None:
    assert (one.pairs.negative_ids, one.facts, one.scores, one.added) == (
        other.pairs.negative_ids, other.facts, other.scores, other.added,
    )  # fmt: skip


def test_the_seed_decides_what_is_drawn_and_a_row_does_not_depend_on_the_others() -> None:
    given = case(2)
    config = MiningConfig(mine_sampling="random", max_score_ratio=100.0)
    assert_same(given.mine(config, seed=5), given.mine(config, seed=5))
    assert given.mine(config, seed=5).pairs.negative_ids != given.mine(config, seed=6).pairs.negative_ids
    left, _ = reference(given, config)
    added = [found[len(found) - 2 :] for found in given.mine(config).pairs.negative_ids]
    places = {(len(kept), *map(kept.index, drawn)) for kept, drawn in zip(left, added, strict=True)}
    assert len(places) > len({len(kept) for kept in left})  # rows with as many candidates draw others
    first = given.splits.train.select(range(3))
    fewer = replace(
        given,
        splits=replace(given.splits, train=first),
        queries_QE=given.queries_QE[: len(set(first.query_ids.tolist()))],
    )
    assert fewer.mine(config, seed=5).pairs.negative_ids == given.mine(config, seed=5).pairs.negative_ids[:3]


def test_scores_are_those_of_the_positive_and_the_negatives_in_order() -> None:
    given = case(3)
    mined = given.mine(MiningConfig())
    pairs, places = mined.pairs, {p: n for n, p in enumerate(given.pool.passage_ids.tolist())}
    asked = np.unique(pairs.query_ids).tolist()
    for row, query in enumerate(pairs.query_ids.tolist()):
        ids = [int(pairs.passage_ids[row]), *pairs.negative_ids[row]]
        embeddings = given.passages_DE[[places[passage] for passage in ids]]
        assert mined.scores[row] == pytest.approx(
            (embeddings @ given.queries_QE[asked.index(query)]).tolist(), abs=1e-6
        )
    added = [
        value for found, count in zip(mined.scores, mined.added, strict=True) for value in found[len(found) - count :]
    ]
    assert mined.facts["mined"] == len(added) > 0
    assert mined.facts["mean_scores"]["negatives"] == pytest.approx(np.mean(added))
    assert mined.facts["mean_scores"]["positives"] == pytest.approx(np.mean([found[0] for found in mined.scores]))


@pytest.mark.parametrize("source", ["model", "bm25", "both"])
def test_a_judge_decides_what_is_refused_and_the_ranking_stays(source: Any, make_judge: Callable[..., Path]) -> None:
    given, judge = case(0), load_judge(str(make_judge()), device=torch.device("cpu"))
    collection = given.splits.collection
    config = MiningConfig(mine_from=source, max_score_ratio=0.9, hard_negatives=4)

    links = list(itertools.product(range(len(collection.queries)), range(len(collection.passages))))
    texts = [(collection.queries[query], collection.passages[passage]) for query, passage in links]
    said = dict(zip(links, judge.logits(texts).tolist(), strict=True))
    found = {link: float(expit(logit)) for link, logit in said.items()}

    def judged(query: int, passage: int) -> float:
        return found[query, passage]

    mined = given.mine(config, judge=judge)
    left, refused = reference(given, config, judged)
    expected = [(*own, *kept[:4]) for own, kept in zip(given.splits.train.negative_ids, left, strict=True)]
    assert list(mined.pairs.negative_ids) == expected
    assert {reason: count for reason, count in mined.facts["refused"].items() if count} == +refused
    assert mined.pairs.negative_ids != given.mine(config).pairs.negative_ids
    assert mined.facts["judge"] == {"model": judge.name, "revision": None}
    train, scores = given.splits.train, mined.pairs.scores
    assert scores is not None
    for query, positive, negatives, of_row, compared in zip(
        train.query_ids.tolist(), train.passage_ids.tolist(), expected, scores, mined.scores, strict=True
    ):
        assert of_row == pytest.approx([said[query, passage] for passage in (positive, *negatives)], abs=1e-5)
        assert compared == pytest.approx(expit(of_row))
    assert given.mine(config).pairs.scores is None


def test_the_bound_is_that_of_the_rows_own_positive() -> None:
    """A question with two answers, one far and one near: only the row of the far one loses the passage between."""
    numbers = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    embeddings = torch.nn.functional.normalize(numbers, dim=1)
    pairs = Pairs(
        query_ids=np.array([0, 0, 1]),
        passage_ids=np.array([0, 1, 2]),
        negative_ids=((), (), ()),
        row_ids=("near", "far", "other"),
    )
    splits = Splits(
        collection=Collection(
            queries=["a", "b"], passages=["near", "far", "between"], qrels={0: {0: 1.0, 1: 1.0}, 1: {2: 1.0}}
        ),
        train=pairs, dev=pairs.select([]), test=pairs.select([]), dropped={},
    )  # fmt: skip
    given = Case(splits, training_pool(splits), embeddings[[0, 2]], embeddings[[1, 2, 3]])
    assert given.mine(MiningConfig()).pairs.negative_ids[:2] == ((2,), ())
