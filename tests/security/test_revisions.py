"""What comes from the Hub is pinned, recorded and loaded again as it was, from a cache that is made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedtune import loading
from embedtune.cli.main import main
from embedtune.config import LossConfig, ModelConfig
from embedtune.config_file import load_toml
from embedtune.data.hub import is_hub_id, load_splits, pin
from embedtune.errors import DataError, ModelError
from embedtune.models.encoder import Encoder
from embedtune.models.judge import load_judge
from embedtune.models.source import pinned_name, split_revision
from embedtune.progress import SilentReporter
from embedtune.training.objective import check_loss_models

pytestmark = pytest.mark.usefixtures("few_general_texts")

FIRST, SECOND, OF_DATA = "1" * 40, "2" * 40, "d" * 40
Load = Callable[..., Encoder]


@pytest.fixture
def repository(st_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`owner/tiny` with two commits in the Hub's cache; the main branch is at the first, `new` at the second."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--tiny"
    for commit, branch in ((FIRST, "main"), (SECOND, "new")):
        snapshot = shutil.copytree(st_folder, repository / "snapshots" / commit)
        weights = load_file(snapshot / "model.safetensors")
        shift = 0.0 if commit == FIRST else 1.0
        weights["embeddings.word_embeddings.weight"] += shift
        if commit == SECOND:  # a norm takes the shift away
            weights["encoder.layer.0.output.dense.weight"] *= -1
        save_file(weights, snapshot / "model.safetensors", metadata={"format": "pt"})
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    return repository


def _words(encoder: Any) -> torch.Tensor:
    weight: torch.Tensor = encoder.transformers_model.get_input_embeddings().weight.detach()
    return weight


def test_a_revision_is_pinned_by_branch_and_commit(repository: Path, load: Load) -> None:
    first, second = load("owner/tiny"), load("owner/tiny", revision="new")
    assert (first.source.revision, second.source.revision) == (FIRST, SECOND)
    assert first.source.base == "owner/tiny"
    torch.testing.assert_close(_words(second), _words(first) + 1)
    torch.testing.assert_close(_words(load("owner/tiny", revision=SECOND)), _words(second))
    with pytest.raises(ModelError, match=r"'owner/tiny' could not be loaded from the hub"):
        load("owner/tiny", revision="never-was")


def test_a_name_without_an_owner_and_the_card_of_sentence_transformers(
    repository: Path, load: Load, tmp_path: Path
) -> None:
    repository.rename(repository.with_name("models--sentence-transformers--tiny"))
    encoder = load("tiny")
    assert encoder.source.revision == FIRST
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert "base_model: sentence-transformers/tiny\n" in (tmp_path / "saved" / "README.md").read_text()


def test_a_branch_that_moves_during_a_run_does_not_change_what_is_merged(repository: Path, load: Load) -> None:
    encoder = load("owner/tiny")
    (repository / "refs" / "main").write_text(SECOND)
    torch.testing.assert_close(_words(encoder.merged()), _words(encoder))


def test_a_repository_of_pickles_is_refused(repository: Path, bomb: Callable[[Path], Path], load: Load) -> None:
    weights = repository / "snapshots" / FIRST / "model.safetensors"
    weights.unlink()
    bomb(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"'owner/tiny' holds pytorch_model\.bin and no model\.safetensors"):
        load("owner/tiny")


def test_neither_pickles_nor_code_are_downloaded(repository: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options)
        return str(repository / "snapshots" / FIRST)

    monkeypatch.setattr("embedtune.models.source.snapshot_download", download)
    names = [
        "config.json",
        "model.safetensors",
        "2_Dense/model.safetensors",
        "pytorch_model.bin",
        "own.py",
        "vocab.pkl",
    ]
    taken = huggingface_hub.utils.filter_repo_objects  # type: ignore[attr-defined]  # a lazy name
    for trusted in (False, True):
        load("owner/tiny", trust_remote_code=trusted)
        patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
        expected = [*names[:3], *(["own.py"] if trusted else [])]
        assert list(taken(names, **patterns)) == expected


def test_a_repository_whose_pickles_were_not_downloaded(
    repository: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "snapshots" / FIRST / "model.safetensors").unlink()
    files = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    with pytest.raises(ModelError, match=r"'owner/tiny' holds pytorch_model\.bin and no model\.safetensors"):
        load("owner/tiny")


@pytest.fixture
def data_set(pairs_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """`owner/pairs` as `datasets` gives it; the revisions that are asked for are listed."""
    asked: list[str | None] = []
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]

    def load_dataset(name: str, config: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
        asked.append(revision)
        data = datasets.Dataset.from_list(rows)
        data.info.download_checksums = {f"hf://datasets/{name}@{OF_DATA}/train.jsonl": {"num_bytes": 1}}
        return datasets.DatasetDict({"train": data})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_is_pinned(data_set: list[str | None]) -> None:
    assert all(map(is_hub_id, ["owner/pairs@v1", "owner/pairs:en@refs/pr/1", f"pairs@{OF_DATA}"]))
    assert not any(map(is_hub_id, ["@v1", "owner/pairs@", "a/b/c@v1"]))
    assert pin("owner/pairs:en@v1") == (f"owner/pairs:en@{OF_DATA}", OF_DATA)
    assert data_set == ["v1"]
    with pytest.raises(DataError, match=f"the local cache holds commit {OF_DATA}"):
        load_splits(f"owner/pairs@{FIRST}")


def test_a_run_records_what_it_loaded_and_repeats_it(
    repository: Path, data_set: list[str | None], st_folder: Path, tmp_path: Path
) -> None:
    command = ["--max-steps", "2", "--device", "cpu", "--accept", "any"]
    out, again = tmp_path / "run", tmp_path / "again"
    against = ["--against", "owner/tiny", "owner/tiny@new"]
    assert main(["train", "owner/pairs", "--base", "owner/tiny", "--out", str(out), *against, *command]) == 0
    results = json.loads((out / "results.json").read_text())
    recorded = results["environment"]["revisions"]
    others = {f"owner/tiny@{commit[:8]}": commit for commit in (FIRST, SECOND)}
    assert recorded == {"base": FIRST, "against": others, "data": {"train": OF_DATA}}
    first, second = results["further"]
    assert (first["model"], second["model"]) == tuple(others)
    assert first["metrics"] == pytest.approx(results["base"])
    assert second["metrics"] != pytest.approx(results["base"])
    config = load_toml(out / "config.toml")
    assert (config.model.base, config.model.revision) == ("owner/tiny", FIRST)
    assert config.data.train == f"owner/pairs@{OF_DATA}"
    assert config.evaluation.against == (f"owner/tiny@{FIRST}", f"owner/tiny@{SECOND}")
    card = (out / "model" / "README.md").read_text()
    assert f'revision = "{FIRST}"' in card
    assert "datasets:\n- owner/pairs\n" in card
    (repository / "refs" / "main").write_text(SECOND)
    data_set.clear()
    assert main(["train", "--config", str(out / "config.toml"), "--out", str(again)]) == 0
    assert set(data_set) == {OF_DATA}
    assert json.loads((again / "results.json").read_text())["further"] == results["further"]
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (again / file).read_bytes() == (out / file).read_bytes()


def test_a_search_names_the_commits_of_what_it_loaded(repository: Path, pairs_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    arguments = ["--guide", "owner/tiny@new", "--against", "owner/tiny", "--trials", "1", "--repeats", "0"]
    command = ["tune", str(pairs_file), "--base", "owner/tiny", "--max-steps", "2", "--device", "cpu"]
    assert main([*command, *arguments, "--near-duplicates", "0", "--out", str(out)]) == 0
    best = load_toml(out / "best.toml")
    assert (best.model.revision, best.loss.guide) == (FIRST, f"owner/tiny@{SECOND}")
    assert best.evaluation.against == (f"owner/tiny@{FIRST}",)


@pytest.mark.parametrize(("name", "commit"), [("owner/tiny", FIRST), ("owner/tiny@new", SECOND)])
def test_guide_teacher_and_judge_are_named_by_the_commit_that_was_checked(
    name: str, commit: str, repository: Path, make_judge: Callable[..., Path]
) -> None:
    model = ModelConfig(base="owner/tiny", device="cpu")
    assert check_loss_models(LossConfig(guide=name), model).guide == f"owner/tiny@{commit}"
    for snapshot in (repository / "snapshots").iterdir():
        shutil.copytree(make_judge(), snapshot, dirs_exist_ok=True)
    distilled = LossConfig(distill="kl", teacher=name)
    assert check_loss_models(distilled, model).teacher == f"owner/tiny@{commit}"
    assert load_judge(name, device=torch.device("cpu")).pinned_name == f"owner/tiny@{commit}"


def test_a_branch_that_moves_after_the_check_does_not_change_what_is_measured(repository: Path) -> None:
    names = ["owner/tiny", "owner/tiny@main", f"owner/tiny@{FIRST}", "owner/tiny@new"]
    others = loading.check_loadable(loading.other_models(ModelConfig(device="cpu", precision="fp32"), names))
    assert list(others) == ["owner/tiny@11111111", "owner/tiny@22222222"]
    (repository / "refs" / "main").write_text(SECOND)
    first, second = (loading.load(model, SilentReporter()) for model in others.values())
    torch.testing.assert_close(_words(second), _words(first) + 1)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_revision_that_is_none_is_told_before_any_work(
    command: str, repository: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"train": [str(pairs_file), "--base"], "eval": ["--test", str(pairs_file)]}[command]
    out = ["--out", str(tmp_path / "out")] if command == "train" else []
    for name in ("owner/tiny@never-was", "owner/tiny@"):
        assert main([command, *given, "owner/tiny", *out, "--against", name, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert f"'{name.removesuffix('@never-was')}' could not be loaded from the hub" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_at_sign_is_a_folder(st_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(st_folder, tmp_path / "model@v1")
    monkeypatch.chdir(tmp_path)
    assert split_revision("model@v1") == ("model@v1", None)
    assert split_revision("./gone@v1") == ("./gone@v1", None)
    assert split_revision("owner/tiny@refs/pr/1") == ("owner/tiny", "refs/pr/1")
    (model,) = loading.check_loadable(loading.other_models(ModelConfig(device="cpu"), ["model@v1"])).values()
    assert pinned_name(model) == str(tmp_path / "model@v1")
