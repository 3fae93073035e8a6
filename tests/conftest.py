"""Tiny random checkpoints of real architectures, made on the spot: no test needs a network.

The heavy libraries are imported inside the fixtures, so that tests of the data layer alone start at once.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.general_texts import take_few

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from embedtune.models.encoder import Encoder

# Read when torch is first imported, here and in the processes that tests start: a thread each, so that workers of
# pytest-xdist don't fight for the cores, and that all add up in the same order. Should somebody ask for more threads,
# those that spin while they wait would cost several times the work itself on tensors this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read when Triton is first imported, by whichever library: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

MAX_LENGTH = 64
PROMPTS = {"query": "bador sholat: ", "document": "nop: "}

_STARTS = ("ba", "ke", "li", "mo", "nu", "ra", "sho", "ti", "vu", "zen")
_ENDS = ("dor", "fin", "gal", "hem", "jin", "kor", "lat", "mez", "nop")
_WORDS = [start + end for start in _STARTS for end in _ENDS]
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789?:."
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIALS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
"""RoBERTa's family pads with id 1."""


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Three hundred different made-up sentences of 1 to 30 words."""
    generator = random.Random(0)
    return [f"{' '.join(generator.choices(_WORDS, k=1 + row % 30))} {row}" for row in range(300)]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A WordPiece tokenizer that knows the parts of the words in `sentences`.

    Its vocabulary is written down: the trainer of `tokenizers` gives another one in every process.

    `template` is what a text becomes, `$A` being the text; None adds no special token.
    """

    def make(*, template: str | None = "[CLS] $A [SEP]", pad_id: int = 0) -> PreTrainedTokenizerFast:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        specials = list(_BERT_SPECIALS if pad_id == 0 else _ROBERTA_SPECIALS)
        starts, ends = (*_CHARACTERS, *_STARTS, *_WORDS), (*_CHARACTERS, *_ENDS)
        pieces = [*specials, *starts, *(f"##{end}" for end in ends)]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        if template is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=[(token, specials.index(token)) for token in ("[CLS]", "[SEP]")]
            )
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=MAX_LENGTH,
            model_input_names=["input_ids", "attention_mask"],
        )

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., Path]:
    """Writes a model of that config with random weights, and a tokenizer, as a bare Hugging Face checkpoint."""

    def make(config: PreTrainedConfig, *, dtype: str = "float32", **tokenizer_options: Any) -> Path:
        import torch
        from transformers import AutoModel

        folder = tmp_path_factory.mktemp(config.model_type)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
            # Stock initial weights are so small that attention is nearly uniform and mistakes would not show.
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    torch.nn.init.normal_(parameter, std=0.3)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        make_tokenizer(**tokenizer_options).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def bert_config() -> dict[str, Any]:
    """Sizes of the tiny models, under the names that most configs use."""
    return {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH,
    }


@pytest.fixture(scope="session")
def bare_folder(make_checkpoint: Callable[..., Path], bert_config: dict[str, Any]) -> Path:
    """A tiny BERT as a bare checkpoint, without Sentence Transformers settings."""
    from transformers import BertConfig

    return make_checkpoint(BertConfig(**bert_config))


@pytest.fixture(scope="session")
def make_st_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a Sentence Transformers folder of a bare checkpoint, with settings of its own."""

    def make(
        checkpoint: Path,
        *,
        pooling: str | Sequence[str] = "mean",
        normalize: bool = True,
        prompts: dict[str, str] | None = None,
        include_prompt: bool = True,
        dense: bool = False,
        **settings: Any,
    ) -> Path:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense
        from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling, Transformer

        transformer = Transformer(str(checkpoint))
        size = transformer.get_embedding_dimension()
        modules = [transformer, Pooling(size, pooling_mode=pooling, include_prompt=include_prompt)]
        if dense:  # as EmbeddingGemma has them, and a norm
            with torch.random.fork_rng():
                torch.manual_seed(1)
                modules += [Dense(size, 48, bias=False, activation_function=torch.nn.Identity())]
                modules += [Dense(48, 24, bias=True, activation_function=torch.nn.Tanh()), LayerNorm(24)]
        modules += [Normalize()] if normalize else []
        folder = tmp_path_factory.mktemp("st")
        model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, **settings)
        model.save_pretrained(str(folder), create_model_card=False)
        return folder

    return make


@pytest.fixture(scope="session")
def st_folder(make_st_folder: Callable[..., Path], bare_folder: Path) -> Path:
    """The tiny BERT as a Sentence Transformers folder: mean pooling, normalisation, prompts."""
    return make_st_folder(bare_folder, prompts=PROMPTS)


@pytest.fixture(scope="session")
def load() -> Callable[..., Encoder]:
    """`load_encoder` on the CPU; options are those of `ModelConfig`, except for the two of `load_encoder` itself."""

    def load(folder: Path | str, *, four_bit: bool = False, master_weights: bool = False, **options: Any) -> Encoder:
        from embedtune.config import ModelConfig
        from embedtune.models.load import load_encoder

        config = ModelConfig(base=str(folder), device="cpu", **{"precision": "fp32", **options})
        return load_encoder(config, four_bit=four_bit, master_weights=master_weights)

    return load


@pytest.fixture(scope="session")
def adapt() -> Callable[..., PeftModel]:
    """Attaches an adapter that already changes the embeddings: PEFT's own starts as zero."""

    def adapt(encoder: Encoder, **options: Any) -> PeftModel:
        import torch

        from embedtune.config import AdapterConfig
        from embedtune.models.adapters import attach_adapter

        adapted = attach_adapter(encoder, AdapterConfig(**{"rank": 4, "alpha": 8.0, **options}))
        generator = torch.Generator().manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return adapted

    return adapt


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """A hundred pairs, the first two of them with the same passage."""
    passages = [sentences[201], *sentences[201:300]]
    rows = [{"anchor": a, "positive": p} for a, p in zip(sentences[:100], passages, strict=True)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def few_general_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a model forgot is measured on a few texts, in runs that are not about it."""
    with pytest.MonkeyPatch.context() as patch:
        take_few(tmp_path_factory.mktemp("general"), patch)
        yield


@pytest.fixture(scope="session")
def make_judge(
    tmp_path_factory: pytest.TempPathFactory,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    bert_config: dict[str, Any],
) -> Callable[..., Path]:
    """Writes a tiny BERT cross-encoder with random weights that gives so many scores."""

    def make(*, labels: int = 1) -> Path:
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        folder = tmp_path_factory.mktemp("judge")
        with torch.random.fork_rng():
            torch.manual_seed(2)
            model = BertForSequenceClassification(BertConfig(**{**bert_config, "num_labels": labels}))
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        return folder

    return make
