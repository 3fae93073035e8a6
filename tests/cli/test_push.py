"""`embedtune push` against a stand-in for the Hub: what arrives, what never leaves, and what is said when it can't."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedtune.cli.main import main
from tests.cli.hub import TOKEN, Hub, serve_hub

METRICS = ("ndcg@10", "mrr@10")
DIFFERENCE = {"mean": 0.25, "ci95": [0.2, 0.3], "p_value": 0.001}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as far as `push` looks at it, with everything around the model that must stay here."""
    contents: dict[str, Any] = {
        "model/modules.json": "[]",
        "model/config.json": "{}",
        "model/1_Pooling/config.json": "{}",
        "model/model.safetensors": "weights " * 100,
        "model/README.md": '---\nlicense: mit\n---\nSentenceTransformer("sentence_transformers_model_id")\n',
        "model/notes.log": "mine",
        "model/.cache/huggingface/x.json": "{}",
        "model/checkpoint-5/optimizer.safetensors": "moments",
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": "/home/alice/bge", "r": 16}),
        "adapter/adapter_model.safetensors": "adapter",
        "adapter/README.md": "---\nlicense: mit\n---\n",
        "splits/train.jsonl": '{"question": "secret"}',
        "checkpoints/step-1/weights.safetensors": "weights",
        "config.toml": "",
        "results.json": json.dumps(
            {
                "schema": 1,
                "data": {"test_queries": 9},
                **{system: dict.fromkeys(METRICS, value) for system, value in (("base", 0.5), ("tuned", 0.75))},
                "delta": dict.fromkeys(METRICS, DIFFERENCE),
            }
        ),
    }
    for name, content in contents.items():
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return tmp_path / "run"


Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def push(hub: Hub, run: Path, tmp_path: Path) -> Push:
    """`embedtune push RUN ...` in a process of its own: the Hub's address is read when its client is imported."""

    def push(*arguments: str, token: str = TOKEN, **settings: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        return subprocess.run(
            [sys.executable, "-m", "embedtune", "push", str(run), *arguments],
            env={**kept, **own, **settings},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return push


@pytest.fixture
def here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in as the Hub of this process, for what needs no process of its own."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    bars = importlib.import_module("huggingface_hub.utils.tqdm")  # by attribute, that is the class
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def test_the_model_arrives_byte_for_byte_and_nothing_else(hub: Hub, run: Path, push: Push) -> None:
    done = push("someone/ferry-search")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/someone/ferry-search (private)" in done.stdout
    assert "notes.log" in done.stdout  # is left here, and that is said
    assert TOKEN not in done.stdout + done.stderr
    repository = hub.repositories["someone/ferry-search"]
    assert repository.private
    card = repository.branches["main"].pop("README.md").decode()
    assert card == '---\nlicense: mit\n---\nSentenceTransformer("someone/ferry-search")\n'
    names = ("modules.json", "config.json", "1_Pooling/config.json", "model.safetensors")
    assert repository.branches["main"] == {name: (run / "model" / name).read_bytes() for name in names}
    (commit,) = repository.commits
    assert "embedtune" in commit["summary"]
    assert "On 9 held-out questions the tuned model finds the right passage better" in commit["description"]
    assert not [file for file in run.rglob("*") if file.is_file() and TOKEN in file.read_text()]


@pytest.mark.usefixtures("here")
def test_pushed_again_only_what_changed_is_committed(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "someone/ferry-search"]) == 0
    uploads = [request for request in hub.requests if request.startswith("PUT")]
    assert len(uploads) == 1
    assert main(["push", str(run), "someone/ferry-search"]) == 0
    assert "nothing changed" in capsys.readouterr().out
    repository = hub.repositories["someone/ferry-search"]
    assert len(repository.commits) == 1
    assert [request for request in hub.requests if request.startswith("PUT")] == uploads
    (run / "model" / "config.json").write_text('{"new": 1}')
    assert main(["push", str(run / "model"), "someone/ferry-search"]) == 0  # the model's folder itself does as well
    assert "nothing changed" not in capsys.readouterr().out
    assert len(repository.commits) == 2
    assert repository.branches["main"]["config.json"] == b'{"new": 1}'


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("results", ["[]", "{}", "not JSON", '{"schema": 2}'])
def test_results_of_something_else_are_not_quoted(results: str, hub: Hub, run: Path) -> None:
    (run / "results.json").write_text(results)
    assert main(["push", str(run / "model"), "someone/new"]) == 0
    assert hub.repositories["someone/new"].commits[0]["description"] == ""


@pytest.mark.usefixtures("here")
def test_the_adapter_goes_to_a_branch_without_the_path_of_its_base(hub: Hub, run: Path) -> None:
    assert main(["push", str(run), "someone/ferry-search", "--part", "adapter", "--revision", "v2"]) == 0
    branches = hub.repositories["someone/ferry-search"].branches
    assert branches["main"] == {}
    assert set(branches["v2"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(branches["v2"]["adapter_config.json"]) == {"base_model_name_or_path": "bge", "r": 16}
    assert main(["push", str(run), "someone/ferry-search", "--part", "adapter", "--revision", "v2"]) == 0


@pytest.mark.usefixtures("here")
def test_nothing_becomes_public_unasked(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "someone/open", "--public"]) == 0
    assert not hub.repositories["someone/open"].private
    (run / "model" / "config.json").write_text('{"new": 1}')
    assert main(["push", str(run), "someone/open"]) == 2
    assert "everybody can see it; nothing was uploaded" in capsys.readouterr().err
    assert len(hub.repositories["someone/open"].commits) == 1
    assert main(["push", str(run), "someone/closed"]) == 0
    assert main(["push", str(run), "someone/closed", "--public"]) == 0
    assert "private before and stays so" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_a_dry_run_lists_files_and_sizes_and_asks_the_hub_nothing(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "someone/ferry-search", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "800 B  model.safetensors" in printed
    assert "nothing was uploaded" in printed
    assert hub.requests == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("request_", "status", "code", "message"),
    [
        ("POST /api/repos/create", 401, 2, "Type:  hf auth login"),
        ("POST /api/repos/create", 403, 2, "may not write to 'someone/new' (403)"),
        ("POST /api/repos/create", 404, 2, "can't be found or made (404)"),
        (".*/preupload/", 403, 2, "may not write to 'someone/new' (403)"),
        ("PUT /lfs/", 403, 2, "may not write to 'someone/new' (403)"),
        (".*/commit/", 409, 2, "changed by somebody else meanwhile (409).\nType the same command again."),
        (".*/commit/", 500, 1, "failed (500)"),
        ("POST /api/validate-yaml", 400, 2, "refuses the upload to 'someone/new' (400): refused by the stand-in"),
    ],
)
def test_a_refusal_is_one_message(
    request_: str, status: int, code: int, message: str, hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusal = (request_, status)
    assert main(["push", str(run), "someone/new"]) == code
    error = capsys.readouterr().err
    assert error.startswith("embedtune: ")
    assert message in error
    assert "Traceback" not in error
    assert TOKEN not in error


def test_a_wrong_token_is_told_and_not_shown(push: Push) -> None:
    refused = push("someone/new", token="hf_wrong")
    assert refused.returncode == 2
    assert "does not accept the token that is in use (401).\nType:  hf auth login" in refused.stderr
    assert "hf_wrong" not in refused.stdout + refused.stderr


def test_without_a_network_nothing_is_tried(push: Push) -> None:
    refused = push("someone/new", HF_ENDPOINT="http://hub.invalid")
    assert refused.returncode == 2
    assert refused.stderr.startswith("embedtune: http://hub.invalid can't be reached")


@pytest.mark.usefixtures("here")
def test_a_hub_that_does_not_answer_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "someone/new"]) == 2
    assert "http://127.0.0.1:9 can't be reached" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "ferry-search"], "names no owner; expected OWNER/NAME"),
        (["RUN", "a/b/c"], "'a/b/c' is no name of a repository"),
        (["RUN", "someone/fähre"], "is no name of a repository"),
        (["nowhere", "someone/new"], "'nowhere' is not a folder"),
        (["RUN/splits", "someone/new"], "holds neither a run nor a model"),
        (["UNFINISHED", "someone/new"], "has not finished"),
        (["RUN/model", "someone/new", "--part", "adapter"], "holds neither a run nor an adapter"),
        (["FULL", "someone/new", "--part", "adapter"], "--method full has none"),
        (["RUN", "someone/new", "--private", "--public"], "contradict each other"),
    ],
)
def test_bad_input_gets_one_message(
    arguments: list[str], message: str, hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").touch()
    (tmp_path / "full" / "model").mkdir(parents=True)
    places = {"RUN": str(run), "UNFINISHED": str(tmp_path / "unfinished"), "FULL": str(tmp_path / "full")}
    first, *others = arguments
    start, _, rest = first.partition("/")
    assert main(["push", str(Path(places.get(start, start)) / rest), *others]) == 2
    error = capsys.readouterr().err
    assert error.startswith("embedtune: ")
    assert message in error
    assert hub.requests == []
