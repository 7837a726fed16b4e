"""The contrastive stage: captions and drawn scenes find each other, and the text encoder is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import CLIPTokenizer

from t2ictl.benchmarks.shapes.train.captions import training_caption
from t2ictl.benchmarks.shapes.train.loop import stream
from t2ictl.benchmarks.shapes.train.scenes import DrawnScenes
from t2ictl.benchmarks.shapes.train.text.settings import ContrastiveRecipe
from t2ictl.benchmarks.shapes.train.text.towers import Towers

#: Pairs among which one is looked for in the evaluation, and how many times.
GALLERY, GALLERIES = 256, 4

Batch = tuple[list[list[int]], torch.Tensor]


def captioned(
    recipe: ContrastiveRecipe,
    tokenizer: CLIPTokenizer,
    drawn: DrawnScenes,
    indices: Sequence[int],
    generator: np.random.Generator,
    count: int,
) -> Batch:
    """Write a true caption of each scene and keep the first ones that the encoder can read whole.

    Args:
        recipe: ``length``.
        tokenizer: of the encoder.
        drawn: cached scenes.
        indices: which of them, in order.
        generator: of the captions.
        count: pairs to keep, at most.

    Returns:
        Token rows with start and end, and the latents of the same scenes, float32.
    """
    tokens: list[list[int]] = []
    kept: list[int] = []
    for index in indices:
        caption = training_caption(drawn.scenes[index], generator, ghost_share=0, swap_share=0)
        row = tokenizer(caption).input_ids
        if len(row) <= recipe.length:
            tokens.append(row)
            kept.append(index)
        if len(kept) == count:
            break
    return tokens, drawn.latents[kept].float()


def batch_of(recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer, drawn: DrawnScenes, step: int) -> Batch:
    """Make the pairs of one update, a function of the recipe and the update alone.

    Args:
        recipe: seed, part and batch.
        tokenizer: of the encoder.
        drawn: cached scenes; the last ``held_out`` are never chosen.
        step: from 0.

    Returns:
        Token rows and latents, ``batch`` pairs of different scenes.
    """
    generator = stream(recipe.seed, recipe.part, step + 1)
    seen = len(drawn) - recipe.held_out
    indices = generator.choice(seen, size=min(seen, recipe.batch + recipe.batch // 2), replace=False)
    return captioned(recipe, tokenizer, drawn, indices.tolist(), generator, recipe.batch)


@torch.no_grad()
def retrieval(
    recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer, drawn: DrawnScenes, towers: Towers
) -> dict[str, float]:
    """Look for the image of a caption, and for the caption of an image, among held-out scenes.

    Captions leave words out, so some of the images fit a caption as well as its own does.

    Args:
        recipe: which scenes are held out.
        tokenizer: of the encoder.
        drawn: cached scenes.
        towers: both encoders.

    Returns:
        Shares found among ``gallery`` pairs.
    """
    generator = stream(recipe.seed, recipe.part, 10**9)
    first = len(drawn) - recipe.held_out
    wanted = min(GALLERY * GALLERIES, recipe.held_out)
    tokens, latents = captioned(recipe, tokenizer, drawn, range(first, len(drawn)), generator, wanted)
    size = min(GALLERY, len(tokens))
    images, texts = [], []
    for start in range(0, len(tokens) - size + 1, size):
        text_BC = towers.encode_text(tokens[start : start + size], tokenizer.pad_token_id)
        image_BC = towers.encode_images(latents[start : start + size])
        cosine_BB, truth_B = text_BC @ image_BC.T, torch.arange(size)
        images.append(float((cosine_BB.argmax(1) == truth_B).float().mean()))
        texts.append(float((cosine_BB.argmax(0) == truth_B).float().mean()))
    return {
        "gallery": size,
        "images_found": round(float(np.mean(images)), 4),
        "captions_found": round(float(np.mean(texts)), 4),
    }


class Contrastive:
    """Both towers at their common objective.

    Args:
        recipe: every number.
        tokenizer: of the text encoder.
        drawn: cached scenes.
    """

    def __init__(self, recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer, drawn: DrawnScenes) -> None:
        self.recipe, self.tokenizer, self.drawn = recipe, tokenizer, drawn
        self.model = Towers(recipe, tokenizer)
        # Only matrices and kernels decay.
        matrices = [weight for weight in self.model.parameters() if weight.ndim > 1]
        others = [weight for weight in self.model.parameters() if weight.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizers = (torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98)),)

    def loss(self, step: int) -> torch.Tensor:
        """Compute the loss of an update's pairs."""
        tokens, latents = batch_of(self.recipe, self.tokenizer, self.drawn, step)
        return self.model.loss(tokens, self.tokenizer.pad_token_id, latents)

    def measure(self) -> dict[str, float]:
        """Measure retrieval on held-out scenes, and tell the scale of the cosines."""
        found = retrieval(self.recipe, self.tokenizer, self.drawn, self.model)
        return {"scale": round(float(self.model.log_scale.detach().exp()), 2), **found}
