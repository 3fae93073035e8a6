"""What is fuzzed: one function a kind of input, from bytes to what embedtune makes of them.

`tests/hostile/test_properties.py` feeds them with hypothesis, `tests/hostile/fuzz_atheris.py` with libFuzzer, and
`tests/hostile/test_seeds.py` with what either of them found. A target returns, or raises an error of embedtune's own;
everything else that comes out of it is a finding.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from embedtune.config_file import from_dict, load_toml, to_toml
from embedtune.data.clean import CollectionBuilder
from embedtune.data.columns import find_column, resolve_columns
from embedtune.data.labels import apply_labels, read_labels
from embedtune.data.read import read, read_passages, stream_passages
from embedtune.data.table import Columns
from embedtune.errors import DataError, EmbedtuneError, StorageError, UserError

LONGEST_MESSAGE = 5_000
CUT = b"\n%%\n"
"""Between the files that one input of `beir` and `columns` stands for."""


def check(target: Callable[[bytes, Path], None], content: bytes, folder: Path) -> EmbedtuneError | None:
    """Run a target; its error, whose message can be shown in a terminal.

    Raises:
        Exception: a finding.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        target(content, folder)
    except (UserError, StorageError) as error:
        message = str(error)
        odd = {c for c in message if not c.isprintable() and c != "\n" and unicodedata.category(c) != "Zs"}
        assert not odd, f"{odd!r} in {message!r}"
        assert message.strip()
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
        return error
    return None


def tabular(content: bytes, folder: Path, *, name: str) -> None:
    """A file of pairs: read for training, and as a corpus in both ways."""
    path = folder / name
    path.write_bytes(content)
    try:
        CollectionBuilder().add(read(str(path)))
    finally:
        at_once = _passages(read_passages, path)
        assert _passages(stream_passages, path) == at_once or path.name.startswith("a.jsonl")


def _passages(reader: Callable[[str], Any], path: Path) -> list[object] | None:
    try:
        passages = [repr(passage) for passage in reader(str(path))]
    except DataError:
        return None
    CollectionBuilder().add_passages(passages)
    return list(passages)


def packed(content: bytes, folder: Path) -> None:
    """Bytes under the name of a gzipped file."""
    tabular(content, folder, name="a.jsonl.gz")


def text(content: bytes, folder: Path) -> None:
    """A file with a passage a line."""
    (folder / "a.txt").write_bytes(content)
    for passage in stream_passages(str(folder / "a.txt")):
        assert isinstance(passage, str)


def beir(content: bytes, folder: Path) -> None:
    """A BEIR folder: corpus, queries and qrels with `CUT` between them."""
    parts = [*content.split(CUT), b"", b""]
    (folder / "qrels").mkdir()
    for name, part in zip(("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"), parts, strict=False):
        (folder / name).write_bytes(part)
    table = read(str(folder))
    assert all(0 < row.grade < float("inf") for row in table.rows)
    CollectionBuilder().add(table)


def columns(content: bytes, folder: Path) -> None:
    """Column names, and those that the user asks for after `CUT`."""
    found, _, asked = content.decode("utf-8", "replace").partition(CUT.decode())
    names, wanted = found.split("\n"), [*asked.split("\n"), "", ""]
    resolved = resolve_columns(
        Columns(anchor=wanted[0] or None, positive=wanted[1] or None, negatives=tuple(filter(None, wanted[2:4]))),
        names,
        "a.csv",
    )
    assert {resolved.anchor, resolved.positive, *resolved.negatives} <= set(names)
    assert resolved.anchor is None or find_column(names, [resolved.anchor]) is not None


def labels(content: bytes, folder: Path) -> None:
    """A file of labelled suspects, applied to a small collection."""
    (folder / "suspects.jsonl").write_bytes(content)
    (folder / "pairs.jsonl").write_text('{"query": "q", "passage": "p"}\n{"query": "r", "passage": "c"}\n')
    builder = CollectionBuilder()
    builder.add(read(str(folder / "pairs.jsonl")))
    apply_labels(read_labels(str(folder / "suspects.jsonl")), builder.finish())


def forgetting(content: bytes, folder: Path, *, name: str = "a.jsonl") -> None:
    """A file for `--forgetting`."""
    from embedtune.evaluation.general import read_set

    (folder / name).write_bytes(content)
    read_set(str(folder / name), name="a")


