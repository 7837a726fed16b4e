"""Every number of the text encoders' training."""

from __future__ import annotations

from dataclasses import dataclass

from t2ictl.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe:
    """Sizes, lengths and rates of one contrastive text encoder.

    Args:
        part: ``"clip"`` or ``"clip-2"``: names the run's streams of randomness.
        seed: of the run.
        width: of the text encoder, and of the space that both towers project to.
        layers: of the text encoder.
        heads: of its attention.
        length: positions, tokens.
        channels: of the image tower at 8x8 and 4x4.
        steps: updates.
        batch: pairs an update.
        rate: highest learning rate.
        warmup: updates of linear rise.
        decay_share: part of the updates, at the end, in which the rate falls to zero.
        weight_decay: of the matrices.
        held_out: scenes at the end of the cache that only the evaluation sees.
        checkpoint_every: updates between two checkpoints.
        evaluate_every: updates between two evaluations.

    Raises:
        BadSetting: a length below 1.

    Example:
        >>> ContrastiveRecipe(part="clip").width
        128
    """

    part: str
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    length: int = 24
    channels: tuple[int, int] = (48, 96)
    steps: int = 1_600
    batch: int = 256
    rate: float = 1.5e-3
    warmup: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.05
    held_out: int = 2_000
    checkpoint_every: int = 50
    evaluate_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "held_out", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use at least 1.")


#: The recipes to use.
CLIP = ContrastiveRecipe(part="clip")
CLIP_2 = ContrastiveRecipe(part="clip-2", width=64, layers=3)
