"""What the terminal shows while something is counted."""

from __future__ import annotations

import pytest

from embedtune.cli.console import Console


@pytest.mark.parametrize(("total", "shown"), [(2000, "1,234/2,000"), (None, "1,234")])
def test_a_count_with_and_without_a_total(
    total: int | None, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    with Console().counting("encoding", total) as advance:
        advance(1234)
    printed = capsys.readouterr().out
    assert "encoding" in printed
    assert shown in printed
    assert ("1,234/" in printed) == (total is not None)


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().counting("encoding", None) as advance:
        advance(1)
    assert capsys.readouterr().out.strip() == ""
