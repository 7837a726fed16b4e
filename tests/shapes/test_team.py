from __future__ import annotations

from pathlib import Path
from typing import Any

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
