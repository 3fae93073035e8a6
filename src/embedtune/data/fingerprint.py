"""Whether data is the same as it was: a checksum of each split, and of all texts with what answers what."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from embedtune.data.collection import Collection, Pairs
from embedtune.data.prepare import Splits


def data_hashes(splits: Splits) -> dict[str, str]:
    """SHA-256 of the texts of `train`, `dev` and `test` in their order, a JSON list a row, and of the `collection`.

    A row's grade and a teacher's scores count with its texts. Ids are left out, as they may name a file, which may
    move. The collection's is of all questions and passages in their order and of the grades: passages that no split
    holds are searched in too, and a batch is summed up in the order of its texts.
    """
    hashes = {}
    for name, pairs in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        digest = hashlib.sha256()
        for row in range(len(pairs)):
            digest.update(f"{json.dumps(_texts(pairs, row, splits.collection))}\n".encode())
        hashes[name] = digest.hexdigest()
    digest = hashlib.sha256()
    for texts in (splits.collection.queries, splits.collection.passages):
        digest.update(f"{len(texts)}\n".encode())
        for text in texts:
            digest.update(f"{text}\0".encode("utf-8", "surrogatepass"))
    for query, grades in sorted(splits.collection.qrels.items()):
        digest.update(json.dumps([query, sorted(grades.items())]).encode())
    hashes["collection"] = digest.hexdigest()
    return hashes


def _texts(pairs: Pairs, row: int, collection: Collection) -> list[Any]:
    """Question, positive and hard negatives of a row, and its grade and a teacher's scores where it has them."""
    passages = (int(pairs.passage_ids[row]), *pairs.negative_ids[row])
    texts = [collection.queries[pairs.query_ids[row]], *(collection.passages[passage] for passage in passages)]
    grades = [] if pairs.grades is None else [float(pairs.grades[row])]
    return [*texts, *grades, *([pairs.scores[row]] if pairs.scores and pairs.scores[row] else [])]
