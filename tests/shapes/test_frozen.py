"""Denoisers on frozen encoders: text as the pipelines make it, resumption, teams, export."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline

from t2ictl.benchmarks.shapes.train.frozen import __main__ as command
from t2ictl.benchmarks.shapes.train.frozen.batches import make_batch
from t2ictl.benchmarks.shapes.train.frozen.encoders import load_encoders
from t2ictl.benchmarks.shapes.train.frozen.export import build_pipeline
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.frozen.train import Run, build_learner, build_task
from t2ictl.benchmarks.shapes.train.loop import Deadline
from t2ictl.benchmarks.shapes.train.scenes import draw_scenes
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.errors import BadSetting
from t2ictl.shapes import model_path
from tests.stand_ins import write_encoders

WORLD = Recipe(images=12)
SMALL: dict[str, Any] = {
    "steps": 20,
    "batch": 4,
    "warmup": 2,
    "layers": 2,
    "heads": 2,
    "head_width": 16,
    "layout_block": 0,
    "unet_channels": (16, 32),
    "checkpoint_every": 5,
    "snapshot_every": 10,
    "validate_every": 10,
    "validation_scenes": 5,
}
CAPTIONS = ["", "a red circle", "a small striped blue triangle, a dotted cyan ring and a large green cross"]
PROMPT = "a red circle and a blue square"


def recipe_of(model: str, **changes: Any) -> FrozenRecipe:
    return FrozenRecipe(model=model, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random encoders and a dozen scenes."""
    root = tmp_path_factory.mktemp("frozen")
    draw_scenes(WORLD, root / "scenes")
    return {"encoders": write_encoders(root / "encoders"), "scenes": root / "scenes", "root": root}


