"""The whole job on graded pairs: what is learned and measured, and that nothing is said of questions and passages."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from embedtune.cli.main import main
from embedtune.config import DataConfig, EvaluationConfig, ModelConfig, OutputConfig, TrainConfig, TrainingConfig
from embedtune.config_file import load_toml
from embedtune.errors import TrainingInterrupted
from embedtune.inference import evaluate_models
from embedtune.pipeline import train
from embedtune.report.verdict import verdict
from tests.interrupts import StopsAfter

pytestmark = pytest.mark.usefixtures("few_general_texts")

RETRIEVAL = re.compile(r"question|passage|BM25|word search|NDCG|retriev|quer(y|ies)|in-batch", re.IGNORECASE)
"""What a page about graded sentences has no business to say."""


@pytest.fixture(scope="session")
def graded_file(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that share more or fewer of their words; the grade is how many, from 0 to 5."""
    generator, file = random.Random(0), tmp_path_factory.mktemp("graded") / "sts.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number in range(160):
            words = sentences[100 + number].split()[:-1]
            shared = number % 6
            other = [word if generator.random() < shared / 5 else sentences[number].split()[0] for word in words]
            row = {"sentence1": " ".join(words) + f" {number}", "sentence2": " ".join(other), "score": float(shared)}
            stream.write(json.dumps(row) + "\n")
    return file


@pytest.fixture
def config(graded_file: Path, st_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(graded_file), near_duplicates=0),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        training=TrainingConfig(max_steps=12, eval_steps=4, batch_size=32, lr=5e-3),
        output=OutputConfig(out=tmp_path / "run"),
    )


def test_a_run_learns_the_order_of_the_grades_and_says_nothing_of_search(config: TrainConfig, tmp_path: Path) -> None:
    results = train(config)
    out = config.output.out
    assert results == json.loads((out / "results.json").read_text())
    for system in ("base", "tuned"):
        assert set(results[system]) == {"spearman", "pearson"}
    assert not {"bm25", "hybrid", "delta_to", "breakdown", "suspects", "sizes"} & set(results)
    difference = results["delta"]["spearman"]
    assert difference["mean"] == pytest.approx(results["tuned"]["spearman"] - results["base"]["spearman"])
    assert set(difference) == {"mean", "ci95", "p_value", "detectable"}
    assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
    assert results["train"]["metric"] == "spearman"
    assert max(point["spearman"] for point in results["train"]["dev"]) > results["train"]["dev"][0]["spearman"]
    data = results["data"]
    assert data["test_pairs"] == len((out / "splits" / "test.jsonl").read_text().splitlines())
    assert "test_queries" not in data
    assert not (out / "suspects.jsonl").exists()
    assert not (out / "questions.jsonl").exists()
    assert [one["name"] for one in results["forgetting"]["sets"]] == ["everyday sentences", "general knowledge"]
    saved = load_toml(out / "config.toml")
    assert (saved.loss.loss, saved.training.metric) == ("cosent", "spearman")
    loaded = evaluate_models(
        replace(config.model, base=str(out / "model")), DataConfig(test=str(out / "splits" / "test.jsonl"))
    )
    assert loaded["model"] == pytest.approx(results["tuned"], abs=1e-3)


def test_page_card_and_verdict_are_about_pairs(config: TrainConfig, bare_folder: Path) -> None:
    config = replace(config, model=replace(config.model, base=str(bare_folder)))  # has no prompts to name
    results = train(replace(config, evaluation=EvaluationConfig(against=(config.model.base,), accept="any")))
    out = config.output.out
    sentence = verdict(results)
    assert f"On {results['data']['test_pairs']} held-out pairs" in sentence
    assert f"Spearman went from {results['base']['spearman']:.3f}" in sentence
    page = re.sub(r"<style>.*?</style>|<[^>]*>", " ", (out / "report.html").read_text(), flags=re.DOTALL)
    # The general sets are questions and passages, whatever the model is for.
    general = re.sub(r"NDCG@10, \d+ questions", "", page)
    assert not RETRIEVAL.search(general), RETRIEVAL.search(general)
    for words in ("Spearman", "Pearson", "The test pairs had no part in this choice", "model.similarity"):
        assert words in page
    for part in ("model", "adapter"):
        card = ModelCard.load(out / part / "README.md")
        body, _, settings = card.text.partition("## Training")
        body = re.sub(r".*Worse at what it was not trained on.*", "", body)
        assert not RETRIEVAL.search(body), RETRIEVAL.search(body)
        assert "CoSENT" in settings
        assert "retrieval" not in card.data.tags
    assert {result.metric_type for result in card.data.eval_results or []} == {"spearman_cosine", "pearson_cosine"}
    assert results["further"][0]["metrics"] == pytest.approx(results["base"])


