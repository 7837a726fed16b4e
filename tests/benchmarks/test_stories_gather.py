"""The ConsiStory-style baseline: every layer against a loop over rows with plain softmax, and who reads what."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.benchmarks.studies.stories import key_gather
from t2ictl.benchmarks.studies.stories.key_gather import KeyGather
from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.places import SubjectRegions
from t2ictl.processors.isolation_reposition.subjects import Subject
from tests.processors.isolation_reposition.isolation_cases import (
    CAT,
    CORNER,
    DOG,
    MIDDLE,
    SCENE,
    Heard,
    Layer,
    Shown,
    labels_of,
    listening,
    names,
    same,
)
from tests.tiny import run, sd, sdxl

SUBJECTS = (Subject(name="cat", prompt=CAT, box=MIDDLE), Subject(name="dog", prompt=DOG, mask=CORNER))
PROMPTS = [SCENE, CAT, DOG]
SHOWN = {1: MIDDLE, 2: CORNER}
Draws = dict[tuple[int, int, int, tuple[int, int]], Tensor]


def heard_in(pipe: Any, control: KeyGather, prompts: Any = PROMPTS, **call: Any) -> tuple[Heard, Draws]:
    """All layers of a run, and the draws by reader, portrait, step and size."""
    draws: Draws = {}
    drawn = key_gather._Gather.drawn

    def draw(edit: Any, layer: Any, image: int, portrait: int) -> Tensor:
        made: Tensor = drawn(edit, layer, image, portrait)
        draws[image, portrait, layer.step.index, layer.size] = made
        return made

    with listening(pipe) as heard, patch.object(key_gather._Gather, "drawn", draw), t2ictl.controlled(pipe, [control]):
        run(pipe, prompts, **{"steps": 2} | call)
    return heard, draws


@torch.no_grad()
def dense(layer: Layer, draws: Draws, portraits: dict[int, Any], guided: bool) -> Tensor:
    """Row by row: own keys, and of every other portrait the cells of its subject that did not drop out."""
    out, attn = layer.plain, layer.attn
    images = len(layer.hidden) // (2 if guided else 1)
    for row in range(len(layer.hidden)):
        image, states = row % images, [layer.hidden[row]]
        for portrait, place in portraits.items():
            if portrait == image:
                continue
            stays = draws[image, portrait, layer.step, layer.size]
            is_there = labels_of([Shown(place)], *layer.size) > 0
            states += [layer.hidden[row - image + portrait][[n]] for n in range(len(stays)) if is_there[n] and stays[n]]
        keys = torch.cat(states)
        q, k, v = (
            each.unflatten(-1, (attn.heads, -1)).transpose(0, 1)
            for each in (attn.to_q(layer.hidden[row]), attn.to_k(keys), attn.to_v(keys))
        )
        weights = (attn.scale * q @ k.mT).softmax(dim=-1)
        out[row] = attn.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
    return out


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_are_those_of_a_loop(build: Any, guided: bool) -> None:
    pipe = build()
    heard, draws = heard_in(pipe, KeyGather(SUBJECTS), guidance_scale=7.5 if guided else 1.0)
    up, changed = names(pipe, "up_blocks"), 0.0
    for layer in heard.of("self"):
        if layer.step == 0 or layer.name not in up:
            assert torch.equal(layer.out, layer.plain)
        else:
            same(layer.out, dense(layer, draws, SHOWN, guided))
            changed = max(changed, float((layer.out - layer.plain).abs().max()))
    assert changed > 1e-3
    assert {key[:2] for key in draws} == {(0, 1), (0, 2), (1, 2), (2, 1)}  # a portrait reads the others
    for layer in heard.of("cross"):
        assert torch.equal(layer.out, layer.plain)


def test_half_of_the_keys_drop_out_anew_in_each_step() -> None:
    _, draws = heard_in(sd(), KeyGather(SUBJECTS), steps=4)
    kept = torch.cat([each.float() for each in draws.values()])
    assert 0.4 < float(kept.mean()) < 0.6
    sizes = {key[3] for key in draws}
    largest = max(sizes)
    assert not torch.equal(draws[0, 1, 1, largest], draws[0, 1, 2, largest])
    assert not torch.equal(draws[0, 1, 1, largest], draws[2, 1, 1, largest])


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_at_its_ends(dropout: float, share: float) -> None:
    pipe = sd()
    heard, draws = heard_in(pipe, KeyGather(SUBJECTS, dropout=dropout))
    assert all(float(each.float().mean()) == share for each in draws.values())
    for layer in heard.at(1).of("self"):
        if dropout == 1:
            same(layer.out, layer.plain)


def test_draws_do_not_depend_on_the_batch() -> None:
    """Another scene in front of it, and other places of the portraits: the same keys stay."""
    _, few = heard_in(sd(), KeyGather(SUBJECTS))
    _, many = heard_in(sd(), KeyGather(SUBJECTS), ["a dog and a cat", DOG, SCENE, CAT])
    for (image, portrait, step, size), kept in few.items():
        place = {0: 2, 1: 3, 2: 1}
        assert torch.equal(kept, many[place[image], place[portrait], step, size])
    _, other = heard_in(sd(), KeyGather(SUBJECTS, seed=1))
    assert any(not torch.equal(kept, other[key]) for key, kept in few.items())


def test_places_are_learned_where_none_is_given() -> None:
    """By the words' own maps, from the first step on."""
    pipe, learned = sd(), [Subject(name="cat", prompt=CAT), Subject(name="dog", prompt=DOG)]
    seen: list[Tensor] = []
    take = SubjectRegions.take

    def taken(places: SubjectRegions, maps_BYXT: Tensor) -> None:
        take(places, maps_BYXT)
        assert places._seen_BNYX is not None
        seen.append(places._seen_BNYX.clone())

    with patch.object(SubjectRegions, "take", taken):
        heard, draws = heard_in(pipe, KeyGather(learned))
    assert len(seen) == 2
    shown = {portrait: seen[0][portrait, 0] for portrait in (1, 2)}  # what the step before has shown
    for layer in heard.at(1).of("self"):
        if layer.name in names(pipe, "up_blocks"):
            same(layer.out, dense(layer, draws, shown, True))


def test_of_several_images_of_a_prompt_each_reads_the_portrait_of_its_own() -> None:
    _, draws = heard_in(sd(), KeyGather(SUBJECTS), num_images_per_prompt=2)
    pairs = {key[:2] for key in draws}
    assert pairs == {(0, 2), (0, 4), (1, 3), (1, 5), (2, 4), (3, 5), (4, 2), (5, 3)}


def test_bad_dropout_and_nobody() -> None:
    with pytest.raises(BadSetting, match="no share"):
        KeyGather(SUBJECTS, dropout=1.5)
    pipe = sd()
    plain = run(pipe, SCENE, steps=2)
    with t2ictl.controlled(pipe, [KeyGather(())]):
        assert torch.equal(run(pipe, SCENE, steps=2), plain)
