"""What a training does between its phases: mine hard negatives, which are kept for a resumed run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedtune.atomic import why_not_written
from embedtune.config import MiningConfig
from embedtune.data.collection import Pairs
from embedtune.data.prepare import Splits
from embedtune.data.split import write_pairs
from embedtune.data.tokens import Texts
from embedtune.errors import StorageError
from embedtune.export.run_folder import RunFolder, write_json
from embedtune.mining.with_encoder import mine_negatives
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer


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
        reporter: Reporter,
    ) -> None:
        self.trainer = replace(trainer, begin_phase=self.begin)
        """The trainer that mines."""
        self._objective, self._phases, self._seed = trainer.objective, trainer.plan.phases, trainer.seed
        self._encoder, self._splits, self._texts, self._config = encoder, splits, texts, config
        self._folder, self._reporter = folder, reporter
        self._facts: dict[int, dict[str, Any]] = {}

    def begin(self, number: int, resumed: bool) -> None:
        """Give the objective the negatives of the phase of that number: those given, or mined now or before.

        Args:
            number: of the phase.
            resumed: steps of the phase were taken before, with negatives that lie in the folder.

        Raises:
            StorageError: negatives can't be written, or those that were written can't be read.
        """
        negatives = self._splits.train.negative_ids
        if self._phases[number].mines:
            negatives = self._read(number) if resumed else self._mine(number)
        # Graded pairs have none. A training before this one may have left its own.
        if isinstance(self._objective, ContrastiveObjective):
            self._objective.pairs = replace(self._objective.pairs, negative_ids=negatives)

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

    def _mine(self, number: int) -> tuple[tuple[int, ...], ...]:
        mined = mine_negatives(
            self._encoder, self._splits, self._texts, self._config, seed=self._seed, reporter=SilentReporter()
        )
        self._write(number, mined.pairs, mined.facts)
        self._facts[number] = mined.facts
        self._reporter.note(_what_was_mined(mined.facts))
        return mined.pairs.negative_ids

    def _path(self, number: int) -> Path:
        return self._folder.checkpoints / f"mined-{number}.json"

    def _write(self, number: int, pairs: Pairs, facts: dict[str, Any]) -> None:
        path = self._path(number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder.splits.mkdir(parents=True, exist_ok=True)
            write_pairs(self._folder.splits / f"mined-{number}.jsonl", pairs, self._splits.collection)
            negatives = [list(ids) for ids in pairs.negative_ids]
            write_json(path, {"facts": facts, "negatives": negatives, "sha256": _checksum(negatives)})
        except OSError as error:
            raise StorageError(f"{path} can't be written: {why_not_written(error, path)}") from error

    def _read(self, number: int) -> tuple[tuple[int, ...], ...]:
        path = self._path(number)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            negatives, facts = content["negatives"], content["facts"]
            if not isinstance(facts, dict) or content["sha256"] != _checksum(negatives):
                raise ValueError("it is not what was written")
            if len(negatives) != len(self._splits.train):
                raise ValueError(f"it has {len(negatives):,} rows")
            self._facts[number] = facts
            return tuple(tuple(map(int, ids)) for ids in negatives)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(
                f"{path}: the negatives that this run was trained with can't be read: {error}\n"
                "It can't go on to the same weights without them. Leave --resume out and give another --out."
            ) from error


def _checksum(negatives: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(negatives).encode()).hexdigest()


def _what_was_mined(facts: dict[str, Any]) -> str:
    refused = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in facts["refused"].items() if count)
    left_out = f"; left out: {refused}" if refused else ""
    return f"mined {facts['mined']:,} hard negatives for {facts['rows']:,} pairs{left_out}"
