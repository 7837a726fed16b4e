"""A run: frozen encoders, drawn scenes, one denoiser that learns, and its validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from t2ictl.benchmarks.shapes.train.data import mixed_scene
from t2ictl.benchmarks.shapes.train.denoiser import is_hidden_matrix
from t2ictl.benchmarks.shapes.train.frozen.batches import draw_captions, make_batch, spread_points
from t2ictl.benchmarks.shapes.train.frozen.dit import FlowTask
from t2ictl.benchmarks.shapes.train.frozen.encoders import Encoders, Text, load_encoders
from t2ictl.benchmarks.shapes.train.frozen.layout import Layout
from t2ictl.benchmarks.shapes.train.frozen.settings import FrozenRecipe
from t2ictl.benchmarks.shapes.train.frozen.unet import NoiseTask
from t2ictl.benchmarks.shapes.train.learner import Learner, Measured, Records, advance, learn
from t2ictl.benchmarks.shapes.train.loop import Deadline, append_log, stream, torch_stream
from t2ictl.benchmarks.shapes.train.muon import Muon
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes, encode_scenes, load_autoencoder
from t2ictl.benchmarks.shapes.train.settings import Recipe
from t2ictl.benchmarks.shapes.train.team import ALONE, Team

Task = FlowTask | NoiseTask
#: How many encoders each model reads.
ENCODERS = {"dit": 3, "clip": 1}
#: Parts of names of weights that Muon leaves to AdamW beside those of ``is_hidden_matrix``.
NOT_HIDDEN = ("norm", "transformer.proj_out", "layout.")
#: Images of a pass of the validation.
CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Scenes of the tuning split, with noise and true captions: always the same, whatever the run.

    Args:
        latents: shape ``(N, 4, y, x)``.
        noise: of the same shape.
        points: uniform and stratified times, 0 to 1, shape ``(N,)``.
        text: of their captions.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    points: torch.Tensor
    text: Text

    @torch.no_grad()
    def error(self, task: Task, learner: Learner, shadow: torch.nn.Module, team: Team = ALONE) -> float:
        """Measure the mean squared error of the average's velocity.

        Args:
            task: knows what is predicted.
            learner: has the average.
            shadow: a model of the same kind that takes the average.
            team: members share the scenes.

        Returns:
            Mean over scenes, uniform times and latent elements.
        """
        name = next(iter(learner.models))
        for key, weight in shadow.named_parameters():
            weight.copy_(learner.average[f"{name}.{key}"])
        total = torch.zeros(1)
        for start in range(0, len(self.points), CHUNK):
            rows = slice(start + team.rank, start + CHUNK, team.size)
            times = task.uniform_times(self.points[rows])
            total += task.errors(shadow, self.latents[rows], self.noise[rows], times, self.text[rows]).sum()
        team.sum_up([total])
        return float(total) / len(self.points)


def draw_held_out(world: Recipe, count: int, encoders: Encoders) -> HeldOut:
    """Draw what the average is validated on.

    Args:
        world: shares of kinds of scenes.
        count: scenes.
        encoders: frozen.

    Returns:
        Scenes of the tuning split with everything that a validation needs.
    """
    generator = stream(0, "validation", 0)
    scenes = [mixed_scene(world, generator, "tune") for _ in range(count)]
    captions = draw_captions(scenes, generator, encoders, ghost_share=0, swap_share=0)
    latents = encode_scenes(scenes, load_autoencoder()).float()
    noise = torch.randn(latents.shape, generator=torch_stream(generator))
    parts = [encoders.encode(captions[start : start + CHUNK]) for start in range(0, count, CHUNK)]
    text = Text(
        rows_BTW=torch.cat([part.rows_BTW for part in parts]),
        pooled_BP=torch.cat([part.pooled_BP for part in parts]),
        bias_B=torch.cat([part.bias_B for part in parts]),
    )
    return HeldOut(latents=latents, noise=noise, points=spread_points(count, generator), text=text)


def build_task(
    recipe: FrozenRecipe, encoders: Encoders, layout: Layout | None = None, is_compiled: bool = False
) -> Task:
    """Make the untrained model and what it learns by.

    Args:
        recipe: names the model.
        encoders: frozen.
        layout: of all scenes, for the transformer's auxiliary head.
        is_compiled: whether the model is compiled.

    Returns:
        The task of the recipe's model.
    """
    if recipe.model == "dit":
        return FlowTask(recipe, encoders, layout, is_compiled)
    return NoiseTask(recipe, encoders, is_compiled)


def build_learner(recipe: FrozenRecipe, task: Task, team: Team = ALONE) -> Learner:
    """Make the optimizers and the average of a task.

    Args:
        recipe: optimizer and rate.
        task: has the models.
        team: who else trains.

    Returns:
        A learner at update 0.
    """
    learner = Learner(models=task.models)

    def is_hidden(name: str, weight: torch.Tensor) -> bool:
        is_matrix = is_hidden_matrix(name, weight) and not any(part in name for part in NOT_HIDDEN)
        return is_matrix and recipe.optimizer == "muon"

    weights = learner.named_weights()
    hidden = [weight for name, weight in weights if is_hidden(name, weight)]
    others = [weight for name, weight in weights if not is_hidden(name, weight)]
    muon = [Muon(hidden, lr=recipe.rate, team=team, dtype=torch.float32)] if hidden else []
    adam = torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    learner.optimizers = (*muon, adam)
    learner.start_average()
    return learner


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made from; picklable, since every member of a team gets it.

    Args:
        recipe: every number.
        world: how the scenes were drawn.
        folder: checkpoint, log and kept averages.
        encoders: folder of the frozen encoders.
        deadline: stop, with a checkpoint, when it is over.
        is_compiled: whether the model is compiled.
    """

    recipe: FrozenRecipe
    world: Recipe
    folder: Path
    encoders: Path
    deadline: Deadline
    is_compiled: bool = False


def train_frozen(run: Run, drawn: DrawnScenes, layout: Layout | None, team: Team = ALONE) -> bool:
    """Train a denoiser on frozen encoders, or continue where a checkpoint stands.

    Args:
        run: what it is made from.
        drawn: all scenes.
        layout: of all scenes, where the recipe has an auxiliary head.
        team: who else trains.

    Returns:
        Whether the last update was reached.
    """
    recipe = run.recipe
    encoders = load_encoders(run.encoders, ENCODERS[recipe.model])
    task = build_task(recipe, encoders, layout, run.is_compiled)
    shadow = next(iter(build_task(recipe, encoders).models.values())).eval()
    learner = build_learner(recipe, task, team)
    held_out = draw_held_out(run.world, recipe.validation_scenes, encoders)

    def update(step: int) -> Measured:
        """Learn from one batch, and validate where it is due."""
        batch = make_batch(recipe, step, drawn, encoders).part(team)
        loss, measured = task.loss(batch, encoders.encode(batch.captions, batch.is_long, recipe.long_rows))
        advance(learner, loss, recipe, team)
        if learner.step % recipe.validate_every == 0 or learner.step == recipe.steps:
            error = round(held_out.error(task, learner, shadow, team), 5)
            if team.is_first:
                append_log(run.folder / "log.jsonl", stage="validation", step=learner.step, error=error)
        return measured

    return learn(learner, recipe, Records(folder=run.folder, name="denoiser"), run.deadline, update, team)
