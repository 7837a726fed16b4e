"""Fixtures and the settings that every test runs under."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub client: nothing here may download
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it reports on every import that torchvision is absent

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from t2ictl.session.checkpoints import Checkpointing, Recomputed
from t2ictl.shapes import embedded
from tests import tiny
from tests.evaluation import judge_cases

# Several threads on such small tensors cost a hundred times what they save on a loaded machine.
torch.set_num_threads(1)
diffusers.utils.logging.disable_progress_bar()


@pytest.fixture
def sd_pipe() -> Any:
    """A fresh tiny SD 1.x pipeline."""
    return tiny.sd()


@pytest.fixture
def sdxl_pipe() -> Any:
    """A fresh tiny SDXL pipeline."""
    return tiny.sdxl()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP model at a toy size."""
    with torch.random.fork_rng(devices=[]):
        return judge_cases.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vision-language model at a toy size."""
    with torch.random.fork_rng(devices=[]):
        return judge_cases.save_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def _stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.stand_ins import save_stand_ins

    place = tmp_path_factory.mktemp("stand_ins")
    save_stand_ins(place)
    return place


@pytest.fixture
def stand_ins(_stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All embedded models are there, those beside ``shapes`` untrained; gives the folder that holds these."""
    monkeypatch.setattr(embedded, "PLACE", _stand_ins)
    return _stand_ins


@pytest.fixture
def only_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedded model but ``shapes`` is there."""
    monkeypatch.setattr(embedded, "PLACE", tmp_path / "no models")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways of checkpointing of all updates so far, in order."""
    seen: list[str] = []
    enter = Recomputed.__init__

    def note(self: Recomputed, port: Any, way: Checkpointing, heard: Any) -> None:
        seen.append(way)
        enter(self, port, way, heard)

    monkeypatch.setattr(Recomputed, "__init__", note)
    return seen


def _allowed_skips() -> list[str]:
    lines = Path(__file__).with_name("allowed_skips.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _skip_reasons(config: pytest.Config) -> list[str]:
    """Reasons of all skips so far, of every worker; module-level skips come as reports too."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped a test for a reason that is not listed: a silent skip is a test that is not there."""
    if hasattr(session.config, "workerinput"):
        return  # a worker process: the controller sees all reports
    unlisted = [reason for reason in _skip_reasons(session.config) if not reason.startswith(tuple(_allowed_skips()))]
    if unlisted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the number of skips, and each reason that is not listed."""
    reasons = _skip_reasons(config)
    terminalreporter.write_line(f"skipped tests: {len(reasons)}")
    for reason in sorted({reason for reason in reasons if not reason.startswith(tuple(_allowed_skips()))}):
        terminalreporter.write_line(f"skip with a reason not in tests/allowed_skips.txt: {reason}", red=True)
