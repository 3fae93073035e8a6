"""Each hostile file ends in the right result, or in one clear error, in seconds and in bounded memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from embedtune.config import TrainConfig
from embedtune.config_file import from_dict, load_toml
from embedtune.data import files, lines
from embedtune.data.clean import CollectionBuilder
from embedtune.data.labels import read_labels
from embedtune.data.read import read, read_passages, stream_passages
from embedtune.errors import LONGEST_MESSAGE, ConfigError, DataError, brief, readable
from tests.hostile.corpus import GOOD, Hostile, bomb, hostile_files, pair, parquet_files

MEMORY = 450 * 2**20
"""Bytes that one file may take beyond what the process had."""


@pytest.mark.parametrize("file", hostile_files(), ids=lambda file: f"{file.name}: {file.title}")
def test_a_right_result_or_one_clear_error(file: Hostile, tmp_path: Path) -> None:
    path = tmp_path / file.name
    path.write_bytes(file.content())
    started = time.process_time()
    if isinstance(file.expected, int):
        kept = CollectionBuilder().add(read(str(path))).pairs
        assert len(kept) == file.expected
        assert len(set(kept.row_ids)) == len(kept)
    else:
        with pytest.raises(DataError) as caught:
            CollectionBuilder().add(read(str(path)))
        message = str(caught.value)
        assert file.name in message
        for part in file.expected:
            assert part in message
        assert len(message) <= LONGEST_MESSAGE + 100
        assert all(character.isprintable() for character in message.replace("\n", ""))
    assert time.process_time() - started < 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak memory from")
@pytest.mark.parametrize("kind", ["zeros", "letters", "line ends", "spaces in JSON", "rows of one text"])
def test_memory_stays_bounded(kind: str, tmp_path: Path) -> None:
    one_text = next(file.content for file in parquet_files() if file.title.startswith("150 rows"))
    contents: dict[str, tuple[str, Callable[[], bytes]]] = {
        "zeros": ("a.jsonl.gz", partial(bomb, b"\0")),
        "letters": ("a.csv.gz", partial(bomb, b"a")),
        "line ends": ("a.jsonl.gz", partial(bomb, b"\n")),
        "spaces in JSON": ("a.json.gz", partial(bomb, b" ")),
        "rows of one text": ("a.parquet", one_text),
    }
    name, content = contents[kind]
    (tmp_path / name).write_bytes(content())
    program = (
        "import re, sys, pyarrow.parquet\n"
        "from embedtune.data.read import read\n"
        "from embedtune.errors import DataError\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "try: read(sys.argv[1])\n"
        "except DataError: pass\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, check=True)
    assert int(done.stdout) * 1_024 < MEMORY


def test_more_rows_than_memory_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROWS", 3)
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 3)
    assert len(read(str(path)).rows) == 3
    path.write_bytes(GOOD * 4)
    with pytest.raises(DataError, match="more than 3 rows"):
        read(str(path))
    assert len(list(stream_passages(str(path)))) == 4


def test_a_bomb_of_good_rows_is_told_from_a_file_that_packs_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_UNPACKED_BYTES", 2**20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(bomb(pair(passage="same " * 100), 2**24))
    with pytest.raises(DataError, match=r"unpacks to more than \d+ MiB"):
        read(str(path))
    varied = b"".join(pair(passage=f"passage {number} of many") for number in range(40_000))
    path.write_bytes(gzip.compress(varied))
    assert len(read(str(path)).rows) == 40_000


@pytest.mark.parametrize("source", ["a\0b.jsonl", "a\ud800.csv", f"{'n' * 5_000}.csv", f"{'n' * 5_000}.txt", "\0", ""])
def test_names_that_no_file_has(source: str) -> None:
    for reader in (read, read_passages, read_labels):
        with pytest.raises(DataError):
            reader(source)


@pytest.mark.parametrize("grade", ["nan", "inf", "-inf", "1e999", "1,5", ""])
def test_grades_that_are_no_numbers(grade: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "y"}\n')
    (tmp_path / "qrels.train.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\td\t{grade}\n")
    with pytest.raises(DataError, match=r"qrels.train.tsv', line 2: received 'q.*expected query id"):
        read(str(tmp_path))


@pytest.mark.parametrize("ids", ['[["d"]]', "[null]", "[true]", "[1.5]"])
def test_ids_that_are_no_ids(ids: str, tmp_path: Path) -> None:
    content = f'{{"queries": {{"q": "a"}}, "corpus": {{"d": "b"}}, "relevant_docs": {{"q": {ids}}}}}'
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="relevant_docs of 'q': the id is"):
        read(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a = {'[' * 20_000}", "nested too deeply"),
        (f"[training]\nlr = 0x{'f' * 5_000}", "--lr is"),
        (f"[output]\nseed = 0x{'f' * 5_000}", "--seed is"),
        (f"[adapter]\nrank = {'9' * 5_000}", "not a readable TOML file"),
        ("[training]\nlr = inf", "--lr is inf, expected a finite number"),
        ("[training]\nepochs = nan", "--epochs is nan"),
        ("[output]\nseed = -1", "--seed is -1, expected 0 or more"),
        ('[output]\nout = "a\\u0000b"', "--out is"),
        ('[data]\ntrain = "a\\u0000b"', "--train is"),
        ('[data]\nnegative_columns = ["a\\u0000"]', "--negative-columns is"),
        ('["\\u001b[2J"]\na = 1', "unknown section [\\x1b[2J]"),
        (f"[data]\n{'k' * 100_000} = 1", "unknown key 'kkk"),
    ],
)
def test_hostile_configs(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_toml(tmp_path / "config.toml")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 2_000


def test_halves_of_characters_in_a_config() -> None:
    with pytest.raises(ConfigError, match=r"--out is a\\ud800, expected text without"):
        from_dict({"output": {"out": "a\ud800"}}, source="a dict")
    assert from_dict({"output": {"out": "é🔑"}}, source="a dict") != TrainConfig()


def test_messages_do_nothing_to_the_terminal() -> None:
    assert readable("naïve 🔑 ok\nsecond line\u00a0!") == "naïve 🔑 ok\nsecond line\u00a0!"
    assert readable("\x1b[31m\r\u202e\u200b\ud800") == "\\x1b[31m\\r\\u202e\\u200b\\ud800"
    assert str(DataError("a\x07")) == "a\\x07"
    long = readable("a" * 10_000 + "Type: this")
    assert len(long) < 5_000
    assert long.endswith("Type: this")
    assert brief("a\nb") == "a\\nb"
    assert brief("x" * 100) == "x" * 57 + "..."
    assert brief(10**5_000) == "a int too long to show"
