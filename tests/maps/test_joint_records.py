"""Records of joint attention in all its readings, against explicit softmaxes of what reaches the kernel."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import t2ictl
from t2ictl.errors import BadSetting, BudgetExceeded, NotRecorded
from t2ictl.families import find_adapter
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recording
from tests import tiny, tiny_transformers

PROMPT = "a red circle and a skateboard"
STEPS = 2
PLACES = 48
#: Positions of text, and the conditional row of the batch; calls in a step of which the first is the conditional one.
FAMILIES = {"sd3": (40, 1, 1), "sd35": (40, 1, 1), "flux": (24, 0, 1), "chroma": (24, 0, 2)}
JOINT = Recording(layers=("*",), by="layer")
families = pytest.mark.parametrize("name", FAMILIES)


class Kernels(TorchFunctionMode):
    """What calls of the attention kernel are given; those of text encoders have fewer positions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
            if given["query"].shape[2] >= PLACES:
                self.calls.append((given["query"], given["key"], given["value"], given.get("attn_mask")))
        return func(*args, **kwargs)


@functools.cache
def pipe_of(name: str) -> Any:
    return tiny_transformers.FAMILIES[name]()


@functools.cache
def heard(name: str) -> dict[str, list[Any]]:
    """By layer and step, queries, keys, values of the conditional row, and the mask, in a run without a session."""
    pipe, (_, row, calls) = pipe_of(name), FAMILIES[name]
    layers = [layer for layer in find_adapter(pipe).layers if layer.kind != "linear"]
    with Kernels() as kernels:
        tiny_transformers.run(pipe, PROMPT, steps=STEPS)
    per_pass = len(layers)
    assert len(kernels.calls) == per_pass * calls * STEPS
    found: dict[str, list[Any]] = {}
    for step in range(STEPS):
        first = step * calls * per_pass
        for layer, (q, k, v, mask) in zip(layers, kernels.calls[first : first + per_pass], strict=True):
            if layer.has_words:
                mask = None if mask is None else mask.expand(len(q), q.shape[1], q.shape[2], k.shape[2])[row].double()
                own = (q[row].double(), k[row].double(), v[row].double(), mask)
                found.setdefault(layer.address.rpartition(".")[0], []).append((layer, own))
    return found


def recorded(pipe: Any, record: Recording, prompt: Any = PROMPT, **call: Any) -> AttentionRecord:
    with t2ictl.controlled(pipe, record=record) as session:
        run = tiny.run if hasattr(pipe, "unet") else tiny_transformers.run
        run(pipe, prompt, steps=STEPS, **call)
    return session.record


@functools.cache
def record_of(name: str, kind: Any) -> AttentionRecord:
    return recorded(pipe_of(name), Recording(layers=("*",), by="layer", kind=kind, text_mass=True))


def places(layer: Any, text: int) -> tuple[slice, slice]:
    """Where image and text stand."""
    if layer.text == "first":
        return slice(text, text + PLACES), slice(0, text)
    return slice(0, PLACES), slice(PLACES, PLACES + text)


def scores(q_HLD: Tensor, k_HMD: Tensor, mask: Any) -> Tensor:
    scores_HLM = torch.einsum("hld,hmd->hlm", q_HLD, k_HMD) / q_HLD.shape[-1] ** 0.5
    return scores_HLM if mask is None else scores_HLM + mask


def expected(kind: str, layer: Any, own: Any, text: int) -> Tensor:
    """One reading, mean over heads: ``map_QT`` of all text positions."""
    q_HLD, k_HMD, v_HMD, mask = own
    image, words = places(layer, text)
    logits_HLM = scores(q_HLD, k_HMD, mask)
    if kind == "text":
        return logits_HLM[:, image, words].softmax(-1).mean(0)
    if kind == "all_keys":
        return logits_HLM.softmax(-1)[:, image, words].mean(0)
    if kind == "text_to_image":
        return logits_HLM[:, words, image].softmax(-1).mean(0).T
    out_HLD = logits_HLM.softmax(-1) @ v_HMD
    products_QT = torch.zeros(PLACES, text, dtype=torch.float64)
    for head in range(len(out_HLD)):
        products_QT += out_HLD[head, image] @ out_HLD[head, words].T
    return products_QT.softmax(-1)


# -- readings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "all_keys", "text_to_image", "output_space"])
@families
def test_a_reading_is_its_explicit_form(name: str, kind: Any) -> None:
    record, text = record_of(name, kind), FAMILIES[name][0]
    assert list(record.maps) == list(heard(name)) and record.steps == STEPS
    for block, maps_SBTYX in record.maps.items():
        for step, (layer, own) in enumerate(heard(name)[block]):
            map_QT = expected(kind, layer, own, text)[:, list(record.columns)]
            found = maps_SBTYX[step, 0].flatten(1).T.double()
            torch.testing.assert_close(found, map_QT, rtol=0, atol=2e-6)


