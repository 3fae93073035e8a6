"""The command line as scripts see it: exit codes, one message, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedtune.atomic import replacing
from embedtune.cli.console import Console
from embedtune.cli.main import main
from embedtune.config import TrainConfig
from embedtune.errors import TrainingInterrupted

pytestmark = pytest.mark.usefixtures("few_general_texts")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"ba{n} dor?", "passage": f"kefin {n} ligal {n * 7}"} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


def _train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def test_train_prints_the_table_and_where_the_model_is(
    pairs: Path, st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _train(pairs, "--base", st_folder, "--out", out, "--epochs", 1) == 0
    printed = capsys.readouterr().out
    for part in ("base", "tuned", "BM25", "95 % interval", "ndcg@10", "pairs/s", "trainable parameters", str(out)):
        assert part in printed
    assert "from sentence_transformers import SentenceTransformer" in printed


def test_options_override_the_config_file(pairs: Path, st_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"[data]\ntrain = '{pairs}'\n[model]\nbase = '{st_folder}'\n[adapter]\nrank = 4\n[training]\nmax_steps = 2\n"
    )
    out = tmp_path / "run"
    assert main(["train", "--config", str(file), "--out", str(out), "--lr", "0.0005"]) == 0
    saved = (out / "config.toml").read_text()
    assert "rank = 4" in saved
    assert "lr = 0.0005" in saved
    assert "max_steps = 2" in saved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "No such file"),
        (["PAIRS", "--anchor-column", "nope"], "'nope'"),
        (["PAIRS", "--base", "/no/such/folder"], "not a model folder"),
        (["PAIRS", "--base", "EMPTY"], "no config.json"),
        (["PAIRS", "--lr", "-1"], "--lr is -1.0"),
        (["PAIRS", "--target-modules", "queri"], "--target-modules: 'queri'"),
        (["PAIRS", "--method", "full", "--rank", "8"], "--rank would have no effect"),
        (["PAIRS", "--method", "full", "--last-layers", "7"], "the model has 2 layers"),
        (["PAIRS", "--init", "loftq"], "--method qlora --init loftq"),
        (["PAIRS", "--memory", "low"], "--method qlora --memory low"),
        (["PAIRS", "--start-adapter", "EMPTY"], "holds no adapter_config.json"),
        (["PAIRS", "--metric", "ndcg@7"], "one of accuracy@1"),
        (["PAIRS", "--max-time", "25"], "expected a length of time such as 90s, 25m, 2h or 1h30m"),
        (["PAIRS", "--keep-last", "1"], "2 or more checkpoints"),
        (["PAIRS", "--batch-size", "500"], "--batch-size 500 is more than"),
        (["PAIRS", "--max-length", "100000"], "--max-length 64 or less"),
        (["PAIRS", "--precision", "fp16", "--device", "cpu"], "--precision bf16 or"),
        (["PAIRS", "--out", "FULL"], "files that no run wrote"),
        (["PAIRS", "--out", "PAIRS"], "is a file"),
        (["PAIRS", "--resume"], "holds no run"),
        (["PAIRS", "--config", "nowhere.toml"], "no such file"),
        ([], "no training data"),
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    arguments: list[str],
    message: str,
    pairs: Path,
    st_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    places = {"PAIRS": str(pairs), "EMPTY": str(tmp_path / "empty"), "FULL": str(tmp_path / "full")}
    given = [places.get(argument, argument) for argument in arguments]
    if "--base" not in given:
        given += ["--base", str(st_folder)]
    before = sorted(tmp_path.rglob("*"))
    assert _train(*given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert any(line.startswith("embedtune: ") for line in error.splitlines())
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere.jsonl", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unforeseen_failure_exits_with_1(
    pairs: Path, st_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embedtune.beginnings.write_splits", fail)
    assert _train(pairs, "--base", st_folder, "--out", tmp_path / "run") == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_as_shells_expect(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing half-written is left, after SIGTERM neither."""
    # A shell starts what it puts in the background with SIGINT ignored.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)

    def encode(arguments: list[str]) -> None:
        with replacing(tmp_path / "vectors.npy") as unfinished:
            unfinished.write_text("half")
            signal.raise_signal(number)

    monkeypatch.setattr("embedtune.cli.encode.main", encode)
    assert main(["encode"]) == code
    assert capsys.readouterr().err == "embedtune: stopped.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("proxy", [None, "http://proxy.example:3128"])
def test_without_a_network_the_cache_is_used_but_a_proxy_is_a_network(
    proxy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_name(*_: object) -> None:
        raise OSError("name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if proxy is not None:
        monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("socket.getaddrinfo", no_such_name)
    assert _train(tmp_path / "nowhere.jsonl") == 2
    assert ("HF_HUB_OFFLINE" in os.environ) == (proxy is None)


def test_unknown_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tunes"]) == 2
    assert "no command 'tunes'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x.jsonl", "--rang", "8"])
    assert stopped.value.code == 2
    assert "--rang" in capsys.readouterr().err


