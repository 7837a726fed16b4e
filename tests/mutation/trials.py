"""Tests of a changed copy of the tree, in processes that begin with the heavy libraries loaded.

One run without a change finds out which tests execute which lines of a file; a change is then tried with those alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

__all__ = ["Covering", "Tree", "passed", "tests_by_line"]

HEAVY = (
    "torch",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "hypothesis",
    "numpy.testing",
    "pandas",
    "PIL.Image",
    "pyarrow.parquet",
    "pydantic",
    "scipy.stats",
)
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
BROKEN = (2, 3, 4)  # exit statuses of pytest: the tests did not come to an end, since the change broke their modules
#: Executed while modules are imported or shared fixtures are made: any test of the file may depend on it.
ANY = "any"


class Tree:
    """A copy of the checkout, the files of which may be changed.

    Args:
        root: the checkout.
        home: an empty folder.
    """

    def __init__(self, root: Path, home: Path) -> None:
        self.home = home / "tree"
        shutil.copytree(root, self.home, symlinks=True, ignore=_LEFT_OUT)
        for name in HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    @contextlib.contextmanager
    def changed(self, name: str, text: str) -> Iterator[None]:
        """Have another text in a file."""
        path = self.home / name
        before = path.read_bytes()
        path.write_text(text, encoding="utf-8")
        try:
            yield
        finally:
            path.write_bytes(before)

    def run(self, tests: Sequence[str], seconds: float, plugins: Sequence[Any] = ()) -> int | None:
        """Run tests in a process of its own.

        Args:
            tests: files or node ids.
            seconds: time limit.
            plugins: of pytest.

        Returns:
            The exit status of pytest; None if the time was over.
        """
        child = os.fork()
        if child == 0:
            os._exit(self._in_child(tests, plugins))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _in_child(self, tests: Sequence[str], plugins: Sequence[Any]) -> int:
        os.setsid()  # with its own children it can be killed as one
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.chdir(self.home)
        for name in [each for each in sys.modules if each.partition(".")[0] in ("tests", "t2ictl")]:
            del sys.modules[name]
        sys.path.insert(0, str(self.home))
        sys.dont_write_bytecode = True  # two changes within a second would pass for one file
        os.environ |= {"PYTHONPATH": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-W", "ignore"]
        try:
            return int(pytest.main([*options, *tests], plugins=list(plugins)))
        except BaseException:
            return BROKEN[0]


def passed(status: int | None) -> bool:
    """Return whether no test noticed anything."""
    return status == 0


@dataclass(frozen=True, kw_only=True)
class Covering:
    """Which tests execute which lines.

    Args:
        tests: node ids by file and line, the quickest tests first.
        seconds: how long all tests take.
    """

    tests: dict[str, dict[int, list[str]]]
    seconds: float


class _LinesOfTests:
    """A plugin that writes down which lines of some files each test executes."""

    def __init__(self, home: Path, names: Sequence[str], out: Path) -> None:
        self._names = {str((home / name).resolve()): name for name in names}
        self._out = out
        self._lines: dict[str, dict[str, set[int]]] = {name: {} for name in names}
        self._seconds: dict[str, float] = {}
        self._owner = ANY
        self._codes: dict[Any, str | None] = {}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = self._names.get(os.path.realpath(code.co_filename))
        return self._trace_lines(frame, event, argument) if self._codes[code] else None

    def _trace_lines(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = self._codes[frame.f_code]
        assert name is not None
        self._lines[name].setdefault(self._owner, set()).add(frame.f_lineno)
        return self._trace_lines

    def pytest_sessionstart(self) -> None:
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._owner = ANY
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._owner, began = item.nodeid, time.perf_counter()
        sys.settrace(self._trace)  # a test may have set another one
        try:
            return (yield)
        finally:
            self._owner = ANY
            self._seconds[item.nodeid] = time.perf_counter() - began

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        lines = {name: {owner: sorted(found) for owner, found in own.items()} for name, own in self._lines.items()}
        self._out.write_text(json.dumps({"lines": lines, "seconds": self._seconds}), encoding="utf-8")


def tests_by_line(tree: Tree, names: Sequence[str], tests: Sequence[str], seconds: float) -> Covering:
    """Find the tests that execute each line of some files.

    Args:
        tree: the copy, unchanged.
        names: the files.
        tests: files or folders of tests.
        seconds: time limit.

    Returns:
        What was found, and how long all tests take.

    Raises:
        RuntimeError: if they do not pass as they are.
    """
    out = tree.home.parent / "lines.json"
    began = time.monotonic()
    status = tree.run(tests, seconds, [_LinesOfTests(tree.home, names, out)])
    if not passed(status):
        raise RuntimeError(f"The tests of {', '.join(names)} do not pass without any change (status {status}).")
    took = time.monotonic() - began
    found = json.loads(out.read_text(encoding="utf-8"))
    covering: dict[str, dict[int, list[str]]] = {name: {} for name in names}
    for test in sorted(found["seconds"], key=lambda test: found["seconds"][test]):
        for name, own in found["lines"].items():
            for line in {*own.get(test, ()), *own.get(ANY, ())}:
                covering[name].setdefault(line, []).append(test)
    return Covering(tests=covering, seconds=took)
