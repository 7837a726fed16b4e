"""The published form of every control with a loss, value and gradient, against numbers of the papers' code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from t2ictl.controls.layouts import Region
from t2ictl.losses.boxes import box_losses, layout_energy
from t2ictl.losses.predicates import leak_table, possession_table
from t2ictl.losses.presence import presence_loss
from t2ictl.losses.self_attention import (
    conflict_loss,
    drift_loss,
    outside_peak_loss,
    published_self_cross_loss,
)
from t2ictl.maps.masks import binarize, peak_component
from t2ictl.maps.ops import smoothed_places
from t2ictl.processors import (
    AttendAndExcite,
    AttentionSegregation,
    BoxDiff,
    ContrastiveAttention,
    DivideAndBind,
    InitialNoise,
    LinguisticBinding,
    MapAlignment,
    PredicatedDiffusion,
    SelfCrossGuidance,
)
from tests.parity.golden import (
    Case,
    assert_array,
    assert_number,
    assert_terms,
    cases,
    objective,
    positions,
    span,
    step,
    value_and_gradients,
)


def nouns(case: Case, array: str = "nouns") -> list[list[list[int]]]:
    return [[[int(each)]] for each in case[array]]


@pytest.mark.parametrize("name", cases("attend_and_excite"))
def test_attend_and_excite(name: str) -> None:
    case = Case("attend_and_excite", name)
    raw_BYXT, last = case.raw(), int(case["last"])
    settings: dict[str, Any] = {} if case["smooth"] else {"smoothing": "none"}
    settings["normalize_over"] = "all_tokens" if last == raw_BYXT.shape[-1] - 1 else "prompt_words"
    given = objective(AttendAndExcite.published(**settings), raw_BYXT, nouns(case), end=last)
    losses, (grad,) = value_and_gradients(given, raw_BYXT)
    assert_number(losses.total, case.number("loss"))
    assert_number(losses.presence, 1 - case.number("loss"))  # type: ignore[arg-type]
    assert_array(grad[0], case.tensor("grad"))


@pytest.mark.parametrize("name", cases("a_star"))
def test_attention_segregation(name: str) -> None:
    case = Case("a_star", name)
    raw_BYXT, groups = case.raw(), [[[int(each) for each in word]] for word in case["concepts"]]
    for term in ("overlap", "retention"):
        weights = {"segregation": float(term == "overlap"), "retention": float(term == "retention")}
        given = objective(AttentionSegregation.published(**weights, normalize_over="all_tokens"), raw_BYXT, groups)
        if given.on_maps is not None:
            given.on_maps(case.raw("before"), step())
        losses, (grad,) = value_and_gradients(given, raw_BYXT)
        assert_number(losses.total, case.number(term))
        assert_array(grad[0], case.tensor(f"{term}_grad"))


@pytest.mark.parametrize("name", cases("a_star"))
def test_places_of_a_star(name: str) -> None:
    case = Case("a_star", name)
    maps_NYX = prepared(case, [[int(each) for each in word] for word in case["concepts"]], "before")
    assert torch.equal(binarize(maps_NYX, "otsu_8bit"), case.tensor("otsu").bool())
    assert torch.equal(binarize(maps_NYX, "otsu_8bit_peak"), case.tensor("masks").bool())


def prepared(case: Case, words: list[list[int]], array: str = "input") -> torch.Tensor:
    """The maps of some words after the standard preparation."""
    from t2ictl.controls.concepts import concept_table
    from t2ictl.maps.ops import concept_maps, gaussian_kernel, smooth, token_softmax

    raw_BYXT = case.raw(array)
    table = concept_table([[span(word) for word in words]])
    shares_BYXT = token_softmax(raw_BYXT, 1, raw_BYXT.shape[-1] - 1)
    return smooth(concept_maps(shares_BYXT, table.index_BNK, table.index_mask_BNK), gaussian_kernel())[0]


@pytest.mark.parametrize("name", cases("syngen"))
def test_linguistic_binding(name: str) -> None:
    case = Case("syngen", name)
    raw_BYXT, groups = case.raw(), positions(case["groups"])
    words = [int(each) for each in case["words"]]
    bare = any(len(group) == 1 for group in groups)
    if bare:  # what upstream offers and leaves off: as a loss, not as a control
        check_bare_nouns(case, raw_BYXT, groups, words)
        return
    losses, (grad,) = value_and_gradients(objective(LinguisticBinding.published(), raw_BYXT, groups, words), raw_BYXT)
    assert_terms(losses, {"positive": case.number("positive"), "negative": case.number("negative")})
    assert_array(grad[0], case.tensor("grad"))


def check_bare_nouns(case: Case, raw_BYXT: torch.Tensor, groups: list[list[list[int]]], words: list[int]) -> None:
    from t2ictl.losses.linguistic_binding import piecewise_binding_loss

    rows = [
        (piece, word, owner, word is group[-1])
        for owner, group in enumerate(groups)
        for word in group
        for piece in word
    ]
    taken = {piece for piece, *_ in rows}
    rows += [(word, [word], len(groups) + number, False) for number, word in enumerate(words) if word not in taken]
    leaf = raw_BYXT.clone().requires_grad_(True)
    maps_BPYX = leaf[..., [piece for piece, *_ in rows]].movedim(-1, 1)
    positive_B, negative_B = piecewise_binding_loss(
        maps_BPYX,
        torch.tensor([[word[0] for _, word, _, _ in rows]]),
        torch.tensor([[owner for _, _, owner, _ in rows]]),
        torch.tensor([[is_noun for *_, is_noun in rows]]),
        bare_nouns=True,
    )
    assert_number(positive_B, case.number("positive"))
    assert_number(negative_B, case.number("negative"))
    assert_array(torch.autograd.grad((positive_B + negative_B).sum(), leaf)[0][0], case.tensor("grad"))


@pytest.mark.parametrize("name", cases("divide_and_bind"))
def test_divide_and_bind(name: str) -> None:
    case = Case("divide_and_bind", name)
    raw_BYXT, binds = case.raw(), case["mode"] == "tv_bind"
    colors = [int(each) for each in case["colors"]] if binds else [0] * len(case["nouns"])
    groups = [[*([[color]] if color else []), [int(noun)]] for color, noun in zip(colors, case["nouns"], strict=True)]
    given = objective(DivideAndBind.published(normalize_over="all_tokens"), raw_BYXT, groups)
    finer = [case.raw("color_input") if binds else raw_BYXT for _ in given.also]
    losses, (grad, *color_grads) = value_and_gradients(given, raw_BYXT, *finer, at=step(int(case["step"])))
    assert_number(losses.total, case.number("loss"))
    assert_number(losses.presence, case.number("least_variation"))  # type: ignore[arg-type]
    assert_array(grad[0], case.tensor("grad"))
    if binds:
        assert_array(sum(each[0] for each in color_grads), case.tensor("color_grad"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cases("conform"))
def test_contrastive_attention(name: str) -> None:
    case = Case("conform", name)
    raw_BYXT, previous = case.raw(), "previous" in case
    normalize = {"normalize_over": "all_tokens"} if case["softmax"] else {}
    control = ContrastiveAttention.published(
        temperature=case.number("temperature"), previous_maps=previous, **normalize
    )
    given = objective(control, raw_BYXT, positions(case["groups"]))
    if given.on_maps is not None:
        given.on_maps(case.raw("previous"), step())
    losses, (grad,) = value_and_gradients(given, raw_BYXT)
    assert_number(losses.total, case.number("loss"))
    if name != "flat2":  # there it is noise of 1e-17
        assert_array(grad[0], case.tensor("grad"))


@pytest.mark.parametrize("name", cases("ebama"))
def test_map_alignment(name: str) -> None:
    case = Case("ebama", name)
    raw_BYXT, groups = case.raw(), positions(case["groups"])
    words, weight = [int(each) for each in case["words"]], case.number("weight")
    for term in ("binding", "intensity"):
        weights = {each: float(each == term) for each in ("binding", "intensity")}
        control = MapAlignment.published(**weights, normalize_over="all_tokens")
        losses, (grad,) = value_and_gradients(objective(control, raw_BYXT, groups, words), raw_BYXT)
        assert_number(losses.total, case.number(term))
        assert_array(grad[0], case.tensor(f"{term}_grad"))
    control = MapAlignment.published(intensity=weight, normalize_over="all_tokens")
    losses, _ = value_and_gradients(objective(control, raw_BYXT, groups, words), raw_BYXT)
    assert_number(losses.total, case.number("loss"))


@pytest.mark.parametrize("name", cases("predicated_diffusion"))
def test_predicated_diffusion(name: str) -> None:
    case = Case("predicated_diffusion", name)
    raw_BYXT, noun = case.raw(), [int(each) for each in case["nouns"]]
    pairs = [tuple(map(int, pair)) for pair in case["correspondence_pairs"]]
    if len(case["possession_pairs"]):
        check_possession(case)
        return
    groups = [[*([m] for m, other in pairs if other == n), [n]] for n in noun]
    control = PredicatedDiffusion.published(normalize_over="all_tokens")
    losses, (grad,) = value_and_gradients(objective(control, raw_BYXT, groups), raw_BYXT)
    assert_terms(losses, {term: case.number(term) for term in ("existence", "correspondence", "leak")})
    assert_array(grad[0], case.tensor("grad"))


def check_possession(case: Case) -> None:
    """A statement that no control makes, as a loss: a holder and what it holds."""
    from t2ictl.losses.predicates import stretched

    raw_BYXT = case.raw()
    (holder, held), (modifier, noun) = (
        tuple(map(int, case[f"{each}_pairs"][0])) for each in ("possession", "correspondence")
    )
    maps_BNYX = stretched(raw_BYXT[..., [holder, held, modifier, noun]].movedim(-1, 1))
    table_BNN = possession_table(maps_BNYX, 1e-20)
    assert_number(table_BNN[0, 1, 0], case.number("possession"))
    assert_number(table_BNN[0, 2, 3] + table_BNN[0, 3, 2], case.number("correspondence"))
    assert_number(0.3 * leak_table(maps_BNYX, 1e-20)[0, 0, 1] * len(case["leak_pairs"]), case.number("leak"))


@pytest.mark.parametrize("name", cases("boxdiff"))
def test_box_diff(name: str) -> None:
    case = Case("boxdiff", name)
    raw_BYXT = case.raw()
    layout = tuple(
        Region(word=f"w{noun}", box=tuple(float(edge) / 512 for edge in box))
        for noun, box in zip(case["nouns"], case["boxes"], strict=True)
    )
    settings = {"topk_ratio": case.number("share"), "corner_cells": int(case["L"]), "normalize_over": "all_tokens"}
    control = BoxDiff.published(**settings)
    given = placed(control, raw_BYXT, case, layout)
    losses, (grad,) = value_and_gradients(given, raw_BYXT)
    assert_terms(losses, {term: case.number(term) for term in ("inner", "outer", "corner")})
    assert_number(losses.total, case.number("loss"))
    if name.startswith("flat"):  # equal cells: which of them count is not defined
        return
    assert_array(grad[0], case.tensor("grad"))


def placed(control: BoxDiff, raw_BYXT: torch.Tensor, case: Case, layout: tuple[Region, ...]) -> Any:
    """The objective for words with regions, matched by their positions."""
    return objective(replace(control, layout=layout), raw_BYXT, nouns(case))


@pytest.mark.parametrize("name", cases("boxdiff"))
def test_parts_of_box_losses(name: str) -> None:
    case = Case("boxdiff", name)
    side = case.raw().shape[1]
    maps_NYX = prepared(case, [[int(each)] for each in case["nouns"]])
    boxes_NYX = torch.stack(
        [
            Region(word="w", box=tuple(float(e) / 512 for e in box)).cells(side, side, "half_even")
            for box in case["boxes"]
        ]
    )
    for place, (map_YX, box_YX) in enumerate(zip(maps_NYX, boxes_NYX, strict=True)):
        share, cells = case.number("share"), int(case["L"])
        inner_B, outer_B, corner_B = box_losses(map_YX[None, None], box_YX[None, None].double(), None, share, cells)
        assert_number(1 - inner_B, float(case["inner_top"][place]))
        assert_number(outer_B, float(case["outer_top"][place]))
        assert_number(corner_B, float(case["corner_x"][place] + case["corner_y"][place]))


@pytest.mark.parametrize("name", cases("layout_guidance"))
def test_energy_of_layout_guidance(name: str) -> None:
    """Heads as rows: a control reads their mean, the published code averages the squares of single heads."""
    case = Case("layout_guidance", name)
    names = [str(each) for array in ("mid", "up") for each in case[array] if str(each)]
    leaves = [torch.from_numpy(case._inputs[each].copy()).requires_grad_(True) for each in names]
    words = [[int(each) for each in row if each >= 0] for row in case["positions"]]
    parts = []
    for maps_HYXT in leaves:
        height, width = maps_HYXT.shape[1:3]
        for number, tokens in enumerate(words):
            box_YX = torch.zeros(height, width, dtype=torch.float64)
            for owner, x0, y0, x1, y1 in case["boxes"]:
                if int(owner) == number:
                    box_YX[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)] = 1
            maps_HKYX = maps_HYXT[..., tokens].movedim(-1, 1)
            energy_H = layout_energy(maps_HKYX, box_YX.expand_as(maps_HKYX)) / len(tokens)
            parts.append(energy_H.mean())
    loss = torch.stack(parts).mean()
    assert_number(loss, case.number("loss"))
    for place, grad in enumerate(torch.autograd.grad(loss, leaves)):
        assert_array(grad, case.tensor(f"grad{place}"))


@pytest.mark.parametrize("name", [each for each in cases("initno") if not each.startswith("kl_")])
def test_initial_noise(name: str) -> None:
    case = Case("initno", name)
    raw_BYXT, self_BYXP = case.raw(), case.raw("self_input")
    control = InitialNoise.published(normalize_over="all_tokens")
    losses, (grad, self_grad) = value_and_gradients(objective(control, raw_BYXT, nouns(case)), raw_BYXT, self_BYXP)
    if name.startswith("flat"):  # which cell is the peak is not defined
        assert_number(losses.terms["presence"], case.number("presence"))
        assert_number(losses.terms["outside"], case.number("clean"))
        return
    golden = {"presence": "presence", "conflict": "search_conflict", "outside": "clean"}
    assert_terms(losses, {term: case.number(array) for term, array in golden.items()})
    assert_number(losses.total, case.number("search_joint"))
    assert_array(grad[0], case.tensor("presence_grad") + case.tensor("clean_grad"))
    if case.number("presence") <= 0.5:
        assert_array(self_grad[0], case.tensor("conflict_self_grad"))
    check_steps_of_initno(case)


def check_steps_of_initno(case: Case) -> None:
    """What the published code minimizes between steps, as losses: no control makes those moves."""
    words = [[int(each)] for each in case["nouns"]]
    maps_BNYX = prepared(case, words)[None]
    places_BNYX = binarize(maps_BNYX, "otsu_8bit_peak")
    assert torch.equal(binarize(maps_BNYX, "otsu_8bit")[0], case.tensor("otsu").bool())
    assert torch.equal(places_BNYX[0], case.tensor("component").bool())
    outside_B = outside_peak_loss(maps_BNYX, places_BNYX)
    conflict_B = conflict_loss(smoothed_places(case.raw("self_input")), maps_BNYX, offset=1e-6)
    assert_number(outside_B, case.number("clean"))
    assert_number(conflict_B, case.number("conflict"))
    drift_B = torch.zeros(1, dtype=torch.float64)
    if "before" in case:
        drift_B = drift_loss(maps_BNYX, 0.9 * prepared(case, words, "before")[None] + 0.1 * maps_BNYX)
    assert_number(drift_B, case.number("alignment"))
    joint_B = presence_loss(maps_BNYX) + 0.1 * outside_B + 0.1 * drift_B + conflict_B
    assert_number(joint_B, case.number("step_joint"))


@pytest.mark.parametrize("name", cases("self_cross"))
def test_self_cross_guidance(name: str) -> None:
    case = Case("self_cross", name)
    raw_BYXT, self_BYXP = case.raw(), case.raw("self_input")
    control = SelfCrossGuidance.published(normalize_over="all_tokens")
    losses, (grad, self_grad) = value_and_gradients(objective(control, raw_BYXT, nouns(case)), raw_BYXT, self_BYXP)
    assert_number(losses.total, case.number("step_second"))
    assert_number(losses.terms["conflict"], case.number("step_conflict"))
    if "step_second_grad" in case:
        assert_array(grad[0], case.tensor("step_second_grad"))
    assert self_grad.shape == self_BYXP.shape


@pytest.mark.parametrize("name", cases("self_cross"))
def test_conflict_in_the_search_of_self_cross(name: str) -> None:
    case = Case("self_cross", name)
    words, leaf = [[int(each)] for each in case["nouns"]], case.raw("self_input").requires_grad_(True)
    maps_BNYX = prepared(case, words)[None]
    places_BNYX = binarize(maps_BNYX, "otsu_8bit")
    assert torch.equal(places_BNYX[0], case.tensor("otsu").bool())
    conflict_B = published_self_cross_loss(smoothed_places(leaf), maps_BNYX, places_BNYX)
    if float(presence_loss(maps_BNYX)) > 0.5:
        assert case.number("search_conflict") == 0
        return
    assert_number(conflict_B, case.number("search_conflict"))
    (grad,) = torch.autograd.grad(conflict_B.sum(), leaf)
    assert_array(grad[0].norm(dim=-1), case.tensor("self_norms"))
    rows = grad[0].flatten(0, 1)[case.tensor("self_places")]
    assert_array(rows, case.tensor("search_conflict_self_grad"))
    joint_B = (
        presence_loss(maps_BNYX) + conflict_B + outside_peak_loss(maps_BNYX, peak_component(maps_BNYX, places_BNYX))
    )
    assert_number(joint_B, case.number("search_joint"))
