"""A Sentence Transformers model that embeds packed batches of token ids.

Shapes: `B` texts of a batch, `N` texts in all, `L` tokens of the longest text of a batch, `T` packed tokens, `E`
embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from typing_extensions import Self

from embedtune.config import ModelConfig
from embedtune.data.tokens import TokenTable, tokenize
from embedtune.errors import ModelError
from embedtune.models.attention import NotPackableError, register, use_packed_attention
from embedtune.models.families import position_offset
from embedtune.models.inference import InferenceBatches
from embedtune.models.layers import Weights, layer_weights
from embedtune.models.merge import merge, write_adapter
from embedtune.models.packing import PackedBatch, TokenIds, can_pack, pack, pad, token_order, unpad
from embedtune.models.probe import PROBE, forbids_packing, how_they_differ
from embedtune.models.recompute import recompute_layers, recomputes_layers
from embedtune.models.trained import check_holds_trained, read_trained, trained_tensors, write_trained

Role = Literal["query", "passage"]


class Encoder(SentenceTransformer):
    """A Sentence Transformers model whose backbone runs on packed batches: nothing is padded but where it must be.

    It is used in two ways. As any `SentenceTransformer`: `encode` texts, evaluate, train it with Sentence Transformers'
    trainer and losses, `save_pretrained`. And by embedtune itself with texts that are token ids already: `embed`,
    `embed_all`. Both run the same packed backbone, if it allows that; otherwise batches are padded; `notes` says why.

    Made by `load_encoder`.
    """

    source: ModelConfig
    """What it was loaded from, and how."""
    precision_reason: str
    """Why it computes in `source.precision`."""
    packed: bool = False
    """Whether batches run packed."""
    notes: list[str]
    """What the user should know of this model, a sentence each."""
    autocast_dtype: torch.dtype | None = None
    """Arithmetic of the backbone where its weights are held in fp32 because they are trained; None otherwise."""
    _adapter: tuple[PeftModel, ...] = ()
    """In a tuple, as an attribute that is a module would become a stage of the pipeline."""
    fused_layers: tuple[nn.Module, ...] = ()
    """Layers of the backbone that run through kernels of our own where they can."""

    @property
    def backbone(self) -> PreTrainedModel:
        """The Hugging Face model."""
        model = self[0].model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def adapter(self) -> PeftModel | None:
        """PEFT's view of the backbone, once `attach_adapter` made one."""
        return self._adapter[0] if self._adapter else None

    def keep_adapter(self, adapter: PeftModel) -> None:
        """Remember PEFT's view of the backbone."""
        self._adapter = (adapter,)

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read, special tokens included."""
        length: int | None = self.max_seq_length
        return length or 512

    @property
    def embedding_size(self) -> int:
        size: int | None = self.get_embedding_dimension()
        assert size is not None
        return size

    @property
    def width(self) -> int:
        """Of the backbone's hidden states."""
        width: int = self.backbone.config.get_text_config().hidden_size
        return width

    @property
    def compute_dtype(self) -> torch.dtype:
        """Arithmetic of the backbone."""
        return self.autocast_dtype or self.backbone.dtype

    @cached_property
    def _inference_batches(self) -> InferenceBatches:
        return InferenceBatches()

    @cached_property
    def position_offset(self) -> int:
        """Position id of a text's first token."""
        return position_offset(self.backbone)

    def hold_master_weights(self) -> None:
        """Hold the backbone's weights in fp32, to train them, and go on computing in the dtype that they had.

        A step is smaller than what half precision can add to a weight.
        """
        if self.compute_dtype != torch.float32 and self.autocast_dtype is None:
            self.autocast_dtype = self.backbone.dtype
            self.backbone.to(torch.float32)  # type: ignore[arg-type]  # transformers' wrapper hides the overloads

    def prompt(self, role: Role | None) -> str:
        """The text that the model wants before a query or a passage; empty if it has none.

        Without a role it is the default prompt, as `encode` takes it; most models have none.
        """
        name = {"query": "query", "passage": "document", None: self.default_prompt_name}[role]
        return (self.prompts or {}).get(name or "") or ""

    def train(self, mode: bool = True) -> Self:
        """Training mode for the adapters alone: the base's own dropout stays off.

        Dropout in the base costs a fifth of a CPU step and quality at the few epochs a fine-tune takes.
        """
        super().train(False)
        for module in self.modules():
            if isinstance(module, BaseTunerLayer):
                module.train(mode)
        self.training = mode
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Compute each layer again in the backward pass, as training arguments with `gradient_checkpointing` ask.

        transformers' own way would have no effect: it wants training mode, in which the base never is. Its options are
        not supported.
        """
        if not recomputes_layers(self.backbone):
            recompute_layers(self.backbone)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The former name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable()

    def token_table(self, texts: Sequence[str], role: Role | None) -> TokenTable:
        """Token ids of the texts, with the role's prompt, or that of texts without one, before each."""
        tokenizer: Any = self.tokenizer
        return tokenize(
            texts,
            tokenizer=tokenizer,
            prompt=self.prompt(role),
            max_length=self.max_length,
            empty_id=tokenizer.pad_token_id or 0,
        )

    def embed(self, texts: Sequence[TokenIds]) -> Tensor:
        """Normalised embeddings of one batch of token ids, fp32, shape (B, E), in the order given, in one forward."""
        embeddings_BE = self._embed_packed(texts) if self.packed else self._embed_padded(texts)
        return functional.normalize(embeddings_BE, dim=-1)

    def embed_packed(self, batch: PackedBatch, weights: Weights | None = None) -> Tensor:
        """What the pipeline makes of B texts that are packed already, fp32, shape (B, E), in the order given.

        Args:
            batch: the texts.
            weights: of the layers that run fused; read from the backbone if not given.
        """
        features = {"token_embeddings": self._hidden(batch, weights), **batch.pooling_features}
        embeddings_BE: Tensor = self._pool(features)["sentence_embedding"]
        return embeddings_BE.index_select(0, batch.restore_B)

    @torch.inference_mode()
    def embed_all(
        self,
        tokens: TokenTable,
        ids: Sequence[int] | np.ndarray[Any, Any] | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Normalised embeddings of many texts, fp32 on the CPU, shape (N, E), in the order given; no gradients.

        Args:
            tokens: the texts' token ids.
            ids: which of them; all if None.
            on_progress: called with the number of texts done after each batch.
        """
        ids_N = np.arange(len(tokens)) if ids is None else np.asarray(ids, dtype=np.int64)
        embeddings_NE = torch.empty(len(ids_N), self.embedding_size)
        was_training = self.training
        self.eval()
        batches = self._inference_batches.embed(self.embed, tokens, ids_N, device=self.device, padded=not self.packed)
        for places, batch_BE in batches:
            embeddings_NE[torch.from_numpy(places)] = batch_BE.float().cpu()
            if on_progress is not None:
                on_progress(len(places))
        self.train(was_training)
        return embeddings_NE

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Sentence Transformers' forward: padded features in, those and the embeddings out; packed on the way.

        Args:
            input: `input_ids` and `attention_mask`, each (B, L), and whatever else the tokenizer gives.
            kwargs: of single modules; with any, the batch runs padded. Others are ignored, such as the `task` of
                `encode_query` in a model without a router.

        Returns:
            The features with `token_embeddings` (B, L, E) and `sentence_embedding` (B, E).
        """
        if kwargs.keys() & set(self.get_model_kwargs()):
            with self._autocast():
                stock: dict[str, Any] = super().forward(input, **kwargs)
            return stock
        if not self.packed or not can_pack(input) or self._first_module_is_replaced():
            with self._autocast():
                padded = self[0](input)
            return self._pool({**padded, "token_embeddings": padded["token_embeddings"].float()})
        mask_BL = input["attention_mask"].bool()
        batch = self._pack(unpad(input["input_ids"], mask_BL))
        hidden_1TE = self._hidden(batch)
        features = self._pool({**input, "token_embeddings": hidden_1TE, **batch.pooling_features})
        for name in batch.pooling_features:
            del features[name]
        hidden_BLE = hidden_1TE.new_zeros(*mask_BL.shape, hidden_1TE.shape[-1])
        hidden_TE = hidden_1TE[0].index_select(0, token_order(batch))
        return {
            **features,
            "token_embeddings": hidden_BLE.masked_scatter(mask_BL[..., None], hidden_TE),
            "sentence_embedding": features["sentence_embedding"].index_select(0, batch.restore_B),
        }

    def pack(self) -> None:
        """Switch to packed execution if the backbone takes it and embeds a few texts as the padded path does."""
        refusal = forbids_packing(self) or self._switch_to_packed()
        self.packed = refusal is None
        if refusal is not None:
            self.notes.append(f"texts are padded, which is slower, because {refusal}")

    def merged(self, *, into_original: bool = False) -> SentenceTransformer:
        """A plain model on the CPU that embeds as the encoder does, in the dtype of its checkpoint.

        An adapter is merged in fp32 into a fresh copy of the base. If it was trained on 4-bit weights, the copy gets
        their dequantised values first.

        Args:
            into_original: merge into the checkpoint's weights even if the adapter was trained on 4-bit ones; the result
                embeds differently.
        """
        return merge(self, self.source, self.adapter, into_original=into_original)

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, as one that fits the published base.

        Raises:
            ValueError: the encoder has no adapter.
        """
        if self.adapter is None:
            raise ValueError("this encoder has no adapter; attach_adapter makes one")
        write_adapter(self.adapter, folder, base=self.source.base)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a plain Sentence Transformers folder of what the encoder has become: the adapter is merged.

        Beside it go the adapter's tensors; see `models.trained`. Arguments are those of `SentenceTransformer.save`,
        which `save_pretrained` calls too.
        """
        plain = self.merged()
        plain.model_card_data = self.model_card_data
        plain.model_card_data.register_model(plain)  # the card describes what is saved
        try:
            plain.save(path, *args, **kwargs)
        finally:
            self.model_card_data.register_model(self)
        write_trained({} if self.adapter is None else trained_tensors(self), Path(path))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch's has overloads
        """As any module's; but of a folder that `save` wrote only the tensors that were trained, if it holds any.

        To go back to a checkpoint, Sentence Transformers' trainer makes a second encoder of its folder, without
        `load_encoder`, and copies that one's state.
        """
        if not hasattr(self, "source"):
            trained = read_trained(Path(self.backbone.name_or_path or ""))
            if trained is not None:
                return trained
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's, except that with an adapter the trained tensors alone will do: the others are frozen.

        Raises:
            ModelError: tensors of this encoder's adapter are missing, as in a model that it was merged into.
        """
        if self.adapter is None or not strict:
            return super().load_state_dict(state_dict, strict, assign)
        check_holds_trained(state_dict, self)
        loaded = super().load_state_dict(state_dict, False, assign)
        if loaded.unexpected_keys:
            raise ModelError(f"this state holds {loaded.unexpected_keys[0]}, which the encoder does not have.")
        return loaded

    def _first_module_is_replaced(self) -> bool:
        """Whether a loss looks into single layers: it replaces this forward, which a packed batch does without."""
        return getattr(self[0].forward, "__func__", None) is not type(self[0]).forward

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, such as `encode` starts one for each of several devices, packed attention is unknown."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()

    def _embed_packed(self, texts: Sequence[TokenIds]) -> Tensor:
        return self.embed_packed(self._pack(texts))

    def _embed_padded(self, texts: Sequence[TokenIds]) -> Tensor:
        features = pad(texts, pad_id=self.tokenizer.pad_token_id or 0, device=self.device)
        with self._autocast():
            hidden_BLE = self.backbone(**features).last_hidden_state
        embeddings_BE: Tensor = self._pool({**features, "token_embeddings": hidden_BLE.float()})["sentence_embedding"]
        return embeddings_BE

    def _pack(self, texts: Sequence[TokenIds]) -> PackedBatch:
        return pack(texts, position_offset=self.position_offset, device=self.device)

    def _hidden(self, batch: PackedBatch, weights: Weights | None = None) -> Tensor:
        """The backbone's last hidden states of a packed batch, fp32, shape (1, T, E)."""
        weights = layer_weights(self.fused_layers, self.compute_dtype) if weights is None else weights
        with self._autocast():
            hidden_1TE: Tensor = self.backbone(
                input_ids=batch.input_ids_1T,
                position_ids=batch.position_ids_1T,
                packed_layout=batch.layout,
                **({"layer_weights": weights} if weights else {}),
            ).last_hidden_state
        return hidden_1TE.float()

    def _pool(self, features: dict[str, Any]) -> dict[str, Any]:
        """Pooling and every later module, in fp32: half precision would round cosine similarities to 0.004."""
        for module in list(self)[1:]:
            features = module(features)
        return features

    def _autocast(self) -> AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _switch_to_packed(self) -> str | None:
        """Switch the backbone to packed attention; returns why it can't be, if so, and leaves it as it was."""
        stock = self.backbone.config._attn_implementation
        table = self.token_table(PROBE, "passage")
        texts = [table[index] for index in range(len(table))]
        self.eval()
        with torch.inference_mode():
            padded_BE = self._embed_padded(texts)
            self.fused_layers = use_packed_attention(self.backbone)
            try:
                refusal = how_they_differ(padded_BE, self._embed_packed(texts), self.backbone)
            except (NotPackableError, TypeError) as error:
                refusal = f"{type(self.backbone).__name__} can't take packed input: {error}"
        if refusal is not None:
            self.backbone.set_attn_implementation(stock)
        return refusal
