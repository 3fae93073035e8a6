"""A teacher's scores of each row's own passages, made once before the training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from embedtune.atomic import replacing
from embedtune.config import LossConfig, ModelConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.errors import DataError, ModelError
from embedtune.models.cross_encoder import load_cross_encoder, score_pairs
from embedtune.models.source import named
from embedtune.progress import Reporter

logger = logging.getLogger(__name__)

SCORES = "teacher.safetensors"
"""In a run's folder: the teacher's scores, for `--resume`."""
_Scores = npt.NDArray[np.float32]


class Taught(NamedTuple):
    """The training rows with the scores that the loss takes."""

    pairs: Pairs
    keep: Callable[[], None] | None = None
    """Writes the scores into the run's folder, which may not be there yet."""


def check_scores(loss: LossConfig, pairs: Pairs) -> None:
    """Refuse to distill what no teacher has anything to say of.

    Raises:
        DataError: there are no scores and no teacher, or no row has a passage beside its positive.
    """
    if loss.distill == "none":
        return
    what = f"--distill {loss.distill} compares a row's positive with its hard negatives"
    if not any(pairs.negative_ids):
        raise DataError(
            f"{what}, and no training row has any.\n"
            "Give a column `negative` (or negative_1, negative_2, ...), name it with --negative-columns, or type:  "
            "embedtune mine TRAIN --judge CROSS_ENCODER --out mined.jsonl   and train on that file."
        )
    if loss.teacher is None and not any(len(scores) > 1 for scores in pairs.scores or ()):
        raise DataError(
            f"{what} as a teacher scores them, and the data has no scores.\n"
            "Type:  --teacher MODEL   to have a cross-encoder make them, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )


def taught(
    pairs: Pairs, collection: Collection, loss: LossConfig, model: ModelConfig, *, folder: Path, reporter: Reporter
) -> Taught:
    """The rows with the scores of the data, of the teacher, or with none if nothing is distilled.

    Args:
        pairs: the training rows.
        collection: of their texts.
        loss: which scores are wanted.
        model: how the teacher is computed; its name is the loss's.
        folder: of the run; scores that it holds are not made again.
        reporter: is told how it goes.

    Raises:
        DataError: as `check_scores`.
        ModelError: the teacher can't be used.
    """
    check_scores(loss, pairs)
    if loss.distill == "none":
        return Taught(replace(pairs, scores=None))
    if loss.teacher is None:
        _report(pairs, "the data", reporter)
        return Taught(pairs)
    wanted = _wanted(pairs)
    key = _key(loss.teacher, wanted, collection)
    scores = _read(folder / SCORES, key, len(wanted))
    keep = None
    if scores is None:
        scores = made = _score(named(model, loss.teacher), wanted, collection, reporter)
        keep = lambda: _write(folder / SCORES, key, made)  # noqa: E731
    pairs = replace(pairs, scores=_by_row(pairs, wanted, scores))
    _report(pairs, loss.teacher, reporter)
    return Taught(pairs, keep)


def _wanted(pairs: Pairs) -> dict[tuple[int, int], int]:
    """Each distinct question and passage to be scored, with its place; rows without negatives need no score."""
    found: dict[tuple[int, int], int] = {}
    for row, negatives in enumerate(pairs.negative_ids):
        if negatives:
            query, positive = int(pairs.query_ids[row]), int(pairs.passage_ids[row])
            for passage in (positive, *negatives):
                found.setdefault((query, passage), len(found))
    return found


def _by_row(pairs: Pairs, places: dict[tuple[int, int], int], scores: _Scores) -> tuple[tuple[float, ...], ...]:
    rows = zip(pairs.query_ids.tolist(), pairs.passage_ids.tolist(), pairs.negative_ids, strict=True)
    return tuple(
        tuple(float(scores[places[query, passage]]) for passage in (positive, *negatives)) if negatives else ()
        for query, positive, negatives in rows
    )


def _score(
    teacher: ModelConfig, wanted: dict[tuple[int, int], int], collection: Collection, reporter: Reporter
) -> _Scores:
    model = load_cross_encoder(teacher)
    texts = [(collection.queries[query], collection.passages[passage]) for query, passage in wanted]
    with reporter.counting(f"teacher: {teacher.base}", len(texts)) as advance:
        scores = score_pairs(model, texts, on_progress=advance)
    if not np.isfinite(scores).all():
        bad = texts[int((~np.isfinite(scores)).argmax())]
        raise ModelError(
            f"--teacher {teacher.base} gives {scores[~np.isfinite(scores)][0]} for {bad[0][:60]!r} with "
            f"{bad[1][:60]!r}, expected a number.\nType:  another --teacher."
        )
    return scores


def _report(pairs: Pairs, source: str, reporter: Reporter) -> None:
    """How far the positives are ahead tells whether scores and temperature fit."""
    rows = [scores for scores in pairs.scores or () if len(scores) > 1]
    margins = np.array([scores[0] - score for scores in rows for score in scores[1:]])
    reporter.note(
        f"scores of {source} for {len(rows):,} of {len(pairs):,} rows: positives are {margins.mean():.2f} ahead of "
        f"their negatives on average, and not ahead of {(margins <= 0).mean():.0%} of them"
    )


def _key(teacher: str, wanted: dict[tuple[int, int], int], collection: Collection) -> str:
    digest = hashlib.sha256(teacher.encode())
    for query, passage in wanted:
        for text in (collection.queries[query], collection.passages[passage]):
            digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _write(path: Path, key: str, scores: _Scores) -> None:
    """Raises OSError or SafetensorError where it can't be written."""
    with replacing(path) as unfinished:
        save_file({"scores": torch.from_numpy(scores)}, unfinished, metadata={"key": key})


def _read(path: Path, key: str, count: int) -> _Scores | None:
    """The scores that were kept; None if there are none, or of others or damaged ones."""
    try:
        with safe_open(path, framework="pt") as file:
            scores: _Scores = file.get_tensor("scores").numpy()
            known = (file.metadata() or {}).get("key") == key
    except (OSError, SafetensorError):
        return None
    if not known or scores.shape != (count,):
        logger.warning("%s: scores of other pairs, or of another teacher; they are made again", path)
        return None
    return scores
