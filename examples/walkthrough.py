"""The whole recipe in Python, step by step: a base in 4 bits, LoRA adapters, training, reload, comparison.

Runs without a network, in about two minutes on two cores:  pip install 'embedtune[demo,quant]'; python walkthrough.py
"""

from pathlib import Path

from sentence_transformers import SentenceTransformer

import embedtune
from embedtune import AdapterConfig, DataConfig, ModelConfig, TrainingConfig
from embedtune.demo import data_folder, model_folder

out = Path("walkthrough-run")
base = ModelConfig(base=str(model_folder()), max_length=256)  # or a hub id; precision and device: by the hardware

# 1. The base: Transformer, Pooling (mean), Normalize; its linear layers in 4 bits (NF4), and nothing is padded.
encoder = embedtune.load_encoder(base, four_bit=True)
print(encoder)

# 2. Adapters on all linear layers; the base stays as it is.
embedtune.attach_adapter(encoder, AdapterConfig(method="qlora", rank=16, alpha=32, dropout=0.05))
trainable, total = embedtune.trainable_parameters(encoder)
print(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")

# 3. The data: columns found by name, ids added, a quarter of the passages held out with all their questions, and saved.
splits = embedtune.prepare(DataConfig(train=str(data_folder()), test_fraction=0.25), seed=0)
embedtune.write_splits(splits, out / "splits")
texts = embedtune.tokenize(encoder, splits.collection)  # once, not in every epoch

# 4. The arguments. Batches hold no passage twice; a passage known to answer a question is never its negative.
arguments = TrainingConfig(
    lr=2e-3,  # the 2e-5 of full fine-tuning would hardly move an adapter
    batch_size=32,
    epochs=3,
    schedule="cosine",
    warmup_fraction=0.1,
    weight_decay=0.01,
    optimizer="adamw8bit",
    eval_steps=10,
    metric="ndcg@10",  # of the dev split; it chooses the checkpoint
    keep_last=2,
)

# 5. Loss (in-batch contrastive), dev evaluation, checkpoints, TensorBoard: one trainer. It ends with the best weights.
trainer = embedtune.build_trainer(encoder, splits, texts, arguments, out=out, seed=0)
progress = trainer.run(resume=False)
for point in progress.evaluations:
    print(f"step {point['step']:3}  dev NDCG@10 {point['ndcg@10']:.4f}")

# 6. Saved with the adapter merged; from here on it is a plain Sentence Transformers model.
encoder.save_pretrained(str(out / "model"))
tuned = SentenceTransformer(str(out / "model"), device="cpu")
print(tuned.similarity(tuned.encode_query(["Who holds the spare key?"]), tuned.encode_document(["The mate does."])))

# 7. Original and tuned model, loaded anew, on the same held-out questions over the same passages.
task, results = embedtune.held_out_task(splits), {}
for name, folder in {"original": base.base, "tuned": str(out / "model")}.items():
    model = embedtune.load_encoder(ModelConfig(base=folder))
    results[name] = embedtune.evaluate(model, task, embedtune.tokenize(model, splits.collection))
gains = embedtune.compare(results["original"], results["tuned"], seed=0)
for metric in ("accuracy@1", "precision@5", "recall@10", "mrr@10", "ndcg@10", "map@100"):
    low, high = gains[metric].ci95
    before, after = results["original"].means[metric], results["tuned"].means[metric]
    print(f"{metric:12} {before:.4f} -> {after:.4f}   {gains[metric].mean:+.4f} [{low:+.4f}, {high:+.4f}]")
