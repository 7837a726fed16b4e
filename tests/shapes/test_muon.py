from __future__ import annotations

import pytest
import torch

from t2ictl.benchmarks.shapes.train.denoiser import build_trainee, is_hidden_matrix
from t2ictl.benchmarks.shapes.train.muon import ADAM_UPDATE, QUINTIC, Muon, orthogonalize
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (4, 3, 3, 3)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalize(matrix)
    assert update.shape == matrix.shape
    values = torch.linalg.svdvals(update.flatten(1))
    assert 0.5 < values.min() and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    rotated = left.T @ update.flatten(1) @ right.T
    aligned = torch.diagonal(rotated)
    assert (rotated - torch.diag(aligned)).abs().max() < 0.1
    assert (aligned > 0.5).all()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (4, 3, 3, 3)])
def test_single_precision_gives_the_same_but_for_rounding(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rough, fine = orthogonalize(matrix), orthogonalize(matrix, dtype=torch.float32)
    assert fine.shape == matrix.shape
    assert fine.dtype == torch.float32
    assert torch.allclose(fine, rough, atol=0.05)
    assert torch.allclose(fine, orthogonalize(matrix, dtype=torch.float64), atol=1e-4)
    a, b, c = QUINTIC
    x = (matrix / matrix.norm()).flatten(1)
    for _ in range(5):
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    assert torch.allclose(fine.flatten(1), x, atol=1e-4)


def test_update_has_the_size_of_an_adam_update() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 128))
    weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.1 * ADAM_UPDATE, rel=0.25)
    assert (weight * weight.grad).sum() < 0


def test_weight_decay_shrinks_what_has_no_gradient_signal() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))


def test_every_weight_has_exactly_one_optimizer() -> None:
    recipe = Recipe(vae_channels=(8, 8, 8), unet_channels=(16, 32), text_width=16)
    trainee = build_trainee(recipe, build_tokenizer(recipe))
    owned = [id(w) for optimizer in trainee.optimizers for group in optimizer.param_groups for w in group["params"]]
    assert sorted(owned) == sorted(id(weight) for _, weight in trainee.named_weights())
    muon = {name for name, weight in trainee.named_weights() if is_hidden_matrix(name, weight)}
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in muon
    assert not any("embed" in name for name in muon)
