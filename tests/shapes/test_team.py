from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from t2ictl.benchmarks.shapes.train.denoiser import build_trainee, train_denoiser
from t2ictl.benchmarks.shapes.train.loop import Deadline
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.team import Team, run_team
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting

TINY = Recipe(images=12, steps=2, batch=4, unet_channels=(16, 32), text_width=16, snapshot_every=1)


def _train(folder: Path, size: int) -> Any:
    folder.mkdir()
    latents = torch.randn(12, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    run_team(size, train_denoiser, TINY, folder, Deadline(minutes=None), latents, build_tokenizer(TINY))
    return torch.load(folder / "denoiser.pt", weights_only=True)


def _moved(state: Any, start: Any) -> torch.Tensor:
    """How far all weights of the denoiser moved, as one vector."""
    return torch.cat([(weight - start["unet"][name]).flatten() for name, weight in state["unet"].items()])


def test_two_members_do_what_one_does(tmp_path: Path) -> None:
    """Equal but for rounding in bfloat16, which the orthogonalization enlarges where gradients are small."""
    start = _train_nothing()
    alone, together = _train(tmp_path / "one", 1), _train(tmp_path / "two", 2)
    assert together["step"] == 2
    one, two = _moved(alone, start), _moved(together, start)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98
    assert two.norm() == pytest.approx(one.norm().item(), rel=0.05)


def _train_nothing() -> Any:
    """The weights before the first update."""
    return build_trainee(TINY, build_tokenizer(TINY)).state()


def test_members_share_the_rows_of_a_batch() -> None:
    rows = torch.arange(6)
    parts = [Team(rank=rank, size=3).part(rows).tolist() for rank in range(3)]
    assert parts == [[0, 3], [1, 4], [2, 5]]


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(BadSetting, match="batch of 3"):
        Team(rank=0, size=2).part(torch.arange(3))


#: A script whose processes ignore interrupts, as in the background of a shell script.
IN_THE_BACKGROUND = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
from t2ictl.benchmarks.shapes.train.team import run_team
from tests.shapes.test_team import stay
if __name__ == "__main__":
    run_team(2, stay, Path(sys.argv[1]))
"""


def stay(folder: Path, team: Team) -> None:
    """Write down which process this is, and do not end."""
    (folder / f"partial-{team.rank}").write_text(str(os.getpid()))
    (folder / f"partial-{team.rank}").rename(folder / f"member-{team.rank}")
    time.sleep(600)


@pytest.mark.slow
def test_members_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", IN_THE_BACKGROUND, str(tmp_path)])
    try:
        paths = [tmp_path / "member-0", tmp_path / "member-1"]
        while not all(path.exists() for path in paths):
            assert parent.poll() is None
            time.sleep(0.2)
        members = [psutil.Process(int(path.read_text())) for path in paths]
    finally:
        parent.kill()
        parent.wait()
    _, left = psutil.wait_procs(members, timeout=60)
    for member in left:
        member.kill()
    assert not left
