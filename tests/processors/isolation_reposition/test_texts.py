"""What the positions of subjects are told in cross-attention: the portraits' phrases, spliced in or spelled out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl import PlanContext, Region, Subject, parse
from t2ictl.attention.batch import BatchLayout
from t2ictl.families import find_adapter
from t2ictl.processors.isolation_reposition.texts import description
from tests.processors.isolation_reposition.isolation_cases import (
    CAT,
    DOG,
    SCENE,
    Layer,
    Shown,
    controlled_run,
    heard_in,
    labels_of,
    same,
)
from tests.tiny import run, sd, sdxl

UPPER, LOWER, CENTER = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75)
LAYOUT = (Region(word="cat", box=UPPER), Region(word="dog", box=LOWER))
PLACES = [Shown(UPPER), Shown(LOWER)]
RED_CAT, BLUE_DOG = "a red cat", "photo of a small blue dog"
NAMED = (
    Subject(name="cat", prompt=RED_CAT, box=CENTER),
    Subject(name="dog", prompt=BLUE_DOG, box=CENTER),
)


def encoded(pipe: Any, *texts: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = pipe.encode_prompt(
            prompt=list(texts), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
    return found


def told(layer: Layer, row: int, context_KC: Tensor) -> Tensor:
    """Cross-attention of one row under another text."""
    attn = layer.attn
    q, k, v = (
        to(x).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        for to, x in ((attn.to_q, layer.hidden[row]), (attn.to_k, context_KC), (attn.to_v, context_KC))
    )
    out: Tensor = attn.to_out[0](((attn.scale * q @ k.mT).softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    return out


def _seeds(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize(
    ("how", "texts"),
    [
        (
            "inserted",
            (
                "a red cat and a small blue dog on a bench",
                "a red cat and a dog on a bench",
                "a cat and a small blue dog on a bench",
            ),
        ),
        ("in_full", ("a red cat and a small blue dog on a bench",) * 3),
    ],
)
@torch.no_grad()
def test_positions_are_told_the_phrases_of_portraits(build: Any, how: str, texts: tuple[str, ...]) -> None:
    """The background those of all; a subject its own, or those of all too. Phrases are those of the parser."""
    pipe = build()
    states, prompts = encoded(pipe, *texts), [RED_CAT, BLUE_DOG, SCENE]
    heard = heard_in(pipe, prompts, {"subjects": NAMED, "layout": LAYOUT, "subject_text": how, "cross": 0.75})
    for layer in heard.of("cross"):
        labels, expected = labels_of(PLACES, *layer.size), layer.plain
        for number in range(3):
            blended = 0.25 * layer.plain[5] + 0.75 * told(layer, 5, states[number])
            expected[5] = torch.where((labels == number)[:, None], blended, expected[5])
        same(layer.out, expected)
        assert (layer.out[5] - layer.plain[5]).abs().max() > 1e-3


def test_spelled_with_all_its_weight_is_the_plain_image_of_the_spelled_prompt() -> None:
    """But for the isolation, which is off, and for the unconditional side, which is the same."""
    pipe = sd()
    settings = {
        "subjects": NAMED,
        "layout": LAYOUT,
        "subject_text": "in_full",
        "cross": 1.0,
        "isolation": 0.0,
        "reposition": "off",
    }
    found = controlled_run(pipe, [RED_CAT, BLUE_DOG, SCENE], settings, generator=_seeds(0, 1, 2))
    spelled = "a red cat and a small blue dog on a bench"
    plain = run(pipe, [RED_CAT, BLUE_DOG, spelled], steps=2, generator=_seeds(0, 1, 2))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


def test_portraits_that_say_no_more_than_the_name_change_nothing() -> None:
    pipe = sd()
    subjects = (Subject(name="cat", prompt=CAT, box=CENTER), Subject(name="dog", prompt=DOG, box=CENTER))
    base: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT}
    told_, untold = (
        controlled_run(pipe, [CAT, DOG, SCENE], base | more) for more in ({"subject_text": "in_full"}, {"cross": 0.0})
    )
    assert torch.equal(told_, untold)


@pytest.mark.parametrize(
    ("name", "prompt", "words"),
    [
        ("cat", "a photo of a small black cat with green eyes", "small black cat with green eyes"),
        ("girl", "photo of a girl wearing a blue dress and a red hat", "girl wearing a blue dress and a red hat"),
        ("red hat", "a small red hat", "small red hat"),
        ("hat", "a cat with a red hat", "hat"),  # what belongs to another one has no phrase of its own
        ("dog", "a dog", "dog"),
    ],
)
def test_a_description_is_the_object_with_all_that_belongs_to_it(name: str, prompt: str, words: str) -> None:
    pipe = sd(max_length=77)
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True)
    context = PlanContext(adapter=find_adapter(pipe), prompts=(parse(pipe, SCENE),), batch=batch)
    assert description(Subject(name=name, prompt=prompt), context) == words
