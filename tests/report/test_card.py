"""The model card: what the Hub reads of it, what people read of it, and what must never be in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

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
from embedtune.config_file import load_toml, to_dict
from embedtune.report.card.body import model_card
from embedtune.report.card.metadata import base_metadata, dataset_id, hub_id, shown_name
from embedtune.report.card.usage import MODEL_ID, CardModel
from embedtune.report.verdict import verdict

HOSTILE = "`x` | y\n---\nlicense: evil\n# <script>alert(1)</script> [a](http://evil.example) ```"
SECRET = "zanzibar quarterly layoffs"
DIFFERENCE = {"mean": 0.3, "ci95": [0.25, 0.35], "p_value": 0.0001}
WORSE = {"mean": -0.1, "ci95": [-0.15, -0.05], "p_value": 0.0001}
MODEL = CardModel(dimensions=384, max_length=256, prompts={"query": "query: "})


def head(content: str) -> Any:
    """The metadata, as the Hub's client reads it."""
    return ModelCard(content).data


@pytest.fixture
def results() -> dict[str, Any]:
    systems = {"base": 0.6, "tuned": 0.9, "bm25": 0.8}
    return {
        "schema": 1,
        "embedtune": "0.1.0",
        "seed": 7,
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "method": "lora",
        "data": {"train_pairs": 1_452, "dev_pairs": 52, "test_queries": 168, "corpus_passages": 2_168},
        "train": {"steps": 20, "best_step": 10, "trainable_parameters": 1_000, "total_parameters": 100_000},
        "environment": {"torch": "2.13.0", "precision": "fp32", "platform": "Linux-host"},
        **{system: dict.fromkeys(METRICS, value) for system, value in systems.items()},
        "delta": dict.fromkeys(METRICS, DIFFERENCE),
    }


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    pairs = tmp_path / "layoffs.jsonl"
    pairs.touch()
    return TrainConfig(
        data=DataConfig(train=str(pairs), anchor_column="secret_column", labels=str(tmp_path / "alice.jsonl")),
        model=ModelConfig(base="sentence-transformers/all-MiniLM-L6-v2", max_length=256),
        training=TrainingConfig(lr=1e-3, batch_size=16, micro_batch_tokens=4_096),
        evaluation=EvaluationConfig(
            against=(str(tmp_path / "alice"), "BAAI/bge-m3@0a1b2c", r"C:\alice"),
            forgetting=("~/alice.csv", str(tmp_path / "alice.csv")),
        ),
        output=OutputConfig(out=tmp_path / "run", seed=7),
    )


