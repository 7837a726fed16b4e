"""Every number of the recipes of denoisers on frozen encoders, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from t2ictl.errors import BadSetting

MODELS = ("dit", "clip")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class FrozenRecipe:
    """Sizes, lengths and rates.

    Args:
        model: ``"dit"``, a transformer of the class of Stable Diffusion 3, or ``"clip"``, the U-Net of ``shapes``.
        start: folder of an exported model whose denoiser is the start; empty: from nothing.
        seed: names the run; batches and noise are functions of it and of the update.
        layers: blocks of the transformer.
        heads: its attention heads.
        head_width: their width.
        unet_channels: width of the U-Net at 16x16 and at 8x8.
        unet_heads: its attention heads.
        steps: updates.
        batch: images an update.
        rate: highest learning rate.
        optimizer: ``"adamw"``, or ``"muon"`` for hidden matrices and AdamW for the rest.
        warmup: updates of linear warm-up.
        decay_share: part of the updates, at the end, in which the rate falls to zero.
        ema_decay: per update, once warmed up.
        empty_share: part of the captions that is empty, for classifier-free guidance.
        ghost_share: part of the captions that names an object that is not in the image.
        swap_share: part of the captions of several objects with two attributes exchanged.
        fine_share: of the U-Net: part of the training times in the last 300 steps of denoising.
        long_share: of the transformer: part of the captions that is read as if padded to ``long_rows`` T5 rows.
        long_rows: T5 rows that the stock pipeline makes when it is not told otherwise.
        layout_weight: of the transformer: weight of the auxiliary head that reads the layout; 0 leaves it out.
        layout_block: block, from 0, whose image rows that head reads.
        shift: of the exported scheduler of the transformer.
        checkpoint_every: updates between two checkpoints.
        snapshot_every: updates between two kept averages.
        validate_every: updates between two validations of the average.
        validation_scenes: held-out scenes of a validation.

    Raises:
        BadSetting: a share outside 0..1, a length below 1, or an unknown model or optimizer.

    Example:
        >>> FrozenRecipe(model="dit", steps=10).steps
        10
    """

    model: str
    start: str = ""
    seed: int = 0
    layers: int = 6
    heads: int = 4
    head_width: int = 48
    unet_channels: tuple[int, ...] = (48, 96)
    unet_heads: int = 2
    steps: int = 12_000
    batch: int = 32
    rate: float = 1e-3
    optimizer: str = "adamw"
    warmup: int = 100
    decay_share: float = 0.6
    ema_decay: float = 0.998
    empty_share: float = 0.1
    ghost_share: float = 0.35
    swap_share: float = 0.3
    fine_share: float = 0.12
    long_share: float = 0.25
    long_rows: int = 256
    layout_weight: float = 0.3
    layout_block: int = 3
    shift: float = 1.0
    checkpoint_every: int = 200
    snapshot_every: int = 1_000
    validate_every: int = 500
    validation_scenes: int = 512

    def __post_init__(self) -> None:
        for name, value, known in (("model", self.model, MODELS), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise BadSetting(f"{name} is {value!r}.", f"Use one of {', '.join(known)}.")
        for name in ("empty_share", "ghost_share", "swap_share", "long_share", "ema_decay", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use a number from 0 to 1.")
        for name in ("layers", "steps", "batch", "checkpoint_every", "snapshot_every", "validate_every"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use at least 1.")
        if not 0 <= self.layout_block < self.layers:
            raise BadSetting(f"layout_block is {self.layout_block}.", f"Use 0 to {self.layers - 1}.")