@families
def test_the_text_mass_is_the_sum_of_all_text_positions(name: str) -> None:
    record, text = record_of(name, "all_keys"), FAMILIES[name][0]
    assert set(record.masses) == set(record.maps)
    for block in record.maps:
        for step, (layer, own) in enumerate(heard(name)[block]):
            whole_QT = expected("all_keys", layer, own, text)
            found_YX = record.text_mass(block=block, step=step)
            assert found_YX.shape == tiny_transformers.TOKENS
            torch.testing.assert_close(found_YX.flatten().double(), whole_QT.sum(-1), rtol=0, atol=2e-6)
            # What is not a word of the prompt has a share as well: start, end and padding.
            words_Y = record.maps[block][step, 0].sum(0).flatten()
            assert (words_Y < found_YX.flatten()).all() and found_YX.max() < 1


@families
def test_words_do_not_compete_for_places_where_their_own_queries_are_read(name: str) -> None:
    for maps_SBTYX in record_of(name, "text_to_image").maps.values():
        total = maps_SBTYX.flatten(3).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@families
def test_readings_differ(name: str) -> None:
    maps = {kind: record_of(name, kind).map("circle") for kind in ("text", "all_keys", "text_to_image", "output_space")}
    for kind, map_YX in maps.items():
        others = [other for key, other in maps.items() if key != kind]
        assert all(not torch.allclose(map_YX, other, rtol=0.05) for other in others)


@pytest.mark.parametrize("kind", ["all_keys", "text_to_image", "output_space"])
def test_a_record_says_which_reading_it_holds(kind: Any) -> None:
    record = record_of("flux", kind)
    assert record.kind == kind and f"kind={kind!r}" in repr(record) and record.to_dict()["kind"] == kind
    plain = record_of("flux", "text")
    assert plain.kind == "text" and "kind=" not in repr(plain) and plain.to_dict()["kind"] == "text"


@pytest.mark.parametrize("name", ["pixart_alpha", "sana", "hunyuan_dit"])
@pytest.mark.parametrize("kind", ["text_to_image", "output_space"])
def test_cross_attention_has_no_reading_of_joint_attention(name: str, kind: Any) -> None:
    match = rf"Recording.kind '{kind}' reads joint attention, and .*\.cross is cross-attention"
    with pytest.raises(BadSetting, match=match), t2ictl.controlled(pipe_of(name), record=Recording(kind=kind)):
        pass


@pytest.mark.parametrize("kind", ["text_to_image", "output_space"])
def test_a_u_net_has_no_reading_of_joint_attention(kind: Any) -> None:
    with pytest.raises(BadSetting, match="cross-attention"), t2ictl.controlled(tiny.sd(), record=Recording(kind=kind)):
        pass
    with pytest.raises(BadSetting, match="Recording.kind"):
        Recording(kind="keys")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pixart_alpha", "sana", "hunyuan_dit"])
def test_in_cross_attention_all_keys_are_text(name: str) -> None:
    every = Recording(kind="all_keys", text_mass=True)
    record, plain = recorded(pipe_of(name), every), recorded(pipe_of(name), Recording())
    assert torch.equal(record.map("circle"), plain.map("circle"))
    assert torch.equal(record.text_mass(), torch.ones(tiny_transformers.TOKENS))


# -- the attention to text as a whole ---------------------------------------------------------------------------------


def test_the_text_mass_of_blocks_and_steps() -> None:
    record = recorded(pipe_of("flux"), Recording(layers=("joint", "single"), text_mass=True))
    assert set(record.masses) == {"early", "middle", "late"}
    by_step = torch.stack([record.text_mass(step=step) for step in range(STEPS)])
    torch.testing.assert_close(record.text_mass(), by_step.mean(0))
    heads = {"early": 4, "middle": 4, "late": 2}  # of five layers with two heads each
    weighted = sum(count * record.text_mass(block=block) for block, count in heads.items()) / 10
    torch.testing.assert_close(record.text_mass(), weighted)
    for wrong, match in (({"block": "up"}, "block 'up'"), ({"step": 2}, "no step 2"), ({"image": 1}, "no image 1")):
        with pytest.raises(NotRecorded, match=match):
            record.text_mass(**wrong)


def test_the_text_mass_of_each_image() -> None:
    prompts = [PROMPT, "a cat"]
    record = recorded(pipe_of("sd3"), Recording(text_mass=True), prompts, num_images_per_prompt=2)
    assert not torch.equal(record.text_mass(image=1), record.text_mass(image=3))
    alone = recorded(pipe_of("sd3"), Recording(text_mass=True), "a cat", seed=0)
    assert alone.text_mass().shape == record.text_mass(image=3).shape == tiny_transformers.TOKENS


