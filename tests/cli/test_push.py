"""`embedtune push` against a stand-in for the Hub: what arrives, what never leaves, and what is said when it can't."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

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
    weights = save({"weight": np.ones(100, dtype=np.float32)})
    contents: dict[str, str | bytes] = {
        "model/modules.json": "[]",
        "model/config.json": "{}",
        "model/1_Pooling/config.json": "{}",
        "model/model.safetensors": weights,
        "model/README.md": '---\nlicense: mit\n---\nSentenceTransformer("sentence_transformers_model_id")\n',
        "model/notes.log": "mine",
        "model/.cache/huggingface/x.json": "{}",
        "model/checkpoint-5/optimizer.safetensors": "moments",
        "adapter/adapter_config.json": json.dumps({"base_model_name_or_path": "/home/alice/bge", "r": 16}),
        "adapter/adapter_model.safetensors": weights,
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
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
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
    assert not [file for file in run.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


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
    size = (run / "model" / "model.safetensors").stat().st_size
    assert f"{size} B  model.safetensors" in printed
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


def _adapter(**settings: object) -> str:
    return json.dumps({"r": 16, **settings})


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("part", "name", "content", "message"),
    [
        ("adapter", "adapter_config.json", "{", "is no JSON"),
        ("adapter", "adapter_config.json", "[" * 100_000, "is no JSON"),
        ("adapter", "adapter_config.json", "[1]", "holds [1]; expected a JSON object"),
        (
            "adapter",
            "adapter_config.json",
            _adapter(base_model_name_or_path=7),
            "'base_model_name_or_path' 7; expected",
        ),
        (
            "adapter",
            "adapter_config.json",
            _adapter(base_model_name_or_path="a\x1b[2J"),
            "'a\\x1b[2J'; expected a hub id",
        ),
        ("adapter", "adapter_config.json", _adapter(base_model_name_or_path="x/" * 4000), "expected a hub id"),
        ("adapter", "adapter_config.json", b"\xff\xfe{", "is no UTF-8 text"),
        ("adapter", "adapter_model.safetensors", b"", "is damaged or no safetensors file"),
        ("model", "model.safetensors", b"\xff" * 8 + b"{}", "is damaged or no safetensors file"),
        ("model", "config.json", pickle.dumps({}), "is a pickle"),
        ("model", "tokenizer.model", pickle.dumps({}), "is a pickle"),
        ("model", "vocab.txt", b"PK\x03\x04data.pkl", "is a pickle"),
        ("model", "README.md", b"caf\xe9", "is no UTF-8 text"),
        ("model", "config.json", "[]", "holds []; expected a JSON object"),
        ("model", "modules.json", '[{"path": "../../other"}]', "the path of a folder in this one"),
        ("model", "modules.json", '[{"path": "/etc"}]', "the path of a folder in this one"),
        ("model", "modules.json", '{"path": 1}', "the path of a folder in this one"),
        ("model", "model.safetensors.index.json", "{}", "holds no 'weight_map'"),
        ("model", "model.safetensors.index.json", '{"weight_map": {"a": "b.bin"}}', "weights are in 'b.bin'"),
        ("model", "model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "weights are in '../b"),
        ("model", "2_Dense/pytorch_model.bin", pickle.dumps({}), "no weights as .safetensors beside it"),
        ("model", "evil\x1b[2J.txt", "x", "a file is named 'evil\\x1b[2J.txt'"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_stops_the_upload(
    part: str, name: str, content: str | bytes, message: str, hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / part / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["push", str(run), "someone/new", "--part", part]) == 2
    error = capsys.readouterr().err
    assert error.startswith("embedtune: ")
    assert message in error
    assert "\x1b" not in error
    assert hub.requests == []


@pytest.mark.usefixtures("here")
def test_weights_that_are_cut_off_stay_here(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["push", str(run), "someone/new"]) == 2
    assert "is damaged or no safetensors file" in capsys.readouterr().err
    weights.unlink()  # the moments in checkpoint-5/ are safetensors, and no weights
    assert main(["push", str(run), "someone/new"]) == 2
    assert "holds no weights as .safetensors" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.usefixtures("here")
def test_a_huge_file_is_not_read(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "model" / "vocab.txt").open("wb") as stream:
        stream.truncate(2**40)  # takes no room
    assert main(["push", str(run), "someone/new"]) == 2
    assert "is 1,048,576 MiB; expected at most 64 for a .txt file" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("linked", ["model/vocab.txt", "model/2_Own", "model", "adapter/adapter_config.json"])
def test_no_link_leads_out_of_the_folder(
    linked: str, hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    if linked == "model":
        (run / linked).rename(outside)
    elif linked.endswith("_Own"):
        outside.mkdir()
        (outside / "id.txt").write_text("secret")
    else:
        outside.write_text("{}")
        (run / linked).unlink(missing_ok=True)
    (run / linked).symlink_to(outside)
    part = linked.partition("/")[0]
    code = main(["push", str(run), "someone/new", "--part", part])
    if linked.endswith("_Own"):  # a folder that is a link is not entered
        assert code == 0
        assert not [name for name in hub.repositories["someone/new"].branches["main"] if "id.txt" in name]
        return
    assert code == 2
    assert f"leads out of {run}, to {outside}" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.usefixtures("here")
def test_pickles_and_what_names_them_are_left_here(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = ("pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "vocab.pkl")
    for name in left:
        (run / "model" / name).write_bytes(pickle.dumps({}))
    assert main(["push", str(run), "someone/new"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in left)
    assert not set(left) & set(hub.repositories["someone/new"].branches["main"])
