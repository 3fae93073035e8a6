"""Texts to one packed sequence or to a padded block, and back in order."""

from __future__ import annotations

import numpy as np
import torch

from embedtune.models.packing import cut, pack, pad

CPU = torch.device("cpu")
TEXTS = [np.array(ids, dtype=np.int32) for ids in ([7, 8, 9], [1], [4, 5, 6, 7, 8], [2], [3, 3, 3])]


def test_packed_texts_lie_shortest_first_and_find_back() -> None:
    batch = pack(TEXTS, position_offset=0, device=CPU)
    assert batch.layout.lengths == (1, 1, 3, 3, 5)
    assert batch.input_ids_1T.tolist() == [[1, 2, 7, 8, 9, 3, 3, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids_1T.tolist() == [[0, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]]
    first_tokens_B = batch.input_ids_1T[0, batch.layout.cu_seqlens[:-1].long()]
    assert first_tokens_B[batch.restore_B].tolist() == [7, 1, 4, 2, 3]


def test_positions_may_start_behind_the_padding_id() -> None:
    batch = pack(TEXTS[:2], position_offset=2, device=CPU)
    assert batch.position_ids_1T.tolist() == [[2, 2, 3, 4]]


def test_padded_texts_stay_in_order() -> None:
    features = pad(TEXTS[:3], pad_id=99, device=CPU)
    assert features["input_ids"].tolist() == [[7, 8, 9, 99, 99], [1, 99, 99, 99, 99], [4, 5, 6, 7, 8]]
    assert features["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_batches_of_so_many_tokens_longest_texts_first() -> None:
    lengths_N = np.array([3, 9, 1, 20, 4, 4])
    packed = cut(lengths_N, 10, padded=False)
    assert [lengths_N[places].tolist() for places in packed] == [[20], [9], [4, 4], [3, 1]]
    assert sorted(np.concatenate(packed)) == list(range(6))
    padded = cut(lengths_N, 10, padded=True)
    assert [lengths_N[places].tolist() for places in padded] == [[20], [9], [4, 4], [3, 1]]
    assert [lengths_N[places].tolist() for places in cut(lengths_N, 21, padded=False)] == [[20], [9, 4, 4, 3, 1]]
    assert [lengths_N[places].tolist() for places in cut(lengths_N, 21, padded=True)] == [[20], [9, 4], [4, 3, 1]]
    assert cut(lengths_N[:0], 10, padded=False) == []
