"""A Sentence Transformers model that embeds packed batches of token ids.

Shapes: `B` texts of a batch, `N` texts in all, `T` packed tokens, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from typing_extensions import Self

from embedtune.data.tokens import TokenTable, tokenize
from embedtune.models.attention import NAME, NotPackableError, register
from embedtune.models.families import position_offset
from embedtune.models.packing import TokenIds, pack, pad

Role = Literal["query", "passage"]

TOKENS_PER_FORWARD = {"cpu": 8_192, "cuda": 131_072}
"""Tokens of one inference batch; more does not run faster, and needs more memory."""

_PROBE = ["a packed model", "must embed each text as if it stood alone", "word " * 200]
_PROBE_TOLERANCE = 1e-3


class Encoder(nn.Module):
    """Embeds token ids with the modules of a Sentence Transformers model: backbone, pooling, and what follows.

    Packed execution is used if the backbone allows it and gives the padded path's embeddings for a few probe texts;
    otherwise batches are padded, which the log says once.
    """

    def __init__(self, sentence_transformer: SentenceTransformer, *, notes: Sequence[str] = ()) -> None:
        super().__init__()
        self.sentence_transformer = sentence_transformer
        self.position_offset = position_offset(self.backbone)
        self.packed = False
        self.notes = list(notes)
        """What the user should know of this model, a sentence each."""
        if refusal := self._try_packing():
            self.notes.append(f"texts are padded, which is slower, because {refusal}")
        self.packed = refusal is None

    @property
    def backbone(self) -> PreTrainedModel:
        """The Hugging Face model."""
        model = self.sentence_transformer[0].model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read, special tokens included."""
        length: int | None = self.sentence_transformer.max_seq_length
        return length or 512

    @property
    def embedding_size(self) -> int:
        size: int | None = self.sentence_transformer.get_embedding_dimension()
        assert size is not None
        return size

    def prompt(self, role: Role) -> str:
        """The text that the model wants before a query or a passage; empty if it has none."""
        return (self.sentence_transformer.prompts or {}).get("query" if role == "query" else "document") or ""

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

    def tokenize(self, texts: Sequence[str], role: Role) -> TokenTable:
        """Token ids of the texts, with the role's prompt before each."""
        tokenizer: Any = self.sentence_transformer.tokenizer
        return tokenize(
            texts,
            tokenizer=tokenizer,
            prompt=self.prompt(role),
            max_length=self.max_length,
            empty_id=tokenizer.pad_token_id or 0,
        )

    def forward(self, texts: Sequence[TokenIds]) -> Tensor:
        """Normalised embeddings of one batch, fp32, shape (B, E), in the order given, from one forward pass."""
        return self._forward_packed(texts) if self.packed else self._forward_padded(texts)

    @torch.inference_mode()
    def encode(
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
        for rows in self._inference_batches(tokens.lengths_N[chosen]):
            batch = [tokens[int(chosen[row])] for row in rows]
            embeddings_NE[torch.from_numpy(rows)] = self(batch).float().cpu()
            if on_progress is not None:
                on_progress(len(rows))
        self.train(was_training)
        return embeddings_NE

    def _inference_batches(self, lengths_N: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Rows sorted by length, longest first (so memory runs out at once or never), cut by token count."""
        budget = TOKENS_PER_FORWARD[self.device.type]
        order = np.argsort(-lengths_N, kind="stable")
        batches, start = [], 0
        while start < len(order):
            # Padded batches cost their longest text times their count; packed ones at most that.
            count = max(1, budget // max(1, int(lengths_N[order[start]])))
            if self.packed:
                cumulative = np.cumsum(lengths_N[order[start : start + budget]])
                count = max(1, int(np.searchsorted(cumulative, budget, side="right")))
            batches.append(order[start : start + count])
            start += count
        return batches

    def _forward_packed(self, texts: Sequence[TokenIds]) -> Tensor:
        batch = pack(texts, position_offset=self.position_offset, device=self.device)
        hidden_1TE = self.backbone(
            input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T, packed_layout=batch.layout
        ).last_hidden_state
        return self._pool(
            {"token_embeddings": hidden_1TE.float(), "cu_seq_lens_q": batch.layout.cu_seqlens}
        ).index_select(0, batch.restore_B)

    def _forward_padded(self, texts: Sequence[TokenIds]) -> Tensor:
        pad_id = self.sentence_transformer.tokenizer.pad_token_id or 0
        features = pad(texts, pad_id=pad_id, device=self.device)
        hidden_BLE = self.backbone(**features).last_hidden_state
        return self._pool({"token_embeddings": hidden_BLE.float(), "attention_mask": features["attention_mask"]})

    def _pool(self, features: dict[str, Any]) -> Tensor:
        """Pooling and every later module, in fp32: half precision would round cosine similarities to 0.004."""
        for module in list(self.sentence_transformer)[1:]:
            features = module(features)
        embeddings_BE: Tensor = features["sentence_embedding"]
        return functional.normalize(embeddings_BE, dim=-1)

    def _try_packing(self) -> str | None:
        """Switch the backbone to packed attention; returns why it can't be, if so, and leaves it as it was."""
        if not type(self.backbone)._supports_attention_backend:
            return f"{type(self.backbone).__name__} does not use transformers' attention interface"
        register()
        stock = self.backbone.config._attn_implementation
        table = self.tokenize(_PROBE, "passage")
        texts = [table[index] for index in range(len(table))]
        with torch.inference_mode():
            self.eval()
            padded_BE = self._forward_padded(texts)
            self.backbone.set_attn_implementation(NAME)
            try:
                packed_BE = self._forward_packed(texts)
            except (NotPackableError, TypeError) as error:
                self.backbone.set_attn_implementation(stock)
                return f"{type(self.backbone).__name__} can't take packed input: {error}"
        worst = (1 - torch.cosine_similarity(padded_BE, packed_BE)).max().item()
        if not worst <= _PROBE_TOLERANCE:
            self.backbone.set_attn_implementation(stock)
            return f"packed and padded embeddings of {type(self.backbone).__name__} differ by cosine {worst:.2g}"
        return None
