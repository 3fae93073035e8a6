"""Retrieval collections to tables: BEIR folders and LlamaIndex's JSON.

Both keep questions, passages and which passage answers which question apart, joined by ids.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

from embedtune.data.files import SUFFIXES
from embedtune.data.json_files import json_lines
from embedtune.data.lines import bare_suffix, text_lines
from embedtune.data.table import Row, Split, Table, pick_split
from embedtune.errors import DataError, brief

_LLAMAINDEX_KEYS = ("queries", "corpus", "relevant_docs")


def is_beir(folder: Path) -> bool:
    """Whether the folder has a `corpus.jsonl` and a `queries.jsonl`, plain or gzipped."""
    return _find(folder, "corpus.jsonl") is not None and _find(folder, "queries.jsonl") is not None


def not_beir(folder: Path) -> DataError:
    """The error for a folder that isn't a BEIR folder, with the files in it that could be given instead."""
    try:
        files = sorted(name for name in os.listdir(folder) if bare_suffix(name) in SUFFIXES)
    except PermissionError:
        return DataError(f"No permission to read the folder '{folder}'. Type:  chmod u+rx '{folder}'")
    hint = f" It holds {', '.join(files[:5])}; type the path of one of them." if files else ""
    return DataError(
        f"'{folder}' is a folder, but not a BEIR one: expected corpus.jsonl, queries.jsonl and qrels/ in it, "
        f"or a file.{hint}"
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)


def _found(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"'{folder}' has no {name} or {name}.gz; expected a BEIR folder.")
    return path


def beir_splits(folder: Path) -> dict[str, Path]:
    """Split name to qrels file, from `qrels/NAME.tsv` or `qrels.NAME.tsv`, plain or gzipped."""
    inside = {path: re.fullmatch(r"(.+)\.tsv(\.gz)?", path.name) for path in sorted(folder.glob("qrels/*"))}
    beside = {path: re.fullmatch(r"qrels[._-](.+)\.tsv(\.gz)?", path.name) for path in sorted(folder.glob("qrels*"))}
    return {match[1].lower(): path for path, match in {**beside, **inside}.items() if match}


def read_beir(folder: Path, source: str, split: Split) -> Table:
    """The relevant pairs of one split, and the whole corpus as further passages.

    Raises:
        DataError: a part is missing or broken, or the split can't be told.
    """
    splits = beir_splits(folder)
    name = pick_split(splits, split)
    if name is None:
        found = ", ".join(splits) or "none"
        raise DataError(
            f"'{source}' has no qrels for the split '{split}'; found: {found}. "
            f"Expected a file '{folder / 'qrels' / split}.tsv'."
        )
    passages = _beir_corpus(folder)
    queries = _by_id(_found(folder, "queries.jsonl"))
    path = splits[name]
    rows = []
    for number, query_id, passage_id, grade in _qrels(path):
        for kind, key, known in (("query", query_id, queries), ("corpus", passage_id, passages)):
            if key not in known:
                raise DataError(
                    f"'{path}', line {number}: the {kind} id '{brief(key)}' is not in the folder's "
                    f"{'queries' if kind == 'query' else 'corpus'}.jsonl. Add it there, or remove the line."
                )
        if grade > 0:
            row_id, origin = f"{query_id}/{passage_id}", f"{path.name}:{number}"
            rows.append(Row(queries[query_id], passages[passage_id], grade=grade, id=row_id, origin=origin))
    if not rows:
        raise DataError(f"'{path}' has no rows with a score above 0; expected query id, passage id and score.")
    return Table(rows=rows, passages=list(passages.values()), source=source)


def read_beir_corpus(folder: Path) -> list[object]:
    """The passages of a BEIR folder.

    Raises:
        DataError: the corpus file is missing or broken.
    """
    return list(_beir_corpus(folder).values())


def _beir_corpus(folder: Path) -> dict[str, object]:
    return _by_id(_found(folder, "corpus.jsonl"))


