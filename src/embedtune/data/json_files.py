"""JSON Lines and JSON to records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from embedtune.data.lines import text_lines, whole_text
from embedtune.data.records import Record, SharedTexts, shared
from embedtune.errors import DataError, brief


def parse_json(text: str, path: Path, line: int = 1, *, texts: SharedTexts | None = None) -> object:
    """The JSON value that `text` holds.

    Args:
        text: to be parsed.
        path: where it is from.
        line: number of its first line in the file.
        texts: through which equal texts become one.

    Raises:
        DataError: it isn't JSON, or is nested too deeply to be parsed.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=None if texts is None else texts.fields)
    except json.JSONDecodeError as error:
        where = f"'{path}', line {line + error.lineno - 1}"
        raise DataError(
            f"{where}: not valid JSON ({error.msg}, column {error.colno}). Repair that line; "
            f"if it is the last one, the file may be cut off."
        ) from error
    except RecursionError as error:
        raise DataError(f"'{path}', line {line}: JSON nested too deeply; expected flat rows.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"'{path}', line {line}: JSON that can't be read ({error}).") from error
    return value


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a JSON Lines file, one line at a time; blank lines are skipped.

    Raises:
        DataError: a line isn't a JSON object.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        value = parse_json(line, path, number)
        if not isinstance(value, dict):
            raise DataError(
                f"'{path}', line {number}: received {_shortened(value)}; expected a JSON object a line, "
                f'such as {{"anchor": "a question", "positive": "a passage"}}.'
            )
        yield Record(f"{path.name}:{number}", value)


def load_json(path: Path) -> object:
    """The value of a `.json` file; a list of `Record` if the file holds JSON Lines under that name.

    `datasets.Dataset.to_json("train.json")` and pandas write JSON Lines into such names, so they are common.

    Raises:
        DataError: it is neither.
    """
    text = whole_text(path)
    first = re.search(r"\S[^\n]*", text)
    if first and re.compile(r"\S").search(text, first.end()) and _is_json_object(first[0]):
        return list(shared(json_lines(path)))
    return parse_json(text, path, texts=SharedTexts())


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_records(content: object, path: Path) -> list[Record]:
    """The records of what `load_json` gave.

    Raises:
        DataError: `content` isn't a list of objects.
    """
    if not isinstance(content, list):
        raise DataError(
            f"'{path}' holds {_shortened(content)}; expected a list of objects with a question and "
            f"a passage each, or the LlamaIndex form with 'queries', 'corpus' and 'relevant_docs'."
        )
    for number, item in enumerate(content, 1):
        if not isinstance(item, (dict, Record)):
            raise DataError(f"'{path}', item {number} of the list: received {_shortened(item)}; expected an object.")
    return [
        item if isinstance(item, Record) else Record(f"{path.name}[{number}]", item)
        for number, item in enumerate(content, 1)
    ]


def _shortened(value: object) -> str:
    if isinstance(value, dict):
        names = ", ".join(f"'{brief(name)}'" for name in list(value)[:8])
        return f"an object with {names or 'no keys'}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # parsed with a few levels to spare
        text = "nested too deeply to show"
    return f"{type(value).__name__} {brief(text)}"