def test_eval_compares_two_models(
    pairs: Path, st_folder: Path, bare_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one more passage\nand another\n")
    command = ["eval", str(st_folder), "--test", str(pairs), "--corpus", str(corpus)]
    assert main([*command, "--against", str(bare_folder), str(st_folder), "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    data = results["data"]
    assert (data["test_queries"], data["corpus_passages"], data["dropped"]) == (40, 42, {})
    assert data["lengths"]["passages"]["max"] >= data["lengths"]["passages"]["median"] > 0
    difference = results["model"]["ndcg@10"] - results["against"]["ndcg@10"]
    assert results["delta"]["ndcg@10"]["mean"] == pytest.approx(difference)
    assert results["against_model"] == str(bare_folder)
    assert [other["model"] for other in results["further"]] == [str(bare_folder), str(st_folder)]
    assert results["further"][0] == {
        "model": str(bare_folder), "metrics": results["against"], "delta": results["delta"]
    }  # fmt: skip
    same = results["further"][1]
    assert same["metrics"] == results["model"]
    assert same["delta"]["ndcg@10"] == {"mean": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0, "detectable": 0.0}
    to_hybrid = results["model"]["ndcg@10"] - results["hybrid"]["ndcg@10"]
    assert results["delta_to"]["hybrid"]["ndcg@10"]["mean"] == pytest.approx(to_hybrid)
    assert results["test"] == {"groups": 40}
    printed = capsys.readouterr().out
    for part in ("BM25", "hybrid", "further models", "the test set is small: 40 questions"):
        assert part in printed


def test_a_model_to_compare_with_that_cannot_be_loaded_is_told_before_anything_is_measured(
    pairs: Path, st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    against = ("--against", st_folder, tmp_path / "no-such-model")
    assert _train(pairs, "--base", st_folder, "--out", out, *against) == 2
    captured = capsys.readouterr()
    assert "no-such-model" in captured.err
    assert "Training" not in captured.out
    assert not out.exists()
    assert main(["eval", str(st_folder), "--test", str(pairs), *map(str, against)]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_eval_of_one_model_has_no_difference(pairs: Path, bare_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert main(["eval", str(bare_folder), "--test", str(pairs), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["delta"] == {}


def test_eval_heeds_labels(pairs: Path, bare_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, out = tmp_path / "suspects.jsonl", tmp_path / "results.json"
    label = {"query": "ba0 dor?", "positive": "kefin 0 ligal 0", "candidate": "kefin 39 ligal 273", "label": "also"}
    labels.write_text(json.dumps(label) + "\n")
    command = ["eval", str(bare_folder), "--test", str(pairs), "--out", str(out)]
    assert main(command) == 0
    before = json.loads(out.read_text())["model"]["map@100"]
    assert main([*command, "--labels", str(labels)]) == 0
    assert json.loads(out.read_text())["model"]["map@100"] != before
    labels.write_text(json.dumps({**label, "candidate": "not in the file"}) + "\n")
    assert main([*command, "--labels", str(labels)]) == 2
    assert "suspects.jsonl:1: the candidate 'not in the file' is not in the data" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_encode_writes_what_sentence_transformers_gives(st_folder: Path, tmp_path: Path, suffix: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["ba dor", "kefin ligal mohem nujin", "x"]
    source, out = tmp_path / "texts.txt", tmp_path / f"vectors{suffix}"
    source.write_text("\n".join(texts) + "\n")
    assert main(["encode", str(st_folder), str(source), "--out", str(out), "--precision", "fp32"]) == 0
    if suffix == ".npy":
        vectors = np.load(out)
    else:
        table = pq.read_table(out)
        assert table["text"].to_pylist() == texts
        vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    expected = SentenceTransformer(str(st_folder), device="cpu").encode(texts, prompt_name="document")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_encode_refuses_an_unknown_output_form(
    st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("a\n")
    assert main(["encode", str(st_folder), str(source), "--out", str(tmp_path / "vectors.csv")]) == 2
    assert "expected .npy or .parquet" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_exit_with_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "embedtune" in capsys.readouterr().out


def test_the_time_given_leaves_room_for_the_process_to_end(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other processes make libraries slow to load, they are slow to unload too."""
    clock, began = iter((100.0, 140.0)), list[float]()

    def train(config: TrainConfig, console: Console, *, started: float) -> None:
        began.append(started)
        raise TrainingInterrupted("stopped.", TrainingInterrupted.TIME_IS_UP)

    monkeypatch.setattr("embedtune.pipeline.train", train)
    monkeypatch.setattr("embedtune.cli.train.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert _train(pairs, "--out", tmp_path / "run", "--max-time", "60s") == 75
    assert began == pytest.approx([100 - 40 / 3])
