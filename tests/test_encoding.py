"""Embedding a file a chunk at a time gives what embedding it at once gives, holds few chunks, and leaves no trace."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedtune import encoding
from embedtune.config import ModelConfig
from embedtune.data.read import stream_passages
from embedtune.encoding import encode_file
from embedtune.errors import DataError
from embedtune.models.encoder import Encoder
from embedtune.progress import SilentReporter

CHUNK = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", CHUNK)


@pytest.fixture(params=[False, True], ids=["in turn", "overlapped"])
def overlapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(encoding, "OVERLAPPED", ("cpu",))
    return bool(request.param)


@pytest.fixture
def model(st_folder: Path) -> ModelConfig:
    return ModelConfig(base=str(st_folder), device="cpu", precision="fp32")


@pytest.fixture
def source(sentences: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences), encoding="utf-8")
    return path


class Watching(SilentReporter):
    """Runs something whenever a batch was embedded; remembers the totals it was told."""

    def __init__(self, then: Callable[[int], None] = lambda done: None) -> None:
        self.totals: dict[str, int | None] = {}
        self.done = 0
        self._then = then

    @contextmanager
    def counting(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.totals[label] = total
        yield self._advance if label == "encoding" else lambda done: None

    def _advance(self, done: int) -> None:
        self.done += done
        self._then(self.done)


@contextmanager
def pipe(path: Path, lines: list[str]) -> Iterator[None]:
    """A pipe that somebody writes these lines to."""
    os.mkfifo(path)

    def write() -> None:
        try:
            with path.open("w", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in lines)
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    yield
    writer.join(timeout=10)
    assert not writer.is_alive()


@pytest.mark.usefixtures("overlapped")
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_in_chunks_as_at_once(
    suffix: str, source: Path, model: ModelConfig, sentences: list[str], load: Callable[..., Encoder], tmp_path: Path
) -> None:
    out = tmp_path / f"vectors{suffix}"
    reporter = Watching()
    assert encode_file(model, str(source), out, reporter=reporter) == (300, 32)
    assert (reporter.totals, reporter.done) == ({"checking": None, "encoding": 300}, 300)
    encoder = load(model.base)
    expected = encoder.embed_all(encoder.token_table(sentences, "passage")).numpy()
    if suffix == ".npy":
        vectors = np.load(out, mmap_mode="r")
    else:
        table = pq.read_table(out)
        assert table["text"].to_pylist() == sentences
        assert pq.ParquetFile(out).num_row_groups == -(-300 // CHUNK)
        vectors = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_few_chunks_are_held_however_long_the_file(
    overlapped: bool, source: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, held = 0, []

    def counted(source: str, *, column: str | None) -> Iterator[object]:
        nonlocal read
        read = 0
        for passage in stream_passages(source, column=column):
            read += 1
            yield passage

    monkeypatch.setattr(encoding, "stream_passages", counted)
    reporter = Watching(lambda done: held.append(read - done))
    encode_file(model, str(source), tmp_path / "vectors.npy", reporter=reporter)
    # Batches are whole chunks here: one was embedded, and one or two more are ready or being read.
    assert max(held) <= (2 * CHUNK if overlapped else 0)


@pytest.mark.usefixtures("overlapped")
def test_the_last_line_is_checked_before_the_model_is_loaded(source: Path, tmp_path: Path) -> None:
    nowhere = ModelConfig(base=str(tmp_path / "nowhere"), device="cpu")
    for line, message in [
        ('{"text": null}', "text 301 is None, expected a string"),
        ('{"text": "a\\ud83d"}', "text 301 has '\\ud83d' at character 2, which is half a character"),
        ('{"text": "a', "line 301: not valid JSON"),
    ]:
        broken = tmp_path / "broken.jsonl"
        broken.write_text(source.read_text() + line + "\n")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(DataError) as caught:
            encode_file(nowhere, str(broken), tmp_path / "vectors.npy")
        assert message in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.usefixtures("overlapped")
class TestPipe:
    def test_it_is_read_once(self, model: ModelConfig, sentences: list[str], tmp_path: Path) -> None:
        reporter = Watching()
        with pipe(tmp_path / "pipe.txt", sentences):
            assert encode_file(model, str(tmp_path / "pipe.txt"), tmp_path / "vectors.parquet", reporter=reporter)
        assert pq.read_table(tmp_path / "vectors.parquet")["text"].to_pylist() == sentences
        assert reporter.totals == {"encoding": None}

    def test_a_fault_is_told_in_its_turn_and_nothing_stays(
        self, model: ModelConfig, sentences: list[str], tmp_path: Path
    ) -> None:
        threads = threading.active_count()
        reporter = Watching()
        lines = [json.dumps({"text": text}) for text in sentences[:100]] + ["no JSON"]
        with (
            pipe(tmp_path / "pipe.jsonl", lines),
            pytest.raises(DataError, match=r"pipe\.jsonl', line 101: not valid JSON"),
        ):
            encode_file(model, str(tmp_path / "pipe.jsonl"), tmp_path / "vectors.npy", reporter=reporter)
        assert threading.active_count() == threads
        assert [path.name for path in tmp_path.iterdir()] == ["pipe.jsonl"]


@pytest.mark.usefixtures("overlapped")
def test_ctrl_c_leaves_no_thread_and_no_file(source: Path, model: ModelConfig, tmp_path: Path) -> None:
    threads = threading.active_count()

    def press(done: int) -> None:
        if done >= 3 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_file(model, str(source), tmp_path / "vectors.parquet", reporter=Watching(press))
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == [source]


def test_a_chunk_of_long_texts_holds_fewer(
    source: Path, model: ModelConfig, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 200)
    out = tmp_path / "vectors.parquet"
    encode_file(model, str(source), out)
    file = pq.ParquetFile(out)
    for number in range(file.num_row_groups - 1):
        texts = file.read_row_group(number)["text"].to_pylist()
        assert len(texts) == CHUNK or len("".join(texts[:-1])) < 200 <= len("".join(texts))
    assert pq.read_table(out)["text"].to_pylist() == sentences


@pytest.mark.parametrize(("row", "count"), [('{"text": "a"}', 1), ('{"text": ["a", "b"]}', 2), ('{"text": []}', 0)])
def test_one_row(row: str, count: int, model: ModelConfig, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "vectors.npy"
    source.write_text(row)
    assert encode_file(model, str(source), out) == (count, 32)
    assert np.load(out).shape == (count, 32)
