"""embedtune beside its peers: same work, separate processes, in turn, as ratios.

`python -m benchmarks` lists what there is. What is measured and how is described in docs/performance.md.
"""

COMMANDS = {
    "train": "training steps of embedtune and of each peer that is installed, on the same batches",
    "quality-time": "time that training takes to reach a given NDCG@10 on a dev set, for each of them",
    "quality": "what recipes are worth: variants over data sets and seeds, compared seed by seed",
    "encode": "embedding texts with embedtune and with Sentence Transformers",
    "methods": "memory and speed of embedtune's own methods, by size of the encoder",
}
"""Command of `python -m benchmarks` to what it measures; its module or package has the same name, underscored."""
