"""How the C++ kernels are built, kept and loaded, and that a machine that can't do so runs torch's operations."""

from __future__ import annotations

import logging
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from embedtune.kernels.attention import grouped, native
from embedtune.kernels.dispatch import choose_attention
from embedtune.kernels.native import build

AVAILABLE = build.why_not() is None
needs_compiler = pytest.mark.skipif(not AVAILABLE, reason=f"nothing is compiled here: {build.why_not()}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered of earlier choices, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build.FLAGS))  # in less time
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(build.SWITCH, raising=False)
    _forget()
    yield tmp_path / "cache" / "embedtune" / "native"
    _forget()


def _forget() -> None:
    build._library.cache_clear()
    choose_attention.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def assert_falls_back(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Torch's operations are chosen, in words that say why; nothing is raised."""
    with caplog.at_level(logging.INFO, logger="embedtune"):
        assert choose_attention("cpu", torch.float32, 32) is grouped.packed_attention
    assert "packed attention: grouped bmm, because the device is cpu and " in caplog.text
    assert reason in caplog.text


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@needs_compiler
def test_it_is_built_once_and_only_for_the_user(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="embedtune"):
        assert choose_attention("cpu", torch.float32, 32) is native.packed_attention
    assert "compiled kernels: built in" in caplog.text
    (library,) = libraries(cache)
    assert stat.S_IMODE(library.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    built = library.stat().st_mtime_ns
    _forget()
    assert choose_attention("cpu", torch.bfloat16, 64) is native.packed_attention
    assert libraries(cache) == [library]
    assert library.stat().st_mtime_ns == built


def test_the_switch(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(build.SWITCH, "0")
    assert_falls_back(caplog, "EMBEDTUNE_NATIVE=0")
    assert not cache.exists()
    with pytest.raises(build.NotAvailableError, match="EMBEDTUNE_NATIVE=0"):
        build.load()


def test_another_kind_of_machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert_falls_back(caplog, "on riscv64")


def test_no_compiler(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_falls_back(caplog, "there is no C++ compiler")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ('case "$1" in --version) echo 1;; *) echo "x.cpp:1: error: no such flag" >&2; exit 1;; esac', "no such flag"),
        ("exit 3", "failed: exit code 3"),
        ('case "$1" in --version) echo 1;; *) ;; esac', "No such file"),  # says nothing and writes nothing
        ('case "$1" in --version) echo 1;; *) sleep 60;; esac', "took longer than 1 s"),
        ('case "$1" in --version) echo 1;; *) while [ "$1" != -o ]; do shift; done; echo x > "$2";; esac', "too short"),
    ],
    ids=["error", "exit code", "nothing made", "too slow", "no library made"],
)
def test_a_compiler_that_fails(
    does: str,
    reason: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if sys.platform != "linux":
        pytest.skip("nothing is compiled here")
    if "sleep" in does:
        monkeypatch.setattr(build, "TIME_LIMIT_S", 1)
    monkeypatch.setenv("CXX", str(script(tmp_path / "compiler", does)))
    assert_falls_back(caplog, reason)
    assert not [path for path in cache.glob("*") if path.is_dir()]


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    assert_falls_back(caplog, "CXX names /nowhere/c++, which is not there")


@needs_compiler
def test_a_compiler_with_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `CXX="ccache g++"`; another compiler makes another library."""
    wrapper = script(tmp_path / "wrapper", f'echo "$@" >> {tmp_path}/calls; exec "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} {build._compiler()[0]}")
    assert build.why_not() is None
    assert "attention.cpp" in (tmp_path / "calls").read_text()


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_falls_back(caplog, "can't be made")


@needs_compiler
def test_what_others_could_have_written_is_not_loaded(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    build.load()
    (library,) = libraries(cache)
    for path, mode in ((library, 0o622), (cache, 0o770)):
        was = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        _forget()
        caplog.clear()
        assert_falls_back(caplog, f"{path} is open to other users: chmod go= {path}")
        path.chmod(was)
    _forget()
    assert build.why_not() is None


@needs_compiler
def test_another_users_library_is_not_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build.load()
    _forget()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert_falls_back(caplog, f"{cache} belongs to another user")


@needs_compiler
def test_a_link_in_place_of_the_library_is_not_followed(cache: Path, tmp_path: Path) -> None:
    build.load()
    (library,) = libraries(cache)
    elsewhere = tmp_path / "elsewhere.so"
    library.rename(elsewhere)
    library.symlink_to(elsewhere)
    before = elsewhere.stat().st_ino
    _forget()
    assert build.why_not() is None
    assert not library.is_symlink()  # built anew
    assert library.stat().st_ino != before


@needs_compiler
def test_a_damaged_library_is_built_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    build.load()
    (library,) = libraries(cache)
    library.unlink()
    library.write_bytes(b"\x7fELF and no more")
    library.chmod(0o600)
    _forget()
    with caplog.at_level(logging.INFO, logger="embedtune"):
        assert build.why_not() is None
    assert "does not load" in caplog.text
    assert library.stat().st_size > 1000


@needs_compiler
def test_several_processes_build_at_once(cache: Path) -> None:
    code = "from embedtune.kernels.native import build; print(build.why_not())"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=250)
        assert (process.returncode, out.strip()) == (0, "None"), err
    assert len(libraries(cache)) == 1


THREADS = """
import os, torch
from embedtune.kernels.attention import native, packed_layout

def pools():
    lines = open("/proc/self/maps").read().splitlines()
    return {line.split()[-1] for line in lines if "omp" in os.path.basename(line.split()[-1])}

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
before = pools()
torch.ones(2**20).add_(1)  # torch starts its threads
started = threads()
x = torch.randn(64, 4, 16)
native.packed_attention(x, x, x, packed_layout([4] * 16), scale=1.0)
assert pools() == before, (before, pools())
assert threads() == started, (started, threads())
torch.set_num_threads(1)
native.packed_attention(x, x, x, packed_layout([4] * 16), scale=1.0)
print(len(before), started)
"""


@needs_compiler
def test_the_threads_are_torchs() -> None:
    """No second OpenMP library in the process, and no thread that torch has not started."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    pools, started = map(int, done.stdout.split())
    assert pools >= 1
    assert started >= 3


def test_nothing_is_compiled_by_importing(cache: Path) -> None:
    code = "import embedtune, embedtune.kernels.dispatch, embedtune.kernels.attention.native"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)
    assert not cache.exists()
