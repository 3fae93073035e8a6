"""`embedtune push DIR REPO [OPTIONS]`"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from embedtune.cli.console import Console
from embedtune.cli.network import use_cache_without_network
from embedtune.cli.options import parse
from embedtune.errors import ConfigError, OutputError, quoted, readable

NAMED_FILES = 20
"""At the most, of those that stay."""
LONGEST_BASE = 4_096
"""Characters of a base's name or path."""


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Upload a run's model, with its model card, to the Hugging Face Hub. Checkpoints, splits and reports stay here."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of a run, or of a model."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """Where to: OWNER/NAME. It is made if it does not exist."""
    part: Literal["model", "adapter"] = "model"
    """The merged model, or the adapter alone."""
    revision: str | None = None
    """Branch to upload to, made if it does not exist; the main one if not given."""
    private: bool = False
    """Only you and your organisation may see a new repository; this is the default."""
    public: bool = False
    """Everybody may see a new repository, and one that everybody sees already may be written to."""
    dry_run: bool = False
    """List the files and their sizes, and upload nothing."""

    def __post_init__(self) -> None:
        if self.private and self.public:
            raise ConfigError(
                "--private and --public contradict each other.\nType one of them; private is the default."
            )


def main(arguments: Sequence[str]) -> None:
    """List what goes up, upload it, say where it is."""
    options = parse(PushOptions, arguments, command="push")
    use_cache_without_network(options.repo)
    console = Console()
    from embedtune.export.hub import check_access, check_repo, upload

    check_repo(options.repo)
    if not options.dry_run:
        check_access()
    folder = _folder(options.folder, options.part)
    files, left = files_to_upload(folder, options.repo, inside=options.folder)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        console.note(f"{_size(size):>10}  {name}")
    if left:
        more = f" and {len(left) - NAMED_FILES:,} more" if len(left) > NAMED_FILES else ""
        console.warn(f"not part of the {options.part}, so left here: {readable(', '.join(left[:NAMED_FILES]))}{more}")
    if "README.md" not in files:
        console.warn("there is no README.md, so the repository will have no model card")
    if options.dry_run:
        console.note(f"{_size(sum(sizes.values()))} would go to {options.repo}; nothing was uploaded")
        return
    console.note(f"uploading {_size(sum(sizes.values()))} to {options.repo}")
    done = upload(
        files,
        options.repo,
        public=options.public,
        revision=options.revision,
        title=f"{options.part.capitalize()} fine-tuned with embedtune {importlib.metadata.version('embedtune')}",
        description=_verdict(folder.parent),
    )
    console.note(f"{done.url} ({'private' if done.private else 'public'}){'' if done.changed else ': nothing changed'}")
    if options.public and done.private:
        console.warn("the repository was private before and stays so; its settings on the Hub can change that")


def _folder(given: Path, part: str) -> Path:
    """The folder of that part of a run, or the given one if it is such a folder itself.

    Raises:
        OutputError: it is neither.
    """
    marks = {"model": ("modules.json", "config.json"), "adapter": ("adapter_config.json",)}[part]
    for folder in (given / part, given):
        if any((folder / mark).is_file() for mark in marks) and any(folder.rglob("*.safetensors")):
            return folder
    if not given.is_dir():
        raise OutputError(f"'{given}' is not a folder.\nType:  embedtune push DIR REPO with the --out DIR of a run.")
    if (given / "model").is_dir() and part == "adapter":
        raise OutputError(
            f"'{given}' holds no adapter: --method full has none, nor has a run whose gain was within noise.\n"
            "Leave --part adapter out."
        )
    if (given / "config.toml").is_file():
        again = f"embedtune train --config {given / 'config.toml'} --resume"
        raise OutputError(f"the run in '{given}' has not finished: it holds no {part}.\nType:  {again}")
    named = {"model": "a model", "adapter": "an adapter"}[part]
    raise OutputError(
        f"'{given}' holds neither a run nor {named}: expected {given / part} or {' or '.join(marks)} in it, and "
        "weights as .safetensors.\nType:  embedtune push DIR REPO with the --out DIR of a run."
    )


def files_to_upload(folder: Path, repo: str, *, inside: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """What is uploaded, and what is not: the card gets the repository's name, the adapter's base loses its path.

    Args:
        folder: of the model or the adapter.
        repo: where to.
        inside: the folder that was named, that one or a run's; nothing outside of it is uploaded.

    Raises:
        OutputError: a file is not what its name says, or lies outside of the folder that was named.
    """
    from embedtune.export.publishing import check_files, folder_files
    from embedtune.report.card.usage import MODEL_ID

    taken, left = folder_files(folder)
    check_files(taken, left, inside=inside)
    files: dict[str, Path | bytes] = {**taken}
    if "README.md" in taken:
        files["README.md"] = taken["README.md"].read_text(encoding="utf-8").replace(MODEL_ID, repo).encode()
    if "adapter_config.json" in taken:
        files["adapter_config.json"] = _adapter_settings(taken["adapter_config.json"])
    return files, left


def _adapter_settings(file: Path) -> bytes:
    """The adapter's settings, with its base's public name.

    Raises:
        OutputError: they are none, or their base's name is none.
    """
    from embedtune.export.publishing import read_object
    from embedtune.report.card.metadata import shown_name

    settings = read_object(file)
    base = settings.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable() and len(base) <= LONGEST_BASE):
        raise OutputError(
            f"{file} has the 'base_model_name_or_path' {quoted(base)}; expected a hub id or a folder.\n"
            "Correct that line."
        )
    settings["base_model_name_or_path"] = None if base is None else shown_name(base)
    return (json.dumps(settings, indent=2) + "\n").encode()


def _verdict(run: Path) -> str:
    """What the run found out; empty for a model that lies in no run's folder."""
    from embedtune.export.publishing import read_object
    from embedtune.report.verdict import verdict

    try:
        results = read_object(run / "results.json")
        return verdict(results) if results["schema"] == 1 else ""
    except (OutputError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return ""


def _size(count: int) -> str:
    """In the largest unit that gives 1 or more."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
