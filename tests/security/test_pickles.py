"""Weights are safetensors: a pickle is refused wherever it lies, and what to type is told."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

import embedtune
from embedtune.cli.main import main
from embedtune.errors import ConfigError, ModelError
from embedtune.models.encoder import Encoder
from embedtune.models.start import read_adapter

Bomb = Callable[[Path], Path]
Load = Callable[..., Encoder]


@pytest.fixture(scope="module")
def dense_folder(make_st_folder: Callable[..., Path], bare_folder: Path) -> Path:
    return make_st_folder(bare_folder, dense=True)


@pytest.fixture
def copy(dense_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(dense_folder, tmp_path / "model")


def test_a_bomb_is_one(tmp_path: Path) -> None:
    """The tests below would notice."""
    from tests.security.conftest import _Bomb

    pickle.loads(pickle.dumps(_Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("place", ["", "2_Dense", "4_LayerNorm"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_of_a_module(name: str, place: str, copy: Path, bomb: Bomb, load: Load) -> None:
    (copy / place / "model.safetensors").unlink()
    bomb(copy / place / name)
    found, wanted = f"{place}/{name}".lstrip("/"), f"{place}/model.safetensors".lstrip("/")
    with pytest.raises(ModelError, match=re.escape(f"'{copy}' holds {found} and no {wanted}: a pickle")) as refusal:
        load(copy)
    assert f"SentenceTransformer as M; M('{copy}').save_pretrained('model-safetensors')" in str(refusal.value)


@pytest.mark.parametrize("place", ["0_Router/query_0_Dense", ".", "1_Pooling"])
def test_pickled_weights_that_no_list_of_modules_names(place: str, copy: Path, bomb: Bomb, load: Load) -> None:
    name = "adapter_model.bin" if place == "." else "pytorch_model.bin"
    bomb(copy / place / name)
    with pytest.raises(ModelError, match=rf"holds {re.escape((Path(place) / name).as_posix())} and no "):
        load(copy)


def test_pickled_weights_under_another_name(copy: Path, bomb: Bomb, load: Load) -> None:
    (copy / "model.safetensors").unlink()
    bomb(copy / "weights.dat")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"embeddings.weight": "weights.dat"}}))
    expected = r"its weights are in 'weights\.dat'; expected a name that ends in \.safetensors"
    with pytest.raises(ModelError, match=expected):
        load(copy)
    index.unlink()
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "transformers_weights": "weights.dat"}))
    with pytest.raises(ModelError, match=expected):
        load(copy)


def test_pickles_beside_safetensors_are_left_alone(copy: Path, bomb: Bomb, load: Load) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "2_Dense/pytorch_model.bin", "vocab.pkl"):
        bomb(copy / name)
    bomb(copy / "checkpoint-5" / "pytorch_model.bin")
    assert load(copy).embedding_size == 24


def test_the_command_in_the_message_converts(
    copy: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(copy).state_dict()
    for place in (copy, copy / "2_Dense"):
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
    with pytest.raises(ModelError) as refusal:
        load(copy)
    monkeypatch.chdir(tmp_path)
    exec(_command(str(refusal.value)))
    converted = load(tmp_path / "model-safetensors").state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def _command(message: str) -> str:
    found = re.search(r'python -c "(.+)"$', message, re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_start_adapter(bare_folder: Path, bomb: Bomb, tmp_path: Path) -> None:
    adapted = get_peft_model(AutoModel.from_pretrained(bare_folder), LoraConfig(target_modules=["query"]))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    expected = load_file(weights)
    weights.unlink()
    bomb(weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match=r"adapter_model\.bin is a pickle and never read here") as refusal:
        read_adapter(str(tmp_path / "adapter"))
    torch.save(expected, weights.with_suffix(".bin"))
    exec(_command(str(refusal.value)))
    _, found = read_adapter(str(tmp_path / "adapter"))
    assert found.keys() == expected.keys()


def test_a_model_of_against(
    copy: Path, bomb: Bomb, pairs_file: Path, st_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "model.safetensors").unlink()
    bomb(copy / "pytorch_model.bin")
    assert main(["eval", str(st_folder), "--test", str(pairs_file), "--against", str(copy)]) == 2
    assert "holds pytorch_model.bin and no model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".npz", ".pt", ".parquet", ".jsonl", ".json", ".csv"])
def test_data(
    suffix: str, bomb: Bomb, st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs_file: Path
) -> None:
    file = str(bomb(tmp_path / f"data{suffix}"))
    base, out = ["--base", str(st_folder)], ["--out", str(tmp_path / "run")]
    assert main(["train", file, *base, *out]) == 2
    assert main(["train", str(pairs_file), "--corpus", file, *base, *out]) == 2
    assert main(["train", str(pairs_file), "--forgetting", file, *base, *out]) == 2
    assert main(["encode", str(st_folder), file, "--out", str(tmp_path / "vectors.npy")]) == 2
    assert capsys.readouterr().err.count("embedtune: ") == 4
    assert not (tmp_path / "run").exists()


def test_no_line_of_ours_reads_pickles() -> None:
    unpickles = re.compile(r"pickle\.load|torch\.load\(|np\.load\(|joblib|allow_pickle|yaml\.load\(|weights_only=False")
    files = list(Path(embedtune.__file__).parent.rglob("*.py"))
    found = [file.name for file in files if unpickles.search(file.read_text(encoding="utf-8"))]
    assert found == ["start.py"]  # in the command that it tells, with weights_only=True
