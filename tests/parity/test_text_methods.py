"""Published forms of the methods that act on text and attention, against numbers of the papers' code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import AttentionCall, Edit, Heads, fused, project_keys, split_heads
from t2ictl.attention.grouped import grouped_attention
from t2ictl.attention.layers import Layer
from t2ictl.controls.concepts import ConceptMaps, concept_table
from t2ictl.guidance.text_objectives import EmbedLosses, EmbedObjective
from t2ictl.guidance.text_updates import update_embeds
from t2ictl.losses.entropy import entropy_loss
from t2ictl.losses.semantic_binding import semantic_binding_loss
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recorder, Recording
from t2ictl.processors import StructuredGuidance, TokenMerging
from t2ictl.processors.isolation_reposition.edits import Retold
from t2ictl.processors.isolation_reposition.groups import Reading, isolated_groups, resampled_positions
from t2ictl.processors.structured_guidance.edits import AveragedMaps, AveragedValues, Structure
from t2ictl.processors.token_flow.conditions import EMPTY, Conditions, compose
from t2ictl.processors.token_flow.readings import Row, bare
from t2ictl.processors.token_merging.control import INNER_TEMPERATURE, SEMANTIC_WEIGHT
from t2ictl.processors.token_merging.rows import RowMerging, TokenGroup
from t2ictl.settings.windows import Window
from tests.parity.golden import Case, GivenPrompt, assert_array, assert_number, cases, span, step

# -- token merging ------------------------------------------------------------------------------


def merging(case: Case, length: int, end: int) -> RowMerging:
    groups = []
    for nouns, members in zip(case["nouns"], case["members"], strict=True):
        noun, others = ([int(each) for each in row if each >= 0] for row in (nouns, members))
        groups.append(TokenGroup(noun=tuple(noun), members=tuple(others), dropped=(*noun[1:], *others)))
    return RowMerging(groups=tuple(groups), length=length, end=end, removal="zero")


@pytest.mark.parametrize("name", cases("tome", "merge_"))
def test_merged_rows(name: str) -> None:
    case, control = Case("tome", name), TokenMerging.published()
    rows_KC = case.tensor("rows")
    merge = merging(case, len(rows_KC), len(rows_KC) - 1)
    found = merge.rows(rows_KC, control.noun_weight, control.member_weight, None)
    assert_array(found, case.tensor("merged_code"))
    assert_array(merge.rows(rows_KC, 1.0, 1.0, None), case.tensor("merged_paper"))


def test_end_rows_come_from_the_same_positions() -> None:
    case, control = Case("tome", "end_rows"), TokenMerging.published()
    prompt_KC, anchor_KC, end = case.tensor("prompt"), case.tensor("anchor"), int(case["prompt_length"]) + 1
    merge = merging(case, len(prompt_KC), end)
    weights = control.noun_weight, control.member_weight
    assert_array(merge.rows(prompt_KC, *weights, None), case.tensor("merged"))
    assert_array(merge.rows(prompt_KC, *weights, (anchor_KC, end)), case.tensor("replaced_at_step_0"))


@pytest.mark.parametrize("name", cases("tome", "entropy_"))
def test_entropy(name: str) -> None:
    case = Case("tome", name)
    leaf = case.raw().requires_grad_(True)
    rows = (tuple(span([int(each)]) for each in case["nouns"]),)
    maps = ConceptMaps(
        layers=(), rows=rows, competing=(((1, int(case["last"])),),), smoothing="none", table=concept_table(rows),
        temperature=INNER_TEMPERATURE,
    )  # fmt: skip
    maps_BNYX = maps(leaf)
    assert_array(maps_BNYX[0].detach(), case.tensor("prepared"))
    loss_B = 2 * entropy_loss(maps_BNYX, maps.table.mask_BN, stretch=True)
    assert_number(loss_B, case.number("loss"))
    assert_array(torch.autograd.grad(loss_B.sum(), leaf)[0][0], case.tensor("grad"))


def test_value_of_the_semantic_loss() -> None:
    case = Case("tome", "semantic_value")
    found_B = semantic_binding_loss(case.tensor("predicted"), case.tensor("target"), torch.tensor([0]), 1)
    assert_number(found_B, case.number("mean_square"))
    assert_number(SEMANTIC_WEIGHT * found_B, case.number("loss"))


@pytest.mark.parametrize("name", [each for each in cases("tome", "semantic_") if each != "semantic_value"])
def test_updates_of_a_token(name: str) -> None:
    case, control = Case("tome", name), TokenMerging.published()
    weights, latents = case.tensor("weights"), case.tensor("latents")

    def noise(rows_BKC: Tensor) -> Tensor:
        return 0.5 * latents + (rows_BKC.mean(dim=1) @ weights).tanh().view(-1, *latents.shape)

    target = noise(case.tensor("phrase")[None])

    def evaluate(passes: Any, embeds_BTC: Tensor, at: Any) -> EmbedLosses:
        loss_B = SEMANTIC_WEIGHT * semantic_binding_loss(noise(embeds_BTC), target, torch.tensor([0]), 1)
        one_B, no_B = torch.ones(1), torch.zeros(1, dtype=torch.bool)
        return EmbedLosses(terms={"semantic": loss_B}, done=no_B, forwards=one_B, backwards=one_B, rows=1)

    objective = EmbedObjective(
        name="tome", layers=(), evaluate=evaluate, movable=torch.ones(1, 1, dtype=torch.bool), window=Window(),
        max_updates_B=torch.tensor([int(case["iterations"])]), step_size=control.semantic_step,
    )  # fmt: skip
    found = update_embeds(case.tensor("token")[None, None], objective, None, step(), torch.float64)  # type: ignore[arg-type]
    for entry, golden in zip(found.trace, case["losses"], strict=True):
        assert_number(entry.total, float(golden))
    assert_array(found.rows[0, 0], case.tensor("token_after"))


def test_an_update_of_rows() -> None:
    case = Case("tome", "update")
    rows_BKC, grad_BKC = case.tensor("rows"), case.tensor("rows_grad")
    rule = TokenMerging.published().step
    every = torch.ones(rows_BKC.shape[:2], dtype=torch.bool)
    scaled = grad_BKC * (case.number("step") / rule.length(0, 50))
    assert_array(rows_BKC + rule.move(rows_BKC, scaled, every, step()), case.tensor("rows_after"))


# -- structured guidance ------------------------------------------------------------------------


def layer(case: Case) -> Attention:
    """The attention layer of a case; queries come projected, so their projection is the identity."""
    inner, cross = case["to_k"].shape
    heads = int(case["heads"])
    made = Attention(query_dim=inner, cross_attention_dim=cross, heads=heads, dim_head=inner // heads).double()
    with torch.no_grad():
        made.to_k.weight.copy_(case.tensor("to_k"))
        made.to_v.weight.copy_(case.tensor("to_v"))
    return made.requires_grad_(False)


def attended(case: Case, edit: Edit) -> Tensor:
    attention = layer(case)
    context_BKC = torch.stack([case.tensor("negative"), case.tensor("prompt")])
    batch = BatchLayout.from_counts(prompts=1, images_per_prompt=1, guided=True)
    call = AttentionCall(layer=SimpleNamespace(address="x"), size=(3, 4), batch=batch, step=step(), attention=attention)  # type: ignore[arg-type]
    q_BHQD = split_heads(attention, case.tensor("q"))
    v_BHKD = split_heads(attention, attention.to_v(edit.values(call, context_BKC)))
    heads = Heads(q=q_BHQD, k=project_keys(attention, context_BKC), v=v_BHKD, mask=None, context=context_BKC)
    out_BHQD = edit.attend(call, heads) if "attend" in edit.stages else fused(attention, heads)
    return out_BHQD.transpose(1, 2).flatten(2)


def structure(case: Case) -> Structure:
    phrases = [
        SimpleNamespace(positions=tuple(range(first + 1, stop + 1)), rows=tuple(range(1, stop - first + 1)), level=0)
        for first, stop in case["spans"].tolist()
    ]
    return Structure.from_encodings(list(case.tensor("phrases")), phrases)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cases("structure_diffusion"))
def test_averaged_values_and_maps(name: str) -> None:
    case, control = Case("structure_diffusion", name), StructuredGuidance.published()
    structures = {("cond", 0): structure(case)}
    values = AveragedValues(
        structures=structures, strength=control.strength, window=control.window, weighting=control.weighting
    )
    assert_array(attended(case, values), case.tensor("values"), relative=1e-7)
    keys = AveragedMaps(
        structures=structures,
        strength=control.strength,
        window=control.window,
        conjunction=control.conjunction,
        aliasing=control.aliasing,
    )
    assert_array(attended(case, keys), case.tensor("keys"), relative=1e-7)
    assert_array(attended(case, Edit()), case.tensor("plain"), relative=1e-7)


# -- isolation and reposition -------------------------------------------------------------------


def test_resampled_positions_of_every_length() -> None:
    golden = Case("ir_diffusion", "lengths")["positions"]
    for source, target in np.ndindex(golden.shape[:2]):
        if golden[source, target, 0] < 0:
            continue
        line = resampled_positions(
            torch.ones(1, target, dtype=torch.bool), torch.ones(1, source, dtype=torch.bool), sampling="corners"
        )
        assert line.tolist() == golden[source, target, :target].tolist(), (source, target)


@pytest.mark.parametrize("name", [each for each in cases("ir_diffusion") if each != "lengths"])
def test_isolated_and_repositioned_attention(name: str) -> None:
    case = Case("ir_diffusion", name)
    heads = int(case["heads"])
    q, k, v = (case.tensor(each).unflatten(-1, (heads, -1)).transpose(1, 2) for each in "qkv")
    targets, references = case.tensor("target_masks").bool(), case.tensor("reference_masks").bool()
    subjects, scene_rows = len(targets), (len(targets), 2 * len(targets) + 1)
    labels_YX = torch.zeros(targets.shape[1:], dtype=torch.long)
    for number, mask_YX in enumerate(targets):
        labels_YX[mask_YX] = number + 1
    if int((targets.sum(dim=0) > 1).sum()):
        pytest.fail("subjects of the case overlap: labels cannot say so")
    labels_N = labels_YX.flatten()
    readings = {
        number + 1: Reading(
            row=(number, subjects + 1 + number),
            positions=resampled_positions(targets[number], references[number], sampling="corners"),
            strength=case.number("strength"),
            reads=labels_N == number + 1,
        )
        for number in range(subjects)
    }
    for array, given, isolation in (
        ("isolated", None, 1.0), ("repositioned", readings, 1.0), ("repositioned_alone", readings, 0.0),
    ):  # fmt: skip
        grouping = isolated_groups(labels_N, given, isolation)
        assert grouping is not None
        found = grouped_attention(q, k, v, scene_rows, grouping, q.shape[-1] ** -0.5)
        assert_array(found.transpose(1, 2).flatten(2), case.tensor(array), relative=2e-8)


@pytest.mark.parametrize("name", [each for each in cases("ir_diffusion") if each != "lengths"])
def test_what_places_of_subjects_are_told(name: str) -> None:
    """On the conditional side; on the other one the published code reads the texts of equal negative prompts."""
    case = Case("ir_diffusion", name)
    heads, targets = int(case["heads"]), case.tensor("target_masks").bool()
    subjects = len(targets)
    q, k, v = (case.tensor(each).unflatten(-1, (heads, -1)).transpose(1, 2) for each in ("q", "context_k", "context_v"))
    attention = Attention(query_dim=q.shape[-1] * heads, heads=heads, dim_head=q.shape[-1]).double()
    scenes = SimpleNamespace(
        settings=SimpleNamespace(cross=case.number("cross"), strength=1.0, subject_text="portrait_prompt"),
        assignment=SimpleNamespace(
            scenes=[subjects], portraits={subjects: list(range(subjects))}, shown=set(range(subjects))
        ),
        rows=lambda batch, image: {"uncond": image, "cond": subjects + 1 + image},
        told_positions=lambda image, size: [(), *(mask_YX.flatten().nonzero().flatten() for mask_YX in targets)],
        texts={},
    )
    call: Any = SimpleNamespace(batch=None, size=targets.shape[1:], attention=attention)
    found = Retold(scenes).attend(call, Heads(q=q, k=k, v=v, mask=None, context=q))  # type: ignore[arg-type]
    assert_array(found[-1].transpose(0, 1).flatten(1), case.tensor("crossed")[1], relative=2e-8)


# -- token flow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each for each in cases("follow_the_flow") if "_" in each])
def test_kept_and_removed_rows(name: str) -> None:
    case = Case("follow_the_flow", name)
    model = Case("follow_the_flow", name.partition("_")[0])
    roles = np.array(["start", "item", "end", "pad"])[model["roles"]]
    full_KC = model.tensor("full")
    # The released code fills rows of SD with those of the text of the padding token; a control reads the empty prompt.
    blank_KC = model.tensor("pad_text" if "pad_text" in model else "empty")
    pooled = {each: model.tensor(f"{each}_pooled") if f"{each}_pooled" in model else None for each in ("full", "empty")}
    prompt = GivenPrompt(len(full_KC), int(np.flatnonzero(roles == "end")[0]), (), ())
    conditions = Conditions(prompt, lambda text: prompt)
    skip = [int(each) for each in np.atleast_1d(case["skip"])]
    if "keep" in name:
        made = conditions.keep("keep:x", [place for place in range(len(roles)) if place not in skip])
    else:
        made = conditions.remove("drop:x", skip, "released")
    read = {
        bare(conditions.full): Row(states=full_KC, pooled=pooled["full"]),
        EMPTY: Row(states=blank_KC, pooled=pooled["empty"]),
    }
    found = compose(made, read, ())
    assert_array(found.states, case.tensor("rows"), relative=2.0**-29)
    if found.pooled is not None:
        assert_array(found.pooled, case.tensor("pooled"), relative=2.0**-29)


# -- word maps ----------------------------------------------------------------------------------


def recorded(case: Case, factors: tuple[int, ...]) -> tuple[AttentionRecord, int]:
    """What a recorder files of the case's attention, and the number of steps."""
    settings = Case("daam", "settings")
    side, heads, tokens = int(settings["sides"].max()), int(settings["heads"]), int(settings["tokens"])
    layers, blocks = [], ("down", "mid", "up")
    for number, factor in enumerate(settings["factors"].tolist()):
        if factor in factors:
            address = f"{blocks[number]}.0.0.0.cross"
            layers.append(
                Layer(address=address, module=address, kind="cross", block=blocks[number], stride=factor, order=number,
                      heads=heads)
            )  # fmt: skip
    prompt = GivenPrompt(tokens, tokens - 1, (), range(1, tokens - 1))
    steps = int(settings["steps"])
    recorder = Recorder(layers, slice(None), [prompt], Recording(), total=steps, latent_size=(side, side))
    for number in range(steps):
        for layer in layers:
            maps_HQK = case.tensor(f"layer{layer.order}")[number, heads:]  # conditional heads come second
            call = SimpleNamespace(layer=layer, size=layer.size((side, side)))
            recorder.take(call, maps_HQK.sum(dim=0)[None])  # type: ignore[arg-type]
        recorder.end_step()
    return recorder.record, steps


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_word_maps_of_one_size(factor: int) -> None:
    """Published heat maps are sums over steps; a record has the mean."""
    record, steps = recorded(Case("daam", "attention"), (factor,))
    golden = Case("daam", f"factor{factor}").tensor("own_size")
    for token in range(1, len(golden) - 1):
        assert_array(record.map(f"w{token}").double() * steps, golden[token], relative=1e-6)


def test_how_far_word_maps_of_all_sizes_differ() -> None:
    """Ours are interpolated bilinearly, published ones bicubically; the figures stand in docs/published.md."""
    record, steps = recorded(Case("daam", "attention"), (1, 2, 4))
    golden = Case("daam", "all").tensor("maps")
    difference, correlation = [], []
    for token in range(1, len(golden) - 1):
        ours, theirs = record.map(f"w{token}").double() * steps, golden[token]
        difference.append(float((ours - theirs).abs().max() / (theirs.max() - theirs.min())))
        correlation.append(float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]))
    assert round(max(difference), 2) == 0.15
    assert round(min(correlation), 2) == 0.98
