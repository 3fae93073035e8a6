"""Hostile files, made on the spot, each with what has to come of it: how many pairs, or what the one error says."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple


class Hostile(NamedTuple):
    """One file."""

    title: str
    name: str
    content: Callable[[], bytes]
    expected: int | tuple[str, ...]
    """Number of distinct pairs, or parts of the message."""


GOOD = b'{"question": "q", "passage": "p"}\n'
CSV_GOOD = b"question,passage\nq,p\n"
SCRIPTS = (
    "family 👨‍👩‍👧‍👦 and flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "مرحبا \u202eabc\u202c",
    "a\u200bb\u200dc\ufeff",
    "Z̷̧̛͖a̸l̶g̵o̶" * 50,
    "ｆｕｌｌ ﬁ ①",
    "𐍈 \U0010ffff",
)
MEMBER = 2**24
"""Bytes of a gzip member of a bomb; members one after another are one file."""


def packed(name: str, content: bytes) -> tuple[str, Callable[[], bytes]]:
    """The name and the bytes of a gzipped file."""
    return f"{name}.gz", lambda: gzip.compress(content, 6, mtime=0)


def bomb(pattern: bytes, size: int = 10 * 2**30) -> bytes:
    """A gzip file of that many bytes unpacked, 10 GiB, and a thousandth of that itself."""
    return gzip.compress(pattern * (MEMBER // len(pattern)), 9, mtime=0) * (size // MEMBER)


def pair(**fields: Any) -> bytes:
    """A line of JSON with a question and a passage."""
    return json.dumps({"question": "q", "passage": "p", **fields}).encode() + b"\n"


def parquet(columns: dict[str, Any] | None = None, **options: Any) -> bytes:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(columns or {}), stream, **options)
    return stream.getvalue()


def texts() -> Iterator[Hostile]:
    """Faults of bytes, lines and packing, which all forms of text have in common."""
    for name, good in (("a.jsonl", GOOD), ("a.csv", CSV_GOOD), ("a.tsv", CSV_GOOD.replace(b",", b"\t"))):
        line = f"line {good.count(bytes([10])) + 1}"
        faults = (
            ("invalid UTF-8", good + b"\xff\xfe\xfd\n", (line, "not UTF-8 text", "0xff at byte 1")),
            ("an overlong UTF-8 form", good + b"ab\xc0\x80\n", (line, "0xc0 at byte 3")),
            ("half a character in UTF-8", good + b"\xed\xa0\x80\n", (line, "not UTF-8 text")),
            ("a NUL byte", good + b"a\0b\n", (line, "a NUL byte at byte 2")),
        )
        for title, content, expected in faults:
            yield Hostile(title, name, partial(bytes, content), expected)
            yield Hostile(f"{title}, packed", *packed(name, content), expected)
        whole = gzip.compress(good * 2_000, mtime=0)
        yield Hostile("truncated gzip", f"{name}.gz", partial(bytes, whole[:-20]), ("not a whole gzip file",))
        yield Hostile("gzip with a wrong sum", f"{name}.gz", partial(bytes, whole[:-8] + b"\1" * 8), ("CRC check",))
        yield Hostile("bytes after the gzip", f"{name}.gz", partial(bytes, whole + b"xyz"), ("not a whole gzip file",))
        yield Hostile("gzip in gzip", f"{name}.gz", partial(gzip.compress, whole), ("is gzipped but its name",))
        yield Hostile("a line of 33 MiB", name, partial(_long_line, good), (line, "longer than 32 MiB"))
        yield Hostile("10 GiB of zeros", f"{name}.gz", partial(bomb, b"\0"), ("line 1", "a NUL byte"))
        yield Hostile("10 GiB of one letter", f"{name}.gz", partial(bomb, b"a"), ("line 1", "longer than 32 MiB"))
    yield Hostile("a million blank lines", "a.csv", lambda: CSV_GOOD + b"\n" * 1_000_002, ("line 3", "blank lines"))
    yield Hostile("10 GiB of line ends", "a.jsonl.gz", partial(bomb, b"\n"), ("line 1", "blank lines"))
    yield Hostile("10 GiB of zeros", "a.json.gz", partial(bomb, b"\0"), ("line 1", "a NUL byte"))
    yield Hostile("10 GiB of spaces", "a.json.gz", partial(bomb, b" "), ("MiB, over 30 times its size", "gunzip"))


def _long_line(good: bytes) -> bytes:
    return good + b"a" * (33 * 2**20)


def json_files() -> Iterator[Hostile]:
    """JSON and JSON Lines."""
    deep, deep_object = b"[" * 100_000, b'{"a":' * 100_000
    yield Hostile("deep lists", "a.jsonl", partial(bytes, GOOD + deep), ("line 2", "nested too deeply"))
    yield Hostile("deep objects", "a.jsonl", partial(bytes, GOOD + deep_object), ("line 2", "nested too deeply"))
    yield Hostile("deep lists", "a.json", partial(bytes, deep), ("line 1", "nested too deeply"))
    yield Hostile("an endless number", "a.jsonl", partial(bytes, GOOD + b"9" * 10_000), ("line 2", "can't be read"))
    for depth in (200, 600, 900):
        content = b"[" * depth + b"]" * depth
        yield Hostile(f"a list {depth} deep", "a.jsonl", partial(bytes, GOOD + content), ("line 2",))
        yield Hostile(f"a list {depth} deep as a text", "a.jsonl", partial(bytes, GOOD + _nested(content)), 1)
    yield Hostile("a text of 10 MB", "a.jsonl", lambda: pair(passage="word " * 2_000_000), 1)
    yield Hostile("a text of 10 MB", "a.json", lambda: b"[" + pair(passage="word " * 2_000_000) + b"]", 1)
    yield Hostile("halves of characters", "a.jsonl", partial(pair, passage="a\ud800b", id="\udfff"), 1)
    yield Hostile("a key twice", "a.jsonl", partial(bytes, b'{"question": 1, "question": "q", "passage": "p"}'), 1)
    yield Hostile("numbers that are none", "a.jsonl", partial(pair, id=float("nan"), other=float("inf")), 1)
    yield Hostile("an id of 4,000 digits", "a.jsonl", partial(pair, id=10**4_000), 1)
    lists = {"question": [str(i) for i in range(400)], "passage": [f"p{i}" for i in range(400)]}
    expected = ("a.jsonl:2", "160,000 pairs", "at most 1,000")
    yield Hostile("lists that multiply", "a.jsonl", lambda: GOOD + pair(**lists), expected)
    yield Hostile("a long list", "a.jsonl", lambda: pair(passage=[f"p{i}" for i in range(5_000)]), 5_000)
    yield Hostile("marks without end", "a.jsonl", lambda: pair(passage="a" + "\u0300\u0316" * 300_000), 1)
    spelled = [pair(question=f"q{i}", passage=text) for i, text in enumerate(SCRIPTS)]
    yield Hostile("scripts and emoji", "a.jsonl", lambda: b"".join(spelled), len(SCRIPTS))
    yield Hostile("nothing to see", "a.jsonl", partial(pair, passage="\u200b\u2060\ufeff"), ("empty_positive: 1",))
    same = ("pass\u200bage", "passage", " passage\u00a0", "\u202apassage\u202c", "ｐassage")
    yield Hostile("one text in five spellings", "a.jsonl", lambda: b"".join(pair(passage=text) for text in same), 1)
    yield Hostile("100,000 identical rows", *packed("a.jsonl", GOOD * 100_000), 1)
    clashing = [pair(id=name, passage=f"p{number}") for number, name in enumerate(("a", "a", "a-2", 1, "1"))]
    yield Hostile("ids that clash", "a.jsonl", lambda: b"".join(clashing), 5)
    names = {"\x1b]0;owned\x07\x1b[2J": "x", "n" * 1_000_000: "y"}
    yield Hostile("names that write to the terminal", "a.jsonl", lambda: json.dumps(names).encode(), ("\\x1b]0;owned",))


def _nested(content: bytes) -> bytes:
    return b'{"question": "q2", "passage": ' + content + b"}\n"


def csv_files() -> Iterator[Hostile]:
    """CSV and TSV."""
    unclosed = CSV_GOOD + b'"never closed,p\n' + b"q,p\n" * 1_000
    yield Hostile("a quote never closed", "a.csv", partial(bytes, unclosed), ("line 3", "not valid CSV"))
    swallowed = (b"x" * 999 + b"\n") * 11_000
    yield Hostile("... that swallows 11 MB", "a.csv", lambda: unclosed + swallowed, ("line 3", "10,000,000 characters"))
    yield Hostile("text after a quote", "a.csv", partial(bytes, CSV_GOOD + b'"q"x,p\n'), ("line 3", "not valid CSV"))
    yield Hostile("a lone quote", "a.csv", partial(bytes, CSV_GOOD + b'q "2,p 3"\n'), 2)
    yield Hostile("quotes doubled", "a.csv", partial(bytes, CSV_GOOD + b'"""q""","p,""\n"""\n'), 2)
    yield Hostile("a carriage return", "a.csv", partial(bytes, CSV_GOOD + b"a\rb,p\n"), ("line 3", "not valid CSV"))
    yield Hostile("too many fields", "a.csv", partial(bytes, CSV_GOOD + b"a,b,c\n"), ("line 3", "3 fields", "2 as in"))
    yield Hostile("too few fields", "a.tsv", lambda: b"question\tpassage\nq\n", ("line 2", "1 fields"))
    yield Hostile("a header alone", "a.csv", lambda: b"question,passage\n", ("has no rows",))
    many = ",".join(f"c{number}" for number in range(100_000)).encode()
    yield Hostile("a hundred thousand columns", "a.csv", lambda: many + b"\n" + many, ("was not recognised",))
    yield Hostile("a million commas", "a.csv", lambda: b"," * 1_000_000 + b"\n", ("column '' twice",))
    yield Hostile("a field of 9 MB", "a.csv", lambda: CSV_GOOD + b"q2," + b"word " * 1_800_000 + b"\n", 2)
    escape = b"question\x1b[31m,\xe2\x80\xaeegassap\na,b\n"
    yield Hostile("a header in red", "a.csv", partial(bytes, escape), ("question\\x1b[31m", "\\u202eegassap"))
    yield Hostile("100,000 identical rows", "a.csv", lambda: CSV_GOOD + b"q,p\n" * 100_000, 1)


