"""A Sentence Transformers model that embeds packed batches of token ids.

Shapes: `B` texts of a batch, `N` texts in all, `L` tokens of the longest text of a batch, `T` packed tokens, `E`
embedding size.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from typing_extensions import Self

from embedtune.config import ModelConfig
from embedtune.data.tokens import TokenTable, tokenize
from embedtune.errors import ModelError
from embedtune.models.attention import NotPackableError, register, use_packed_attention
from embedtune.models.families import position_offset
from embedtune.models.layers import Weights, layer_weights
from embedtune.models.memory import out_of_memory
from embedtune.models.mpnet import is_mpnet
from embedtune.models.packing import PackedBatch, Places, TokenIds, can_pack, cut, pack, pad, token_order, unpad
from embedtune.models.recompute import recompute_layers

logger = logging.getLogger(__name__)

Role = Literal["query", "passage"]

TOKENS_PER_FORWARD = {"cpu": 8_192, "cuda": 131_072}
"""Tokens of one inference batch; more does not run faster, and needs more memory."""

TRAINED = "trained.safetensors"
"""Beside a saved model: the tensors of the adapter that was merged into it."""

_PROBE = ["a packed model", "must embed each text as if it stood alone", "word " * 200]
_PROBE_TOLERANCE = 1e-3


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
    _recomputes: bool = False
    _fitting_tokens: int | None = None
    """Tokens of an inference batch, once memory ran out with `TOKENS_PER_FORWARD`."""

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
        if not self._recomputes:
            recompute_layers(self.backbone)
            self._recomputes = True

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
        chosen = np.arange(len(tokens)) if ids is None else np.asarray(ids, dtype=np.int64)
        embeddings_NE = torch.empty(len(chosen), self.embedding_size)
        was_training = self.training
        self.eval()
        lengths_N = tokens.lengths_N[chosen]
        waiting = deque(self._inference_batches(lengths_N))
        while waiting:
            places = waiting.popleft()
            batch_BE = self._embed_if_it_fits([tokens[int(chosen[place])] for place in places])
            if batch_BE is None:
                left = np.concatenate([places, *waiting])
                waiting = deque(left[batch] for batch in self._inference_batches(lengths_N[left]))
                continue
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
        refusal = self._try_packing()
        self.packed = refusal is None
        if refusal is not None:
            self.notes.append(f"texts are padded, which is slower, because {refusal}")

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a plain Sentence Transformers folder of what the encoder has become: the adapter is merged.

        Beside it goes `trained.safetensors`, the adapter's tensors, which the merged weights don't give back: Sentence
        Transformers' trainer needs them to resume, and to load the best checkpoint.

        Arguments are those of `SentenceTransformer.save`, which `save_pretrained` calls too.
        """
        from embedtune.models.merge import merged_model, write_trained  # it loads encoders itself

        plain = merged_model(self)
        plain.model_card_data = self.model_card_data
        plain.model_card_data.register_model(plain)  # the card describes what is saved
        try:
            plain.save(path, *args, **kwargs)
        finally:
            self.model_card_data.register_model(self)
        write_trained(self, Path(path))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch's has overloads
        """As any module's; but of a folder that `save` wrote only the tensors that were trained, if it holds any.

        To go back to a checkpoint, Sentence Transformers' trainer makes a second encoder of its folder, without
        `load_encoder`, and copies that one's state.
        """
        if not hasattr(self, "source") and (trained := Path(self.backbone.name_or_path or "") / TRAINED).is_file():
            return load_file(trained)
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's, except that with an adapter the trained tensors alone will do: the others are frozen.

        Raises:
            ModelError: tensors of this encoder's adapter are missing, as in a model that it was merged into.
        """
        if self.adapter is None or not strict:
            return super().load_state_dict(state_dict, strict, assign)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained - state_dict.keys()):
            raise ModelError(
                f"this state holds no {missing[0]} ({len(missing)} of {len(trained)} trained tensors are missing), so "
                f"it is not one of this adapter.\nExpected a folder with {TRAINED}, as save_pretrained writes it, of "
                "an encoder with the same method, rank and layers."
            )
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

    def _inference_batches(self, lengths_N: Places) -> list[Places]:
        """Places sorted by length, longest first (so memory runs out at once or never), cut by token count."""
        return cut(lengths_N, self._tokens_at_once, padded=not self.packed)

    @property
    def _tokens_at_once(self) -> int:
        return self._fitting_tokens or TOKENS_PER_FORWARD[self.device.type]

    def _embed_if_it_fits(self, texts: Sequence[TokenIds]) -> Tensor | None:
        """The embeddings; None if memory ran out, and inference batches are half as large from now on."""
        try:
            return self.embed(texts)
        except (RuntimeError, MemoryError) as error:
            if len(texts) == 1 or not out_of_memory(error):
                raise
        # The error is gone by now, and with it the tensors that its traceback held.
        padded = len(texts) * max(map(len, texts))
        self._fitting_tokens = max(1, min(self._tokens_at_once, padded) // 2)
        torch.cuda.empty_cache()
        logger.warning("memory ran out; embedding %d tokens at a time from now on", self._fitting_tokens)
        return None

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

    def _try_packing(self) -> str | None:
        """Switch the backbone to packed attention; returns why it can't be, if so, and leaves it as it was."""
        kind = type(self.backbone).__name__
        if not isinstance(self[1], Pooling):
            return f"it has {type(self[1]).__name__} between the backbone and pooling"
        if not is_mpnet(self.backbone) and not type(self.backbone)._supports_attention_backend:
            return f"{kind} does not use transformers' attention interface"
        stock = self.backbone.config._attn_implementation
        table = self.token_table(_PROBE, "passage")
        texts = [table[index] for index in range(len(table))]
        self.eval()
        with torch.inference_mode():
            padded_BE = self._embed_padded(texts)
            self.fused_layers = use_packed_attention(self.backbone)
            try:
                packed_BE = self._embed_packed(texts)
            except (NotPackableError, TypeError) as error:
                self.backbone.set_attn_implementation(stock)
                return f"{kind} can't take packed input: {error}"
        worst = (1 - torch.cosine_similarity(padded_BE, packed_BE)).max().item()
        if not worst <= _PROBE_TOLERANCE:
            self.backbone.set_attn_implementation(stock)
            return f"packed and padded embeddings of {kind} differ by cosine {worst:.2g}"
        return None
