"""Hard negatives for the training rows, as an encoder sees them now."""

from __future__ import annotations

import numpy as np

from embedtune.config import MiningConfig
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts
from embedtune.mining.mine import Mined, mine, unmined
from embedtune.mining.pool import training_pool
from embedtune.models.encoder import Encoder
from embedtune.models.judge import Judge, load_judge
from embedtune.progress import Reporter, SilentReporter


def mine_negatives(
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    config: MiningConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Mined:
    """Add hard negatives to the training rows, as this encoder sees them now.

    Args:
        encoder: the base model, or one in training.
        splits: from `prepare`.
        texts: the splits' texts, from `tokenize`.
        config: what to mine.
        seed: of what is drawn.
        reporter: is told how it goes.

    Raises:
        ModelError: the judge can't be used.
    """
    reporter, pool = reporter or SilentReporter(), training_pool(splits)
    if config.added == 0:
        return unmined(splits, pool, config)
    judge = judge_beside(encoder, config)
    query_ids = np.unique(splits.train.query_ids)
    with reporter.counting("mining: embedding", len(query_ids) + len(pool.passage_ids)) as advance:
        queries_QE = encoder.embed_all(texts.queries, query_ids, on_progress=advance)
        passages_DE = encoder.embed_all(texts.passages, pool.passage_ids, on_progress=advance)
    return mine(splits, pool, queries_QE, passages_DE, config, judge=judge, seed=seed, reporter=reporter)


def judge_beside(encoder: Encoder, config: MiningConfig) -> Judge | None:
    """The judge that is asked for, where the encoder is.

    Raises:
        ModelError: it can't be used.
    """
    if config.judge is None:
        return None
    return load_judge(config.judge, device=encoder.device, trust_remote_code=encoder.source.trust_remote_code)