def toml(content: bytes, folder: Path) -> None:
    """A config file; what is read is written and read to the same."""
    (folder / "config.toml").write_bytes(content)
    config = load_toml(folder / "config.toml")
    (folder / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_toml(folder / "again.toml") == config


def document(content: bytes, folder: Path) -> None:
    """A config as nested mappings."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        from_dict(value, source="a dict")


@cache
def _trained() -> Any:
    import torch
    from torch import nn

    from embedtune.training.checkpoint import Trained

    model = nn.Linear(2, 1)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    return Trained(model=model, optimizer=optimizer, scheduler=scheduler)


def saved_checkpoint(folder: Path) -> Path:
    """A checkpoint of a model with three weights, after a step and an evaluation."""
    import torch

    from embedtune.training.checkpoint import Checkpoints, Progress

    checkpoints = Checkpoints(folder, keep_last=2)
    checkpoints.open()
    progress = Progress(step=1, evaluations=[{"step": 1, "ndcg@10": 0.5}], best_step=1, best_metric=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # its state is saved as well
        checkpoints.save(_trained(), progress)
    return checkpoints.path(1)


def checkpoint(content: bytes, folder: Path, *, part: str) -> None:
    """A checkpoint one file of which is replaced; its checksums are right, so only the content can be wrong.

    What is loaded is good for saving again.
    """
    from embedtune.training.checkpoint import CHECKSUMS, OPTIMIZER, STATE, WEIGHTS, Checkpoints

    saved = saved_checkpoint(folder)
    (saved / part).write_bytes(content)
    if part != CHECKSUMS:
        names = (WEIGHTS, OPTIMIZER, STATE)
        sums = [f"{hashlib.sha256((saved / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (saved / CHECKSUMS).write_text("".join(sums))
    trained, checkpoints = _trained(), Checkpoints(folder, keep_last=2)
    try:
        loaded = checkpoints.load_newest(trained, warn=lambda _: None)
        assert loaded is not None
        checkpoints.best_whole(loaded, "ndcg@10")
        checkpoints.save(trained, loaded)
    finally:
        _trained.cache_clear()  # what was half restored is not for the next input


def fingerprint(content: bytes, folder: Path) -> None:
    """What a run keeps of its data and its base model."""
    from embedtune.export.run_folder import RunFolder
    from embedtune.resuming import Identity

    (folder / "fingerprint.json").write_bytes(content)
    identity = Identity(RunFolder(folder), resume=True)
    identity.check_data({"train": "0" * 64}, {"train": 3})
    identity.check_environment({"torch": "2.11"})


def results(content: bytes, folder: Path) -> None:
    """A results file, to its page."""
    from embedtune.cli.report import read_results, write_report

    (folder / "results.json").write_bytes(content)
    write_report(read_results(folder / "results.json"), folder / "report.html", folder=folder)


def published(content: bytes, folder: Path, *, name: str) -> None:
    """A folder of a model and its adapter, one file of which is replaced, as far as it goes up to the Hub."""
    from embedtune.cli.push import files_to_upload

    for part, whole in publishable().items():
        (folder / part).write_bytes(content if part == name else whole)
    files, _ = files_to_upload(folder, "owner/name", inside=folder)
    assert set(files) == set(publishable())
    base = json.loads(files["adapter_config.json"])["base_model_name_or_path"]  # type: ignore[arg-type]  # bytes
    assert base is None or not base.startswith("/")


@cache
def publishable() -> dict[str, bytes]:
    """Files that are right."""
    import numpy as np
    from safetensors.numpy import save

    shard = "model-00001-of-00001.safetensors"
    return {
        "adapter_config.json": json.dumps({"base_model_name_or_path": "/home/alice/bge", "r": 16}).encode(),
        "modules.json": json.dumps([{"idx": 0, "name": "0", "path": "", "type": "a.B"}]).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {"a": shard}}).encode(),
        shard: save({"a": np.ones((2, 3), dtype=np.float32)}),
        "tokenizer.model": b"\n\x05\n\x03abc",
        "README.md": b"# A model\n",
    }


def whole_gzip(content: bytes, folder: Path, *, name: str) -> None:
    """The same as `tabular`, with the bytes packed."""
    tabular(gzip.compress(content, 1), folder, name=f"{name}.gz")


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "jsonl": partial(tabular, name="a.jsonl"),
    "json": partial(tabular, name="a.json"),
    "csv": partial(tabular, name="a.csv"),
    "tsv": partial(tabular, name="a.tsv"),
    "parquet": partial(tabular, name="a.parquet"),
    "packed": packed,
    "packed_csv": partial(whole_gzip, name="a.csv"),
    "text": text,
    "beir": beir,
    "columns": columns,
    "labels": labels,
    "forgetting": forgetting,
    "toml": toml,
    "document": document,
    "state": partial(checkpoint, part="state.json"),
    "checksums": partial(checkpoint, part="SHA256SUMS"),
    "weights": partial(checkpoint, part="weights.safetensors"),
    "moments": partial(checkpoint, part="optimizer.safetensors"),
    "fingerprint": fingerprint,
    "results": results,
    "adapter": partial(published, name="adapter_config.json"),
    "modules": partial(published, name="modules.json"),
    "index": partial(published, name="model.safetensors.index.json"),
    "shard": partial(published, name="model-00001-of-00001.safetensors"),
    "vocabulary": partial(published, name="tokenizer.model"),
    "card": partial(published, name="README.md"),
}
"""By the name that a seed's file begins with."""
