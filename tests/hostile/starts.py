"""Valid inputs of every target, which fuzzing starts from and mutates."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.hostile.targets import CUT, publishable

ROWS: list[Mapping[str, object]] = [
    {"id": "1", "question": "Where is the key?", "passage": "Under the mat.", "negative": "In the lake."},
    {"id": "2", "question": 'Who has it, "you"?', "passage": "Émile; or nobody,\n at all 🔑", "negative": None},
    {"id": "2", "question": "Q", "passage": "P\u200bP", "negative": "\u202eright to left"},
]
_RESULTS = Path(__file__).parents[1] / "report" / "full_results.json"


def _lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    table = pa.table(
        {
            "question": ["a", "b", None],
            "passage": pa.array(["x", "y", "x"]).dictionary_encode(),
            "negatives": [["n"], [], ["m", None]],
            "when": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
            "price": pa.array([1, 2, None], pa.decimal128(5, 1)),
        }
    )
    pq.write_table(table, stream)
    return stream.getvalue()


def _checkpoint() -> dict[str, bytes]:
    from tests.hostile.targets import saved_checkpoint

    with TemporaryDirectory() as folder:
        saved = saved_checkpoint(Path(folder))
        return {path.name: path.read_bytes() for path in saved.iterdir()}


@cache
def starts() -> dict[str, bytes]:
    """One valid input of each target."""
    rows = _lines(ROWS)
    table = '\ufeffid,question,passage\n1,"a ""b"", c","several\nlines"\r\n2,x,y\n'.encode()
    suspect = {"query": "q", "positive": "p", "candidate": "c", "scores": {"positive": 0.5}, "label": "also"}
    pairs = [{"sentence1": "a b", "sentence2": "c", "score": score} for score in (0, 2.5, "5")]
    saved, files = _checkpoint(), publishable()
    facts = {
        "data": {"hashes": {"train": "0" * 64}, "pairs": {"train": 3}},
        "base_weights": "f" * 64,
        "environment": {"torch": "2.11", "threads": 2},
    }
    config = (
        b'[data]\ntrain = "a.csv"\nnegative_columns = ["n"]\n[training]\nlr = 1e-3\nepochs = 2\nmax_time = "1h30m"\n'
    )
    config += b'[adapter]\nmethod = "qlora"\nrank = 8\n[evaluation]\nblend = "auto"\n[output]\nout = "x"\nseed = 3\n'
    document = {"data": {"train": "a"}, "training": {"lr": 0.1, "max_steps": 3}, "evaluation": {"blend": 0.5}}
    corpus = _lines([{"_id": "d1", "title": "T", "text": "x"}, {"_id": 2, "text": "y"}])
    queries = _lines([{"_id": "q1", "text": "a"}, {"_id": "q2", "text": "b"}])
    return {
        "jsonl": rows,
        "json": json.dumps({"queries": {"1": "a"}, "corpus": {"2": "b"}, "relevant_docs": {"1": ["2"]}}).encode(),
        "csv": table,
        "tsv": table.replace(b",", b"\t"),
        "parquet": _parquet(),
        "packed": gzip.compress(rows, mtime=0),
        "packed_csv": table,
        "text": "a passage\n\nanother \u2028 one\n".encode(),
        "beir": CUT.join((corpus, queries, b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\t2\t0.5\n")),
        "columns": b"query\npositive\nhard_negative_1" + CUT + b"Query\npositive\n",
        "labels": _lines([suspect]),
        "forgetting": _lines(pairs),
        "toml": config,
        "document": json.dumps(document).encode(),
        "state": saved["state.json"],
        "checksums": saved["SHA256SUMS"],
        "weights": saved["weights.safetensors"],
        "moments": saved["optimizer.safetensors"],
        "fingerprint": json.dumps(facts).encode(),
        "results": _RESULTS.read_bytes(),
        "adapter": files["adapter_config.json"],
        "modules": files["modules.json"],
        "index": files["model.safetensors.index.json"],
        "shard": files["model-00001-of-00001.safetensors"],
        "vocabulary": files["tokenizer.model"],
        "card": files["README.md"],
    }
