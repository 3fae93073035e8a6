"""What of a folder goes to the Hugging Face Hub, and whether each file is what its name says.

A folder may come from somebody else, or from a disk that failed. Nothing of it is uploaded unless all of it can be:
weights are safetensors and whole, the rest is JSON or text, and everything lies inside the folder that was named.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from embedtune.errors import OutputError, brief, quoted

MOST_BYTES = 64 * 2**20
"""Of a file that is not weights; the largest tokenizers take half of it."""
WEIGHTS = ".safetensors"
_SUFFIXES = (".json", WEIGHTS, ".txt", ".model", ".md", ".py", ".jinja", ".tiktoken")
_NAMES = ("LICENSE", "LICENCE", "NOTICE")
_INDEX = ".index.json"
_PICKLE_STARTS = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"PK\x03\x04")
"""Of pickles, and of the archives of them that torch writes."""
_SENTENCEPIECE = b"\n"
"""Byte that a SentencePiece model starts with: its first field is the pieces."""


def folder_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """What belongs to a model or an adapter, by its name in the folder, and the names of what does not.

    Files of models are known by their endings: no pickles, checkpoints, data or logs that lie in the same folder are
    taken.
    """
    taken: dict[str, Path] = {}
    left: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file():
            continue
        # One folder a module; what lies deeper, or in a checkpoint's folder, is of a training run.
        known = path.suffix in _SUFFIXES or path.name in _NAMES
        nested = len(name.parts) > 2 or name.parts[0].startswith("checkpoint")
        of_pickles = path.name.endswith(f".bin{_INDEX}")
        if known and not nested and not of_pickles and not any(part.startswith(".") for part in name.parts):
            taken[name.as_posix()] = path
        else:
            left.append(name.as_posix())
    return taken, left


def check_files(taken: dict[str, Path], left: Collection[str], *, inside: Path) -> None:
    """Whether all of these can be published.

    Args:
        taken: files by their names in the repository.
        left: names of what lies beside them and stays.
        inside: the folder that was named; no link may lead out of it.

    Raises:
        OutputError: one can't be, or weights are missing.
    """
    _check_weights(taken, left, inside)
    root = inside.resolve()
    for name, path in taken.items():
        if not name.isprintable():
            raise OutputError(f"{inside}: a file is named {name!r}; expected a name of letters and digits. Rename it.")
        if not (target := path.resolve()).is_relative_to(root):
            raise OutputError(
                f"{path} leads out of {inside}, to {target}; what lies elsewhere is not uploaded.\n"
                "If it belongs there, put the file itself in its place:  cp -L"
            )
        try:
            _check(name, path, taken)
        except OSError as error:
            raise OutputError(f"{path} can't be read: {error.strerror or error}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OutputError: it holds something else, is too large, or can't be read.
    """
    try:
        value = _json(path)
    except OSError as error:
        raise OutputError(f"{path} can't be read: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise OutputError(f"{path} holds {quoted(value)}; expected a JSON object.{_AGAIN}")
    return value


_AGAIN = "\nMake the folder again, or take the file out."


def _check_weights(taken: dict[str, Path], left: Collection[str], inside: Path) -> None:
    """Raise if there are no weights, or only pickled ones in some place."""
    places = {PurePosixPath(name).parent for name in taken if name.endswith(WEIGHTS)}
    for name in map(PurePosixPath, left):
        if name.match("*model*.bin") and len(name.parts) <= 2 and name.parent not in places:
            raise OutputError(
                f"{inside} holds {name} and no weights as {WEIGHTS} beside it: a pickle could run code where it is "
                "loaded, so it is not uploaded.\nConvert it, and take it out."
            )
    if not places:
        raise OutputError(f"{inside} holds no weights as {WEIGHTS}.{_AGAIN}")


def _check(name: str, path: Path, taken: dict[str, Path]) -> None:
    """Raise if the file is not what its name says."""
    if path.suffix == WEIGHTS:
        try:
            with safe_open(path, framework="numpy"):  # looks at the header, and whether the file is as long as it says
                return
        except SafetensorError as error:
            raise OutputError(f"{path} is damaged or no safetensors file ({brief(str(error))}).{_AGAIN}") from error
    if path.suffix == ".json":
        value = _json(path)
        if path.name == "modules.json":
            _check_modules(path, value)
        elif path.name.endswith(f"{WEIGHTS}{_INDEX}"):
            _check_index(path, value, PurePosixPath(name).parent, taken)
        elif path.name.endswith("config.json") and not isinstance(value, dict):
            raise OutputError(f"{path} holds {quoted(value)}; expected a JSON object.{_AGAIN}")
        return
    content = _bytes(path)
    if not (path.suffix == ".model" and content.startswith(_SENTENCEPIECE)):
        _text(path, content)


def _check_modules(path: Path, modules: Any) -> None:
    """Raise unless it is a list of modules whose folders lie in this one."""
    for module in modules if isinstance(modules, list) else [modules]:
        place = module.get("path") if isinstance(module, dict) else None
        if not isinstance(place, str) or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise OutputError(
                f"{path} holds {quoted(module)}; expected modules, each with the path of a folder in this one.{_AGAIN}"
            )


def _check_index(path: Path, index: Any, place: PurePosixPath, taken: dict[str, Path]) -> None:
    """Raise unless every file that it names is there, as safetensors."""
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict):
        raise OutputError(f"{path} holds no 'weight_map'; expected one, from weights to their files.{_AGAIN}")
    for file in named.values():
        if not isinstance(file, str) or not file.endswith(WEIGHTS) or (place / file).as_posix() not in taken:
            raise OutputError(
                f"{path} says that weights are in {quoted(file)}; expected a {WEIGHTS} file beside it.{_AGAIN}"
            )


def _bytes(path: Path) -> bytes:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OutputError(
            f"{path} is {size / 2**20:,.0f} MiB; expected at most {MOST_BYTES // 2**20} for a {path.suffix or 'text'} "
            f"file, as only weights are larger.{_AGAIN}"
        )
    return path.read_bytes()


def _text(path: Path, content: bytes) -> str:
    if content.startswith(_PICKLE_STARTS):
        raise OutputError(f"{path} is a pickle, which could run code where it is loaded; expected text.{_AGAIN}")
    try:
        if b"\0" not in content:
            return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise OutputError(f"{path} is no UTF-8 text, which its name says it is.{_AGAIN}")


def _json(path: Path) -> Any:
    text = _text(path, _bytes(path))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is no JSON ({brief(str(error))}).{_AGAIN}") from error
