"""An encoder is a Sentence Transformers model to Sentence Transformers' own trainer, losses, evaluators and methods.

Shapes: `B` texts of a batch, `N` texts in all, `L` tokens of a text, `E` embedding size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertConfig, Qwen3Config

from embedtune.config import AdapterConfig
from embedtune.errors import ModelError
from embedtune.models.adapters import unfreeze
from embedtune.models.encoder import Encoder
from embedtune.models.recompute import recompute_layers

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]
Build = Callable[..., Encoder]
Loss = Callable[[SentenceTransformer], nn.Module]

BATCH = 8
MIN_COSINE = 0.9999
WAYS = ["lora", "qlora", "full"]
LOSSES: dict[str, Loss] = {
    "MNRL": MultipleNegativesRankingLoss,
    "cached MNRL": lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "Matryoshka": lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16, 8]),
    "CoSENT": CoSENTLoss,
}
TRAINED = [*product(["lora", "qlora", "last layer"], LOSSES), ("full", "MNRL")]
"""Full fine-tuning is tried on the last layer, which leaves frozen weights, and once on all."""


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """The trainer collects garbage after each run, which takes half a second with all the libraries in memory."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def build(load: Load, adapt: Adapt, st_folder: Path) -> Build:
    """A packed encoder to train in one of `WAYS`, or its last layer; its adapter already changes the embeddings."""

    def build(way: str, *, folder: Path = st_folder, **options: Any) -> Encoder:
        encoder = load(folder, four_bit=way == "qlora", **options)
        if way in ("lora", "qlora"):
            adapt(encoder, method=way)
        else:
            unfreeze(encoder, AdapterConfig(method="full", last_layers=1 if way == "last layer" else None))
        assert encoder.packed
        return encoder

    return build