def _by_id(path: Path) -> dict[str, object]:
    texts: dict[str, object] = {}
    for record in json_lines(path):
        if "_id" not in record.fields or "text" not in record.fields:
            raise DataError(f"'{path}', {record.origin}: expected the keys '_id' and 'text' in each line.")
        key = _id(record.fields["_id"], f"'{path}', {record.origin}")
        if key in texts:
            raise DataError(f"'{path}', {record.origin}: the _id '{brief(key)}' is there twice. Rename or remove one.")
        texts[key] = titled_text(record.fields)
    return texts


def _id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{where}: the id is {brief(value)}; expected a text or a whole number.")
    return str(value)


def titled_text(fields: Mapping[str, object]) -> object:
    """A BEIR document as one passage: its title, if it has one, a space, and its text."""
    title, text = fields.get("title"), fields.get("text")
    if isinstance(title, str) and title.strip() and isinstance(text, str):
        return f"{title} {text}"
    return text


def _qrels(path: Path) -> Iterator[tuple[int, str, str, float]]:
    """Line number, query id, passage id and grade of each line; a header line is skipped if there is one."""
    for number, line in text_lines(path):
        fields = line.strip().split("\t")
        if fields == [""]:
            continue
        try:
            query_id, passage_id, grade = fields
            value = float(grade)
            if not math.isfinite(value):
                raise ValueError("no number to compare")
            yield number, query_id, passage_id, value
        except ValueError as error:
            if number == 1 and len(fields) == 3:
                continue
            raise DataError(
                f"'{path}', line {number}: received '{brief(line.strip())}'; expected query id, passage id and "
                f"a number as score, with tabs between."
            ) from error


def is_llamaindex(content: object) -> TypeGuard[dict[str, object]]:
    """Whether a JSON value has the keys of LlamaIndex's `EmbeddingQAFinetuneDataset`."""
    return isinstance(content, dict) and all(key in content for key in _LLAMAINDEX_KEYS)


def read_llamaindex(content: Mapping[str, object], path: Path, source: str) -> Table:
    """The relevant pairs, and the whole corpus as further passages.

    Raises:
        DataError: a part isn't an object, or an id refers to nothing.
    """
    queries, passages, relevant = (_part(content, key, path) for key in _LLAMAINDEX_KEYS)
    rows = []
    for query_id, passage_ids in relevant.items():
        where = f"'{path}', relevant_docs of '{brief(query_id)}'"
        if query_id not in queries:
            raise DataError(f"{where}: there is no such id in 'queries'. Add the question, or remove the entry.")
        if not isinstance(passage_ids, list):
            raise DataError(f"{where}: received {type(passage_ids).__name__}; expected a list of ids of 'corpus'.")
        for passage_id in (_id(passage_id, where) for passage_id in passage_ids):
            if passage_id not in passages:
                raise DataError(
                    f"{where}: '{brief(passage_id)}' is not in 'corpus'. Add the passage, or remove the id."
                )
            row_id, origin = f"{query_id}/{passage_id}", f"{path.name}:{query_id}"
            rows.append(Row(queries[query_id], passages[passage_id], id=row_id, origin=origin))
    if not rows:
        raise DataError(f"'{path}' has no rows: 'relevant_docs' names no passage for any question.")
    return Table(rows=rows, passages=list(passages.values()), source=source)


def llamaindex_corpus(content: Mapping[str, object], path: Path) -> list[object]:
    """The passages of a LlamaIndex file.

    Raises:
        DataError: 'corpus' isn't an object.
    """
    return list(_part(content, "corpus", path).values())


def _part(content: Mapping[str, object], key: str, path: Path) -> dict[str, object]:
    part = content[key]
    if not isinstance(part, dict):
        raise DataError(f"'{path}': '{key}' is {type(part).__name__}; expected an object of ids and texts.")
    return part
