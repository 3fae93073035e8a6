"""What a training does between its phases: mine hard negatives, kept for a resumed run, and have BM25 teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, islice
from typing import Any

from embedtune.atomic import why_not_written
from embedtune.config import MiningConfig
from embedtune.data.batches import batches_per_epoch
from embedtune.data.neighbours import Links, share_together
from embedtune.data.prepare import Splits
from embedtune.data.split import write_pairs
from embedtune.data.tokens import Texts
from embedtune.errors import StorageError
from embedtune.evaluation.run import evaluate_bm25
from embedtune.export.mined_file import MinedFile
from embedtune.export.run_folder import RunFolder
from embedtune.measuring import DevSet
from embedtune.mining.mine import Mined
from embedtune.mining.pool import training_pool
from embedtune.mining.with_encoder import mine_negatives
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.batching import StepBatches
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.words import WordTeacher, terms_of

LINKS = 16
"""Hard negatives of a pair by which it is put beside others."""
SHOWN = 2
"""Of these, how many the file of mined negatives shows."""
Words = Callable[[], WordTeacher | None]
"""Makes the teacher, if there is to be one, when a phase first asks for it, and once."""


def word_teacher(splits: Splits, dev: DevSet, *, weight: float | None, metric: str) -> Words:
    """BM25, if it may teach.

    Args:
        splits: from `prepare`.
        dev: from `dev_set`.
        weight: of what it teaches; if that is left open, it has to know enough (`WordTeacher.teaches`).
        metric: of the dev set.
    """

    @cache
    def made() -> WordTeacher | None:
        if weight == 0 or dev.task is None:
            return None
        collection, passage_ids = splits.collection, training_pool(splits).passage_ids
        terms = terms_of([collection.passages[passage] for passage in passage_ids.tolist()])
        reached = evaluate_bm25(dev.task, collection, terms=terms).means[metric]
        return WordTeacher(collection, splits.train, passage_ids, terms=terms, weight=weight, dev=reached)

    return made


class MinedPhases:
    """Begins each phase of a trainer's plan: mines its negatives where it wants some."""

    def __init__(
        self,
        trainer: Trainer,
        encoder: Encoder,
        splits: Splits,
        texts: Texts,
        config: MiningConfig,
        folder: RunFolder,
        *,
        words: Words = lambda: None,
        reporter: Reporter,
    ) -> None:
        """Set up the phases of one training.

        Args:
            trainer: of `build_trainer`.
            encoder: that it trains.
            splits: from `prepare`.
            texts: the splits' texts, from `tokenize`.
            config: what is mined.
            folder: of the training.
            words: what teaches where negatives are mined, from `word_teacher`.
            reporter: is told how it goes.
        """
        self.trainer = replace(trainer, begin_phase=self.begin)
        """The trainer that mines."""
        self._objective, self._phases, self._seed = trainer.objective, trainer.plan.phases, trainer.seed
        self._encoder, self._splits, self._texts, self._config = encoder, splits, texts, config
        self._folder, self._reporter, self._words = folder, reporter, words
        self._facts: dict[int, dict[str, Any]] = {}

    def begin(self, number: int, resumed: bool, best: float, batches: StepBatches) -> None:
        """Give the objective what the phase of that number trains with beside its pairs.

        Args:
            number: of the phase.
            resumed: steps of the phase were taken before, with negatives that lie in the folder.
            best: dev metric before the phase.
            batches: of the training; those of the phase are made by the negatives, if they are to be.

        Raises:
            StorageError: negatives can't be written, or those that were written can't be read.
        """
        phase, objective = self._phases[number], self._objective
        given = added = self._splits.train.negative_ids
        if phase.mines and resumed:
            added = self._read(number)
            self._link(number, added, batches)
        elif phase.mines:
            added = self._mine(number, best, batches)
        if phase.neighbours:
            beside = self._config.hard_negatives or 0
            added = tuple(row[: len(own) + beside] for row, own in zip(added, given, strict=True))
        # Graded pairs have none. A training before this one may have left its own.
        if isinstance(objective, ContrastiveObjective):
            objective.pairs = replace(objective.pairs, negative_ids=added)
            words = self._words() if phase.mines else None
            objective.words = words if words is not None and words.teaches(best) else None

    def facts(self, steps: int) -> list[dict[str, Any]]:
        """What was mined, a phase each; for `results.json`.

        Args:
            steps: optimiser steps that were taken, in this process or before.

        Raises:
            StorageError: what was mined before this process can't be read.
        """
        mined = [number for number, phase in enumerate(self._phases) if phase.mines and phase.first_step < steps]
        for number in mined:
            if number not in self._facts:
                self._read(number)
        return [self._facts[number] for number in mined]

    def _mine(self, number: int, best: float, batches: StepBatches) -> tuple[tuple[int, ...], ...]:
        config, phase = self._config, self._phases[number]
        if phase.neighbours:
            most = config.mine_depth - config.mine_skip
            config = replace(config, hard_negatives=max(min(LINKS, most), config.hard_negatives or 0))
        mined = mine_negatives(
            self._encoder, self._splits, self._texts, config, seed=self._seed, reporter=SilentReporter()
        )
        links = self._link(number, mined.pairs.negative_ids, batches)
        facts = {"batches": "shuffled" if links is None else "neighbours", **mined.facts}
        if links is not None:
            facts["nearest_together"] = self._together(number, links, batches)
        if (words := self._words()) is not None:
            facts["bm25"] = words.facts(best)
        self._show(number, mined)
        self._file(number).write(mined.pairs.negative_ids, facts)
        self._facts[number] = facts
        self._reporter.note(_what_was_mined(facts))
        return mined.pairs.negative_ids

    def _link(self, number: int, negatives: Sequence[Sequence[int]], batches: StepBatches) -> Links | None:
        """Have the phase's rows come together by what was mined for them, if they are to; returns that."""
        if not self._phases[number].neighbours:
            return None
        given = self._splits.train.negative_ids
        links = [row[len(own) :] for row, own in zip(negatives, given, strict=True)]
        batches.link(number, links)
        return links

    def _together(self, number: int, links: Links, batches: StepBatches) -> float:
        """The share of the nearest negatives that come in one batch with their pair, in the phase's first epoch."""
        phase, pairs = self._phases[number], self._splits.train
        steps = range(phase.first_step, phase.first_step + phase.steps)
        of_phase = chain.from_iterable(batches[step] for step in steps)
        first_epoch = list(islice(of_phase, batches_per_epoch(len(pairs), phase.batch_size)))
        return share_together(first_epoch, pairs, links, nearest=SHOWN)

    def _file(self, number: int) -> MinedFile:
        return MinedFile(self._folder.checkpoints / f"mined-{number}.json")

    def _show(self, number: int, mined: Mined) -> None:
        """Write the pairs with their negatives, or the nearest of them, for people to read."""
        shown = mined.pairs
        if self._phases[number].neighbours:
            most = max(SHOWN, self._config.hard_negatives or 0)
            kept = [len(ids) - max(0, added - most) for ids, added in zip(shown.negative_ids, mined.added, strict=True)]
            nearest = tuple(ids[:count] for ids, count in zip(shown.negative_ids, kept, strict=True))
            shown = replace(shown, negative_ids=nearest, scores=None)
        path = self._folder.splits / f"mined-{number}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path} can't be written: {why_not_written(error, path)}") from error
        write_pairs(path, shown, self._splits.collection)

    def _read(self, number: int) -> tuple[tuple[int, ...], ...]:
        negatives, self._facts[number] = self._file(number).read(rows=len(self._splits.train))
        return negatives


def _what_was_mined(facts: dict[str, Any]) -> str:
    refused = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in facts["refused"].items() if count)
    left_out = f"; left out: {refused}" if refused else ""
    said = f"mined {facts['mined']:,} hard negatives for {facts['rows']:,} pairs{left_out}"
    if "nearest_together" in facts:
        said += f"; {facts['nearest_together']:.0%} of the nearest {SHOWN} come in one batch with their pair"
    if "bm25" in facts:
        said += f"; {_what_bm25_does(facts['bm25'])}"
    return said


def _what_bm25_does(facts: dict[str, Any]) -> str:
    beside = f"dev {facts['dev']:.4f} beside the model's {facts['model']:.4f}, {facts['finds']:.0%} of training answers"
    if facts["teaches"]:
        return f"BM25 teaches too, with weight {facts['weight']:g} ({beside} found)"
    return f"BM25 does not teach, as it knows too little beside the model ({beside} found)"
