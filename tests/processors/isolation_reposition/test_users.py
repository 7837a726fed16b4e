"""Isolation and reposition on what users run: regions that are learned, mistakes, memory, other controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t2ictl
from t2ictl.controls.layouts import Region
from t2ictl.controls.registry import control_from_dict, control_to_dict
from t2ictl.errors import BadSetting, ControlConflict, SpanNotFound, UnsupportedPipeline
from t2ictl.processors import AttentionSegregation, IsolationReposition, StructuredGuidance, TokenMerging
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.processors.token_merging.groups import WordGroup
from t2ictl.settings.windows import Window
from tests.allocations import Largest
from tests.processors.isolation_reposition.isolation_cases import (
    CAST,
    CAT,
    CORNER,
    DOG,
    LEFT,
    MIDDLE,
    RIGHT,
    SCENE,
    STORY,
    Heard,
    Shown,
    Story,
    cells,
    check_cross,
    check_self,
    controlled_run,
    dense_cross,
    heard_in,
    names,
    same,
)
from tests.processors.structured_guidance.structured_cases import PHRASES, PROMPT, Loop, noise, recipes
from tests.session.pipeline_cases import fuse, give_image_prompt, old_processors, slice_attention
from tests.tiny import run, sd, sdxl

PROMPTS = [SCENE, CAT, DOG]  # start a cat and a dog ...: 2 and 5; start photo of a cat: 4
ONLINE: dict[str, Any] = {"subjects": (Subject(name="cat", prompt=CAT), Subject(name="dog", prompt=DOG))}
TOKENS = ((0, 2), (0, 5), (1, 4), (2, 4))  # image and position: cat and dog of the scene, cat, dog
READING = {sd: ("up_blocks.2", "up_blocks.3"), sdxl: ("up_blocks.0.attentions.1", "up_blocks.1")}


# -- regions that are learned -----------------------------------------------------------------------------------------


def word_maps(heard: Heard, step: int, size: tuple[int, int]) -> list[Tensor]:
    """The maps of the words in one evaluation: mean of all heads of the layers of a size, smoothed."""
    chosen = [each for each in heard.at(step).of("cross") if each.size == size]
    found = []
    for image, token in TOKENS:
        weights = []
        for layer in chosen:
            assert layer.context is not None
            row = len(layer.hidden) - 3 + image
            q = layer.attn.to_q(layer.hidden[row]).unflatten(-1, (layer.attn.heads, -1)).transpose(0, 1)
            k = layer.attn.to_k(layer.context[row]).unflatten(-1, (layer.attn.heads, -1)).transpose(0, 1)
            weights.append((layer.attn.scale * q @ k.mT).softmax(dim=-1)[..., token])
        line = torch.exp(-2 * torch.tensor([-1.0, 0.0, 1.0]) ** 2)
        kernel = torch.outer(line, line) / line.sum() ** 2
        flat = torch.cat(weights).mean(dim=0).view(1, 1, *size)
        found.append(F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="reflect"), kernel[None, None])[0, 0])
    return found


def above_otsu(chart: Tensor) -> Tensor:
    """Cells of the upper of the two classes that differ most."""
    values = sorted(chart.double().flatten().tolist())
    best, cut = -1.0, values[-1]
    for split in range(1, len(values)):
        low, high = values[:split], values[split:]
        between = len(low) * len(high) * (sum(high) / len(high) - sum(low) / len(low)) ** 2
        if between > best * (1 + 1e-12):
            best, cut = between, low[-1]
    return chart.double() > cut


@torch.no_grad()
def learned(heard: Heard, steps: int, size: tuple[int, int], ema: float) -> list[list[Tensor]]:
    """Where cat and dog are in scene and portraits after each evaluation: Otsu, largest share, average."""
    held: list[Tensor] = []
    found = []
    for step in range(steps):
        fresh = word_maps(heard, step, size)
        held = [ema * a + (1 - ema) * b for a, b in zip(held or fresh, fresh, strict=True)]
        share = [each / each.mean() for each in held]
        cat, dog, alone_cat, alone_dog = (above_otsu(each) for each in held)
        found.append([cat & (share[0] >= share[1]), dog & (share[1] >= share[0]), alone_cat, alone_dog])
    return found


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("build", [sd, sdxl])
def test_regions_are_those_of_the_maps_of_the_evaluations_before(build: Any, ema: float) -> None:
    pipe, settings = build(), ONLINE | {"ema": ema}
    heard, size = heard_in(pipe, PROMPTS, settings, steps=3), (16, 16) if build is sd else (8, 8)
    places = learned(heard, 2, size, ema)
    assert any(not torch.equal(one, other) for one, other in zip(*places, strict=True))
    for layer in heard.at(0).layers:
        assert torch.equal(layer.out, layer.plain)
    for step, (cat, dog, alone_cat, alone_dog) in enumerate(places, start=1):
        assert cat.any() and dog.any() and not (cat & dog).any()
        story = {0: [Shown(cat, 1, alone_cat), Shown(dog, 2, alone_dog)]}
        check_self(heard.at(step), story, {}, names(pipe), names(pipe, *READING[build]))
        check_cross(heard.at(step), story, {})


@pytest.mark.parametrize("word", ["cat", "dog"])
def test_given_regions_stand_from_the_first_step_and_others_are_learned(word: str) -> None:
    """One has a place in the scene, the other one in its portrait; at overlaps the given one has it."""
    pipe, is_cat = sd(), word == "cat"
    own: dict[str, Any] = {} if is_cat else {"box": MIDDLE}
    other: dict[str, Any] = {"mask": CORNER} if is_cat else {}
    cast = {
        "subjects": (Subject(name="cat", prompt=CAT, **own), Subject(name="dog", prompt=DOG, **other)),
        "layout": ((Region(word=word, box=LEFT),), (), ()),
    }
    heard = heard_in(pipe, PROMPTS, cast, steps=2)
    ((cat, dog, alone_cat, alone_dog),) = learned(heard, 1, (16, 16), 0.5)
    nowhere = torch.zeros(16, 16)
    first = [Shown(LEFT, 1), Shown(nowhere, 2, CORNER)] if is_cat else [Shown(nowhere, 1, MIDDLE), Shown(LEFT, 2)]
    second = [Shown(LEFT, 1, alone_cat), Shown(dog, 2, CORNER)]
    if not is_cat:
        second = [Shown(cat, 1, MIDDLE), Shown(LEFT, 2, alone_dog)]
        assert (cat & cells(LEFT, 16, 16)).any()
    for step, shown in enumerate((first, second)):
        check_self(heard.at(step), {0: shown}, {}, names(pipe), names(pipe, *READING[sd]))
        check_cross(heard.at(step), {0: shown}, {})


def test_concepts_for_all_prompts_and_regions_of_portraits() -> None:
    """Portraits are about their subject alone, and their own list of the layout may say where it is."""
    pipe, regions = sd(), CAST["layout"]
    expected = controlled_run(pipe, PROMPTS, CAST)
    assert torch.equal(controlled_run(pipe, PROMPTS, CAST | {"concepts": ("cat", "dog")}), expected)
    assert torch.equal(controlled_run(pipe, PROMPTS, CAST | {"layout": (regions, (), ())}), expected)
    there = ((Region(word="cat", box=MIDDLE),), (Region(word="dog", mask=CORNER),))
    told = controlled_run(pipe, PROMPTS, ONLINE | {"layout": (regions, *there)})
    assert torch.equal(told, expected)
    # What a concept calls in more words is the same subject.
    black = ["a black cat and a dog", CAT, DOG]
    concepts = (("black cat", "dog"), ("cat",), ("dog",))
    layout = ((Region(word="black cat", box=LEFT), Region(word="dog", box=RIGHT)), (), ())
    heard = heard_in(pipe, black, CAST | {"concepts": concepts, "layout": layout})
    check_self(heard, STORY, {}, names(pipe), names(pipe, *READING[sd]))
    check_cross(heard, STORY, {})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_name_inside_of_another_is_not_a_second_subject(order: tuple[int, int]) -> None:
    hats = ["photo of a hat", "photo of a red hat"]
    both = (Subject(name="hat", prompt=hats[0], box=MIDDLE), Subject(name="red hat", prompt=hats[1], mask=CORNER))
    cast = {"subjects": tuple(both[each] for each in order)}
    scenes: list[tuple[str, str, Shown]] = [
        ("a cat with a red hat", "red hat", Shown(LEFT, 2, CORNER)),
        ("a cat with a blue hat", "hat", Shown(LEFT, 1, MIDDLE)),
    ]
    for scene, word, shown in scenes:
        pipe, layout = sd(), ((Region(word=word, box=LEFT),), (), ())
        heard = heard_in(pipe, [scene, *hats], cast | {"layout": layout}, steps=2)
        check_self(heard, {0: [shown]}, {}, names(pipe), names(pipe, *READING[sd]))
        check_cross(heard, {0: [shown]}, {})


def test_blanks_around_prompts_do_not_matter() -> None:
    pipe = sd()
    found = controlled_run(pipe, [SCENE, f" {CAT}", f"{DOG} "], CAST)
    torch.testing.assert_close(found, controlled_run(pipe, PROMPTS, CAST), rtol=0, atol=1e-4)


def test_looking_costs_no_pass_and_changes_nothing() -> None:
    pipe = sd()
    control = IsolationReposition(**ONLINE, window=Window(start=0.99))
    with t2ictl.controlled(pipe, [control]) as session:
        found = run(pipe, PROMPTS, steps=3)
    assert torch.equal(found, run(pipe, PROMPTS, steps=3))
    assert session.cost.extra_forwards == 0 and session.cost.forwards == 18
    given = controlled_run(pipe, PROMPTS, CAST)
    with t2ictl.controlled(pipe, [IsolationReposition(**CAST)], record=True) as session:
        assert torch.equal(run(pipe, PROMPTS, steps=2), given)
    assert session.record.map("dog").shape == (16, 16)


# -- mistakes ---------------------------------------------------------------------------------------------------------

A_CAT, A_DOG = Subject(name="cat", prompt=CAT), Subject(name="dog", prompt=DOG)
A_REGION = Region(word="cat", box=LEFT)
MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"subjects": (A_CAT, Subject(name="frog", prompt="photo of a frog"))}, BadSetting, "'photo of a frog'.*none of"),
    ({"subjects": (A_CAT, Subject(name="cat", prompt=DOG))}, BadSetting, "the same name"),
    ({"subjects": (A_CAT, Subject(name="photo", prompt=CAT))}, BadSetting, "the same prompt"),
    ({"subjects": (Subject(name="dog", prompt=CAT),)}, SpanNotFound, "dog"),
    ({"subjects": (A_CAT,), "layout": ((A_REGION,), ())}, BadSetting, "layout has 2 lists for 3 prompts"),
    ({"subjects": (A_CAT,), "concepts": (("cat",),)}, BadSetting, "concepts has 1 lists for 3 prompts"),
    ({"subjects": (A_CAT,), "layout": (Region(word="bench", box=LEFT),)}, BadSetting, "region to 'bench'.*'cat'"),
    ({"subjects": (A_CAT,), "layout": ((), (), (Region(word="cat", box=LEFT),))}, SpanNotFound, "cat"),
    ({"subjects": (A_CAT,), "concepts": (("frog",), (), ())}, SpanNotFound, "frog"),
]


@pytest.mark.parametrize(("settings", "error", "message"), MISTAKES, ids=lambda each: str(each)[:40])
def test_mistakes_are_named_before_the_first_step(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    pipe = sd()
    with t2ictl.controlled(pipe, [IsolationReposition(**settings)]) as session:
        with pytest.raises(error, match=message):
            run(pipe, PROMPTS, steps=1)
    assert session.cost.forwards == 0


def test_subjects_are_checked_when_they_are_made() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompt": CAT}, "not clear"),
        ({"name": "cat"}, "not clear"),
        ({"name": "cat", "prompt": CAT, "box": LEFT, "mask": CORNER}, "a box and a mask"),
        ({"name": "cat", "prompt": CAT, "box": (0.5, 0.0, 0.2, 1.0)}, "box"),
        ({"name": "cat", "prompt": CAT, "mask": ((0, 0), (0, 0))}, "empty"),
    ]
    for fields, message in wrong:
        with pytest.raises(BadSetting, match=message):
            Subject(**fields)


def test_settings_with_subjects_and_regions_survive_json() -> None:
    nested = ((Region(word="cat", box=LEFT),), (), (Region(word="dog", mask=CORNER),))
    for settings in (CAST, CAST | {"layout": nested, "concepts": (("cat",), ("cat",), ("dog",))}):
        control = IsolationReposition(**settings)
        assert control_from_dict(control_to_dict(control)) == control


def test_image_prompts_and_masks_are_refused_and_everything_is_put_back() -> None:
    pipe = sd()
    call = give_image_prompt(pipe)
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(UnsupportedPipeline, match="IPAdapterAttnProcessor2_0.*unload_ip_adapter"):
        controlled_run(pipe, PROMPTS, CAST, **call)
    assert all(pipe.unet.attn_processors[name] is each for name, each in before.items())
    pipe.unload_ip_adapter()
    plain = run(pipe, PROMPTS, steps=1)

    def with_mask(_: Any, args: Any, kwargs: Any) -> Any:
        kwargs["attention_mask"] = torch.zeros(len(args[0]), 1, args[0].shape[1])
        return args, kwargs

    handles = [
        module.register_forward_pre_hook(with_mask, with_kwargs=True)
        for name, module in pipe.unet.named_modules()
        if name.endswith("attn1")
    ]
    with pytest.raises(UnsupportedPipeline, match="self-attention of .*self has a mask"):
        controlled_run(pipe, PROMPTS, CAST)
    for handle in handles:
        handle.remove()
    assert torch.equal(run(pipe, PROMPTS, steps=1), plain)
    assert not set(vars(pipe.unet)) & {"_t2ictl", "forward"} and "encode_prompt" not in vars(pipe)


# -- memory of the machine ------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "steps"), [(CAST | {"strength": 0.5}, 1), (ONLINE, 2)], ids=["given", "learned"])
def test_no_tensor_of_positions_by_positions_in_a_layer_of_64_by_64(settings: dict[str, Any], steps: int) -> None:
    pipe = sd(cross=(True, False), block_out_channels=(8, 8))
    call: dict[str, Any] = {"steps": steps, "height": 256, "width": 256, "guidance_scale": 1.0}
    with Largest() as plain:
        before = run(pipe, PROMPTS, **call)
    with Largest() as largest:
        found = controlled_run(pipe, PROMPTS, settings, **call)
    assert largest.elements <= 2 * plain.elements < 4096 * 4096 / 4
    assert not torch.equal(found, before)


# -- beside other controls, and on pipelines that were changed --------------------------------------------------------


def check_rows(pipe: Any, heard: Heard, story: Story = STORY) -> None:
    for step in {each.step for each in heard.layers}:
        for rows in {len(each.out) for each in heard.at(step).layers}:
            part, guided = heard.at(step, rows), rows == 6
            check_self(part, story, {}, names(pipe), names(pipe, *READING[sd]), guided)
            check_cross(part, story, {}, guided)


def test_extra_passes_of_segregation_are_edited_too() -> None:
    pipe, apart, losses = sd(), AttentionSegregation(concepts=(("cat", "dog"), ("cat",), ("dog",))), []
    heard = heard_in(pipe, PROMPTS, CAST, apart, steps=2)
    assert {len(each.out) for each in heard.layers} == {3, 6}
    check_rows(pipe, heard)
    for controls in ([apart], [apart, IsolationReposition(**CAST)], [IsolationReposition(**CAST), apart]):
        with t2ictl.controlled(pipe, controls) as session:
            run(pipe, PROMPTS, steps=2)
        losses.append(session.trace[0].total)
    assert (losses[1] - losses[0])[0].abs() > 1e-5 and torch.equal(losses[1][1:], losses[0][1:])
    assert torch.equal(losses[2], losses[1])


def test_structured_guidance_by_values_is_blended_and_by_keys_a_conflict() -> None:
    pipe, prompts = sd(), [PROMPT, "photo of a circle", "photo of a square"]
    shown = [Shown(LEFT, 1, MIDDLE), Shown(RIGHT, 2, MIDDLE)]
    own: dict[str, Any] = {
        "subjects": tuple(Subject(name=each.rsplit(maxsplit=1)[-1], prompt=each, box=MIDDLE) for each in prompts[1:]),
        "layout": (Region(word="circle", box=LEFT), Region(word="square", box=RIGHT)),
    }
    told = {"phrases": (PHRASES[0], (), ())}
    heard, loop = heard_in(pipe, prompts, own, StructuredGuidance(**told)), Loop(recipes(pipe, [PROMPT]))
    check_self(heard, {0: shown}, {}, names(pipe), names(pipe, *READING[sd]))
    for layer in heard.of("cross"):
        with torch.no_grad():
            base = loop(layer.attn, layer.hidden, layer.context)
        same(layer.out, dense_cross(layer, {0: shown}, {}, True, base)[0])
        assert (base - layer.plain)[3].abs().max() > 1e-3
    for keys in ({"mode": "keys"}, {"mode": "keys", "conjunction": "paper"}):
        second = StructuredGuidance(**told, **keys)
        with pytest.raises(ControlConflict, match="both set cross.keys"):
            heard_in(pipe, prompts, own, second)
        heard = heard_in(pipe, prompts, own | {"cross": 0.0}, second)
        check_self(heard, {0: shown}, {}, names(pipe), names(pipe, *READING[sd]))


@pytest.mark.filterwarnings("ignore:token_merging does nothing:UserWarning")
@pytest.mark.parametrize("is_merged", [False, True])
def test_rows_that_token_merging_moves_are_what_subjects_read(is_merged: bool) -> None:
    pipe, black = sd(), (WordGroup(noun="cat", members=("black",)),)
    if is_merged:
        other = TokenMerging(merge=True, entropy_steps=0, binding_steps=0, groups=(black, (), ()))
    else:
        other = TokenMerging(entropy_steps=2, thresholds=(0.0,), window=Window())
    heard = heard_in(pipe, ["a black cat and a dog", CAT, DOG], CAST, other, steps=2)
    texts = [each.context[3] for each in heard.of("cross") if len(each.out) == 6 and each.context is not None]
    plain = heard_in(pipe, ["a black cat and a dog", CAT, DOG], CAST).of("cross")[0]
    assert plain.context is not None and (texts[-1] - plain.context[3]).abs().max() > 0.01
    check_rows(pipe, Heard(layers=[each for each in heard.layers if len(each.out) == 6], draws=heard.draws))


def test_two_of_them_are_a_conflict() -> None:
    with pytest.raises(ControlConflict, match="both set self.keys"):
        controlled_run(sd(), PROMPTS, CAST, IsolationReposition(**CAST))


@pytest.mark.parametrize("switch_on", [fuse, slice_attention, old_processors])
def test_switches_of_the_pipeline_change_rounding_only(switch_on: Callable[[Any], None]) -> None:
    pipe = sd()
    expected = controlled_run(pipe, PROMPTS, CAST)
    switch_on(pipe)
    torch.testing.assert_close(controlled_run(pipe, PROMPTS, CAST), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    settings, latents = CAST | {"strength": 0.7, "ref_strength": 0.5}, noise(3)
    found = controlled_run(sdxl(dtype=dtype), PROMPTS, settings, latents=latents.to(dtype))
    expected = controlled_run(sdxl(), PROMPTS, settings, latents=latents)
    plain = run(sdxl(), PROMPTS, steps=2, latents=latents)
    assert found.dtype == dtype
    far, moved = (found.to(expected) - expected)[0].abs().mean(), (expected - plain)[0].abs().mean()
    assert far < {torch.float64: 1e-3, torch.float16: 0.1, torch.bfloat16: 1.0}[dtype] * moved
