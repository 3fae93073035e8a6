"""Folders and hub ids to encoders, and readable errors for what is not one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer

from embedtune.config import AdapterConfig
from embedtune.errors import ModelError
from embedtune.models.adapters import attach_adapter
from embedtune.models.encoder import Encoder

CPU = torch.device("cpu")


def test_a_bare_checkpoint_gets_mean_pooling_and_normalisation(
    bare_folder: Path, make_st_folder: Callable[..., Path], sentences: list[str], load: Callable[..., Encoder]
) -> None:
    encoder = load(bare_folder)
    assert encoder.notes == ["a bare checkpoint: mean pooling and normalisation were added"]
    complete = SentenceTransformer(str(make_st_folder(bare_folder, pooling="mean", normalize=True)), device="cpu")
    embeddings_NE = encoder.embed_all(encoder.token_table(sentences[:30], "passage"))
    torch.testing.assert_close(
        embeddings_NE, complete.encode(sentences[:30], convert_to_tensor=True), atol=1e-5, rtol=0
    )


def test_a_complete_folder_needs_no_note(st_folder: Path, load: Callable[..., Encoder]) -> None:
    encoder = load(st_folder)
    assert encoder.notes == []
    assert encoder.max_length == 64
    assert encoder.embedding_size == 32


def test_another_similarity_is_replaced_and_said(
    bare_folder: Path, make_st_folder: Callable[..., Path], load: Callable[..., Encoder]
) -> None:
    encoder = load(make_st_folder(bare_folder, similarity_fn_name="dot"))
    assert encoder.notes == ["the base compares by dot; here cosine similarity is used and saved"]
    assert encoder.similarity_fn_name == "cosine"


def test_everything_is_frozen(st_folder: Path, load: Callable[..., Encoder]) -> None:
    assert not any(parameter.requires_grad for parameter in load(st_folder).parameters())


def test_a_home_folder_may_be_typed(
    st_folder: Path, load: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(st_folder.parent))
    assert load(Path("~") / st_folder.name).packed


def test_missing_folder(tmp_path: Path, load: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError, match=r"missing' is not a model folder: it does not exist\.\nExpected a Hugging"):
        load(str(tmp_path / "missing"))


@pytest.mark.parametrize("model", ["./missing", "../missing/model", "a/b/c", "~/missing-model"])
def test_what_looks_like_a_folder_is_not_looked_up(model: str, load: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError, match="is not a model folder: it does not exist"):
        load(model)


def test_folder_without_a_model(tmp_path: Path, load: Callable[..., Encoder]) -> None:
    (tmp_path / "notes.txt").write_text("no model here")
    with pytest.raises(ModelError, match=r"it holds no config\.json"):
        load(str(tmp_path))


@pytest.fixture
def adapter_in_st_folder(st_folder: Path, tmp_path: Path) -> Path:
    """A model with an adapter that is not merged, as Sentence Transformers saves it: the adapter, its base left out."""
    model = SentenceTransformer(str(st_folder), device="cpu")
    model.add_adapter(LoraConfig(r=4, target_modules=["query"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapted"), create_model_card=False)
    return tmp_path / "adapted"


def test_an_adapter_is_no_model(
    adapter_in_st_folder: Path, st_folder: Path, load: Callable[..., Encoder], sentences: list[str]
) -> None:
    folder = adapter_in_st_folder
    embeddings_NE = SentenceTransformer(str(folder), device="cpu").encode_document(
        sentences[:5], convert_to_tensor=True
    )
    expected = f"'{folder}' holds an adapter, not a model.\nType:  --base {st_folder} --start-adapter {folder} "
    with pytest.raises(ModelError, match=re.escape(expected)):
        load(folder)
    encoder = load(st_folder)
    attach_adapter(encoder, AdapterConfig(start_adapter=str(folder)))  # as it says
    adapted_NE = encoder.embed_all(encoder.token_table(sentences[:5], "passage"))
    torch.testing.assert_close(adapted_NE, embeddings_NE, atol=1e-5, rtol=0)
    (folder / "modules.json").unlink()  # which leaves a plain PEFT folder
    with pytest.raises(ModelError, match=re.escape(expected)):
        load(folder)


def test_an_adapter_in_the_folder_of_a_module(
    adapter_in_st_folder: Path, st_folder: Path, load: Callable[..., Encoder]
) -> None:
    folder = adapter_in_st_folder / "0_Transformer"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "sentence_bert_config.json"):
        shutil.move(adapter_in_st_folder / name, folder)
    modules = json.loads((adapter_in_st_folder / "modules.json").read_text())
    modules[0]["path"] = folder.name
    (adapter_in_st_folder / "modules.json").write_text(json.dumps(modules))
    expected = f"'{folder}' holds an adapter, not a model.\nType:  --base {st_folder} --start-adapter {folder} "
    with pytest.raises(ModelError, match=re.escape(expected)):
        load(adapter_in_st_folder)


@pytest.mark.parametrize("config", ["{", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_does_not_say_its_base(tmp_path: Path, config: str, load: Callable[..., Encoder]) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=r"Type:  --base BASE --start-adapter .*, BASE being the model it belongs to"):
        load(tmp_path)


@pytest.mark.parametrize("modules", ["{", "{}", '[{"idx": 0}]'])
def test_a_list_of_modules_that_is_none(tmp_path: Path, modules: str, load: Callable[..., Encoder]) -> None:
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ModelError, match=r"could not be loaded as a text encoder: .+\nExpected an encoder"):
        load(tmp_path)


@pytest.mark.parametrize("config", ["{", "{}", '{"model_type": "no-such-model"}'])
def test_folder_with_a_config_that_is_none(tmp_path: Path, config: str, load: Callable[..., Encoder]) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"could not be loaded as a text encoder: .+\nExpected an encoder"):
        load(str(tmp_path))


def test_folder_without_weights(tmp_path: Path, bare_folder: Path, load: Callable[..., Encoder]) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bare_folder / name).read_bytes())
    with pytest.raises(ModelError, match=r"could not be loaded as a text encoder: .*model\.safetensors"):
        load(str(tmp_path))


def test_damaged_weights(tmp_path: Path, bare_folder: Path, load: Callable[..., Encoder]) -> None:
    for file in bare_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((bare_folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded as a text encoder"):
        load(str(tmp_path))


def test_encoder_decoder(make_checkpoint: Callable[..., Path], load: Callable[..., Encoder]) -> None:
    from transformers import BartConfig

    config = BartConfig(vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=1, max_position_embeddings=64)
    with pytest.raises(
        ModelError, match=r"is not a text encoder: it loads as BartModel\.\nExpected an encoder such as"
    ):
        load(str(make_checkpoint(config)))


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Encoder]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"could not be loaded from the hub: .+\n(.|\n)*--base FOLDER"):
        load("nobody/no-such-model")


def test_more_tokens_than_positions(bare_folder: Path, load: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError, match=r"--max-length 65 is more than the model's 64 positions\.\nType:"):
        load(str(bare_folder), max_length=65)


def test_positions_that_a_text_cannot_use(
    make_checkpoint: Callable[..., Path], bert_config: dict[str, Any], load: Callable[..., Encoder]
) -> None:
    """RoBERTa counts positions from behind its padding id, so two of its 64 are no text's."""
    from transformers import RobertaConfig

    config = RobertaConfig(**bert_config, pad_token_id=1, type_vocab_size=1)
    folder = make_checkpoint(config, pad_id=1)
    with pytest.raises(ModelError, match="--max-length 63 is more than the model's 62 positions"):
        load(str(folder), max_length=63)
    encoder = load(str(folder), max_length=62)
    tokens = encoder.token_table(["bador " * 100], "passage")
    assert tokens.lengths_N.tolist() == [62]
    assert encoder.embed_all(tokens).isfinite().all()


def test_a_tokenizer_that_knows_no_maximum(
    tmp_path: Path, bare_folder: Path, make_tokenizer: Callable[..., Any], load: Callable[..., Encoder]
) -> None:
    """Many checkpoints on the hub were saved so; texts are cut at the model's positions."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bare_folder / name).read_bytes())
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    encoder = load(tmp_path)
    tokens = encoder.token_table(["bador " * 200], "passage")
    assert tokens.lengths_N.tolist() == [64]
    assert encoder.embed_all(tokens).isfinite().all()
