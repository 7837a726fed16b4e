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


@pytest.mark.parametrize("shape", [(6, 12), (40, 8), (4, 3, 3, 3)])
def test_iterations_in_one_factor_are_the_iterations(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    flat = matrix.flatten(1)
    x = (flat.T if flat.shape[0] > flat.shape[1] else flat).double()
    x = x / x.norm()
    a, b, c = QUINTIC
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    expected = (x.T if flat.shape[0] > flat.shape[1] else x).float()
    assert torch.allclose(orthogonalize(matrix, dtype=torch.float32).flatten(1), expected, atol=2e-5)


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
