"""Passages that are overlapping chunks or re-worded copies of each other.

Two passages are near-duplicates if they share enough shingles: runs of five words, in scripts written without spaces
of five characters. The share is taken of the shorter passage, so that a chunk is found in the longer one that holds
it (the overlap coefficient, |A ∩ B| / min(|A|, |B|)). Two things keep boilerplate from joining what has nothing else
in common. A passage of fewer than `SHORT` words, such as a heading, is compared as a whole (Jaccard,
|A ∩ B| / |A ∪ B|). And a passage that lies in more than `MAX_HOSTS` longer ones, such as a disclaimer, is joined to
none of them.

A figure is a word like any other: each one that differs breaks up to five shingles, so two sentences that are alike
but for their figures are not near-duplicates, and two long passages that differ in one figure are.

MinHash proposes the pairs (every pair that shares one of `PERMUTATIONS` minima), the shingle sets decide.

Source: Broder 1997, "On the resemblance and containment of documents" (shingles, both measures, MinHash).

Shapes: `N` texts, `S` shingles in all of them, `W` words in some of them, `H` permutations, `P` pairs of texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedtune.data.collection import IdArray

SHINGLE = 5
"""Words in a shingle. Of three, passages on the same subject share many; of five, they hardly share any."""
SHORT = 20
"""Words below which a passage is no copy of a longer one that holds it."""
MAX_HOSTS = 10
"""Longer passages that a passage may lie in before it counts as boilerplate."""
PERMUTATIONS = 64
"""Values in a MinHash signature. Two passages that share a tenth of their shingles have one in common in 99.9 % of
cases."""
WINDOW = 8
"""Texts that a text is compared with at most for each of its minima, so that common shingles stay affordable."""
TEXTS_AT_A_TIME = 4_096
PAIRS_AT_A_TIME = 65_536

# Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Which passages count as one in splitting. Their groups are transitive."""

    threshold: float
    """The similarity, from 0 to 1, from which two passages are near-duplicates."""
    leaders_D: IdArray
    """For each passage of the collection the smallest id of its group; its own if it has no near-duplicate."""

    @property
    def passages(self) -> int:
        """How many passages have a near-duplicate."""
        sizes = np.bincount(self.leaders_D)
        return int(sizes[sizes > 1].sum())

    @property
    def groups(self) -> int:
        """How many groups they form."""
        return int((np.bincount(self.leaders_D) > 1).sum())

    def facts(self) -> dict[str, float]:
        """What `results.json` says of them."""
        return {"threshold": self.threshold, "passages": self.passages, "groups": self.groups}


