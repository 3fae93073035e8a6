"""The file with a line for each question: what it says is what the metrics are made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedtune.cli.main import main
from embedtune.data.collection import Collection, Pairs
from embedtune.evaluation.questions import first_row_ids, question_scores, write_questions
from embedtune.evaluation.run import evaluate_bm25, evaluate_embeddings, retrieval_task


def test_ranks_scores_groups_and_ids(tmp_path: Path) -> None:
    collection = Collection(
        queries=["not asked", "who\u2028barks", "and who", "else"],
        passages=["a dog", "a cat", *(f"other {n}" for n in range(150))],
        qrels={0: {1: 1.0}, 1: {0: 1.0}, 2: {0: 1.0, 1: 2.0}, 3: {7: 1.0}},
    )
    pairs = Pairs(
        query_ids=np.array([3, 2, 1, 2]),
        passage_ids=np.array([7, 0, 0, 1]),
        negative_ids=((), (), (), ()),
        row_ids=("r0", "r1", "r2", "r3"),
    )
    task = retrieval_task(collection, pairs.query_ids, range(152))
    scores_QD = torch.zeros(3, 152)
    scores_QD[0, 0], scores_QD[1, 5], scores_QD[1, 1] = 1.0, 1.0, 0.9
    scores_QD[2] = torch.linspace(0, 1, 152)
    evaluations = {
        "tuned": evaluate_embeddings(task, scores_QD, torch.eye(152)[task.passage_ids]),
        "bm25": evaluate_bm25(task, collection),
    }
    found = question_scores(collection, task, evaluations, first_row_ids(pairs))
    assert [(line["id"], line["query"]) for line in found] == [
        ("r2", "who\u2028barks"),
        ("r1", "and who"),
        ("r0", "else"),
    ]
    assert [line["rank"]["tuned"] for line in found] == [1, 2, None]
    assert found[0]["group"] == found[1]["group"] != found[2]["group"]
    for name, evaluation in evaluations.items():
        assert [line["ndcg@10"][name] for line in found] == pytest.approx(evaluation.per_query["ndcg@10"], abs=1e-6)
    write_questions(tmp_path / "questions.jsonl", found)
    written = (tmp_path / "questions.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in written] == found


def test_eval_writes_them(st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, out, results = (tmp_path / name for name in ("test.jsonl", "questions.jsonl", "results.json"))
    rows = [{"id": f"row-{n}", "question": f"ba{n} dor?", "passage": f"kefin {n} ligal"} for n in range(30)]
    test.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    command = ["eval", str(st_folder), "--test", str(test), "--against", str(st_folder)]
    assert main([*command, "--questions", str(out), "--out", str(results)]) == 0
    assert f"questions: {out}" in capsys.readouterr().out.replace("\n", "")
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    means = json.loads(results.read_text())
    for name in ("against", "model", "bm25", "hybrid"):
        assert np.mean([line["ndcg@10"][name] for line in lines]) == pytest.approx(means[name]["ndcg@10"], abs=1e-6)
        ranks = [line["rank"][name] for line in lines]
        assert np.mean([1 / rank if rank and rank <= 10 else 0 for rank in ranks]) == pytest.approx(
            means[name]["mrr@10"]
        )
    assert main([*command, "--questions", str(tmp_path)]) == 2
    assert "--questions" in capsys.readouterr().err


def test_nothing_that_is_read_is_written_over(
    st_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("test.jsonl", "corpus.jsonl", "labels.jsonl", "similar.jsonl")
    for name in names:
        Path(name).write_text('{"question": "ba dor?", "passage": "kefin ligal", "label": "also"}\n')
    Path("link.jsonl").symlink_to("labels.jsonl")
    command = ["eval", str(st_folder), "--test", names[0], "--corpus", names[1], "--labels", names[2]]
    command += ["--against", str(st_folder), "--forgetting", names[3]]
    outs = [
        ("--out", "./test.jsonl"),
        ("--questions", str(tmp_path / "corpus.jsonl")),
        ("--suspects", "link.jsonl"),
        ("--report", "test.jsonl"),
        ("--out", "similar.jsonl"),
    ]
    for option, file in outs:
        assert main([*command, option, file]) == 2
        assert f"{option} {Path(file)} is another file of this command" in capsys.readouterr().err
    assert main([*command, "--questions", "new.jsonl", "--out", "new.jsonl"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["link.jsonl", *names])
    assert all('"also"' in Path(name).read_text() for name in names)


def test_graded_pairs_have_none(st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = tmp_path / "test.jsonl"
    rows = [{"sentence1": f"ba{n}", "sentence2": f"kefin {n}", "score": n / 30} for n in range(30)]
    test.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    out = tmp_path / "questions.jsonl"
    assert main(["eval", str(st_folder), "--test", str(test), "--questions", str(out)]) == 2
    assert "the pairs are graded, so nothing is asked" in capsys.readouterr().err
    assert not out.exists()
