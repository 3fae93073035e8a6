"""What is saved loads with plain Sentence Transformers and plain PEFT, and is the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from embedtune.errors import ExportMismatchError
from embedtune.export.sentence_transformers import MIN_COSINE, check_saved, save_adapter, save_merged
from embedtune.models.encoder import Encoder

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]


def plain(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def export(encoder: Encoder, folder: Path) -> Path:
    """Save adapter and model as a run does; returns the model's folder."""
    save_adapter(encoder, folder / "adapter")
    save_merged(encoder, folder / "model")
    return folder / "model"


def adapted(encoder: Encoder, adapt: Adapt) -> Encoder:
    adapt(encoder)
    return encoder


def lowest_cosine(first_NE: Tensor, second_NE: Tensor) -> float:
    return torch.cosine_similarity(first_NE, second_NE).min().item()


@pytest.mark.parametrize("base", ["st_folder", "bare_folder"])
def test_plain_sentence_transformers_embeds_as_the_trained_model(
    base: str, request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    base_folder: Path = request.getfixturevalue(base)
    encoder = adapted(load(base_folder), adapt)
    saved = export(encoder, tmp_path)
    model, texts = plain(saved), [*sentences[:40], ""]
    assert not any("lora" in name for name, _ in model.named_parameters())
    for role, embed in (("query", model.encode_query), ("passage", model.encode_document)):
        trained_NE = encoder.embed_all(encoder.token_table(texts, role))  # type: ignore[arg-type]
        saved_NE = embed(texts, convert_to_tensor=True)
        torch.testing.assert_close(saved_NE, trained_NE, atol=1e-4, rtol=0)
        assert lowest_cosine(saved_NE, plain(base_folder).encode(texts, convert_to_tensor=True)) < 0.99
    assert check_saved(saved, encoder, texts).min() > 0.99999


def test_the_bases_settings_are_kept(
    tmp_path: Path, bare_folder: Path, make_st_folder: Callable[..., Path], load: Load, adapt: Adapt
) -> None:
    prompts = {"query": "bador: ", "document": "nop: ", "other": "kefin: "}
    base = make_st_folder(bare_folder, pooling="cls", prompts=prompts, default_prompt_name="document")
    saved = plain(export(adapted(load(base, max_length=32), adapt), tmp_path))
    assert saved.prompts == prompts
    assert saved.default_prompt_name == "document"
    assert saved.max_seq_length == 32
    assert saved[1].pooling_mode == "cls"
    assert saved.similarity_fn_name == "cosine"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bases_dtype_is_kept(
    dtype: torch.dtype,
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    bert_config: dict[str, Any],
    sentences: list[str],
    load: Load,
    adapt: Adapt,
) -> None:
    from safetensors.torch import load_file
    from transformers import BertConfig

    base = make_checkpoint(BertConfig(**bert_config), dtype=str(dtype).removeprefix("torch."))
    encoder = adapted(load(base), adapt)
    saved = export(encoder, tmp_path)
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {dtype}
    assert check_saved(saved, encoder, sentences[:20]).min() > MIN_COSINE


def test_plain_peft_loads_the_adapter(
    tmp_path: Path, st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    encoder = adapted(load(st_folder), adapt)
    export(encoder, tmp_path)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(bare_folder), str(tmp_path / "adapter")).eval()
    assert model.peft_config["default"].base_model_name_or_path == str(st_folder)
    features = AutoTokenizer.from_pretrained(bare_folder)(sentences[:9], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs_BLE = model(**features).last_hidden_state
        ours_BLE = encoder.backbone(**features).last_hidden_state
        base_BLE = AutoModel.from_pretrained(bare_folder).eval()(**features).last_hidden_state
    real_BL = features["attention_mask"].bool()
    torch.testing.assert_close(theirs_BLE[real_BL], ours_BLE[real_BL], atol=1e-4, rtol=0)
    assert (theirs_BLE - base_BLE)[real_BL].abs().max() > 0.1


def test_nothing_is_pickled(tmp_path: Path, st_folder: Path, load: Load, adapt: Adapt) -> None:
    export(adapted(load(st_folder), adapt), tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert not suffixes & {".bin", ".pt", ".pkl", ".pth", ".ckpt"}


def test_saving_again_replaces_the_folder(
    tmp_path: Path, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    encoder = adapted(load(st_folder), adapt)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left-over.txt").write_text("")
    (tmp_path / ".model.tmp").mkdir()
    saved = export(encoder, tmp_path)
    assert check_saved(saved, encoder, sentences[:5]).min() > MIN_COSINE
    assert not (saved / "left-over.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_the_wrong_model_is_noticed(
    tmp_path: Path, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    encoder = load(st_folder)
    adapt(encoder)
    with pytest.raises(ExportMismatchError, match=r"embeds differently from the trained one \(cosine .*expected at"):
        check_saved(st_folder, encoder, sentences[:20])


def test_a_single_wrong_text_is_noticed(
    tmp_path: Path, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    """Here a long one, of which the saved model reads less."""
    encoder = adapted(load(st_folder), adapt)
    saved = export(adapted(load(st_folder, max_length=24), adapt), tmp_path)
    short = [text for text in sentences[:60] if encoder.token_table([text], "passage").lengths_N[0] <= 24]
    assert check_saved(saved, encoder, short).min() > MIN_COSINE
    with pytest.raises(ExportMismatchError):
        check_saved(saved, encoder, [*short, " ".join(sentences[:20])])


def test_embeddings_that_are_no_numbers_are_noticed(
    tmp_path: Path, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    encoder = adapted(load(st_folder), adapt)
    saved = export(encoder, tmp_path)
    with torch.no_grad():
        next(encoder.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(ExportMismatchError, match="cosine nan"):
        check_saved(saved, encoder, sentences[:5])


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": {"query": "bador sholat: ", "passage": "nop lifin: "}},
        {"prompts": {"any": "bador sholat: "}, "default_prompt_name": "any"},
    ],
)
def test_the_saved_model_uses_the_prompts_it_was_trained_with(
    settings: dict[str, object],
    tmp_path: Path,
    bare_folder: Path,
    make_st_folder: Callable[..., Path],
    sentences: list[str],
    load: Load,
    adapt: Adapt,
) -> None:
    """Though the base names its passage prompt "passage", as E5's folders do, or has a default one."""
    base = make_st_folder(bare_folder, **settings)
    encoder = adapted(load(base), adapt)
    model = plain(export(encoder, tmp_path))
    for role, embed in (("query", model.encode_query), ("passage", model.encode_document)):
        trained_NE = encoder.embed_all(encoder.token_table(sentences[:9], role))  # type: ignore[arg-type]
        torch.testing.assert_close(embed(sentences[:9], convert_to_tensor=True), trained_NE, atol=1e-4, rtol=0)
