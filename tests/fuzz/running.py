"""One command line in this process, in a folder of its own: how it ended, what it said, and what it left behind."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from t2ictl.cli import commands
from t2ictl.cli.app import main
from t2ictl.families.devices import check_device, check_dtype
from t2ictl.families.loading import load
from t2ictl.generation import generate
from tests.fuzz.places import make_places
from tests.session.pipeline_cases import state

__all__ = ["Ended", "faults", "run_line", "shared_model"]

#: What may stand on stderr beside the one line: warnings, and what was overridden.
_BESIDE = re.compile(r"warning: |.*: options change what the file says: |\w+ takes .* from |\w+ has other defaults on ")
_LONGEST = 1500


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command line ended.

    Args:
        status: the exit status; None where an exception came out.
        error: the exception, or None.
        out: what was printed.
        err: what was said on stderr.
        new: files and folders that were made, changed or removed.
    """

    status: int | None
    error: BaseException | None
    out: str
    err: str
    new: tuple[str, ...]


@contextlib.contextmanager
def shared_model() -> Iterator[None]:
    """Load the embedded model once for all command lines in the block; each must leave it as it was."""
    pipe: Any = load("shapes", device="cpu")
    generate(pipe, "a red circle", steps=1)  # a first call leaves attributes of diffusers' own
    before = state(pipe)

    def once(name: Any, *, dtype: Any = "float32", device: Any = None, **more: Any) -> Any:
        if name == "shapes" and dtype == "float32" and device in (None, "cpu"):
            check_dtype(dtype), check_device(device)
            now = state(pipe)
            assert {key for key in before if key != "random" and now[key] != before[key]} == set()
            return pipe
        return load(name, dtype=dtype, device=device, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "load", once)
        yield


def run_line(arguments: list[str], encoding: str = "utf-8") -> Ended:
    """Run a command line in an empty folder that has the files it names.

    Args:
        arguments: the command line.
        encoding: of the streams.

    Returns:
        How it ended.
    """
    here = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, _streams(encoding) as (out, err):
        folder = Path(name)
        make_places(folder, arguments)
        before = _contents(folder)
        os.chdir(folder)
        status, caught = None, None
        try:
            status = main(list(arguments))
        except BaseException as error:  # what comes out is the fault that is looked for
            caught = error
        finally:
            os.chdir(here)
        sys.stdout.flush(), sys.stderr.flush()
        after = _contents(folder)
        new = tuple(sorted(each for each in before.keys() | after.keys() if before.get(each) != after.get(each)))
        if (folder / "locked").is_dir():
            (folder / "locked").chmod(0o700)
        said = [each.getvalue().decode(encoding, "replace") for each in (out, err)]
    return Ended(status=status, error=caught, out=said[0], err=said[1], new=new)


@contextlib.contextmanager
def _streams(encoding: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Streams as a process has them, which refuse characters they do not have, also for the logs of libraries."""
    out, err = io.BytesIO(), io.BytesIO()
    loud = [each for name in ("diffusers", "transformers") for each in logging.getLogger(name).handlers]
    before = [(each, each.stream) for each in loud if isinstance(each, logging.StreamHandler)]
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(out, encoding=encoding, errors="strict")),
        contextlib.redirect_stderr(io.TextIOWrapper(err, encoding=encoding, errors="backslashreplace")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        warnings.showwarning = lambda *_, **__: None  # what the command line itself prints is enough
        for handler, _ in before:
            handler.setStream(sys.stderr)
        try:
            yield out, err
        finally:
            for handler, stream in before:
                handler.setStream(stream)


def _contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder; links are not followed."""
    found: dict[str, Any] = {}
    for top, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(top) / name
            is_file = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = path.read_bytes() if is_file else path.lstat().st_mode
    return found


def faults(ended: Ended) -> list[str]:
    """Return what is wrong with how a command line ended.

    Args:
        ended: how it ended.

    Returns:
        One entry a broken promise.
    """
    found: list[str] = []
    if ended.error is not None:
        return [f"it ended with {type(ended.error).__name__}: {ended.error}"[:400]]
    if ended.status not in (0, 2):
        found.append(f"status {ended.status}")
    if "Traceback" in ended.out + ended.err:
        found.append("a traceback was printed")
    if ended.status == 0:
        found += [f"{name} was left" for name in ended.new if Path(name).name.startswith(".")]
        return found
    if ended.status == 2 and "Usage: " in ended.out and not ended.err.strip():
        return found  # nothing was asked for, and the help says what can be
    if ended.new:
        found.append(f"it failed and left {', '.join(ended.new)}")
    if ended.out:
        found.append(f"it failed and printed {ended.out[:200]!r}")
    lines = [line for line in ended.err.split("\n") if line]
    ours = [line for line in lines if line.startswith("t2ictl: ")]
    more = [line for line in lines if line not in ours and not _BESIDE.match(line)]
    if len(ours) != 1:
        found.append(f"{len(ours)} lines say what is wrong")
    if more:
        found.append(f"stderr also has {more[0][:200]!r}")
    if any(len(line) > _LONGEST for line in lines):
        found.append(f"a line has {max(map(len, lines))} characters")
    return found
