"""The whole job on a tiny random model: what lies in the folder, that it can be used, repeated and resumed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from embedtune import measuring, saving
from embedtune.config import (
    METRICS,
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
)
from embedtune.config_file import load_toml
from embedtune.errors import OutputError, TrainingInterrupted
from embedtune.evaluation.blending import Gain
from embedtune.evaluation.run import Evaluation
from embedtune.inference import evaluate_models
from embedtune.models.load import load_encoder
from embedtune.pipeline import train
from embedtune.progress import SilentReporter
from embedtune.report.verdict import verdict
from tests.interrupts import StopsAfter

pytestmark = pytest.mark.usefixtures("few_general_texts")


@pytest.fixture(scope="session")
def pairs_file(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred pairs: fifty passages of two questions each, made of every other word of the passage."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number in range(100):
            passage = sentences[100 + number // 2]
            row = {"question": f"{' '.join(passage.split()[number % 2 :: 2])} ?", "passage": passage}
            stream.write(json.dumps(row) + "\n")
    return file


@pytest.fixture
def config(pairs_file: Path, st_folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(pairs_file)),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        training=TrainingConfig(max_steps=6, eval_steps=2, batch_size=16),
        evaluation=EvaluationConfig(accept="any"),
        output=OutputConfig(out=tmp_path / "run"),
    )


def test_leaves_the_folder_of_the_contract(config: TrainConfig) -> None:
    returned = train(config)
    out = config.output.out
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["schema"] == 1
    for system in ("base", "tuned", "bm25", "hybrid"):
        assert set(results[system]) == set(METRICS)
    assert set(results["delta"]["ndcg@10"]) == {"mean", "ci95", "p_value", "detectable"}
    for system, differences in results["delta_to"].items():
        assert differences["mrr@10"]["mean"] == pytest.approx(results["tuned"]["mrr@10"] - results[system]["mrr@10"])
    assert set(results["delta_to"]) == {"bm25", "hybrid"}
    assert results["test"]["groups"] < results["data"]["test_queries"]
    asked = [json.loads(line) for line in (out / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["group"] for line in asked}) == results["test"]["groups"]
    assert np.mean([line["ndcg@10"]["tuned"] for line in asked]) == pytest.approx(results["tuned"]["ndcg@10"], abs=1e-6)
    tested = [json.loads(line) for line in (out / "splits" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(line["id"], line["query"]) for line in asked} <= {(row["id"], row["anchor"]) for row in tested}
    assert results["further"] == []
    assert results["delta"]["ndcg@10"]["mean"] == pytest.approx(
        results["tuned"]["ndcg@10"] - results["base"]["ndcg@10"]
    )
    assert results["data"]["train_pairs"] == len((out / "splits" / "train.jsonl").read_text().splitlines())
    assert results["data"]["near_duplicates"] == {"threshold": 0.6, "passages": 0, "groups": 0}
    assert results["data"]["leaks"] == {"pairs": 0, "near_duplicates": 0, "test_passages": 0, "test_queries": 0}
    assert results["data"]["lengths"]["limit"] >= results["data"]["lengths"]["passages"]["max"] > 2
    assert results["data"]["truncated_passages"] == 0
    assert results["train"]["steps"] == 6
    assert results["train"]["pairs"] == pytest.approx(6 * 16, abs=12)
    assert results["train"]["trainable_parameters"] < results["train"]["total_parameters"]
    assert list((out / "tensorboard").glob("events.*"))
    assert "<html" in (out / "report.html").read_text()
    assert len(list((out / "checkpoints").iterdir())) in (2, 3)


def test_what_the_base_reaches_on_dev_is_measured_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embeddings of the test; step 0 and the curve's first point are the same model."""
    measured, evaluate = list[int](), measuring.evaluate

    def counted(*args: Any, **kwargs: Any) -> Evaluation:
        measured.append(1)
        return evaluate(*args, **kwargs)

    config = replace(config, training=replace(config.training, lr=0.01, max_steps=40, eval_steps=10))
    monkeypatch.setattr(measuring, "evaluate", counted)
    once = train(config)
    evaluations, points = len(once["train"]["dev"]), len(once["blend"]["points"])
    assert len(measured) == evaluations + points - 2
    assert once["train"]["dev"][0]["ndcg@10"] == once["blend"]["points"][0]["dev"]

    monkeypatch.setattr(AdapterConfig, "starts_as_base", property(lambda self: False))
    again = train(replace(config, output=OutputConfig(out=config.output.out.with_name("again"))))
    assert len(measured) == 2 * (evaluations + points) - 2
    for results in (once, again):
        results["curve"] = [entry["ndcg@10"] for entry in results["train"]["dev"]]
        results["curve"] += [point["dev"] for point in results["blend"]["points"]]
    assert once["curve"] == pytest.approx(again["curve"])


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, True),
        ({"method": "full"}, True),
        ({"init": "gaussian"}, True),
        ({"init": "pissa"}, False),
        ({"method": "qlora"}, False),
        ({"start_adapter": "somewhere"}, False),
    ],
)
def test_which_trainings_begin_with_what_the_base_embeds(settings: dict[str, Any], starts: bool) -> None:
    assert AdapterConfig(**settings).starts_as_base is starts


