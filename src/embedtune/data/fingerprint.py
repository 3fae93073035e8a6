"""Whether data is the same as it was: a checksum of each split, and of all texts with what answers what."""

from __future__ import annotations

import hashlib
import json

from embedtune.data.prepare import Splits
from embedtune.data.split import pair_lines


def data_hashes(splits: Splits) -> dict[str, str]:
    """SHA-256 of `train`, `dev` and `test` as `write_splits` writes them, and of the `collection`.

    The collection's is of all questions and passages in their order and of the grades: passages that no split holds are
    searched in too, and a batch is summed up in the order of its texts.
    """
    hashes = {}
    for name, pairs in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        digest = hashlib.sha256()
        for line in pair_lines(pairs, splits.collection):
            digest.update(line.encode("utf-8", "surrogatepass"))
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