def test_the_cards_lines_of_python_run(config: TrainConfig) -> None:
    train(config)
    card = ModelCard.load(config.output.out / "model" / "README.md")
    (usage,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(usage.replace("sentence_transformers_model_id", str(config.output.out / "model")), scope)
    assert scope["scores"].shape == (3, 3)


def test_stopped_and_resumed_ends_like_one_never_stopped(config: TrainConfig, tmp_path: Path) -> None:
    """With the settings as typed, which leave metric and loss to the data."""
    whole = train(config)
    broken_off = replace(config, output=replace(config.output, out=tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted, match="step 5 of 12"):
        train(broken_off, StopsAfter(5))
    resumed = train(replace(broken_off, output=replace(broken_off.output, resume=True)))
    assert resumed["tuned"] == whole["tuned"]
    assert resumed["train"]["loss"] == whole["train"]["loss"]


def test_blend_auto_and_cached_gradients(config: TrainConfig, tmp_path: Path) -> None:
    at_once = train(config)
    small = replace(config.training, micro_batch_tokens=256)
    config = replace(
        config,
        training=small,
        evaluation=EvaluationConfig(blend="auto"),
        output=replace(config.output, out=tmp_path / "cached"),
    )
    results = train(config)
    assert results["train"]["loss"] == pytest.approx(at_once["train"]["loss"], rel=1e-2)
    assert results["blend"]["metric"] == "spearman"
    start, *_, end = results["blend"]["points"]
    dev = results["train"]["dev"]
    assert start["dev"] == pytest.approx(dev[0]["spearman"], abs=1e-3)
    assert end["dev"] == pytest.approx(max(point["spearman"] for point in dev), abs=1e-3)


def test_graded_questions_and_passages_keep_their_prompts(
    graded_file: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """By their names the texts have roles, so the model's prompts are put before them; sentences get none."""
    renamed = tmp_path / "graded.jsonl"
    text = graded_file.read_text().replace("sentence1", "question").replace("sentence2", "passage")
    renamed.write_text(text)
    base = config.model.base
    with_roles, without = (
        evaluate_models(config.model, DataConfig(test=str(file)))["model"]["spearman"]
        for file in (renamed, graded_file)
    )
    assert with_roles != without
    rows = [json.loads(line) for line in graded_file.read_text().splitlines()]
    model = SentenceTransformer(base, device="cpu")
    first = model.encode_query([row["sentence1"] for row in rows])
    second = model.encode_document([row["sentence2"] for row in rows])
    from scipy.stats import spearmanr

    expected = spearmanr((first * second).sum(axis=1), [row["score"] for row in rows]).statistic
    assert with_roles == pytest.approx(expected, abs=0.005)


def test_the_command_line(
    graded_file: Path, st_folder: Path, bare_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a base that has no prompts, which would be named."""
    out, results, page = tmp_path / "run", tmp_path / "eval.json", tmp_path / "eval.html"
    settings = ("--max-steps", "2", "--near-duplicates", "0", "--device", "cpu")
    assert main(["train", str(graded_file), "--base", str(bare_folder), "--out", str(out), *settings]) == 0
    printed = capsys.readouterr().out
    told = ("160 graded pairs", "grades from 0 to 5: 'score'", "loss CoSENT", "dev spearman", "distinct sentences")
    for words in (*told, "│ spearman", "│ pearson", "model.similarity"):
        assert words in printed
    assert not RETRIEVAL.search(printed), RETRIEVAL.search(printed)
    command = ["eval", str(st_folder), "--test", str(graded_file), "--against", str(bare_folder)]
    assert main([*command, "--out", str(results), "--report", str(page)]) == 0
    found = json.loads(results.read_text())
    assert found["delta"]["spearman"]["mean"] == pytest.approx(
        found["model"]["spearman"] - found["against"]["spearman"]
    )
    assert "the grades" in page.read_text() or "can be shown" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "FILE"], "--corpus"),
        (["--loss", "contrastive"], "--loss contrastive: the pairs are graded"),
        (["--metric", "mrr@10"], "--metric spearman"),
        (["--score-column", "grad"], "has no column 'grad'"),
        (["--score-column", "none"], "was not recognised"),
    ],
)
def test_what_does_not_go_with_grades_is_said_before_anything_is_written(
    options: list[str],
    message: str,
    graded_file: Path,
    st_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(graded_file) if option == "FILE" else option for option in options]
    out = tmp_path / "run"
    assert main(["train", str(graded_file), "--base", str(st_folder), "--out", str(out), *given]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_labels_of_0_are_negatives_in_a_run_and_not_its_answers(
    sentences: list[str], st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "labelled.jsonl", tmp_path / "run"
    rows = [
        {
            "question": f"{sentences[number]} ?",
            "passage": sentences[100 + (number + 50 * (1 - label)) % 100],
            "label": label,
        }
        for number in range(60)
        for label in (1, 0)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("--max-steps", "2", "--near-duplicates", "0", "--device", "cpu")
    assert main(["train", str(file), "--base", str(st_folder), "--out", str(out), *settings]) == 0
    printed = capsys.readouterr().out
    assert "'label': 60 rows labelled 1, 60 labelled 0" in printed
    assert "the passages of 60 rows labelled 0 became negatives of their questions" in printed
    first = json.loads((out / "splits" / "train.jsonl").read_text().splitlines()[0])
    assert set(first) == {"id", "anchor", "positive", "negative_1"}
