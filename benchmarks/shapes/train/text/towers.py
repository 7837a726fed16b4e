"""The two towers of a contrastive run: the text encoder that is kept and the image encoder that is thrown away."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.text.settings import ContrastiveRecipe

#: The large CLIPs begin here and go no further than 100.
FIRST_SCALE, HIGHEST_SCALE = 1 / 0.07, 100.0


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity.

    Args:
        channels: in and out.

    Example:
        >>> Residual(16)(torch.zeros(1, 16, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions see, shape kept."""
        return x_BCYX + self.body(x_BCYX)


def build_image_tower(recipe: ContrastiveRecipe) -> nn.Sequential:
    """Make an untrained encoder of latents of 16x16 cells.

    Args:
        recipe: ``channels`` and ``width``.

    Returns:
        A module from ``(B, 4, 16, 16)`` to ``(B, width)``; it flattens its last 4x4 cells, so that it knows places.

    Example:
        >>> build_image_tower(ContrastiveRecipe(part="clip"))(torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 128])
    """
    fine, coarse = recipe.channels
    return nn.Sequential(
        nn.Conv2d(4, fine, 2, stride=2),
        Residual(fine),
        nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
        Residual(coarse),
        nn.GroupNorm(8, coarse),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16 * coarse, 2 * coarse),
        nn.SiLU(),
        nn.Linear(2 * coarse, recipe.width),
    )


def build_clip(recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Make an untrained text encoder, causal and pooled at its first end token.

    Args:
        recipe: width, layers, heads and length.
        tokenizer: its size and special tokens.

    Returns:
        The encoder; attention is explicit, which is faster than a fused kernel here.

    Example:
        >>> from t2ictl.benchmarks.shapes.train.settings import Recipe
        >>> from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
        >>> build_clip(ContrastiveRecipe(part="clip"), build_tokenizer(Recipe())).config.projection_dim
        128
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        projection_dim=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    return CLIPTextModelWithProjection(config)


class Towers(nn.Module):
    """Both encoders and the learned scale of their cosines.

    Args:
        recipe: of the run.
        tokenizer: of the text encoder.

    Example:
        >>> from t2ictl.benchmarks.shapes.train.settings import Recipe
        >>> from t2ictl.benchmarks.shapes.train.vocabulary import build_tokenizer
        >>> towers = Towers(ContrastiveRecipe(part="clip"), build_tokenizer(Recipe()))
        >>> round(float(towers.log_scale.exp()), 2)
        14.29
    """

    def __init__(self, recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream(recipe.seed, recipe.part, 0).integers(2**31)))
            self.text = build_clip(recipe, tokenizer)
            self.image = build_image_tower(recipe)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def encode_text(self, tokens: list[list[int]], pad: int) -> torch.Tensor:
        """Encode token rows of different lengths, in groups of similar length.

        Nothing is computed for padding that the causal encoder does not read.

        Args:
            tokens: ``B`` rows with start and end.
            pad: token that fills up.

        Returns:
            Unit vectors, shape ``(B, width)``, in the order of the rows.
        """
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        pieces = []
        for start in range(0, len(order), 64):
            rows = [tokens[row] for row in order[start : start + 64]]
            ids_BT = torch.tensor([row + [pad] * (len(rows[-1]) - len(row)) for row in rows])
            pieces.append(self.text(ids_BT).text_embeds)
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        return nn.functional.normalize(torch.cat(pieces)[place], dim=-1)

    def encode_images(self, latents_BCYX: torch.Tensor) -> torch.Tensor:
        """Encode latents, shape ``(B, 4, 16, 16)``, to unit vectors, shape ``(B, width)``."""
        return nn.functional.normalize(self.image(latents_BCYX), dim=-1)

    def loss(self, tokens: list[list[int]], pad: int, latents_BCYX: torch.Tensor) -> torch.Tensor:
        """Compute the symmetric contrastive loss of ``B`` pairs, a scalar in nats."""
        cosine_BB = self.encode_text(tokens, pad) @ self.encode_images(latents_BCYX).T
        logits_BB = self.log_scale.exp().clamp(max=HIGHEST_SCALE) * cosine_BB
        truth_B = torch.arange(len(tokens))
        cross = nn.functional.cross_entropy
        return (cross(logits_BB, truth_B) + cross(logits_BB.T, truth_B)) / 2