def plain(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def make_pairs(sentences: Sequence[str], loss: str = "MNRL") -> Dataset:
    """Sentences of 6 to 29 words, and the same ones backwards; scored ones for CoSENT, half of them no pairs."""
    anchors = sentences[5:29]
    positives = [" ".join(reversed(text.split())) for text in anchors]
    if loss != "CoSENT":
        return Dataset.from_dict({"anchor": anchors, "positive": positives})
    others = [text if row % 2 else positives[row - 5] for row, text in enumerate(positives)]
    return Dataset.from_dict({"first": anchors, "second": others, "score": [float(row % 2) for row in range(24)]})


def train(
    encoder: Encoder,
    pairs: Dataset,
    folder: Path,
    *,
    loss: Loss = MultipleNegativesRankingLoss,
    evaluator: BaseEvaluator | None = None,
    resume: bool | str = False,
    **options: Any,
) -> SentenceTransformerTrainer:
    """A few steps with Sentence Transformers' trainer, as a user would set it up."""
    settings = {
        "max_steps": 4,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": BATCH,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **settings),
        train_dataset=pairs,
        loss=loss(encoder),
        evaluator=evaluator,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def loss_of(encoder: Encoder, pairs: Dataset, loss: Loss) -> Tensor:
    """The loss of all pairs as one batch, with gradients."""
    texts = [column for column in pairs.column_names if column != "score"]
    features = [encoder.preprocess(list(pairs[column])) for column in texts]
    labels = torch.tensor(pairs["score"]) if "score" in pairs.column_names else None
    value: Tensor = loss(encoder)(features, labels)
    return value


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def tensors(encoder: Encoder, *, trainable: bool) -> dict[str, Tensor]:
    chosen = {name: p for name, p in encoder.named_parameters() if p.requires_grad is trainable}
    return {name: parameter.detach().clone() for name, parameter in chosen.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    assert expected
    for name in expected:
        difference = (actual[name].float() - expected[name].float()).abs().max().item()
        assert difference <= atol, f"{name} differs by {difference:.2g}"


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=1e-5, rtol=0)


def assert_embeds_alike(saved: Path, encoder: Encoder, texts: Sequence[str], *, min_cosine: float = MIN_COSINE) -> None:
    """Loaded with plain Sentence Transformers, for either role."""
    model, texts = plain(saved), [*texts, ""]
    for role in ("encode_query", "encode_document", "encode"):
        theirs_NE = getattr(model, role)(texts, convert_to_tensor=True)
        ours_NE = getattr(encoder, role)(texts, convert_to_tensor=True)
        assert torch.cosine_similarity(theirs_NE, ours_NE).min() >= min_cosine


def executions(encoder: Encoder) -> list[bool]:
    """Fills with one entry a forward pass of the backbone: whether it ran packed, that is, as a batch of one."""
    packed: list[bool] = []
    embedding = encoder.backbone.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: packed.append(inputs[0].shape[0] == 1))
    return packed


@pytest.mark.parametrize(("way", "loss"), TRAINED)
def test_the_stock_trainer_trains_what_is_trainable_and_saves_it(
    way: str, loss: str, build: Build, sentences: list[str], tmp_path: Path
) -> None:
    encoder, pairs, fresh = build(way), make_pairs(sentences, loss), sentences[100:120]
    frozen, untrained = tensors(encoder, trainable=False), tensors(encoder, trainable=True)
    loss_before, embedded_before = loss_of(encoder, pairs, LOSSES[loss]).item(), encoder.encode(fresh)
    packed = executions(encoder)
    train(encoder, pairs, tmp_path, loss=LOSSES[loss], save_strategy="steps", save_steps=4)
    assert packed
    assert all(packed)
    assert loss_of(encoder, pairs, LOSSES[loss]).item() < 0.99 * loss_before
    assert_same(tensors(encoder, trainable=False), frozen)
    trained = tensors(encoder, trainable=True)
    assert all(not torch.equal(trained[name], untrained[name]) for name in untrained)
    encoder.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    for saved in (tmp_path / "model", tmp_path / "checkpoint-4"):
        assert_embeds_alike(saved, encoder, fresh)
    moved = 1 - torch.cosine_similarity(torch.as_tensor(embedded_before), torch.as_tensor(encoder.encode(fresh)))
    assert moved.max() > 10 * (1 - MIN_COSINE)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", WAYS)
def test_packing_changes_no_gradient(way: str, loss: str, build: Build, sentences: list[str]) -> None:
    found = []
    for packed in (True, False):
        encoder = build(way)
        encoder.packed = packed
        encoder.train()
        ran_packed = executions(encoder)
        loss_of(encoder, make_pairs(sentences, loss), LOSSES[loss]).backward()  # type: ignore[no-untyped-call]
        assert set(ran_packed) == {packed}
        found.append(gradients(encoder))
    assert found[1].keys() == tensors(encoder, trainable=True).keys()
    assert max(gradient.abs().max() for gradient in found[1].values()) > 1e-2
    assert_same(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_loss_that_looks_into_the_layers_gets_them(way: str, build: Build, sentences: list[str]) -> None:
    """It replaces the forward of the first module, which packed execution does without: such batches run padded."""
    found = []
    for packed in (True, False):
        encoder = build(way)
        encoder.packed = packed
        loss = AdaptiveLayerLoss(encoder, MultipleNegativesRankingLoss(encoder), n_layers_per_step=-1)
        loss_of(encoder, make_pairs(sentences), lambda _, loss=loss: loss).backward()  # type: ignore
        found.append(gradients(encoder))
        ran_packed = executions(encoder)
        encoder.encode(sentences[:5])
        assert ran_packed == [packed]
    assert_same(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_training_under_autocast(way: str, build: Build, sentences: list[str], tmp_path: Path) -> None:
    encoder, pairs = build(way), make_pairs(sentences)
    loss_before, packed = loss_of(encoder, pairs, MultipleNegativesRankingLoss).item(), executions(encoder)
    train(encoder, pairs, tmp_path, bf16=True)
    assert all(packed)
    assert loss_of(encoder, pairs, MultipleNegativesRankingLoss).item() < 0.99 * loss_before
    assert {tensor.dtype for tensor in tensors(encoder, trainable=True).values()} == {torch.float32}
    encoder.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    # The trainer leaves a model that it trained under autocast in bf16 for good.
    assert_embeds_alike(tmp_path / "model", encoder, sentences[100:120], min_cosine=0.999)


@pytest.mark.parametrize(("way", "loss"), [("lora", "MNRL"), ("qlora", "cached MNRL"), ("full", "CoSENT")])
def test_recomputed_layers_change_no_gradient(way: str, loss: str, build: Build, sentences: list[str]) -> None:
    """Nor do they with a loss that runs the model a second time in the backward pass."""
    found = []
    for recomputed in (True, False):
        encoder = build(way)
        if recomputed:
            recompute_layers(encoder.backbone)
        encoder.train()
        loss_of(encoder, make_pairs(sentences, loss), LOSSES[loss]).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(encoder))
    assert_same(found[0], found[1], atol=1e-6)


# Deprecated in transformers 5.23 for a name that earlier ones don't have.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_in_the_training_arguments_keeps_fewer_activations(
    build: Build, sentences: list[str], tmp_path: Path
) -> None:
    """transformers' own would keep them all, as the base is never in training mode."""
    encoder, pairs = build("lora"), make_pairs(sentences)

    def kept() -> int:
        values: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            values.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_of(encoder, pairs, MultipleNegativesRankingLoss)
        return sum(values)

    stored, untrained = kept(), tensors(encoder, trainable=True)
    train(encoder, pairs, tmp_path, gradient_checkpointing=True, max_steps=1)
    assert any(not torch.equal(tensors(encoder, trainable=True)[name], untrained[name]) for name in untrained)
    recomputed = kept()
    assert recomputed < stored / 2
    train(encoder, pairs, tmp_path, gradient_checkpointing=True, max_steps=1)
    assert kept() == recomputed


@pytest.mark.parametrize("way", WAYS)
def test_training_resumes_where_it_stopped(way: str, build: Build, sentences: list[str], tmp_path: Path) -> None:
    """As if it had never stopped, with another encoder, whose adapter starts elsewhere."""
    pairs, uninterrupted, resumed = make_pairs(sentences), build(way), build(way)
    train(uninterrupted, pairs, tmp_path, save_strategy="steps", save_steps=2)
    for parameter in resumed.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    frozen = tensors(resumed, trainable=False)
    trainer = train(resumed, pairs, tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    assert_same(tensors(resumed, trainable=True), tensors(uninterrupted, trainable=True), atol=1e-6)
    assert_same(tensors(resumed, trainable=False), frozen)
    assert_embeds_alike(tmp_path / "checkpoint-4", resumed, sentences[100:120])


class Declining(BaseEvaluator):
    """Finds the model worse at each evaluation, and remembers how it was at the first."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = "score"
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, model: Any, *_: Any, **__: Any) -> dict[str, float]:
        self.seen.append(tensors(model, trainable=True))
        return {"score": -float(len(self.seen))}


@pytest.mark.parametrize("way", WAYS)
def test_the_best_checkpoint_is_loaded_at_the_end(way: str, build: Build, sentences: list[str], tmp_path: Path) -> None:
    encoder, evaluator = build(way), Declining()
    frozen = tensors(encoder, trainable=False)
    train(
        encoder,
        make_pairs(sentences),
        tmp_path,
        evaluator=evaluator,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    assert len(evaluator.seen) == 4
    assert_same(tensors(encoder, trainable=True), evaluator.seen[0])
    assert_same(tensors(encoder, trainable=False), frozen)
    assert any(not torch.equal(tensor, evaluator.seen[3][name]) for name, tensor in evaluator.seen[0].items())
    assert_embeds_alike(tmp_path / "checkpoint-1", encoder, sentences[100:120])


@pytest.mark.parametrize("way", ["lora", "qlora"])
def test_a_merged_model_alone_is_no_checkpoint_to_resume_from(
    way: str, build: Build, sentences: list[str], tmp_path: Path
) -> None:
    pairs = make_pairs(sentences)
    train(build(way), pairs, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    (tmp_path / "checkpoint-1" / "trained.safetensors").unlink()
    with pytest.raises(ModelError, match=r"trained tensors are missing[\s\S]*trained\.safetensors"):
        train(build(way), pairs, tmp_path, max_steps=2, resume=True)


@pytest.mark.parametrize("way", ["base", *WAYS])
def test_the_stock_evaluators_find_what_they_find_in_the_saved_model(
    way: str, build: Build, load: Load, st_folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    encoder = load(st_folder) if way == "base" else build(way)
    pairs = make_pairs(sentences)
    ids = [str(row) for row in range(len(pairs))]
    retrieval = InformationRetrievalEvaluator(
        queries=dict(zip(ids, pairs["anchor"], strict=True)),
        corpus=dict(zip(ids, pairs["positive"], strict=True)),
        relevant_docs={row: {row} for row in ids},
        write_csv=False,
    )
    scored = make_pairs(sentences, "CoSENT")
    similarity = EmbeddingSimilarityEvaluator(scored["first"], scored["second"], scored["score"], write_csv=False)
    encoder.save_pretrained(str(tmp_path), create_model_card=False)
    for evaluator in (retrieval, similarity):
        packed = executions(encoder)
        ours, theirs = evaluator(encoder), evaluator(plain(tmp_path))
        assert packed
        assert all(packed)
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-3)
        assert 0 < ours[evaluator.primary_metric or ""] < 1


def test_evaluation_during_training_follows_the_weights(build: Build, sentences: list[str], tmp_path: Path) -> None:
    scored = make_pairs(sentences, "CoSENT")
    evaluator = EmbeddingSimilarityEvaluator(scored["first"], scored["second"], scored["score"], name="dev")
    encoder = build("lora")
    metrics = [evaluator(encoder)["dev_spearman_cosine"]]
    options: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
    }
    trainer = train(encoder, scored, tmp_path, loss=CoSENTLoss, evaluator=evaluator, **options)
    metrics += [e["eval_dev_spearman_cosine"] for e in trainer.state.log_history if "eval_dev_spearman_cosine" in e]
    assert len(metrics) == 3
    assert metrics[0] < metrics[-1]
    assert metrics[-1] == pytest.approx(evaluator(encoder)["dev_spearman_cosine"])
    card = (tmp_path / "checkpoint-8" / "README.md").read_text(encoding="utf-8")
    assert "# SentenceTransformer" in card
    assert "loss:CoSENTLoss" in card
    assert "Encoder" not in card


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_encode_gives_what_the_plain_model_gives(
    method: str, st_folder: Path, sentences: list[str], load: Load
) -> None:
    """In the order of the texts, whatever the batches."""
    encoder, model = load(st_folder), plain(st_folder)
    ours, theirs = getattr(encoder, method), getattr(model, method)
    packed, texts = executions(encoder), [*sentences[:40], "", sentences[3]]
    assert_close(ours(texts, batch_size=5), theirs(texts, batch_size=5))
    as_tensor = ours(texts, convert_to_tensor=True)
    assert isinstance(as_tensor, Tensor)
    assert_close(as_tensor, theirs(texts))
    assert_close(ours(texts[7]), theirs(texts[7]))
    assert_close(ours(texts, prompt="nop nop: "), theirs(texts, prompt="nop nop: "))
    assert_close(ours(texts, prompt_name="query"), theirs(texts, prompt_name="query"))
    assert_close(
        ours(texts, truncate_dim=8, normalize_embeddings=True), theirs(texts, truncate_dim=8, normalize_embeddings=True)
    )
    assert (ours(texts, precision="int8") == theirs(texts, precision="int8")).mean() > 0.99
    assert ours([]).shape == theirs([]).shape
    assert len(packed) > 10
    assert all(packed)


@pytest.mark.parametrize("way", ["base", "lora", "qlora"])
def test_token_embeddings_are_those_of_padded_execution(
    way: str, build: Build, load: Load, st_folder: Path, sentences: list[str]
) -> None:
    encoder, texts = load(st_folder) if way == "base" else build(way), [*sentences[:40], ""]
    found = []
    for packed in (True, False):
        encoder.packed = packed
        found.append(encoder.encode(texts, output_value="token_embeddings", prompt="nop: "))
    assert [len(tokens_LE) for tokens_LE in found[0]] == [len(tokens_LE) for tokens_LE in found[1]]
    assert len({len(tokens_LE) for tokens_LE in found[0]}) > 10
    for packed_LE, padded_LE in zip(*found, strict=True):
        assert_close(packed_LE, padded_LE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_padding_on_the_left(
    family: str,
    pooling: str,
    bert_config: dict[str, Any],
    make_checkpoint: Callable[..., Path],
    make_st_folder: Callable[..., Path],
    sentences: list[str],
    load: Load,
) -> None:
    """As the plain model embeds a text alone: padding on the left shifts the learned positions of a BERT."""
    config = (
        Qwen3Config(**bert_config, num_key_value_heads=2, head_dim=8)
        if family == "qwen3"
        else BertConfig(**bert_config)
    )
    folder = make_st_folder(make_checkpoint(config), pooling=pooling)
    encoder, model, texts = load(folder), plain(folder), [*sentences[:20], ""]
    packed = executions(encoder)
    encoder.tokenizer.padding_side = model.tokenizer.padding_side = "left"
    assert encoder.preprocess(["bador", sentences[20]])["attention_mask"][0, 0] == 0
    assert_close(encoder.encode(texts), model.encode(texts, batch_size=1))
    if family == "qwen3":
        assert_close(encoder.encode(texts), model.encode(texts))
    for text, tokens_LE in zip(texts, encoder.encode(texts, output_value="token_embeddings"), strict=True):
        [alone_LE] = model.encode([text], output_value="token_embeddings")
        assert_close(tokens_LE[-len(alone_LE) :], alone_LE)
    assert all(packed)


def test_pairs_of_texts(st_folder: Path, sentences: list[str], load: Load) -> None:
    """Tokens of a second segment have another embedding, so such a batch runs padded."""
    encoder, model = load(st_folder), plain(st_folder)
    for one in (encoder, model):
        specials = [(token, one.tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=specials)
        one.tokenizer.backend_tokenizer.post_processor = processor
        one.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    pairs = list(zip(sentences[:9], sentences[20:29], strict=True))
    assert encoder.preprocess(pairs)["token_type_ids"].any()
    assert_close(encoder.encode(pairs), model.encode(pairs))
    packed = executions(encoder)
    assert_close(encoder.encode(sentences[:9]), model.encode(sentences[:9]))
    assert packed == [True]


def test_pooling_leaves_out_a_prompt_that_is_given_by_hand(
    bare_folder: Path, make_st_folder: Callable[..., Path], sentences: list[str], load: Load
) -> None:
    folder = make_st_folder(bare_folder, include_prompt=False)
    encoder, model = load(folder), plain(folder)
    prompted = encoder.encode(sentences[:20], prompt="bador sholat: ")
    assert_close(prompted, model.encode(sentences[:20], prompt="bador sholat: "))


class Scaled(nn.Module):
    """A module that `encode` can be told something."""

    forward_kwargs: ClassVar[set[str]] = {"factor"}

    def forward(self, features: dict[str, Any], factor: float = 1.0) -> dict[str, Any]:
        return {**features, "sentence_embedding": factor * features["sentence_embedding"]}


def test_a_module_of_the_users_own_gets_its_options(st_folder: Path, sentences: list[str], load: Load) -> None:
    encoder = load(st_folder)
    embeddings_NE = encoder.encode(sentences[:9])
    encoder.append(Scaled())
    assert_close(encoder.encode(sentences[:9], factor=3.0), 3 * embeddings_NE)
    packed = executions(encoder)
    assert_close(encoder.encode_query(sentences[:9], prompt=""), embeddings_NE)
    assert packed == [True]


@pytest.mark.parametrize("master_weights", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_padded_batches_are_pooled_in_fp32_too(
    dense: bool,
    master_weights: bool,
    bare_folder: Path,
    make_st_folder: Callable[..., Path],
    sentences: list[str],
    load: Load,
) -> None:
    """Embeddings in bf16 would not have length 1, and the modules behind pooling have their weights in fp32."""
    folder = make_st_folder(bare_folder, dense=dense)
    encoder = load(folder, precision="bf16", master_weights=master_weights)
    packed_NE = encoder.encode(sentences[:20], convert_to_tensor=True)
    encoder.packed = False
    padded_NE = encoder.encode(sentences[:20], convert_to_tensor=True)
    assert padded_NE.dtype == torch.float32
    torch.testing.assert_close(padded_NE.norm(dim=1), torch.ones(20), atol=1e-5, rtol=0)
    assert torch.cosine_similarity(padded_NE, packed_NE).min() > 0.999


def test_several_processes(build: Build, sentences: list[str]) -> None:
    """Each gets the encoder as it is, in a Python that has not seen packed attention yet."""
    encoder = build("lora")
    embeddings_NE = encoder.encode(sentences[:9], device=["cpu"], convert_to_tensor=True)
    assert_close(embeddings_NE, encoder.encode(sentences[:9], convert_to_tensor=True))


def test_settings_changed_since_loading_are_saved(build: Build, sentences: list[str], tmp_path: Path) -> None:
    encoder = build("lora")
    encoder.prompts = {"query": "kefin: ", "document": "", "other": "bador: "}
    encoder.default_prompt_name = "other"
    encoder.max_seq_length = 16
    encoder.truncate_dim = 8
    encoder.similarity_fn_name = "dot"
    encoder.save_pretrained(str(tmp_path), create_model_card=False)
    saved = plain(tmp_path)
    assert saved.prompts == encoder.prompts
    assert saved.max_seq_length == 16
    assert saved.similarity_fn_name == "dot"
    assert saved.encode(sentences[:20]).shape == (20, 8)
    assert_embeds_alike(tmp_path, encoder, sentences[:20])


def test_what_is_unfrozen_beside_an_adapter_is_saved(
    build: Build, bare_folder: Path, make_st_folder: Callable[..., Path], sentences: list[str], tmp_path: Path
) -> None:
    """Here the embeddings, the modules behind pooling, and one that was appended."""
    encoder = build("lora", folder=make_st_folder(bare_folder, dense=True))
    encoder.append(Dense(24, 12))
    encoder.backbone.get_input_embeddings().requires_grad_(True)
    for module in list(encoder)[1:]:
        module.requires_grad_(True)
    before = encoder.encode(sentences[100:120])
    train(encoder, make_pairs(sentences), tmp_path, learning_rate=2e-2, save_strategy="steps", save_steps=4)
    assert (torch.as_tensor(encoder.encode(sentences[100:120]) - before)).abs().max() > 1e-2
    assert_embeds_alike(tmp_path / "checkpoint-4", encoder, sentences[100:120])
