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


@dataclass(frozen=True, kw_only=True)
class SpanRecipe:
    """Sizes, lengths and rates of the encoder that learns by filling gaps.

    Args:
        part: names the run's streams of randomness.
        seed: of the run.
        width: of the encoder; the widths of both contrastive encoders together, as a pipeline pads their rows to it.
        layers: of the encoder.
        decoder_layers: of the decoder that is thrown away.
        heads: of attention.
        head_width: of each head.
        hidden: of the feed-forward layers.
        buckets: of relative positions, both directions together.
        max_distance: from which on all distances are one bucket.
        tokens: an update, padding included.
        lengths: padded lengths of updates; rows must hardly depend on the padding behind them.
        length_shares: part of the updates that has each of them.
        closed_share: part of the texts that are captions of cached scenes.
        corrupted: lowest and highest part of a text's tokens that is hidden.
        mean_span: lowest and highest mean length of a gap, tokens.
        steps: updates.
        rate: highest learning rate.
        place_factor: how much faster the biases of relative positions learn, which alone tell T5 where words are.
        warmup: updates of linear rise.
        decay_share: part of the updates, at the end, in which the rate falls to zero.
        weight_decay: of the matrices.
        held_out: scenes at the end of the cache that only the evaluation sees.
        checkpoint_every: updates between two checkpoints.
        evaluate_every: updates between two evaluations.

    Raises:
        BadSetting: a length below 1.

    Example:
        >>> SpanRecipe().width == CLIP.width + CLIP_2.width
        True
    """

    part: str = "t5"
    seed: int = 0
    width: int = 192
    layers: int = 4
    decoder_layers: int = 2
    heads: int = 6
    head_width: int = 32
    hidden: int = 384
    buckets: int = 16
    max_distance: int = 24
    tokens: int = 2_048
    lengths: tuple[int, ...] = (24, 32, 48, 64, 128, 256)
    length_shares: tuple[float, ...] = (0.3, 0.15, 0.15, 0.1, 0.15, 0.15)
    closed_share: float = 0.35
    corrupted: tuple[float, float] = (0.15, 0.4)
    mean_span: tuple[float, float] = (1.5, 3.0)
    steps: int = 2_300
    rate: float = 3e-3
    place_factor: float = 20.0
    warmup: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    held_out: int = 2_000
    checkpoint_every: int = 50
    evaluate_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "held_out", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} is {getattr(self, name)}.", "Use at least 1.")


T5 = SpanRecipe()
