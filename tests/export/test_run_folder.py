"""When a run may write into a folder, and that it writes whole files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from embedtune.errors import OutputError
from embedtune.export.run_folder import RunFolder, write_json, write_text


def with_run(root: Path) -> RunFolder:
    folder = RunFolder(root)
    folder.create()
    write_text(folder.config, "")
    return folder


def test_a_new_or_empty_folder_is_fine(tmp_path: Path) -> None:
    RunFolder(tmp_path).check(resume=False)
    RunFolder(tmp_path / "new" / "run").check(resume=False)
    assert list(tmp_path.iterdir()) == []
    RunFolder(tmp_path / "new" / "run").create()
    assert (tmp_path / "new" / "run").is_dir()


def test_a_relative_folder_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunFolder(Path("embedtune-run")).check(resume=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match=r"out is a file, expected a folder\.\nType:  --out"):
        RunFolder(tmp_path / "out").check(resume=False)


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = with_run(tmp_path / "run")
    with pytest.raises(OutputError, match=r"already holds a run; nothing was changed\.\nType: .*--resume to go on"):
        folder.check(resume=False)
    folder.check(resume=True)


def test_other_peoples_files_are_not_mixed_with(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="already holds files that no run wrote") as caught:
        RunFolder(tmp_path).check(resume=False)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "thesis.tex"])
def test_resuming_what_is_no_run(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / content).write_text("")
    with pytest.raises(OutputError, match=r"holds no run to go on with\.\nLeave --resume out"):
        RunFolder(tmp_path).check(resume=True)
    with pytest.raises(OutputError, match="holds no run to go on with"):
        RunFolder(tmp_path / "missing").check(resume=True)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is stood in for, since root may write anywhere."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode))
    with pytest.raises(OutputError, match=rf"no permission to write in {tmp_path}\.\nType:  --out FOLDER"):
        RunFolder(tmp_path / "a" / "b").check(resume=False)


def test_a_folder_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file"):
        RunFolder(tmp_path / "file" / "run").check(resume=False)
    with pytest.raises(OutputError, match="can't be made: Not a directory"):
        RunFolder(tmp_path / "file" / "run").create()


def test_json_is_for_people_and_programs(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"wörter": [1.5, None]})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"wörter": [1.5, None]}
    assert '  "wörter"' in text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"a": float("nan")})
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
