"""embedtune beside plain Sentence Transformers + PEFT: same work, separate processes, in turn, as ratios.

`python -m benchmarks.train PAIRS` times training steps, `python -m benchmarks.encode TEXTS` times encoding.
`python -m benchmarks.methods PAIRS` compares embedtune's own methods, in memory and in speed. What is measured and how
is described in docs/performance.md.
"""