def train(
    folders: dict[str, Path], folder: Path, recipe: FrozenRecipe, minutes: float | None = None, workers: int = 1
) -> Any:
    """Train and return the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    deadline = Deadline(minutes=minutes)
    run = Run(recipe=recipe, world=WORLD, folder=folder, encoders=folders["encoders"], deadline=deadline)
    command.train(run, folders["scenes"], workers)
    return torch.load(folder / "denoiser.pt", weights_only=True)


@pytest.fixture(scope="module")
def trained(folders: dict[str, Path]) -> dict[str, Path]:
    """One finished run of each model."""
    runs = {"dit": recipe_of("dit"), "clip": recipe_of("clip", optimizer="muon")}
    for model, recipe in runs.items():
        train(folders, folders["root"] / model, recipe)
    return {model: folders["root"] / model for model in runs}


@torch.no_grad()
def test_transformer_reads_what_the_stock_pipeline_encodes(folders: dict[str, Path]) -> None:
    encoders = load_encoders(folders["encoders"], 3)
    recipe = recipe_of("dit")
    average = build_learner(recipe, build_task(recipe, encoders)).average
    average = {name: value for name, value in average.items() if name.startswith("transformer.")}
    pipe = build_pipeline(recipe, folders["encoders"], average)
    assert isinstance(pipe, StableDiffusion3Pipeline)
    rows, empty_rows, pooled, empty_pooled = pipe.encode_prompt(
        CAPTIONS, None, None, negative_prompt="", max_sequence_length=24
    )
    text = encoders.encode(CAPTIONS)
    assert torch.equal(text.rows_BTW, rows)
    assert torch.equal(text.pooled_BP, pooled)
    assert torch.allclose(text.rows_BTW[0], empty_rows[0], atol=1e-6)
    assert torch.allclose(text.pooled_BP[0], empty_pooled[0], atol=1e-6)
    assert rows.shape == (3, 48, 32)
    assert not text.bias_B.any()


@torch.no_grad()
def test_unet_reads_what_the_stock_pipeline_encodes(folders: dict[str, Path]) -> None:
    encoders = load_encoders(folders["encoders"], 1)
    recipe = recipe_of("clip")
    pipe = build_pipeline(recipe, folders["encoders"], build_learner(recipe, build_task(recipe, encoders)).average)
    assert isinstance(pipe, StableDiffusionPipeline)
    rows, empty_rows = pipe.encode_prompt(CAPTIONS, "cpu", 1, True, negative_prompt=[""] * 3)
    text = encoders.encode(CAPTIONS)
    assert torch.equal(text.rows_BTW, rows)
    assert torch.allclose(text.rows_BTW[0], empty_rows[0], atol=1e-6)


def test_captions_that_some_encoder_would_cut_are_found(folders: dict[str, Path]) -> None:
    encoders = load_encoders(folders["encoders"], 3)
    assert encoders.too_long([*CAPTIONS, ", ".join(["a dotted triangle"] * 6)]) == [3]


def test_batches_depend_on_seed_and_step_alone(folders: dict[str, Path]) -> None:
    encoders, drawn = load_encoders(folders["encoders"], 3), draw_scenes(WORLD, folders["scenes"])
    recipe = recipe_of("dit", batch=40, empty_share=0.5, long_share=0.5)
    one, again, other = (make_batch(recipe, step, drawn, encoders) for step in (3, 3, 4))
    for field in ("indices", "latents", "noise", "points", "is_long"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert one.captions == again.captions != other.captions
    assert not torch.equal(one.noise, other.noise)
    assert 5 < sum(caption == "" for caption in one.captions) < 35
    assert 5 < int(one.is_long.sum()) < 35
    assert ((one.points * 40).floor() == torch.arange(40)).all()


@pytest.mark.parametrize(("model", "optimizer"), [("dit", "adamw"), ("clip", "muon")])
def test_stopped_and_resumed_equals_straight(
    folders: dict[str, Path], trained: dict[str, Path], tmp_path: Path, model: str, optimizer: str, monkeypatch: Any
) -> None:
    checks = iter([False] * 10 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(Deadline, "is_over", lambda _deadline: next(checks))
        stopped = train(folders, tmp_path, recipe_of(model, optimizer=optimizer))
    assert stopped["step"] == 10
    resumed = train(folders, tmp_path, recipe_of(model, optimizer=optimizer))
    straight = torch.load(trained[model] / "denoiser.pt", weights_only=True)
    assert resumed["step"] == straight["step"] == 20
    name = {"dit": "transformer", "clip": "unet"}[model]
    assert all(torch.equal(value, resumed[name][key]) for key, value in straight[name].items())
    assert all(torch.equal(value, resumed["average"][key]) for key, value in straight["average"].items())
    assert any(not torch.equal(value, stopped[name][key]) for key, value in straight[name].items())


def test_two_members_do_what_one_does(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("dit", steps=3, decay_share=0.0)
    alone, together = train(folders, tmp_path / "1", recipe), train(folders, tmp_path / "2", recipe, workers=2)
    assert together["step"] == 3
    one, two = (torch.cat([w.flatten() for w in state["transformer"].values()]) for state in (alone, together))
    start = build_task(recipe, load_encoders(folders["encoders"], 3)).models["transformer"].state_dict()
    moved = torch.cat([weight.flatten() for weight in start.values()])
    assert (one - moved).norm() > 100 * (one - two).norm()


def test_log_has_losses_and_validation(trained: dict[str, Path], folders: dict[str, Path], tmp_path: Path) -> None:
    train(folders, tmp_path, recipe_of("dit", steps=50, validate_every=25))
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [(each["stage"], each["step"]) for each in records] == [
        ("validation", 25),
        ("validation", 50),
        ("denoiser", 50),
    ]
    assert records[1]["error"] < records[0]["error"] < 2.5
    assert {"loss", "layout"} <= records[2].keys()


@pytest.mark.parametrize("model", ["dit", "clip"])
def test_export_loads_with_stock_classes_and_runs(
    folders: dict[str, Path], trained: dict[str, Path], tmp_path: Path, model: str
) -> None:
    paths = {name: str(folders[name]) for name in ("encoders", "scenes")}
    options = ["--model", model, "--out", str(trained[model]), "--export", str(tmp_path / "model")]
    options += ["--encoders", paths["encoders"], "--scenes", paths["scenes"], "--export-step", "10"]
    assert command.main(options) == 0
    kind = {"dit": StableDiffusion3Pipeline, "clip": StableDiffusionPipeline}[model]
    pipe = DiffusionPipeline.from_pretrained(str(tmp_path / "model"))
    assert type(pipe) is kind
    pipe.set_progress_bar_config(disable=True)
    name = {"dit": "transformer", "clip": "unet"}[model]
    average = torch.load(trained[model] / "average-000010.pt", weights_only=True)
    denoiser = getattr(pipe, name)
    assert all(torch.equal(w, average[f"{name}.{key}"].half().float()) for key, w in denoiser.named_parameters())
    for each in ({"max_sequence_length": 24}, {}) if model == "dit" else ({},):
        assert pipe(PROMPT, num_inference_steps=2, **each).images[0].size == (64, 64)


def test_exported_encoders_are_the_frozen_ones(
    folders: dict[str, Path], trained: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of("dit")
    run = Run(
        recipe=recipe,
        world=WORLD,
        folder=trained["dit"],
        encoders=folders["encoders"],
        deadline=Deadline(minutes=None),
    )
    command.export(run, tmp_path / "model", 0)
    for path in folders["encoders"].rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "model" / path.relative_to(folders["encoders"])).read_bytes()
    with pytest.raises(BadSetting, match="nothing to export at update 7"):
        command.export(run, tmp_path / "model", 7)


def test_unet_starts_with_the_weights_of_the_package(tmp_path: Path) -> None:
    encoders = load_encoders(write_encoders(tmp_path, widths=(128, 8, 32)), 1)
    start = {"start": str(model_path()), "unet_channels": (48, 96)}
    model = build_task(recipe_of("clip", **start), encoders).models["unet"]
    stored = StableDiffusionPipeline.from_pretrained(str(model_path())).unet
    assert all(torch.equal(w, stored.get_parameter(name)) for name, w in model.named_parameters())


def test_transformer_starts_with_the_weights_of_an_export(folders: dict[str, Path], tmp_path: Path) -> None:
    encoders = load_encoders(folders["encoders"], 3)
    average = build_learner(recipe_of("dit"), build_task(recipe_of("dit"), encoders)).average
    average = {name: torch.randn_like(weight) for name, weight in average.items() if name.startswith("transformer.")}
    build_pipeline(recipe_of("dit"), folders["encoders"], average).save_pretrained(tmp_path)
    model = build_task(recipe_of("dit", start=str(tmp_path)), encoders).models["transformer"]
    assert all(torch.equal(w, average[f"transformer.{name}"]) for name, w in model.named_parameters())


def test_every_weight_has_exactly_one_optimizer(folders: dict[str, Path]) -> None:
    recipe = recipe_of("dit", optimizer="muon")
    learner = build_learner(recipe, build_task(recipe, load_encoders(folders["encoders"], 3)))
    muon, adam = ([id(w) for group in each.param_groups for w in group["params"]] for each in learner.optimizers)
    assert sorted(muon + adam) == sorted(id(weight) for _, weight in learner.named_weights())
    hidden = {name for name, weight in learner.named_weights() if id(weight) in muon}
    assert "transformer.transformer_blocks.0.attn.add_k_proj.weight" in hidden
    assert "transformer.transformer_blocks.1.ff.net.2.weight" in hidden
    assert not any(part in name for name in hidden for part in ("norm", "embed", "proj_out", "layout."))


def test_command_keeps_its_recipe(folders: dict[str, Path], tmp_path: Path) -> None:
    options = ["--model", "dit", "--out", str(tmp_path), "--minutes", "0"]
    options += ["--encoders", str(folders["encoders"]), "--scenes", str(folders["scenes"])]
    small = {name: value for name, value in SMALL.items() if name != "unet_channels"}
    options += [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert command.main(options) == 3
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["head_width"] == 16
    assert command.main([*options, "--rate", "1e-4"]) == 3
    with pytest.raises(BadSetting, match="batch of the run"):
        command.main([*options, "--batch", "8"])


def test_impossible_recipes_are_refused() -> None:
    for changes in ({"model": "vit"}, {"optimizer": "lion"}, {"ghost_share": 2.0}, {"steps": 0}, {"layout_block": 2}):
        with pytest.raises(BadSetting):
            replace(recipe_of("dit"), **changes)