def test_the_model_is_the_base_plus_the_adapter(config: TrainConfig, sentences: list[str]) -> None:
    learning = replace(config.training, lr=0.01, max_steps=40, eval_steps=10)
    results = train(replace(config, training=learning, output=replace(config.output, seed=5)))
    assert results["train"]["best_step"] > 0
    out = config.output.out
    tuned = SentenceTransformer(str(out / "model"), device="cpu")
    base = SentenceTransformer(config.model.base, device="cpu")
    assert tuned.max_seq_length == base.max_seq_length
    assert tuned.prompts == base.prompts
    moved = np.abs(tuned.encode(sentences[:8]) - base.encode(sentences[:8])).max()
    assert moved > 0.01
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(config.model.base), str(out / "adapter")).eval()
    assert tuned.tokenizer is not None
    assert tuned.transformers_model is not None
    tokens = tuned.tokenizer(sentences[:8], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = tuned.transformers_model(**tokens).last_hidden_state
        got = adapted(**tokens).last_hidden_state
    mask = tokens["attention_mask"].bool()
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_training_that_improves_nothing_hands_the_base_back_and_says_so_everywhere(
    method: Literal["lora", "qlora"], config: TrainConfig, sentences: list[str]
) -> None:
    """As it was published, without the error of 4 bits that the training began with."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    training = replace(config.training, lr=1e-9, max_steps=2)
    results = train(replace(config, training=training, adapter=AdapterConfig(method=method)))
    out = config.output.out
    tuned, base = (SentenceTransformer(str(name), device="cpu") for name in (out / "model", config.model.base))
    np.testing.assert_array_equal(tuned.encode(sentences[:8]), base.encode(sentences[:8]))
    assert (results["train"]["best_step"], results["train"]["improved"]) == (0, False)
    said = "On the dev set no training step did better than the base model, so the base model is what was saved"
    assert said in verdict(results)
    assert said in (out / "report.html").read_text()
    for part in ("model", "adapter"):
        card = (out / part / "README.md").read_text()
        assert said in card
        assert "Nothing of its training was kept" in card
        assert "| none, as no step did better on the dev set |" in card


@pytest.mark.parametrize("accept", ["clear", "any"])
def test_a_gain_within_noise_hands_the_base_back_unless_any_is_accepted(
    accept: Literal["clear", "any"], config: TrainConfig, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "gain", lambda points, seed: Gain(mean=0.01, ci95=(-0.03, 0.05), error=0.02))
    learning = replace(config.training, lr=0.01, max_steps=40, eval_steps=10)
    output, evaluation = replace(config.output, seed=5), EvaluationConfig(accept=accept)
    results = train(replace(config, training=learning, output=output, evaluation=evaluation))
    out = config.output.out
    assert results["train"]["best_step"] > 0
    assert results["blend"]["gain"] == {"mean": 0.01, "ci95": [-0.03, 0.05], "error": 0.02}
    tuned, base = (SentenceTransformer(str(name), device="cpu") for name in (out / "model", config.model.base))
    declined = results["blend"]["declined"]
    assert declined == (accept == "clear")
    assert np.array_equal(tuned.encode(sentences[:8]), base.encode(sentences[:8])) == declined
    assert (out / "adapter").exists() != declined  # it would be told of with the base's numbers
    card, page = (out / "model" / "README.md").read_text(), (out / "report.html").read_text()
    if declined:
        assert results["blend"]["used"] == 0
        said = "What training gained on the dev set is within noise (NDCG@10 +0.010, standard error 0.020)"
        assert all(said in text for text in (verdict(results), page, card))
        assert "Nothing of its training was kept, as its gain on the dev set is within noise." in card
        assert "but its gain is within noise, so nothing of the training was kept" in page
    else:
        assert results["blend"]["used"] == 1
        assert "within noise" not in verdict(results) + page + card


def test_the_model_and_the_adapter_have_cards_and_the_model_is_saved_again_with_its_own(
    config: TrainConfig, sentences: list[str], tmp_path: Path
) -> None:
    results = train(config)
    out = config.output.out
    for part, library in (("model", "sentence-transformers"), ("adapter", "peft")):
        card = ModelCard.load(out / part / "README.md")
        assert card.data.library_name == library
        assert f"{results['tuned']['ndcg@10']:.3f}" in card.text
        assert str(tmp_path) not in card.content
    loaded = SentenceTransformer(str(out / "model"), device="cpu")
    loaded.save_pretrained(str(tmp_path / "again"))
    again = tmp_path / "again" / "README.md"
    assert again.read_text() == (out / "model" / "README.md").read_text()
    (usage,) = re.findall(r"```python\n(.*?)```", again.read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(usage.replace("sentence_transformers_model_id", str(tmp_path / "again")), scope)
    assert scope["scores"].shape == (1, 2)
    encoder = load_encoder(replace(config.model, base=str(out / "model")))
    encoder.save_pretrained(str(tmp_path / "encoder"))
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(sentences[:8]),
        loaded.encode(sentences[:8]),
        atol=1e-5,
    )


def test_the_adapters_card_says_how_to_use_it(config: TrainConfig, sentences: list[str]) -> None:
    train(replace(config, training=replace(config.training, lr=0.01, max_steps=20)))
    out = config.output.out
    card = ModelCard.load(out / "adapter" / "README.md")
    (usage,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    usage = usage.replace("sentence_transformers_model_id", str(out / "adapter"))
    scope: dict[str, Any] = {}
    exec(usage.replace("FOLDER_OF_THE_BASE_MODEL", config.model.base), scope)
    merged = SentenceTransformer(str(out / "model"), device="cpu")
    np.testing.assert_allclose(
        scope["model"].encode_query(sentences[:8]), merged.encode_query(sentences[:8]), atol=1e-4
    )


def test_saved_config_repeats_the_run_exactly(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config)
    saved = load_toml(config.output.out / "config.toml")
    again = train(replace(saved, output=replace(saved.output, out=tmp_path / "again")))
    assert again["tuned"] == first["tuned"]
    assert again["train"]["loss"] == first["train"]["loss"]
    assert _adapter(tmp_path / "again").equals(_adapter(config.output.out))


def test_stopped_and_resumed_ends_like_one_never_stopped(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config)
    broken_off = replace(config, output=replace(config.output, out=tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted, match="step 3 of 6"):
        train(broken_off, StopsAfter(3))
    assert not (tmp_path / "stopped" / "model").exists()
    resumed = train(replace(broken_off, output=replace(broken_off.output, resume=True)))
    assert resumed["tuned"] == whole["tuned"]
    assert resumed["train"]["loss"] == whole["train"]["loss"]
    assert _adapter(tmp_path / "stopped").equals(_adapter(config.output.out))


def test_other_models_are_measured_on_the_same_test(config: TrainConfig, bare_folder: Path) -> None:
    against = (config.model.base, str(bare_folder))
    results = train(replace(config, evaluation=EvaluationConfig(against=against)))
    same, other = results["further"]
    assert (same["model"], other["model"]) == against
    assert same["metrics"] == pytest.approx(results["base"])
    assert same["delta"]["ndcg@10"]["mean"] == pytest.approx(results["delta"]["ndcg@10"]["mean"])
    assert other["delta"]["ndcg@10"]["mean"] == pytest.approx(results["tuned"]["ndcg@10"] - other["metrics"]["ndcg@10"])
    assert load_toml(config.output.out / "config.toml").evaluation.against == against


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_goes_through_at_a_time_is_found_once_and_kept(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With so little memory that gradients are cached; the run goes on the same where there is more."""
    monkeypatch.setattr("embedtune.training.budget.free_bytes", lambda device: 0)
    reporter = Notes()
    whole = train(config, reporter)
    saved = load_toml(config.output.out / "config.toml").training
    assert saved.micro_batch_tokens == 256
    note = r"a batch of 16 pairs takes up to \d{3} tokens; 256 at a time fit the memory, so gradients are cached"
    assert [text for text in reporter.notes if re.fullmatch(note, text)]
    broken_off = replace(config, output=replace(config.output, out=tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted, match="step 3 of 6"):
        train(broken_off, StopsAfter(3))
    monkeypatch.undo()
    resumed = train(replace(broken_off, output=replace(broken_off.output, resume=True)))
    assert resumed["train"]["loss"] == whole["train"]["loss"]
    assert _adapter(tmp_path / "stopped").equals(_adapter(config.output.out))
    reporter = Notes()
    at_once = train(replace(config, output=replace(config.output, out=tmp_path / "at once")), reporter)
    assert not [text for text in reporter.notes if "cached" in text]
    assert at_once["train"]["loss"] == pytest.approx(whole["train"]["loss"], rel=1e-3)


METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "qlora": {"adapter": {"method": "qlora", "dropout": 0.1}},
    "qlora, low memory, 8-bit AdamW": {
        "adapter": {"method": "qlora", "rank": 64},
        "model": {"memory": "low"},
        "training": {"optimizer": "adamw8bit"},
    },
    "loftq": {"adapter": {"method": "qlora", "init": "loftq"}},
    "full": {"adapter": {"method": "full"}, "model": {"precision": "bf16"}},
    "full, last layer": {"adapter": {"method": "full", "last_layers": 1}},
    "pissa": {"adapter": {"init": "pissa"}},
    "dora": {"adapter": {"dora": True}},
    "biases and norms": {"adapter": {"bias": "all", "modules_to_save": ("LayerNorm",)}, "model": {"precision": "bf16"}},
    "checkpointed": {"adapter": {"dropout": 0.1}, "training": {"gradient_checkpointing": True, "accumulate": 2}},
}


def with_method(config: TrainConfig, settings: dict[str, dict[str, Any]]) -> TrainConfig:
    """The config with some settings of its sections changed, and a rate at which something is learned."""
    training = {"lr": 3e-3, **settings.get("training", {})}
    return replace(
        config,
        adapter=replace(config.adapter, **settings.get("adapter", {})),
        model=replace(config.model, **settings.get("model", {})),
        training=replace(config.training, **training),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stops_resumes_loads_the_best_and_saves_what_it_trained(
    method: str, config: TrainConfig, tmp_path: Path, sentences: list[str]
) -> None:
    config = with_method(config, METHODS[method])
    whole = train(config)
    assert whole["method"] == config.adapter.method
    assert whole["train"]["loss"][-1] < whole["train"]["loss"][0]
    assert (config.output.out / "adapter").exists() == (config.adapter.method != "full")
    broken_off = replace(config, output=replace(config.output, out=tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted, match="step 3 of 6"):
        train(broken_off, StopsAfter(3))
    resumed = train(replace(broken_off, output=replace(broken_off.output, resume=True)))
    assert resumed["train"]["loss"] == whole["train"]["loss"]
    assert resumed["tuned"] == whole["tuned"]
    first, second = (
        SentenceTransformer(str(run.output.out / "model"), device="cpu").encode(sentences[:8])
        for run in (config, broken_off)
    )
    np.testing.assert_array_equal(first, second)


def test_merging_into_the_original_weights_says_what_it_costs(config: TrainConfig) -> None:
    config = with_method(config, {"adapter": {"method": "qlora", "merge_into": "original"}})
    results = train(config)
    merge = results["merge"]
    assert merge["into"] == "original"
    assert merge["cosine"]["min"] <= merge["cosine"]["mean"] < 0.9999
    assert set(merge["trained"]) == set(METRICS)
    saved = evaluate_models(
        ModelConfig(base=str(config.output.out / "model"), device="cpu", precision="fp32"),
        DataConfig(test=str(config.output.out / "splits" / "test.jsonl")),
    )
    assert saved["model"].keys() == results["tuned"].keys()  # of another corpus, so not the same numbers
    assert "original weights" in (config.output.out / "report.html").read_text()


def test_training_goes_on_from_an_adapter_and_from_a_merged_model(config: TrainConfig, tmp_path: Path) -> None:
    learning = with_method(config, {})
    first = train(learning)
    adapter = replace(config.adapter, start_adapter=str(config.output.out / "adapter"))
    second = train(replace(learning, adapter=adapter, output=replace(config.output, out=tmp_path / "second")))
    model = replace(config.model, base=str(config.output.out / "model"))
    third = train(replace(learning, model=model, output=replace(config.output, out=tmp_path / "third")))
    assert second["base"] == first["base"]  # measured without the adapter
    assert third["base"] == pytest.approx(first["tuned"], abs=0.03)
    for again in (second, third):
        start, end = again["train"]["dev"][0]["ndcg@10"], first["train"]["dev"][-1]["ndcg@10"]
        best = max(point["ndcg@10"] for point in first["train"]["dev"])
        assert start == pytest.approx(best, abs=0.03), (start, end)


def test_prompts_are_used_and_saved(config: TrainConfig, bare_folder: Path, tmp_path: Path) -> None:
    model = replace(config.model, base=str(bare_folder), query_prompt="bador: ", passage_prompt="nop: ")
    results = train(replace(config, model=model))
    plain = SentenceTransformer(str(config.output.out / "model"), device="cpu")
    assert plain.prompts == {"query": "bador: ", "document": "nop: "}
    other = train(
        replace(
            config, model=replace(model, passage_prompt=None), output=replace(config.output, out=tmp_path / "other")
        )
    )
    assert other["train"]["loss"] != results["train"]["loss"]


def test_a_finished_run_is_not_overwritten(config: TrainConfig) -> None:
    train(config)
    before = (config.output.out / "results.json").read_bytes()
    with pytest.raises(OutputError, match="already holds a run"):
        train(config)
    assert (config.output.out / "results.json").read_bytes() == before


def test_given_test_file_loses_its_leaks_from_train(config: TrainConfig, pairs_file: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    lines = pairs_file.read_text().splitlines()
    test.write_text("\n".join(lines[:10]) + "\n")
    results = train(replace(config, data=replace(config.data, test=str(test))))
    assert results["data"]["dropped"]["leaked_pairs"] == results["data"]["leaks"]["pairs"] == 10
    assert results["data"]["test_queries"] == 10
    assert results["data"]["corpus_passages"] == 50


def test_hard_negatives_are_trained_on(config: TrainConfig, pairs_file: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    file = tmp_path / "negatives.jsonl"
    with file.open("w") as stream:
        for number, row in enumerate(rows):
            row["negative_1"] = rows[(number + 50) % 100]["passage"]
            row["negative_2"] = f"nothing to do with row {number}"
            stream.write(json.dumps(row) + "\n")
    plain = train(config)
    out = tmp_path / "negatives"
    hard = train(replace(config, data=replace(config.data, train=str(file)), output=replace(config.output, out=out)))
    assert hard["train"]["tokens"] > 1.5 * plain["train"]["tokens"]
    assert "negative_2" in json.loads((out / "splits" / "train.jsonl").read_text().splitlines()[0])


class _Adapter(dict[str, torch.Tensor]):
    def equals(self, other: dict[str, torch.Tensor]) -> bool:
        return self.keys() == other.keys() and all(torch.equal(self[name], other[name]) for name in self)


def _adapter(out: Path) -> _Adapter:
    return _Adapter(load_file(out / "adapter" / "adapter_model.safetensors"))
