"""A run with hostile names, from local files: it writes in its folder only, connects to nobody, keeps no secret."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from embedtune.cli.main import main
from embedtune.cli.secrets import without_secrets
from embedtune.errors import ModelError
from embedtune.models.encoder import Encoder

TOKEN = "hf_" + "SECRETsecret0123456789SECRETsecret"
NAMES = ["../../../escaped", "/tmp/embedtune-escaped", "a\0b", "..", "x/../../escaped", "C:\\escaped", "<script>"]
Load = Callable[..., Encoder]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever is connected to, or looked up; all of it fails."""
    asked: list[str] = []

    def refuse(name: str) -> Callable[..., None]:
        def refused(*arguments: object, **_: object) -> None:
            asked.append(f"{name} {arguments[-2:]}")
            raise OSError("no connection in this test")

        return refused

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    return asked


@dataclass
class Run:
    """What became of it."""

    code: int
    root: Path
    """The folder that everything lies in."""
    out: Path
    printed: str


@pytest.fixture
def run(
    st_folder: Path,
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """A training with hostile ids, columns, texts and settings. The base lies where a hub id would be looked for."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    work = tmp_path / "a" / "b" / "c"
    base = shutil.copytree(st_folder, work / "owner" / "model")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.update(name_or_path="../../../escaped", vocab_file="../../../escaped", filename_prefix="../../../escaped")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(work)
    adapted = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(target_modules=["query"]))
    adapted.save_pretrained("start")
    adapter = json.loads(Path("start", "adapter_config.json").read_text())
    adapter.update(base_model_name_or_path="../../../escaped", revision="../../../escaped")
    Path("start", "adapter_config.json").write_text(json.dumps(adapter))
    rows = [
        {"id": NAMES[n % 7], "question": f"<script>{s}", "passage": f"</p><img src=x onerror=a()> {s}", "../../x": "y"}
        for n, s in enumerate(sentences[:60])
    ]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    before = set(tmp_path.rglob("*"))
    command = ["train", "pairs.jsonl", "--base", "owner/model", "--out", "run", "--max-steps", "2", "--debug"]
    code = main([*command, "--start-adapter", "start", "--device", "cpu"])
    made = Run(code=code, root=tmp_path, out=work / "run", printed="".join(capfd.readouterr()))
    inside = set(made.out.rglob("*")) | {made.out}
    made_elsewhere = set(tmp_path.rglob("*")) - before - inside
    yield made
    assert made_elsewhere == set()
    assert not Path("/tmp/embedtune-escaped").exists()


def test_a_run_from_local_files(connections: list[str], run: Run) -> None:
    assert run.code == 0, run.printed
    assert connections == []
    # No secret stays.
    assert TOKEN not in run.printed
    holding = [file for file in run.out.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert holding == []
    # Texts are no HTML.
    page = (run.out / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<img src=x" not in page
    assert page.count("<script") == 0
    # Anybody can check what was computed with what.
    results = json.loads((run.out / "results.json").read_text())
    assert set(results["data"]["hashes"]) == {"train", "dev", "test", "collection"}
    assert {"python", "torch", "transformers", "threads", "base_weights"} <= results["environment"].keys()
    assert "revisions" not in results["environment"]


@pytest.mark.parametrize("path", ["../outside", "/tmp/embedtune-escaped", "1_Pooling/../../outside", "a\0b"])
def test_a_list_of_modules_that_leads_outside(path: str, st_folder: Path, tmp_path: Path, load: Load) -> None:
    folder = shutil.copytree(st_folder, tmp_path / "model")
    shutil.copytree(st_folder / "1_Pooling", tmp_path / "outside")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"Invalid model path .+expected a relative path"):
        load(folder)


@pytest.mark.parametrize("name", ["../outside", "/tmp/embedtune-escaped"])
def test_the_name_of_a_module(name: str, st_folder: Path, tmp_path: Path, load: Load) -> None:
    folder = shutil.copytree(st_folder, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["name"] = name
    (folder / "modules.json").write_text(json.dumps(modules))
    before = set(tmp_path.rglob("*"))
    with suppress(ModelError):  # torch takes no name with a dot
        load(folder).save_pretrained(str(tmp_path / "saved"))
    assert {path for path in set(tmp_path.rglob("*")) - before if "saved" not in path.parts} == set()


@pytest.mark.parametrize("name", ["../../outside", "/tmp/embedtune-escaped", ".hidden", "a\0b"])
def test_the_name_of_a_chat_template(name: str, st_folder: Path, tmp_path: Path, load: Load) -> None:
    folder = shutil.copytree(st_folder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "x"}, {"name": name, "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"has a chat template named .+\nRemove it from"):
        load(folder)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_secrets_in_what_is_typed_are_not_printed(
    debug: list[str], st_folder: Path, capsys: pytest.CaptureFixture[str], connections: list[str]
) -> None:
    for source in (f"https://user:{TOKEN}@mirror.example/pairs.jsonl", f"/nowhere/{TOKEN}.jsonl"):
        assert main(["train", source, "--base", str(st_folder), *debug]) == 2
        assert main(["encode", source, __file__, "--out", "vectors.npy", *debug]) == 2
    said = "".join(capsys.readouterr())
    assert "mirror.example/pairs.jsonl" in said
    assert TOKEN not in said
    assert "user:" not in said


def test_secrets_in_errors_and_logs_of_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")

    def fail(_: Any) -> None:
        logging.getLogger().handlers[0].handle(_record("Authorization: Bearer abc.def"))
        raise RuntimeError("401 for a-token-of-another-form at http://me:word@proxy.example:3128")

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("embedtune.cli.eval.main", fail)
    assert main(["eval", "--debug"]) == 1
    said = capsys.readouterr().err
    assert "Authorization: Bearer ..." in said
    assert said.count("401 for ... at http://...@proxy.example:3128") >= 2
    assert "another-form" not in said
    assert "word" not in said


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("httpx", logging.INFO, __file__, 1, text, None, None)


def test_what_is_no_secret_stays() -> None:
    text = "hf_hub_download of hf://datasets/owner/name@main/x, user@example.com, model@v1, HF_TOKEN"
    assert without_secrets(text) == text


@pytest.mark.parametrize(("own", "expected"), [(None, "1"), ("0", "0")])
def test_no_usage_statistics_unless_asked_for(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", own or "")
    if own is None:
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == expected
