"""Chunks written one after another are one file; it is there whole or not at all."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedtune.errors import OutputError
from embedtune.export.vectors import writing

CHUNKS = [["a", "ü\n"], ["c"], ["d", "e", "f"]]


def write(out: Path) -> torch.Tensor:
    embeddings_NE = torch.randn(6, 5)
    with writing(out, size=5) as write_chunk:
        start = 0
        for texts in CHUNKS:
            write_chunk(texts, embeddings_NE[start : start + len(texts)])
            start += len(texts)
    return embeddings_NE


def test_parquet_is_a_row_group_a_chunk(tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"
    embeddings_NE = write(out)
    table = pq.read_table(out)
    assert table.schema.names == ["text", "embedding"]
    assert table.schema.types == [pa.string(), pa.list_(pa.float32(), 5)]
    assert table["text"].to_pylist() == [text for chunk in CHUNKS for text in chunk]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), embeddings_NE.numpy())
    file = pq.ParquetFile(out)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 1, 3]


def test_npy_can_be_mapped(tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    embeddings_NE = write(out)
    vectors = np.load(out, mmap_mode="r")
    assert (vectors.dtype, vectors.shape) == (np.float32, (6, 5))
    np.testing.assert_array_equal(vectors, embeddings_NE.numpy())
    np.save(tmp_path / "by_numpy.npy", embeddings_NE.numpy())
    assert out.read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_no_chunk_at_all_gives_a_file_without_rows(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"vectors{suffix}"
    with writing(out, size=5):
        pass
    if suffix == ".npy":
        assert np.load(out).shape == (0, 5)
    else:
        assert pq.read_table(out).schema.names == ["text", "embedding"]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_failure_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"vectors{suffix}"
    out.write_bytes(b"old")

    def stop_half_way() -> None:
        with writing(out, size=5) as write_chunk:
            write_chunk(["a"], torch.zeros(1, 5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_full_disk_is_told(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / f"vectors{suffix}"
    monkeypatch.setattr("embedtune.export.vectors.open", lambda *_: FileIO("/dev/full", "w"), raising=False)
    with pytest.raises(OutputError, match=r"can't be written: No space left on device"):
        write(out)
