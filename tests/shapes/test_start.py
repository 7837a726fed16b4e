from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2ictl.benchmarks.shapes.train.autoencoder import build_autoencoder
from t2ictl.benchmarks.shapes.train.denoiser import build_trainee
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.start import carry_over, carry_over_tokens, start_autoencoder
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path


def test_starts_with_the_weights_of_the_package() -> None:
    from safetensors.torch import load_file

    recipe = Recipe(start=str(model_path()))
    tokenizer = build_tokenizer(recipe)
    trainee = build_trainee(recipe, tokenizer)
    stored = load_file(model_path() / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name].float(), weight) for name, weight in trainee.unet.named_parameters())
    fresh = build_trainee(replace(recipe, start=""), tokenizer)
    row = tokenizer.convert_tokens_to_ids("red</w>")
    rows = [each.text.get_input_embeddings().weight[row] for each in (trainee, fresh)]
    assert not torch.equal(*rows)
    assert all(torch.equal(trainee.average[name], weight) for name, weight in trainee.named_weights())


def test_tokens_are_carried_over_by_their_text() -> None:
    now = torch.zeros(3, 2)
    carry_over_tokens(now, {"a": 2, "new": 1, "b": 0}, torch.tensor([[1.0, 1], [2, 2]]), {"a": 0, "b": 1})
    assert now.tolist() == [[2, 2], [0, 0], [1, 1]]


def test_other_sizes_are_refused() -> None:
    with pytest.raises(BadSetting, match="weight"):
        carry_over(torch.nn.Linear(2, 3), torch.nn.Linear(2, 2))
    with pytest.raises(BadSetting, match="model to start from"):
        start_autoencoder(build_autoencoder(Recipe(vae_channels=(8, 8, 8))), Path(model_path()))