def find_near_duplicates(passages: Sequence[str], ids: IdArray, *, threshold: float) -> NearDuplicates:
    """The near-duplicates among some passages of a collection.

    Args:
        passages: all passages of the collection.
        ids: those to compare.
        threshold: share of the shingles of the shorter passage, above 0 and at most 1.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids = np.unique(ids)
    leaders_D = np.arange(len(passages), dtype=np.int64)
    if len(ids) > 1:
        left_P, right_P = near_pairs([passages[index] for index in ids.tolist()], threshold=threshold)
        links = coo_array((np.ones(len(left_P), dtype=np.bool_), (left_P, right_P)), shape=(len(ids), len(ids)))
        _, group_N = connected_components(links, directed=False)
        _, first = np.unique(group_N, return_index=True)
        leaders_D[ids] = ids[first[group_N]]
    return NearDuplicates(threshold=threshold, leaders_D=leaders_D)


def near_pairs(texts: Sequence[str], *, threshold: float) -> tuple[IdArray, IdArray]:
    """The pairs of texts that are near-duplicates, as two arrays of positions, the smaller one first.

    Of more than `WINDOW` texts that are all alike, some pairs may be missing; they still hang together.
    """
    shingles = _shingle_sets(texts)
    sizes_N = np.diff(shingles.indptr).astype(np.int64)
    wholes, parts = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((2, 0), dtype=np.int64)]
    for pairs_2P in _candidates(_signatures(shingles), sizes_N):
        left_P, right_P = pairs_2P
        shared_P = np.diff(shingles[left_P].multiply(shingles[right_P]).tocsr().indptr)
        shorter_P = np.minimum(sizes_N[left_P], sizes_N[right_P])
        is_whole_P = shared_P >= threshold * (sizes_N[left_P] + sizes_N[right_P] - shared_P)
        is_part_P = (shared_P >= threshold * shorter_P) & (shorter_P > SHORT - SHINGLE) & ~is_whole_P
        wholes.append(pairs_2P[:, is_whole_P])
        parts.append(pairs_2P[:, is_part_P])
    part_2P = np.unique(np.concatenate(parts, axis=1), axis=1)
    guest_P = np.where(sizes_N[part_2P[0]] <= sizes_N[part_2P[1]], *part_2P)
    hosts_N = np.bincount(guest_P, minlength=len(texts))
    whole_2P = np.unique(np.concatenate(wholes, axis=1), axis=1)
    left_P, right_P = np.concatenate([whole_2P, part_2P[:, hosts_N[guest_P] <= MAX_HOSTS]], axis=1)
    return left_P, right_P


def _candidates(signatures_NH: npt.NDArray[np.uint32], sizes_N: IdArray) -> Iterator[IdArray]:
    """The pairs that share a minimum, shape (2, P), some thousand at a time; a few may come again."""
    texts = np.flatnonzero(sizes_N)
    all_compared_NH = np.zeros(signatures_NH.shape, dtype=np.bool_)
    for column in range(signatures_NH.shape[1]):
        minima_N = signatures_NH[:, column]
        # Where more share a minimum than a window holds, those that share the next one too are neighbours.
        order = texts[np.lexsort((signatures_NH[texts, column - 1], minima_N[texts]))]
        _, bucket, count = np.unique(minima_N[order], return_inverse=True, return_counts=True)
        for offset in range(1, WINDOW + 1):
            same = np.flatnonzero(bucket[offset:] == bucket[:-offset])
            for start in range(0, len(same), PAIRS_AT_A_TIME):
                some = same[start : start + PAIRS_AT_A_TIME]
                one_P, other_P = order[some], order[some + offset]
                earlier_PH = signatures_NH[one_P, :column] == signatures_NH[other_P, :column]
                new_P = ~(earlier_PH & all_compared_NH[one_P, :column]).any(axis=1)
                if new_P.any():
                    yield np.stack([np.minimum(one_P, other_P)[new_P], np.maximum(one_P, other_P)[new_P]])
        all_compared_NH[order, column] = count[bucket] <= WINDOW + 1


def _signatures(shingles: Any) -> npt.NDArray[np.uint32]:
    """The MinHash signature of each row of shingles, shape (N, H)."""
    from datasketch import MinHash  # takes a second to import

    rows = np.split(shingles.indices, shingles.indptr[1:-1])
    sketches = MinHash.generator((row.tolist() for row in rows), num_perm=PERMUTATIONS, hashfunc=int)
    signatures_NH = np.empty((len(rows), PERMUTATIONS), dtype=np.uint32)
    for row, sketch in enumerate(sketches):
        signatures_NH[row] = sketch.hashvalues
    return signatures_NH


def _shingle_sets(texts: Sequence[str]) -> Any:
    """A sparse array of truth values with a row a text, whose columns are hashes of 31 bits of its shingles."""
    from scipy.sparse import csr_array

    vocabulary: dict[str, int] = {}
    hashes, counts = [np.zeros(0, dtype=np.int32)], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        shingles, count = _hashed_shingles(texts[start : start + TEXTS_AT_A_TIME], vocabulary)
        hashes.append(shingles)
        counts.append(count)
    indices = np.concatenate(hashes)
    sets = csr_array(
        (np.ones(len(indices), dtype=np.bool_), indices, np.cumsum(np.concatenate(counts))),
        shape=(len(texts), 2**31 - 1),
    )
    sets.sum_duplicates()
    return sets


def _hashed_shingles(texts: Sequence[str], vocabulary: dict[str, int]) -> tuple[npt.NDArray[np.int32], IdArray]:
    """The hashes of the texts' shingles, one text after another, and how many each has: at least one, if it has a word.

    Args:
        texts: N texts.
        vocabulary: word to number, from 1; grows by the words of these texts.
    """
    word_ids: list[int] = []
    lengths: list[int] = []
    for text in texts:
        words = _WORDS.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower())
        padding = SHINGLE - len(words) if 0 < len(words) < SHINGLE else 0
        word_ids += [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words] + [0] * padding
        lengths.append(len(words) + padding)
    words_W = _mixed(np.array(word_ids, dtype=np.uint64))
    shingles_W = np.zeros_like(words_W)
    for place in range(SHINGLE):
        end = len(words_W) - place
        shingles_W[:end] = _mixed(shingles_W[:end] + words_W[place:])
    lengths_N = np.array(lengths, dtype=np.int64)
    left_W = np.repeat(np.cumsum(lengths_N), lengths_N) - np.arange(len(words_W))  # words to the end of the text
    hashes = (shingles_W[left_W >= SHINGLE] % np.uint64(2**31 - 1)).astype(np.int32)
    return hashes, np.maximum(lengths_N - SHINGLE + 1, 0)


def _mixed(values_W: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each value spread over 64 bits: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values_W = (values_W ^ (values_W >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_W = (values_W ^ (values_W >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_W ^ (values_W >> np.uint64(31))
