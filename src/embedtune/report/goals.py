"""What a model is for, in the report's words: finding passages for questions, or telling how alike two texts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What results are about: the metric that decides, and what is counted and said."""

    metric: str
    """Key of the metric that a run is judged by."""
    name: str
    """That metric, as it is written."""
    measured: str
    """What a model reaches."""
    item: str
    """What there are many of in a test set."""
    tested: str
    """Key of their number in "data"."""
    succeeds: str
    """What a good model does; "better" or "worse" may follow."""
    loses: str
    """What a worse model does."""
    shares: str
    """What makes two of them count as one group."""
    shown: tuple[str, ...]
    """Metrics of the table in the terminal and on the card."""
    further: tuple[str, ...]
    """Those of them that other models are shown with."""
    usage: tuple[str, ...]
    """Lines of Python that do it, with a `model`."""
    purpose: str
    """What a model is fine-tuned for."""
    pairs: str
    """What it is trained on."""
    aim: str
    """To do what."""
    loss: str
    """What a step makes smaller."""

    def counted(self, number: int) -> str:
        """1 question, 2 questions."""
        return f"{number:,} {self.item}{'' if number == 1 else 's'}"

    def number(self, results: Mapping[str, Any]) -> int:
        """How many were tested."""
        return int(results["data"][self.tested])


RETRIEVAL = Goal(
    metric="ndcg@10",
    name="NDCG@10",
    measured="an NDCG@10",
    item="question",
    tested="test_queries",
    succeeds="finds the right passage",
    loses="ranks worse",
    shares="right passage",
    shown=("ndcg@10", "mrr@10", "accuracy@1", "accuracy@10", "recall@100", "map@100"),
    further=("ndcg@10", "accuracy@1"),
    usage=('queries = model.encode_query(["How do I ...?"])', 'passages = model.encode_document(["To do that, ..."])'),
    purpose="retrieval",
    pairs="question/passage pairs",
    aim="to find the passages that answer a question",
    loss="in-batch contrastive (InfoNCE); known positives are never negatives",
)
SIMILARITY = Goal(
    metric="spearman",
    name="Spearman",
    measured="a Spearman correlation",
    item="pair",
    tested="test_pairs",
    succeeds="agrees with the grades",
    loses="agrees worse with the grades",
    shares="text",
    shown=("spearman", "pearson"),
    further=("spearman", "pearson"),
    usage=(
        'embeddings = model.encode(["A man plays the flute.", "Somebody makes music."])',
        "similarity = model.similarity(embeddings[0], embeddings[1])",
    ),
    purpose="similarity",
    pairs="graded pairs of texts",
    aim="to tell how alike two texts are",
    loss="CoSENT: a higher grade is to have a higher cosine similarity",
)


def goal(results: Mapping[str, Any]) -> Goal:
    """What these results are about; before there were others, all were about retrieval."""
    return SIMILARITY if results.get("task") == "similarity" else RETRIEVAL
