from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from t2ictl.benchmarks.shapes.train import __main__ as command
from t2ictl.benchmarks.shapes.train.autoencoder import build_autoencoder
from t2ictl.benchmarks.shapes.train.data import to_pixels, training_scene
from t2ictl.benchmarks.shapes.train.denoiser import make_batch
from t2ictl.benchmarks.shapes.train.export import normalize_latents
from t2ictl.benchmarks.shapes.train.loop import cosine_rate, save_atomic, trapezoid_rate
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
from t2ictl.errors import BadSetting
from t2ictl.shapes.world import split_of

TINY = Recipe(
    images=12,
    vae_steps=4,
    vae_batch=2,
    steps=4,
    batch=3,
    vae_channels=(8, 8, 8),
    unet_channels=(16, 32),
    text_width=16,
    checkpoint_every=1,
    snapshot_every=2,
)


class _Crash(RuntimeError):
    """Stands for a machine that goes away in the middle of an update."""


def _crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let the ``call``-th backward pass fail; there is one in each update."""
    whole = torch.Tensor.backward
    seen: list[torch.Tensor] = []

    def counted(loss: torch.Tensor) -> None:
        seen.append(loss.detach())
        if len(seen) == call:
            raise _Crash
        whole(loss)

    monkeypatch.setattr(torch.Tensor, "backward", counted)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    autoencoder = torch.load(folder / "autoencoder.pt", weights_only=True)["model"]
    return {**autoencoder, **torch.load(folder / "average-000004.pt", weights_only=True)}


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert command.run(TINY, whole, None)
    # Four updates of the autoencoder, of which the second run has two left, and four of the denoiser.
    for stage, call in (("autoencoder", 3), ("denoiser", 2 + 3)):
        with monkeypatch.context() as patch:
            _crash_at(patch, call)
            with pytest.raises(_Crash):
                command.run(TINY, broken, None)
        assert torch.load(broken / f"{stage}.pt", weights_only=True)["step"] == 2
    assert command.run(TINY, broken, None)
    expected, resumed = _weights(whole), _weights(broken)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
    first = torch.load(whole / "average-000002.pt", weights_only=True)
    assert any(not torch.equal(value, expected[name]) for name, value in first.items())


def test_run_writes_a_loadable_folder_and_a_log(tmp_path: Path) -> None:
    assert command.run(replace(TINY, steps=2), tmp_path, None)
    pipe = StableDiffusionPipeline.from_pretrained(str(tmp_path / "model"))
    assert pipe.unet.config.block_out_channels == [16, 32]
    average = torch.load(tmp_path / "average-000002.pt", weights_only=True)
    name = "conv_in.weight"
    assert torch.equal(pipe.unet.state_dict()[name], average[f"unet.{name}"].half().float())
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[-1] == {"stage": "export", "step": 2}


def test_deadline_stops_with_a_checkpoint(tmp_path: Path) -> None:
    assert not command.run(TINY, tmp_path, 0.0)
    assert not (tmp_path / "model").exists()


def test_command_keeps_its_recipe(tmp_path: Path) -> None:
    first = command.read_recipe(tmp_path, {"batch": 5})
    assert command.read_recipe(tmp_path, {"steps": 9}) == replace(first, steps=9)
    with pytest.raises(BadSetting, match="batch of the run"):
        command.read_recipe(tmp_path, {"batch": 6})


def test_batches_depend_on_seed_and_step_alone() -> None:
    latents, tokenizer = torch.randn(12, 4, 16, 16, generator=torch.Generator().manual_seed(0)), build_tokenizer(TINY)
    one, again = make_batch(TINY, 3, latents, tokenizer), make_batch(TINY, 3, latents, tokenizer)
    other = make_batch(TINY, 4, latents, tokenizer)
    for field in ("latents", "noise", "times", "tokens"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert not torch.equal(one.noise, other.noise)
    assert one.times.tolist() == sorted(one.times.tolist())
    assert one.times.max() < 1000


def test_training_sees_no_held_out_combination() -> None:
    scenes = [training_scene(TINY, index) for index in range(300)]
    several = [scene for scene in scenes if len(scene.objects) > 1]
    assert len(several) > 100
    assert {split_of([item.look for item in scene.objects]) for scene in several} == {"train"}


@torch.no_grad()
def test_normalizing_latents_does_not_change_images() -> None:
    model = build_autoencoder(TINY).eval()
    pixels = to_pixels([training_scene(TINY, index) for index in range(6)])
    raw = model.encode(pixels).latent_dist.mean
    before = model.decode(raw).sample
    normal = normalize_latents(model, raw)
    assert torch.allclose(model.encode(pixels).latent_dist.mean, normal, atol=1e-3)
    assert torch.allclose(model.decode(normal).sample, before, atol=1e-3)
    assert normal.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (normal.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert model.config.scaling_factor == 1.0


def test_checkpoints_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_atomic({"step": 1}, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_atomic({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_rates_rise_and_fall() -> None:
    assert cosine_rate(0, 100, 10) == pytest.approx(0.1)
    assert cosine_rate(100, 100, 10) == pytest.approx(0)
    rates = [trapezoid_rate(step, 100, 10, 0.5) for step in range(101)]
    assert rates[30] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_impossible_recipes_are_refused() -> None:
    with pytest.raises(BadSetting, match="swap_share"):
        Recipe(swap_share=1.5)
    with pytest.raises(BadSetting, match="steps"):
        Recipe(steps=0)
