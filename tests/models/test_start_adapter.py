"""Training goes on from an adapter that PEFT, Sentence Transformers or embedtune itself wrote.

Shapes: `B` texts, `E` embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, DistilBertConfig

from embedtune.config import AdapterConfig
from embedtune.errors import ConfigError
from embedtune.models.adapters import check_trainable, make_trainable
from embedtune.models.encoder import Encoder

Load = Callable[..., Encoder]

QUERY_VALUE = ["query", "value"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a pattern, as unsloth writes it": {"target_modules": r"(?:.*?(?:layer).*?(?:query|key|dense).*?)"},
    "all linear layers, the pooler too": {"target_modules": "all-linear"},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "one layer": {"layers_to_transform": [1]},
    "ranks and scales of their own": {"rank_pattern": {"value": 2}, "alpha_pattern": {"query": 12}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dropout": {"lora_dropout": 0.5},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias of its own": {"lora_bias": True},
    "adapter's biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "norms": {"modules_to_save": ["LayerNorm"]},
    "norms, biases and dora": {"modules_to_save": ["LayerNorm"], "bias": "all", "use_dora": True},
}


def move(model: nn.Module, seed: int = 1) -> None:
    """Change all that is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def embed(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    tokens = encoder.token_table(texts, "passage")
    embeddings_BE: Tensor = encoder.embed([tokens[index] for index in range(len(tokens))])
    return embeddings_BE


def peft_embeddings(base: Path, adapter: Path, texts: list[str]) -> Tensor:
    """Of the base with the adapter, as PEFT computes them."""
    model = SentenceTransformer(str(base), device="cpu")
    model[0].model = PeftModel.from_pretrained(model.transformers_model, str(adapter))  # type: ignore[arg-type]
    return encode(model.eval(), texts)


def encode(model: SentenceTransformer, texts: list[str]) -> Tensor:
    embeddings_BE = model.encode_document(texts, convert_to_tensor=True)
    assert isinstance(embeddings_BE, Tensor)
    return embeddings_BE


def write_with_peft(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """An adapter that changes the embeddings; returns its folder."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": QUERY_VALUE, **settings})
    adapted = get_peft_model(AutoModel.from_pretrained(checkpoint), config)
    assert isinstance(adapted, PeftModel)
    move(adapted)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def start(encoder: Encoder, folder: Path, **options: Any) -> Encoder:
    make_trainable(encoder, AdapterConfig(start_adapter=str(folder), **options))
    return encoder


def refuse(folder: Path, encoder: Encoder, expected: str) -> None:
    """The adapter in that folder can't be gone on with, and that is found out early."""
    config = AdapterConfig(start_adapter=str(folder))
    for step in (check_trainable, make_trainable):
        with pytest.raises(ConfigError, match=expected):
            step(encoder, config)


def goes_on(encoder: Encoder, base: Path, texts: list[str], folder: Path) -> None:
    """A step of training changes the adapter, and what is saved then is what was trained."""
    before_BE = embed(encoder, texts).detach()
    parameters = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    embed(encoder, texts)[:, ::2].sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in parameters.values())
    torch.optim.AdamW(parameters.values(), lr=0.02).step()
    stepped_BE = embed(encoder, texts).detach()
    assert (stepped_BE - before_BE).abs().max() > 0.01
    encoder.write_adapter(folder)
    torch.testing.assert_close(peft_embeddings(base, folder, texts), stepped_BE, atol=1e-5, rtol=0)
    torch.testing.assert_close(encode(encoder.merged(), texts), stepped_BE, atol=1e-5, rtol=0)


# PEFT takes the bias of a LoRA layer, an option of its own, for a matrix that DeepSpeed cut up.
@pytest.mark.filterwarnings(r"ignore:Adapter 'default'. 4 LoRA tensor.s. have invalid shape. .*lora_B\.bias")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_of_peft(
    settings: dict[str, Any], st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start", **settings)
    theirs_BE = peft_embeddings(st_folder, folder, sentences[:9])
    encoder = load(st_folder)
    base_BE = embed(encoder, sentences[:9])
    start(encoder, folder)
    torch.testing.assert_close(embed(encoder, sentences[:9]), theirs_BE, atol=1e-5, rtol=0)
    assert (theirs_BE - base_BE).abs().max() > 0.01
    layers = [module for module in encoder.backbone.modules() if isinstance(module, LoraLayer)]
    linears = [layer for layer in layers if isinstance(layer.get_base_layer(), nn.Linear)]
    has_variants = bool({"use_dora", "lora_bias"} & settings.keys())  # which the fused forward does not know
    assert [("forward" in vars(layer)) for layer in linears] == [not has_variants] * len(linears)
    goes_on(encoder, st_folder, sentences[:9], tmp_path / "adapter")


def test_what_the_adapter_trains_is_trained(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    def trained(**settings: Any) -> set[str]:
        folder = write_with_peft(bare_folder, tmp_path / str(len(list(tmp_path.iterdir()))), **settings)
        names = {name for name, p in start(load(st_folder), folder).named_parameters() if p.requires_grad}
        return {name.removeprefix("0.model.") for name in names}

    plain = trained()
    assert len(plain) == 2 * 2 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in plain)
    assert {name.rpartition("lora_")[2] for name in trained(use_dora=True) - plain} == {
        "magnitude_vector.default.weight"
    }
    assert trained(bias="lora_only") - plain == {
        f"encoder.layer.{number}.attention.self.{part}.base_layer.bias" for number in (0, 1) for part in QUERY_VALUE
    }
    assert {name.rpartition("LayerNorm.")[2] for name in trained(modules_to_save=["LayerNorm"]) - plain} == {
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    }
    assert not any("pooler" in name for name in trained(target_modules="all-linear", bias="all"))


def test_an_adapter_of_embedtune(
    st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    """Here one that began with PiSSA: what is saved is plain LoRA."""
    first = load(st_folder)
    make_trainable(first, AdapterConfig(rank=4, init="pissa", rslora=True, bias="all", modules_to_save=("LayerNorm",)))
    move(first)
    first.write_adapter(tmp_path / "start")
    encoder = start(load(st_folder), tmp_path / "start")
    torch.testing.assert_close(embed(encoder, sentences[:9]), embed(first, sentences[:9]), atol=1e-5, rtol=0)
    goes_on(encoder, st_folder, sentences[:9], tmp_path / "adapter")


def test_an_adapter_in_a_sentence_transformers_folder(
    st_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(st_folder), device="cpu")
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=4, target_modules=QUERY_VALUE))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    theirs_BE = encode(model, sentences[:9])
    model.save_pretrained(str(tmp_path / "start"))
    assert (tmp_path / "start" / "modules.json").is_file()
    assert not (tmp_path / "start" / "model.safetensors").exists()
    encoder = start(load(st_folder), tmp_path / "start")
    torch.testing.assert_close(embed(encoder, sentences[:9]), theirs_BE, atol=1e-5, rtol=0)
    goes_on(encoder, st_folder, sentences[:9], tmp_path / "adapter")


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["LayerNorm"]}, {"bias": "all"}])
def test_an_adapter_goes_on_over_four_bits(
    settings: dict[str, Any], st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start", **settings)
    encoder = start(load(st_folder, four_bit=True), folder, method="qlora")
    whole_BE, four_bit_BE = embed(start(load(st_folder), folder), sentences[:9]), embed(encoder, sentences[:9])
    assert 0.9 < torch.cosine_similarity(whole_BE, four_bit_BE).min() < 0.99999
    torch.testing.assert_close(encode(encoder.merged(), sentences[:9]), four_bit_BE, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"bias": "lora_only"}, {"modules_to_save": ["LayerNorm"]}])
