"""What users and other tools change while a session is at work: weights, processors, prompts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers.callbacks import IPAdapterScaleCutoffCallback
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

import t2ictl
from t2ictl.attention.weights import weights_signature
from t2ictl.errors import UnsupportedPipeline
from t2ictl.guidance.rules import StepSize
from t2ictl.processors import AttendAndExcite, StructuredGuidance
from tests import tiny
from tests.session.pipeline_cases import add_lora, give_image_prompt, slice_attention
from tests.session.session_cases import MOVES, PROMPT, Change, at_step

# -- weights ----------------------------------------------------------------------------------------------------------


def keys_of(pipe: Any) -> list[Tensor]:
    return [each.weight for name, each in pipe.unet.named_modules() if name.endswith("attn2.to_k")]


@torch.no_grad()
def in_place(pipe: Any) -> None:
    for weight in keys_of(pipe):
        weight.mul_(-1.5)


def by_data(pipe: Any) -> None:
    """As adapters are merged, and averages of weights copied: torch counts no version of it."""
    for weight in keys_of(pipe):
        weight.data.mul_(-1.5)


def switch_adapter_off(pipe: Any) -> None:
    pipe.unet.disable_adapters()


def weigh_adapter(pipe: Any) -> None:
    pipe.unet.set_adapters("default", 0.0)


def merge_adapter(pipe: Any) -> None:
    pipe.unet.fuse_lora(lora_scale=2.0)


def unload_adapter(pipe: Any) -> None:
    pipe.unet.delete_adapters("default")


def other_precision(pipe: Any) -> None:
    for weight in keys_of(pipe):
        weight.data = -weight.data.to(torch.float64).to(torch.float32)


def new_layer(pipe: Any) -> None:
    for module in list(pipe.unet.modules()):
        if hasattr(module, "to_k") and module.is_cross_attention:
            made = nn.Linear(module.to_k.in_features, module.to_k.out_features, bias=False)
            made.weight.data = -2 * module.to_k.weight.data
            module.to_k = made


CHANGES = [in_place, by_data, switch_adapter_off, weigh_adapter, merge_adapter, unload_adapter, other_precision]


@pytest.mark.parametrize("change", [*CHANGES, new_layer], ids=lambda each: each.__name__)
def test_our_passes_see_the_weights_that_the_image_sees(change: Change) -> None:
    """A move of no length: the loss of our own pass is then that of the pass that makes the image."""
    pipe = tiny.sd(dtype=torch.float64 if change is not other_precision else torch.float32)
    if "adapter" in change.__name__:
        add_lora(pipe)
    still = AttendAndExcite(refinement=None, step=StepSize(scale=0.0), window=t2ictl.Window())
    with t2ictl.controlled(pipe, [still], measure=[still]) as session:
        tiny.run(pipe, PROMPT, steps=4, **at_step(1, change))
    own = [float(entry.total) for entry in session.trace]
    image = [float(entry.loss) for entry in session.measured]
    assert len(own) == 4 and own == pytest.approx(image, abs=1e-5)
    assert abs(own[2] - own[1]) > 1e-4


def test_weights_that_the_user_freezes_on_the_way_stay_frozen() -> None:
    pipe = tiny.sd()

    def freeze(pipe: Any) -> None:
        pipe.unet.requires_grad_(False)

    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=3, **at_step(0, freeze))
    assert not any(each.requires_grad for each in pipe.unet.parameters())


@pytest.mark.parametrize("change", ["nothing", "version", "data", "attribute", "module", "hook", "mode"])
def test_signature_of_weights(change: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    before = weights_signature(module)
    if change == "version":
        nn.init.ones_(module[0].weight)
    elif change == "data":
        module[1].running_mean.data += 1  # type: ignore[union-attr, operator, assignment]
    elif change == "attribute":
        module[0].scaling = {"default": 0.5}  # type: ignore[assignment]
    elif change == "module":
        module[0] = nn.Linear(3, 3)
    elif change == "hook":
        module[0].register_forward_hook(lambda *_: None)
    elif change == "mode":
        module.train()
    assert (weights_signature(module) == before) == (change == "nothing")
    with torch.inference_mode():
        assert weights_signature(nn.Linear(2, 2)) is None  # nobody counts what is written into it


# -- code that looks at processors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("controls", [[], [MOVES]], ids=["record", "moves"])
def test_the_scale_of_an_image_prompt_is_cut_off(controls: list[Any]) -> None:
    made = []
    for is_session in (False, True):
        pipe = tiny.sd()
        call = give_image_prompt(pipe)
        cut = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
        if is_session and not controls:
            with t2ictl.controlled(pipe, record=True):
                made.append(tiny.run(pipe, PROMPT, steps=4, callback_on_step_end=cut, **call))
        elif is_session:
            with t2ictl.controlled(pipe, controls):
                tiny.run(pipe, PROMPT, steps=4, callback_on_step_end=cut, **call)
        else:
            made.append(tiny.run(pipe, PROMPT, steps=4, callback_on_step_end=cut, **call))
        scales = {tuple(each.scale) for each in pipe.unet.attn_processors.values() if hasattr(each, "scale")}
        assert scales == {(0.0,)}
    assert all(torch.equal(each, made[0]) for each in made)


def test_an_image_prompt_that_is_unloaded_between_two_calls() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    call = give_image_prompt(pipe)
    before = {type(each).__name__ for each in pipe.unet.attn_processors.values()}
    with t2ictl.controlled(pipe, record=True):
        tiny.run(pipe, PROMPT, steps=2, **call)
        assert {type(each).__name__ for each in pipe.unet.attn_processors.values()} == before
        pipe.unload_ip_adapter()
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    assert {type(each) for each in pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)


def test_an_image_prompt_that_is_loaded_between_two_calls() -> None:
    pipe, other = tiny.sd(), tiny.sd()
    expected = tiny.run(other, PROMPT, steps=2, **give_image_prompt(other))
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, PROMPT, steps=2)
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2, **give_image_prompt(pipe)), expected)

    assert session.record.steps == 2
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2, **give_image_prompt(pipe)), expected)


def test_names_of_weights_in_a_session_are_those_of_the_user() -> None:
    pipe = tiny.sd()
    call = give_image_prompt(pipe)
    before, seen = list(pipe.unet.state_dict()), []

    def look(module: Any, inputs: Any) -> None:
        seen.append(list(pipe.unet.state_dict()))

    handle = pipe.unet.conv_out.register_forward_pre_hook(look)
    with t2ictl.controlled(pipe, record=True):
        tiny.run(pipe, PROMPT, steps=1, **at_step(0, lambda pipe: look(None, None)), **call)
        assert list(pipe.unet.state_dict()) == before
    handle.remove()
    assert seen == [before, before]


# -- processors that others set, store and put back -------------------------------------------------------------------


class Counting(AttnProcessor2_0):
    """Somebody's own processor, which computes what the stock one does."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("as_table", [False, True])