def test_what_was_not_recorded_is_not_made_up() -> None:
    with pytest.raises(NotRecorded, match=r"Use Recording\(text_mass=True\)"):
        recorded(pipe_of("flux"), Recording()).text_mass()
    with pytest.raises(BadSetting, match="In a U-Net places attend to text alone"):
        recorded(tiny.sd(), Recording(text_mass=True))


@pytest.mark.parametrize("per_step", [True, False])
def test_the_budget_counts_the_mass(per_step: bool) -> None:
    record = recorded(pipe_of("flux"), Recording(text_mass=True, per_step=per_step))
    held = sum(maps.numel() for maps in (*record.maps.values(), *record.masses.values())) * 4
    assert record.bytes == held
    for budget, fits in ((held * 1.0001, True), (held * 0.999, False)):
        recording = Recording(text_mass=True, per_step=per_step, budget_mb=budget / 2**20)
        with nullcontext() if fits else pytest.raises(BudgetExceeded):
            recorded(pipe_of("flux"), recording)


def test_the_mean_over_steps_of_the_mass_kept_or_running() -> None:
    every, mean = (recorded(pipe_of("sd3"), Recording(text_mass=True, per_step=each)) for each in (True, False))
    torch.testing.assert_close(mean.text_mass(), every.text_mass(), rtol=0, atol=1e-6)
    assert mean.single_steps == 0 and every.single_steps == STEPS


# -- layers and words -------------------------------------------------------------------------------------------------


@families
def test_a_record_by_layer_is_the_whole_one_taken_apart(name: str) -> None:
    record = record_of(name, "text")
    layers = find_adapter(pipe_of(name)).word_layers
    assert list(record.maps) == [layer.address.rpartition(".")[0] for layer in layers]
    assert record.heads == {layer.address.rpartition(".")[0]: layer.heads for layer in layers}
    whole = recorded(pipe_of(name), Recording(layers=("*",)))
    assert set(whole.maps) == {"early", "late", "middle"}
    for word in ("circle", "skateboard"):
        torch.testing.assert_close(record.map(word), whole.map(word), rtol=0, atol=1e-6)
        parts = torch.stack([record.map(word, block=block) for block in record.maps])
        torch.testing.assert_close(parts.mean(0), whole.map(word), rtol=0, atol=1e-6)
    assert record.to_dict()["blocks"] == ["all", *record.maps]


def test_a_u_net_is_recorded_by_layer_as_well() -> None:
    pipe = tiny.sd()
    record = recorded(pipe, Recording(layers=("cross@1", "cross@2"), by="layer"))
    layers = [layer for layer in find_adapter(pipe).layers if layer.kind == "cross" and layer.stride <= 2]
    assert list(record.maps) == [layer.address.rpartition(".")[0] for layer in layers]


@pytest.mark.parametrize(("name", "offset"), [("sd3", 16), ("hunyuan_dit", 77)])
def test_a_word_with_tokens_in_two_segments_has_the_mean_of_their_means(name: str, offset: int) -> None:
    """A segment counts once, however many tokens it has of the word: CLIP's row of SD 3 ends within the umbrella."""
    prompt = "a red circle and a skateboard, umbrella"
    record = recorded(pipe_of(name), Recording(layers=("*",), by="layer"), prompt)
    lengths = {}
    for word in ("circle", "skateboard", "umbrella"):
        first, second = record.prompts[0].find(word).by_segment
        lengths[word] = (len(first), len(second))
        assert max(first) < offset <= min(second)
        for block, maps_SBTYX in record.maps.items():
            means = []
            for tokens in (first, second):
                total = torch.zeros(tiny_transformers.TOKENS)
                for token in tokens:
                    total += maps_SBTYX[1, 0, record.columns.index(token)]
                means.append(total / len(tokens))
            torch.testing.assert_close(record.map(word, block=block, step=1), (means[0] + means[1]) / 2)
    assert lengths == {"circle": (1, 1), "skateboard": (2, 2), "umbrella": (6 if name == "sd3" else 8, 8)}


def test_a_word_that_one_segment_has_cut_off_has_the_map_of_the_other() -> None:
    record = recorded(pipe_of("sd3"), Recording(layers=("*",), by="layer"), "a red circle, umbrella and a tall cat")
    first, second = record.prompts[0].find("cat").by_segment
    assert first == () and len(second) == 1 and "cat" in record.names()
    for block, maps_SBTYX in record.maps.items():
        own_YX = maps_SBTYX[0, 0, record.columns.index(second[0])]
        torch.testing.assert_close(record.map("cat", block=block, step=0), own_YX)
