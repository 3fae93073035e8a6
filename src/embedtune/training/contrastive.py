"""From row numbers to the loss: the texts of a batch are embedded, and a loss is made of the embeddings.

Shapes: `P` distinct passages of a batch, `U` its distinct questions, `E` embedding size, `B` both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.kernels import transfer
from embedtune.losses.batch import EmbeddedBatch, Loss, WordScores
from embedtune.models.encoder import Encoder
from embedtune.models.packing import TokenIds, to_device
from embedtune.training.batch import ContrastiveBatch, contrastive_batch, teacher_scores
from embedtune.training.guide import GuideTable
from embedtune.training.microbatch import MicroBatch, embed_batch
from embedtune.training.replay import Replay
from embedtune.training.words import WordTeacher


@dataclass
class ContrastiveObjective:
    """The loss of a batch of rows; what the step loop minimises."""

    encoder: Encoder
    pairs: Pairs
    """The rows, with the teacher's scores if the loss wants any; others in a phase with mined negatives."""
    qrels: Mapping[int, Mapping[int, float]]
    query_tokens: TokenTable
    passage_tokens: TokenTable
    loss: Loss
    """As `build_loss` makes it."""
    guide: GuideTable | None = None
    """Embeddings of another model that tell which negatives look like answers."""
    words: WordTeacher | None = None
    """BM25, in a phase in which it teaches."""
    micro_batch: MicroBatch = field(default_factory=MicroBatch)
    """How much of a batch goes through the encoder at a time."""

    def __post_init__(self) -> None:
        self._replay = Replay(self.encoder)

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        """The mean loss over the rows, and how many tokens were embedded for it.

        Questions and passages go through the encoder together.
        """
        batch = contrastive_batch(self.pairs, rows, self.qrels)
        texts = self._texts(batch)
        embeddings = embed_batch(self.encoder, texts, self.micro_batch, self._replay.embed)
        queries_UE, passages_PE = torch.split(embeddings, [len(batch.query_ids), len(batch.passage_ids)])
        device = embeddings.device
        embedded = EmbeddedBatch(
            queries_QE=queries_UE[to_device(batch.queries_Q, device)],
            passages_PE=passages_PE,
            positives_Q=to_device(batch.positives_Q, device),
            answers_2A=to_device(batch.answers_2A, device),
            guide=None if self.guide is None else self.guide.of(batch, device),
            teacher=teacher_scores(self.pairs, rows, batch, device),
            words=None if self.words is None else self._word_scores(self.words, batch),
        )
        return self.loss(embedded), sum(len(text) for text in texts)

    @torch.no_grad()
    def not_finite(self, rows: IdArray) -> list[str]:
        """The texts of these rows whose embeddings are NaN or infinite, as their tokens read."""
        texts = self._texts(contrastive_batch(self.pairs, rows, self.qrels))
        finite_B = embed_batch(self.encoder, texts, self.micro_batch).isfinite().all(dim=1)
        bad = [texts[place] for place in (~finite_B).nonzero()[:, 0].tolist()]
        return [self.encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in bad]

    def _word_scores(self, words: WordTeacher, batch: ContrastiveBatch) -> WordScores:
        return WordScores(transfer.to_device(words.scores(batch), self.encoder.device), words.weight)

    def _texts(self, batch: ContrastiveBatch) -> list[TokenIds]:
        """The questions, then the passages."""
        queries = [self.query_tokens[int(i)] for i in batch.query_ids]
        return queries + [self.passage_tokens[int(i)] for i in batch.passage_ids]
