"""Budgets of work and memory, by counters: never by a clock."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import t2ictl
from t2ictl.app.engine.memory import DECODED, FORWARD
from t2ictl.benchmarks.speed import compiled, published
from t2ictl.benchmarks.speed.growth import CASES, over_runs, over_steps, slope
from t2ictl.benchmarks.speed.maps import LAYERS, operations
from t2ictl.benchmarks.speed.memory import LiveBytes, decoder_peak, denoiser_peak
from t2ictl.benchmarks.speed.models import MODELS
from t2ictl.benchmarks.speed.published import whole_image
from t2ictl.benchmarks.speed.synchronizations import counts
from t2ictl.benchmarks.speed.update import measure
from t2ictl.session.checkpoints import Checkpointing

measured = functools.cache(measure)

#: Of one latent update: work (F) and what is kept for its backward pass (GiB, float16).
BUDGETS = {"SD 1.5, 512 x 512": (1.10, 0.36), "SD 2.1, 768 x 768": (1.15, 0.75), "SDXL, 1024 x 1024": (1.66, 3.8)}


@pytest.mark.parametrize("name", MODELS)
def test_one_update_stays_within_its_budget(name: str) -> None:
    found = measured(name, published=False)
    work, kept = BUDGETS[name]
    update = found["forward"] + found["backward"]
    assert 0.5 < update <= work and 0.1 < found["saved"] <= kept
    published = measured(name, published=True)
    assert update < published["forward"] + published["backward"] and found["saved"] < published["saved"] / 3


@pytest.mark.parametrize(("way", "share", "more"), [("feed_forward", 0.7, 0.3), ("all", 0.4, 0.55)])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_trades_memory_for_work(name: str, way: Checkpointing, share: float, more: float) -> None:
    plain, short = measured(name, published=False), measured(name, published=False, checkpointing=way)
    assert short["saved"] < share * plain["saved"]
    assert short["forward"] == plain["forward"]  # layers run again in the backward pass
    assert 0.02 < short["backward"] - plain["backward"] < more


def test_whole_images_stay_within_their_budget() -> None:
    found = measured("SD 1.5, 512 x 512", published=False)
    update = found["forward"] + found["backward"]
    assert whole_image(update, updates=25) <= 1.35  # Attend-and-Excite without refinement
    assert whole_image(update, updates=50) <= 1.6  # A-STAR at every step


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_of_words_stay_within_their_budget(name: str, layers: object) -> None:
    assert 1.0005 < operations(name, layers) <= 1.05


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_held_from_run_to_run(case: str) -> None:
    pipe = t2ictl.load("shapes", device="cpu")
    reachable, _ = over_runs(pipe, CASES[case](), runs=4, steps=2)
    assert reachable[-1] == reachable[1]


@pytest.mark.parametrize("case", CASES)
def test_steps_of_a_run_hold_their_trace_and_nothing_else(case: str) -> None:
    seen = over_steps(t2ictl.load("shapes", device="cpu"), CASES[case](), steps=6)
    assert len(seen) == 6 and abs(seen[-1] - seen[1]) <= 4 * 512


def test_slope_leaves_the_first_runs_out() -> None:
    assert slope([100.0, 50.0, 20.0, 10.0, 1.0, 1.5, 2.0]) == pytest.approx(0.5)


def test_live_bytes_by_hand() -> None:
    with LiveBytes() as live:
        first = torch.zeros(256, device="meta")  # 1 KiB
        second = first[:10] + 1  # 40 bytes; the view is no memory of its own
        assert live.now == 1024 + 40
        del first
        assert live.now == 40
        third = second.reshape(2, 5)
        del second
        assert live.now == 40 and third.shape == (2, 5)
    assert live.peak == 1064


def test_memory_of_whole_passes_is_what_the_editor_reckons_with() -> None:
    assert denoiser_peak("SD 1.5, 512 x 512") == pytest.approx(FORWARD["sd"], rel=0.01)
    assert denoiser_peak("SDXL, 1024 x 1024") == pytest.approx(FORWARD["sdxl"], rel=0.01)
    assert decoder_peak() == pytest.approx(DECODED, rel=0.01)


def test_waits_for_the_device_are_few() -> None:
    """Seven times a call with a control; where rows move, once a step; where they refine, once a pass."""
    found = counts(steps=10)
    plain = found["plain"][0]
    for name in ("A-STAR", "Attend-and-Excite, not refined"):
        waits, updates = found[name]
        assert waits == plain + updates + 7 and updates >= 5
    waits, updates = found["Attend-and-Excite, refined"]
    assert updates > 10 and waits <= plain + 5 + updates + 7


def test_published_pipeline_does_our_work_and_leaves_the_fused_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' own way back leaves explicit attention, with which whoever comes next would be timed."""
    small = {**MODELS["SD 1.5, 512 x 512"], "block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8}
    monkeypatch.setattr(published, "MODELS", {"SD 1.5, 512 x 512": small})
    pipe, call = published._pipeline(32, "cpu", torch.float32)
    before = pipe.unet.attn_processors
    assert {type(each) for each in before.values()} == {AttnProcessor2_0}
    ours, theirs = (way(pipe, call, 2) for way in (published.ours, published.theirs))
    assert all(before[name] is each for name, each in pipe.unet.attn_processors.items())
    assert len(ours.updates) == len(theirs.updates) == 2
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=0, atol=1e-5)
    assert not torch.allclose(ours.latents, published.plain(pipe, call, 2).latents, rtol=0, atol=1e-4)


def test_compiled_blocks_break_at_controlled_layers() -> None:
    """The reason for which compiled denoisers are refused; should it go away, so should the refusal."""
    plain, controlled = (compiled.counts(case, sessions=1, steps=1)[0] for case in ("plain, no session", "A-STAR"))
    assert plain[0] > 0 and plain[1] == 0
    assert controlled[1] >= 3 and controlled[0] > 3 * plain[0]