def test_processors_that_a_callback_sets_are_used_and_stay(as_table: bool) -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        expected = tiny.run(pipe, PROMPT, steps=4)
    maps = session.record.map("circle")
    Counting.calls = 0

    def change(pipe: Any) -> None:
        own = Counting()
        pipe.unet.set_attn_processor(dict.fromkeys(pipe.unet.attn_processors, own) if as_table else own)

    with t2ictl.controlled(pipe, [MOVES], record=True) as session:
        moved = tiny.run(pipe, PROMPT, steps=4, **at_step(1, change))
        assert {type(each) for each in pipe.unet.attn_processors.values()} == {Counting}
    assert torch.allclose(moved, expected, atol=1e-5) and torch.allclose(session.record.map("circle"), maps, atol=1e-6)
    assert Counting.calls > 0
    assert {type(each) for each in pipe.unet.attn_processors.values()} == {Counting}


def test_processors_that_an_edit_cannot_replace_are_named_when_it_meets_them() -> None:
    class Own(nn.Module):
        def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
            return hidden_states

    pipe = tiny.sd()
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(UnsupportedPipeline, match="is Own"):
        with t2ictl.controlled(pipe, [StructuredGuidance()]):
            tiny.run(pipe, PROMPT, steps=3, **at_step(0, lambda pipe: pipe.unet.set_attn_processor(Own())))
    assert pipe.unet.attn_processors == before  # the call was broken off, and its processors went with it


def test_processors_that_were_stored_in_a_session_are_the_users_own() -> None:
    """Another tool keeps what it finds, sets its own, and puts the first ones back when ours are long gone."""
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    before, stored = dict(pipe.unet.attn_processors), {}
    with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()]):
        expected = tiny.run(pipe, PROMPT, steps=2, **at_step(0, lambda pipe: stored.update(pipe.unet.attn_processors)))
        pipe.unet.set_attn_processor(AttnProcessor())
    pipe.unet.set_attn_processor(stored)
    assert pipe.unet.attn_processors == before
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()]):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)


def test_processors_stored_inside_a_pass_are_inert_and_taken_off_again() -> None:
    pipe = tiny.sd()
    plain = tiny.run(pipe, PROMPT, steps=2)
    stored: dict[str, Any] = {}
    handle = pipe.unet.conv_out.register_forward_pre_hook(lambda *_: stored.update(pipe.unet.attn_processors))
    with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()]):
        expected = tiny.run(pipe, PROMPT, steps=2)
    handle.remove()
    assert {type(each).__name__ for each in stored.values()} == {"ControlledAttention"}
    pipe.unet.set_attn_processor(dict(stored))
    assert torch.equal(tiny.run(pipe, PROMPT, steps=2), plain)
    with t2ictl.controlled(pipe, [MOVES, StructuredGuidance()]):
        assert torch.equal(tiny.run(pipe, PROMPT, steps=2), expected)


def test_projections_fused_inside_come_apart_to_the_users_own_processors() -> None:
    pipe = tiny.sd()
    before = dict(pipe.unet.attn_processors)
    with t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=3, **at_step(0, lambda pipe: pipe.unet.fuse_qkv_projections()))
    assert pipe.unet.original_attn_processors == before
    pipe.unet.unfuse_qkv_projections()
    assert pipe.unet.attn_processors == before


def test_switches_thrown_in_a_callback() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [MOVES]):
        expected = tiny.run(pipe, PROMPT, steps=3)
        assert torch.allclose(tiny.run(pipe, PROMPT, steps=3, **at_step(0, slice_attention)), expected, atol=1e-5)


@pytest.mark.parametrize("tool", ["processor", "hook", "hook inside"])
def test_listeners_of_another_tool_hear_our_passes_and_that_is_told(tool: str) -> None:
    pipe, heard = tiny.sd(), list[bool]()
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Maps(AttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            heard.append(torch.is_grad_enabled())
            return super().__call__(*args, **kwargs)

    if tool == "processor":
        attention.set_processor(Maps())
    else:
        where = attention if tool == "hook" else attention.to_q
        where.register_forward_hook(lambda *_: heard.append(torch.is_grad_enabled()))
    with pytest.warns(RuntimeWarning, match="another tool"), t2ictl.controlled(pipe, [MOVES]):
        tiny.run(pipe, PROMPT, steps=2)
    assert sorted(heard) == [False, False, True, True]  # by which the tool can tell them apart
    with warnings.catch_warnings(), t2ictl.controlled(pipe, record=True):  # here is no pass but the image's
        warnings.simplefilter("error")
        tiny.run(pipe, PROMPT, steps=2)