def parquet_files() -> Iterator[Hostile]:
    """Parquet."""
    import pyarrow as pa

    q, name = ["q1", "q2"], "a.parquet"
    wrong: dict[str, Any] = {
        "whole numbers": [1, 2],
        "bytes": [b"a", b"\xff"],
        "objects": [{"a": 1}, {"a": 2}],
        "lists of numbers": [[1], [2]],
        "dates": pa.array([1, 2], pa.date32()),
        "decimals": pa.array([1, 2], pa.decimal128(9, 2)),
        "nothing": pa.nulls(2),
    }
    for title, column in wrong.items():
        content = partial(parquet, {"question": q, "passage": column})
        yield Hostile(f"{title} for passages", name, content, ("none of its 2 rows can be used",))
    far = pa.array([2**62, 1], pa.timestamp("us"))
    beyond = partial(parquet, {"question": q, "passage": q, "when": far})
    yield Hostile("times beyond the calendar", name, beyond, ("can't be read as Parquet after 0 rows",))
    dead = pa.array([b"a", b"\xff"]).view(pa.string())
    yield Hostile("texts that are no UTF-8", name, partial(parquet, {"question": q, "passage": dead}), ("0 rows",))
    whole = parquet({"question": q, "passage": ["p1", "p2"]})
    for length in (4, 12, len(whole) // 2, len(whole) - 1):
        yield Hostile(f"cut off at {length}", name, partial(bytes, whole[:length]), ("can't be read as Parquet",))
    yield Hostile("no columns", name, parquet, ("has no rows",))
    nulls = partial(parquet, {"passage": pa.nulls(11_000_000)})
    yield Hostile("eleven million rows in a few bytes", name, nulls, ("11,000,000 rows",))
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 150, pa.int32()), ["word " * 200_000])
    same = partial(parquet, {"question": ["q"] * 150, "passage": repeated})
    yield Hostile("150 rows of one text of 1 MB", name, same, 1)
    yield Hostile("the same, packed", f"{name}.gz", lambda: gzip.compress(same(), mtime=0), 1)
    rows = partial(parquet, {"question": ["q"] * 100_000, "passage": ["p"] * 100_000})
    yield Hostile("100,000 identical rows", name, rows, 1)


def hostile_files() -> list[Hostile]:
    """All of them."""
    return [*texts(), *json_files(), *csv_files(), *parquet_files()]
