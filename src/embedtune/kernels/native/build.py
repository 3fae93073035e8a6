"""The C++ files here as one library: compiled once with the machine's own compiler, kept in the user's cache, loaded.

No header of Python or torch is needed, so that it takes seconds: what is called gets plain pointers. Whatever stands in
the way is a reason for `kernels.dispatch` to use torch's operations, never an error of a run.

A library that somebody else could have written is not loaded: the folder and the file must be the user's own and
closed to all others, and it is loaded by the very descriptor that was looked at.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

SWITCH = "EMBEDTUNE_NATIVE"
"""Environment variable; `0` keeps anything from being compiled or loaded."""
COMPILERS = ("c++", "g++", "clang++")
"""Where the environment variable CXX names none."""
MACHINES = ("x86_64", "aarch64")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=fast")
"""Nothing by which a NaN or an infinity could get lost."""
TIME_LIMIT_S = 120
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take, in the order of their numbers there."""
FUNCTIONS = {
    "attention": (None, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)),
    "gelu_and_backward": (None, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)),
    "attention_scratch": (ctypes.c_int64, (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)),
    "exp2_values": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    "round_trip": (None, (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
}
"""What the library has: type of the result and of each argument."""


class NotAvailableError(Exception):
    """There is no compiled library on this machine; the message is the reason."""


class Library(NamedTuple):
    """The library, and the function that runs another one in the threads of torch's OpenMP."""

    functions: Any
    parallel: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.functions, name)


def why_not() -> str | None:
    """Why there is no library; None if there is one. The first call may compile it."""
    found = _library()
    return found if isinstance(found, str) else None


def load() -> Library:
    """The library, which the first call may compile.

    Raises:
        NotAvailableError: there is none, and why.
    """
    found = _library()
    if isinstance(found, str):
        raise NotAvailableError(found)
    return found


@functools.cache
def _library() -> Library | str:
    try:
        return _find()
    except (NotAvailableError, OSError) as error:
        return str(error)


def _find() -> Library:
    if os.environ.get(SWITCH) == "0":
        raise NotAvailableError(f"{SWITCH}=0")
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise NotAvailableError(f"nothing is compiled on {platform.system()} on {platform.machine()}")
    parallel = _torchs_parallel()
    compiler = _compiler()
    sources = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".cpp", ".h"))
    path = _folder() / f"{_key(compiler, sources)}.so"
    try:
        return Library(_open(path), parallel)
    except FileNotFoundError:
        pass
    except OSError as error:  # of another system, or damaged
        logger.info("compiled kernels: %s does not load (%s), so they are compiled again", path, error)
    _compile(compiler, [source for source in sources if source.suffix == ".cpp"], path)
    return Library(_open(path), parallel)


def _torchs_parallel() -> int:
    """Address of `GOMP_parallel` in the OpenMP library that torch itself uses, so that there is no second pool."""
    core = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:  # a symbol of a library is looked for in what it needs, too
        function = ctypes.CDLL(str(core), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError) as error:
        raise NotAvailableError(f"torch's OpenMP can't be called ({error})") from error
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _compiler() -> tuple[str, ...]:
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise NotAvailableError(f"CXX names {named[0]}, which is not there")
        return tuple(named)
    for name in COMPILERS:
        if (path := shutil.which(name)) is not None:
            return (path,)
    raise NotAvailableError(f"there is no C++ compiler ({', '.join(COMPILERS)}, or another one that CXX names)")


def _key(compiler: tuple[str, ...], sources: list[Path]) -> str:
    """Whatever the library depends on, as a file's name."""
    parts = [repr((compiler, FLAGS)), _run([*compiler, "--version"]), _processor()]
    parts += [f"{source.name}\n{source.read_text(encoding='utf-8')}" for source in sources]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the system says of the first processor's kind: a home folder may be shared by machines."""
    kinds = ("vendor_id", "cpu family", "model", "flags", "features", "cpu implementer", "cpu architecture", "cpu part")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip().lower() in kinds)


def _folder() -> Path:
    """The user's own folder for libraries, closed to all others."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "embedtune" / "native"
    except RuntimeError as error:
        raise NotAvailableError(f"there is no home folder ({error})") from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailableError(f"{folder} can't be made ({error.strerror})") from error
    return folder


def _compile(compiler: tuple[str, ...], sources: list[Path], path: Path) -> None:
    """Writes the library beside its place and renames it, so that many processes may do so at once."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as folder:
        made = Path(folder, "library.so")
        _run([*compiler, *FLAGS, "-o", str(made), *map(str, sources)])
        os.chmod(made, 0o600)
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(made, path)
    logger.info("compiled kernels: built in %.1f s by %s: %s", time.monotonic() - started, compiler[0], path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotAvailableError(f"{command[0]} took longer than {TIME_LIMIT_S} s") from error
    except OSError as error:
        raise NotAvailableError(f"{command[0]} can't be run ({error.strerror})") from error
    if done.returncode:
        logger.debug("%s: %s", shlex.join(command), done.stderr)
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        said = next((line for line in lines if "error" in line), lines[0])
        raise NotAvailableError(f"{command[0]} failed: {said.strip()}")
    return done.stdout


def _open(path: Path) -> ctypes.CDLL:
    """The library at a path, if nobody but the user can have written it.

    Raises:
        FileNotFoundError: there is none.
        OSError: it does not load.
        NotAvailableError: it, or its folder, is another user's or open to one.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(folder, path.parent)
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _check_owner(file, path)
        # The descriptor stays open if all is well: under the same name the system would answer with what it has loaded.
        library = ctypes.CDLL(f"/proc/self/fd/{file}")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        os.close(file)
        raise OSError(str(error)) from error
    except BaseException:
        os.close(file)
        raise
    return library


def _check_owner(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise NotAvailableError(f"{path} belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise NotAvailableError(f"{path} is open to other users: chmod go= {path}")