def test_weights_that_the_adapter_trains_are_held_in_fp32(
    settings: dict[str, Any], st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start", **settings)
    encoder = start(load(st_folder, precision="bf16"), folder)
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}
    assert encoder.compute_dtype == torch.bfloat16
    theirs_BE = peft_embeddings(st_folder, folder, sentences[:9])
    torch.testing.assert_close(embed(encoder, sentences[:9]), theirs_BE, atol=0.02, rtol=0)


def test_a_folder_without_an_adapter(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    encoder = load(st_folder)
    expected = "a folder as PEFT's save_pretrained writes it"
    refuse(
        tmp_path / "none", encoder, rf"--start-adapter .*none: it holds no adapter_config\.json\.\nExpected {expected}"
    )
    refuse(bare_folder, encoder, rf"--start-adapter .*: it holds no adapter_config\.json\.\nExpected {expected}")
    folder = write_with_peft(bare_folder, tmp_path / "start")
    (folder / "adapter_model.safetensors").unlink()
    refuse(folder, encoder, rf"--start-adapter .*: it holds no adapter_model\.safetensors\.\nExpected {expected}")


class _Explosive:
    """Unpickling it fails the test."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


def test_a_pickled_adapter_is_never_read(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": _Explosive()}, folder / "adapter_model.bin")
    refuse(
        folder,
        load(st_folder),
        r"it holds no adapter_model\.safetensors; adapter_model\.bin is a pickle and never read",
    )


def test_files_that_cannot_be_read(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:100])
    refuse(folder, load(st_folder), r"--start-adapter .*start can't be read: ")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text("{")
    refuse(folder, load(st_folder), r"--start-adapter .*start can't be read: ")


def test_an_adapter_that_is_not_lora(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    config = IA3Config(target_modules=QUERY_VALUE, feedforward_modules=[])
    get_peft_model(AutoModel.from_pretrained(bare_folder), config).save_pretrained(str(tmp_path))
    refuse(tmp_path, load(st_folder), r"--start-adapter .*: it is an adapter of type IA3; expected LORA\.")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_belongs_to_changed_weights(
    init: str, st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start", init_lora_weights=init)
    refuse(
        folder, load(st_folder), rf"start, {init}, changed the base's weights, .*\nExpected .* converted to plain LoRA"
    )


def refuse_at_attaching(folder: Path, encoder: Encoder, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        start(encoder, folder)


def test_an_adapter_of_another_architecture(
    st_folder: Path, make_checkpoint: Callable[..., Path], bert_config: dict[str, Any], load: Load, tmp_path: Path
) -> None:
    distilbert = make_checkpoint(DistilBertConfig(vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64))
    folder = write_with_peft(distilbert, tmp_path / "start", target_modules=["q_lin"])
    expected = rf"--start-adapter .*: not an adapter for BertModel.*q_lin.*\nIt was trained on {distilbert}\."
    refuse_at_attaching(folder, load(st_folder), expected)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"hidden_size": 64}, r"size mismatch for base_model.*lora_A.*\[4, 64\].*\[4, 32\]"),
        ({"num_hidden_layers": 3}, r"don't share base_model\.model\.encoder\.layer\.2\..* \(and 3 more\)"),
        ({"num_hidden_layers": 1}, r"don't share base_model\.model\.encoder\.layer\.1\..* \(and 3 more\)"),
    ],
)
def test_an_adapter_of_another_size(
    sizes: dict[str, int],
    expected: str,
    st_folder: Path,
    make_checkpoint: Callable[..., Path],
    bert_config: dict[str, Any],
    load: Load,
    tmp_path: Path,
) -> None:
    other = make_checkpoint(BertConfig(**{**bert_config, **sizes}))
    folder = write_with_peft(other, tmp_path / "start")
    refuse_at_attaching(
        folder, load(st_folder), rf"--start-adapter .*: not an adapter for BertModel.*{expected}.*\n.*{other}"
    )


def test_weights_of_another_rank_than_the_settings_say(
    st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 8}))
    refuse_at_attaching(folder, load(st_folder), r"not an adapter for BertModel.*size mismatch.*\[4, 32\].*\[8, 32\]")


def test_weights_that_are_missing(st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path) -> None:
    for kind in ("lora_A", "LayerNorm"):
        folder = write_with_peft(bare_folder, tmp_path / kind, modules_to_save=["LayerNorm"])
        weights = load_file(folder / "adapter_model.safetensors")
        del weights[next(name for name in weights if kind in name)]
        save_file(weights, folder / "adapter_model.safetensors")
        refuse_at_attaching(folder, load(st_folder), rf"--start-adapter .*: not an adapter for BertModel.*{kind}")


def test_dora_on_four_bits_that_would_be_misread(
    st_folder: Path, bare_folder: Path, load: Load, tmp_path: Path
) -> None:
    folder = write_with_peft(bare_folder, tmp_path / "start", use_dora=True)
    with pytest.raises(
        ConfigError, match=r"inputs are a multiple of 64 .* 'encoder\.layer\.0\..*query' has 32\.\nType:"
    ):
        start(load(st_folder, four_bit=True), folder, method="qlora")
