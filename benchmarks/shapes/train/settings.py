"""Every number of the training recipe, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from t2ictl.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes, lengths and rates of the recipe.

    The defaults are the recipe to use; how the packaged weights came about is told in
    ``docs/shapes.md``. Tests use smaller values.

    Args:
        start: folder of an exported model to start from; empty: from nothing.
        seed: names the whole run; scenes, batches and noise are functions of it and of the step.
        images: scenes that the denoiser learns from.
        single_share: part of the scenes with one object; ``pair_share`` with two, the rest with three.
        pair_share: see ``single_share``.
        marked_share: part of the scenes of one or two objects whose objects have marks.
        vae_channels: width of the autoencoder, from full resolution inwards.
        vae_steps: updates of the autoencoder.
        vae_batch: images an update.
        vae_rate: highest learning rate, cosine decay.
        kl_weight: weight of the Kullback-Leibler term, per latent element in nats.
        foreground_weight: how much more a pixel of an object counts than one of the background.
        text_width: width of the text encoder.
        text_layers: its layers.
        text_length: its positions, tokens.
        unet_channels: width of the denoiser at 16x16 and at 8x8.
        unet_heads: attention heads at both levels.
        steps: updates of the denoiser and the text encoder.
        batch: images an update.
        rate: highest learning rate.
        decay_share: part of the updates, at the end, in which the rate falls to zero.
        warmup: updates of linear warm-up.
        ema_decay: per update, once warmed up.
        empty_share: part of the captions that is empty, for classifier-free guidance.
        fine_share: part of the training times in the last 300 steps of denoising, above 0 and below 1.
        ghost_share: part of the captions that names an object that is not in the image.
        swap_share: part of the captions of several objects with two attributes exchanged.
        checkpoint_every: updates between two checkpoints.
        snapshot_every: updates between two kept averages.

    Raises:
        BadSetting: a share outside 0..1, or a length below 1.

    Example:
        >>> Recipe(steps=10).steps
        10
    """

    start: str = ""
    seed: int = 0
    images: int = 40_000
    single_share: float = 0.22
    pair_share: float = 0.53
    marked_share: float = 0.4
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_steps: int = 1_300
    vae_batch: int = 16
    vae_rate: float = 2e-3
    kl_weight: float = 1e-4
    foreground_weight: float = 4.0
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 24
    unet_channels: tuple[int, ...] = (48, 96)
    unet_heads: int = 2
    steps: int = 11_500
    batch: int = 32
    rate: float = 1.3e-3
    decay_share: float = 0.6
    warmup: int = 100
    ema_decay: float = 0.998
    empty_share: float = 0.1
    fine_share: float = 0.12
    ghost_share: float = 0.35
    swap_share: float = 0.3
    checkpoint_every: int = 200
    snapshot_every: int = 1_000

    def __post_init__(self) -> None:
        for name in (
            "single_share",
            "pair_share",
            "marked_share",
            "empty_share",
            "ghost_share",
            "swap_share",
            "ema_decay",
            "decay_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use a number from 0 to 1.")
        for name in ("images", "vae_steps", "vae_batch", "steps", "batch", "checkpoint_every", "snapshot_every"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use at least 1.")