class Rendered(HTMLParser):
    """A card's body as a page shows it: its words, tags, links, spans and blocks of code, and rows of cells."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.words = ""
        self.tags: list[str] = []
        self.links: list[str] = []
        self.code: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(ModelCard(card).text))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "code":
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if {"td", "th"} & {*self._open}:
            self.rows[-1][-1] += data
        if "code" in self._open:
            self.code[-1] += data

    def says(self, words: str) -> bool:
        return words in " ".join(self.words.split())


def test_the_hub_reads_its_head(results: dict[str, Any], config: TrainConfig) -> None:
    base = {"language": "en", "license": "apache-2.0", "datasets": ["ms_marco"]}
    content = model_card(results, config, MODEL, base=base)
    data = head(content)
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.base_model_relation == "finetune"
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.datasets is None  # the base was trained on those, this model was not
    assert {"sentence-transformers", "feature-extraction", "embedtune"} <= set(data.tags or [])
    measured = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert measured == {f"cosine_{metric}": results["tuned"][metric] for metric in METRICS}
    assert {result.task_name for result in data.eval_results or []} == {"Information Retrieval"}
    assert str(ModelCard(content)) == content  # nothing is lost when it is read and written


def test_a_mean_of_trainings_is_told(results: dict[str, Any], config: TrainConfig) -> None:
    reached = {"steps": 10, "best_step": 10, "best_metric": 0.75, "kept": True}
    results["train"]["members"] = [reached, {**reached, "best_step": 5}]
    row = ["Step kept (by dev)", "10, 15; the model is the mean of 2 trainings' weights"]
    assert row in Rendered(model_card(results, config, MODEL)).rows
    results["train"]["members"][1]["kept"] = False
    assert ["Step kept (by dev)", "10"] in Rendered(model_card(results, config, MODEL)).rows


def test_a_mean_of_steps_is_told(results: dict[str, Any], config: TrainConfig) -> None:
    results["train"]["members"] = [{"steps": 10, "best_step": 8, "best_metric": 0.75, "kept": True}]
    results["train"]["phases"] = [{"first_step": 0, "averaged": False}, {"first_step": 4, "averaged": True}]
    row = ["Weights kept", "the mean of those of all steps from 5 on"]
    assert row in Rendered(model_card(results, config, MODEL)).rows
    results["train"]["members"][0]["best_step"] = 4
    assert row[0] not in [cells[0] for cells in Rendered(model_card(results, config, MODEL)).rows]


def test_people_read_the_verdict_the_table_and_how_to_use_it(results: dict[str, Any], config: TrainConfig) -> None:
    page = Rendered(model_card(results, config, MODEL))
    assert page.says(verdict(results))
    assert ["Metric", "Base", "Tuned", "BM25", "Tuned minus base (95 % interval)"] in page.rows
    assert ["NDCG@10", "0.600", "0.900", "0.800", "+0.300 (+0.250 to +0.350)"] in page.rows
    assert page.says("fine-tuned from sentence-transformers/all-MiniLM-L6-v2 with embedtune on 1,452 question/passage")
    assert page.says("Reads up to 256 tokens")
    assert page.says("168 questions over 2,168 passages")
    assert page.says("No training pair shares a question or a passage with the test.")
    assert page.says("not measured; fine-tuning can make a model worse there")
    assert "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2" in page.links
    usage = next(code for code in page.code if "SentenceTransformer(" in code)
    compile(usage, "usage", "exec")
    assert f'SentenceTransformer("{MODEL_ID}")' in usage
    assert "query: " in page.code


def test_what_speaks_against_the_model_is_said(results: dict[str, Any], config: TrainConfig) -> None:
    results["bm25"] = dict.fromkeys(METRICS, 0.95)
    results["hybrid"] = dict.fromkeys(METRICS, 0.97)
    results["delta_to"] = {"bm25": {"ndcg@10": WORSE}, "hybrid": {"ndcg@10": WORSE}}
    bins = [
        {"label": "up to 8 words", "queries": 30, "systems": {}, "delta": WORSE},
        {"label": "9 to 20 words", "queries": 138, "systems": {}, "delta": DIFFERENCE},
    ]
    results["breakdown"] = [{"by": "query_length", "bins": bins}]
    results["queries"] = {"better": 100, "worse": 20, "equal": 48}
    sets = [
        {
            "name": name,
            "kind": "similarity",
            "metric": "spearman",
            "items": 99,
            "base": 0.8,
            "tuned": 0.7,
            "delta": delta,
        }
        for name, delta in (("paraphrases", WORSE), ("synonyms", DIFFERENCE))
    ]
    results["forgetting"] = {"sets": sets}
    results["data"].update(test_queries=40, truncated_passages=12)
    results["suspects"] = {"count": 5, "file": "suspects.jsonl", "examples": []}
    page = Rendered(model_card(results, config, MODEL))
    for words in (
        "Plain word search (BM25) ranks higher on these questions: NDCG@10 0.950 against 0.900.",
        "Joined with BM25 it ranks higher than alone: NDCG@10 0.970 against 0.900.",
        "tuned minus BM25: -0.100 (-0.150 to -0.050)",
        "Worse than the base model on up to 8 words (questions by length; 30 questions): -0.100",
        "For 20 of 168 questions it ranks worse than the base model, for 100 better.",
        "Worse at what it was not trained on: paraphrases (similarity, 99 items), spearman 0.800 before, 0.700 after",
        "Only 40 questions were tested",
        "12 passages of the data are longer than 256 tokens",
        "For 5 test questions the passage ranked first may be an answer that nobody labelled",
    ):
        assert page.says(words), words
    for words in ("on 9 to 20 words", "synonyms", "was not measured"):
        assert not page.says(words), words


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (WORSE, "It is worse than its base model on the held-out questions: use the base model instead."),
        (
            {"mean": 0.01, "ci95": [-0.01, 0.03], "p_value": 0.4, "detectable": 0.04},
            "The test does not show that it is better than its base model. It would have shown one of 0.040.",
        ),
    ],
)
def test_a_model_that_is_not_better_says_so(
    results: dict[str, Any], config: TrainConfig, difference: dict[str, Any], words: str
) -> None:
    results["delta"] = dict.fromkeys(METRICS, difference)
    assert Rendered(model_card(results, config, MODEL)).says(words)


def test_smaller_vectors_have_a_table_and_how_to_get_them(results: dict[str, Any], config: TrainConfig) -> None:
    sizes = [(384, 1_536, 0.9), (128, 512, 0.85)]
    results["sizes"] = [
        {"dimensions": n, "precision": "float32", "bytes": size, "ndcg@10": value, "recall@100": 1.0}
        for n, size, value in sizes
    ]
    page = Rendered(model_card(results, config, MODEL))
    assert ["128", "float32", "512", "0.850", "1.000"] in page.rows
    assert page.says(f'SentenceTransformer("{MODEL_ID}", truncate_dim=128)')


def test_only_what_is_known_is_in_it(results: dict[str, Any], config: TrainConfig) -> None:
    content = model_card({key: results[key] for key in ("base_model", "tuned")}, {}, MODEL)
    data, page = head(content), Rendered(content)
    assert data.license is None
    assert data.language is None
    assert page.says("its card here did not name")
    for words in ("None", "BM25", "held-out", "Seed", "config.toml"):
        assert not page.says(words), words
    nothing = model_card({"base_model": "bert"}, {}, MODEL)
    assert head(nothing).eval_results is None
    assert Rendered(nothing).says("bert, fine-tuned for retrieval")


def test_hostile_names_stay_words(results: dict[str, Any], config: TrainConfig) -> None:
    plain = Rendered(model_card({**results, "base_model": "/models/mini"}, config, MODEL))
    group = {"label": HOSTILE, "queries": 3, "delta": WORSE}
    hostile = {
        **results,
        "base_model": f"/models/{HOSTILE.replace('/', '')}",
        "method": HOSTILE,
        "embedtune": HOSTILE,
        "environment": {"torch": HOSTILE, "precision": HOSTILE},
        "breakdown": [{"by": HOSTILE, "bins": [group]}],
        "further": [{"model": HOSTILE.replace("/", ""), "metrics": {"ndcg@10": 0.1}, "delta": {"ndcg@10": WORSE}}],
    }
    sections = to_dict(config)
    sections["model"]["query_prompt"] = HOSTILE
    base = {"license": "mit\nlicense: evil", "language": ["en", "de\nlicense: evil", False]}
    content = model_card(
        hostile, sections, CardModel(dimensions=3, max_length=9, prompts={"query": HOSTILE}), base=base
    )
    data, page = head(content), Rendered(content)
    assert data.license is None
    assert data.language == ["en"]
    assert page.links == [link for link in plain.links if "evil" not in link]
    assert {*page.tags} <= {*plain.tags}
    assert page.tags.count("h1") == plain.tags.count("h1")
    assert page.tags.count("h2") == plain.tags.count("h2")
    assert {len(row) for row in page.rows} <= {2, 3, 5}  # no bar made a further cell


def test_no_text_of_the_data_and_no_path_is_in_it(results: dict[str, Any], config: TrainConfig, tmp_path: Path) -> None:
    case = {"query": SECRET, "positive": SECRET, "rank": {}, "above": [{"text": SECRET, "score": 1.0}]}
    results["queries"] = {"better": 1, "worse": 1, "equal": 1, "regressions": [case], "gains": [case]}
    results["suspects"] = {"count": 1, "file": "suspects.jsonl", "examples": [case]}
    results["base_model"] = str(tmp_path / "alice" / "model")
    for part in ("model", "adapter"):
        content = model_card(results, config, MODEL, part=part)
        for secret in (SECRET, str(tmp_path), "alice", "layoffs", "secret_column", "Linux-host"):
            assert secret not in content, secret
        assert head(content).base_model is None


def test_its_settings_are_a_config_that_train_reads(
    results: dict[str, Any], config: TrainConfig, tmp_path: Path
) -> None:
    content = model_card(results, config, MODEL)
    (block,) = re.findall(r"```toml\n(.*?)\n```", content, flags=re.DOTALL)
    file = tmp_path / "config.toml"
    file.write_text(block)
    read = load_toml(file)
    assert read.adapter == config.adapter
    assert read.data == DataConfig(train="PAIRS.jsonl", labels="LABELS.jsonl")
    assert read.evaluation == EvaluationConfig(against=("BAAI/bge-m3@0a1b2c",))
    assert read.model == ModelConfig(base=config.model.base, max_length=256)
    assert read.training == TrainingConfig(lr=1e-3, batch_size=16)
    assert read.output == OutputConfig(seed=7)


def test_a_data_set_of_the_hub_is_named(results: dict[str, Any], config: TrainConfig) -> None:
    sections = {**to_dict(config), "data": {"train": "someone/pairs:en", "test_fraction": 0.1}}
    content = model_card(results, sections, MODEL)
    data = head(content)
    assert data.datasets == ["someone/pairs"]
    assert {result.dataset_type for result in data.eval_results or []} == {"someone/pairs"}
    assert "https://huggingface.co/datasets/someone/pairs" in Rendered(content).links
    assert 'train = "someone/pairs:en"' in content


def test_the_adapters_card_is_pefts(results: dict[str, Any], config: TrainConfig) -> None:
    content = model_card(results, config, MODEL, part="adapter")
    data, page = head(content), Rendered(content)
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    usage = next(code for code in page.code if "PeftModel" in code)
    compile(usage, "usage", "exec")
    assert f'PeftModel.from_pretrained(model[0].model, "{MODEL_ID}")' in usage
    assert 'prompts={"query": "query: "}' in usage


def test_full_fine_tuning_has_no_rank(results: dict[str, Any], config: TrainConfig) -> None:
    sections = {**to_dict(config), "adapter": to_dict(TrainConfig(adapter=AdapterConfig(method="full")))["adapter"]}
    assert not any(
        row[0] == "Rank" for row in Rendered(model_card({**results, "method": "full"}, sections, MODEL)).rows
    )
    assert any(row[0] == "Rank" for row in Rendered(model_card(results, config, MODEL)).rows)


@pytest.mark.parametrize(
    ("source", "name", "shown"),
    [
        ("BAAI/bge-small-en", "BAAI/bge-small-en", "BAAI/bge-small-en"),
        ("/home/alice/bge", None, "bge"),
        ("/home/alice/model/", None, None),
        (r"C:\Users\alice\bge", None, "bge"),
        ("./bge", None, "bge"),
        ("~/bge", None, "bge"),
        ("/bge", None, "bge"),
        ("/home/alice/.cache/hub/models--BAAI--bge-m3/snapshots/0a1b2c", "BAAI/bge-m3", "BAAI/bge-m3"),
        ("bert-base-uncased", None, "bert-base-uncased"),
    ],
)
def test_what_a_base_is_called_in_public(source: str, name: str | None, shown: str | None) -> None:
    assert hub_id(source) == name
    assert shown_name(source) == shown


def test_a_folder_that_reads_like_an_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mini").mkdir(parents=True)
    assert hub_id("models/mini") == "models/mini"
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/mini") is None
    assert dataset_id({"train": "data/pairs.jsonl.gz"}) is None


@pytest.mark.parametrize(
    ("card", "metadata"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# x", {"license": "mit", "language": "en"}),
        ("---\nlicense: [\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("no head", {}),
        (None, {}),
    ],
)
def test_the_bases_card_is_read_as_far_as_it_can_be(card: str | None, metadata: dict[str, Any], tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_metadata(str(tmp_path)) == metadata


def test_the_bases_card_comes_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--someone--base" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    refs = tmp_path / "models--someone--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_metadata("someone/base") == {"license": "mit"}
    assert base_metadata("someone/other") == {}
