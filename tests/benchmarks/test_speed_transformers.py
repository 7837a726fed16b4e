"""Budgets of latent updates of transformers, by counters: never by a clock."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ictl.attention.joint_maps import all_key_attention, text_attention
from t2ictl.attention.seam import KernelSeam
from t2ictl.benchmarks.speed import transformer_update, update
from t2ictl.benchmarks.speed.models import flash_attention, operations_of
from t2ictl.benchmarks.speed.transformer_update import TransformerUpdate, measure_transformer
from t2ictl.benchmarks.speed.transformers import TRANSFORMERS, empty_adapter
from t2ictl.cli.app import main

measured = functools.cache(measure_transformer)

#: Parameters (billions) and operations of one forward pass of one row (10^12).
PUBLISHED = {
    "flux": (11.90, 74.4),
    "sd35m": (2.24, 11.3),
    "sd35l": (8.06, 31.1),
    "sana": (1.60, 2.97),
    "pixart": (0.61, 6.63),
}
#: Of one latent update: blocks it runs, work (F), and what is kept for its backward pass (GiB, bfloat16).
BUDGETS = {
    "flux": (19, 0.75, 7.0),
    "sd35m": (8, 0.92, 2.5),
    "sd35l": (12, 0.76, 3.9),
    "sana": (7, 0.65, 1.0),
    "pixart": (9, 0.80, 1.0),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_one_update_stays_within_its_budget(name: str) -> None:
    found = measured(name, "off")
    blocks, work, kept = BUDGETS[name]
    assert found.blocks == blocks and found.heard > 3
    assert 0.5 < found.work <= work and 0.5 < found.saved <= kept
    weights = sum(each.numel() for each in empty_adapter(TRANSFORMERS[name]).denoiser.parameters())
    assert (weights / 1e9, found.plain / 1e12) == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_blocks_that_are_run_again_keep_less_than_a_gibibyte(name: str) -> None:
    found, plain = measured(name, "block", one=True), measured(name, "off")
    assert found.heard == 1 and 0.02 < found.saved <= 1.0 and found.saved < plain.saved / 8
    assert 0.2 < found.work - plain.work < 0.36  # what was run again, at most all of the forward pass
    assert found.forward <= plain.forward


@pytest.mark.parametrize("name", ["sd35m", "sana"])
def test_the_published_way_takes_more(name: str) -> None:
    ours, theirs = measured(name, "off"), measured(name, "published")
    assert theirs.heard == ours.heard and theirs.blocks > 2 * ours.blocks
    assert theirs.forward == pytest.approx(1, abs=0.001) and theirs.work > 1.5 * ours.work
    assert theirs.saved > 3 * ours.saved


def test_ways_that_keep_less_do_more() -> None:
    ways = [measured("sana", way) for way in ("off", "feed_forward", "all", "block")]
    assert all(more.saved < less.saved for less, more in zip(ways, ways[1:], strict=False))
    assert all(more.work > less.work for less, more in zip(ways, ways[1:], strict=False))


def linear(positions: int, width_in: int, width_out: int) -> int:
    """Operations of one projection, two for each product of two numbers."""
    return 2 * positions * width_in * width_out


def test_operations_of_flux_by_hand() -> None:
    """All that one pass and one update multiply, from the published sizes alone."""
    width, image, text, heads_twice = 3072, 4096, 512, 2 * 24
    both = image + text
    attention = 2 * heads_twice * both * both * 128  # q k^T and P v
    modulation = linear(1, width, 6 * width)
    begin = linear(image, 64, width) + linear(text, 4096, width)
    begin += 2 * (linear(1, 256, width) + linear(1, width, width))  # time and guidance
    begin += linear(1, 768, width) + linear(1, width, width)  # pooled text
    to_kernel = 2 * modulation + linear(both, width, 3 * width)
    joint = to_kernel + attention + linear(both, width, width) + 2 * linear(both, width, 4 * width)
    single = linear(1, width, 3 * width) + linear(both, width, 7 * width) + attention + linear(both, 5 * width, width)
    end = linear(1, width, 2 * width) + linear(image, width, 64)
    found, one = measured("flux", "off"), measured("flux", "block", one=True)
    assert found.plain == begin + 19 * joint + 38 * single + end
    one_map = heads_twice * image * text * 128
    before_last_kernel = begin + 18 * joint + to_kernel
    assert round(found.forward * found.plain) == before_last_kernel + 11 * one_map
    assert round(one.forward * one.plain) == before_last_kernel + one_map


def test_products_inside_of_maps_are_counted() -> None:
    """Once forward; backward the logits again, and one product each for the gradients of queries and keys."""
    q, k = (torch.zeros(1, 4, n, 8, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (6, 5))
    one = 2 * 4 * 6 * 5 * 8

    def both(attend: Any, *more: Any) -> tuple[int, int]:
        found, forward = operations_of(lambda: attend(q, k, *more))
        _, backward = operations_of(lambda: torch.autograd.grad(found.sum(), (q, k)))
        return forward, backward

    assert both(text_attention) == (one, 3 * one)
    assert both(all_key_attention, slice(0, 2)) == (one, 3 * one)


def test_the_flash_kernel_is_counted_where_a_seam_sees_it() -> None:
    q, k = torch.zeros(1, 4, 16, 8, device="meta"), torch.zeros(1, 4, 32, 8, device="meta")

    def run() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=None)

    with flash_attention(), KernelSeam(lambda call: call.k is k, lambda call: None) as seam:
        result, count = operations_of(run)
    assert seam.has_seen and result.shape == q.shape and count == 2 * (2 * 4 * 16 * 32 * 8)
    with flash_attention(), KernelSeam(lambda call: call.k is k, lambda call: call.q + 1):
        assert operations_of(run)[1] == 0


def test_the_command_prints_a_row_for_each_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = TransformerUpdate(plain=10**12, forward=0.25, backward=0.5, saved=1.5, blocks=7, heard=4)
    monkeypatch.setattr(transformer_update, "measure_transformer", lambda name, way, one: found)
    assert main(["bench", "speed", "update", "--model", "sana, pixart"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == 9 and len(rows) == 2 * 2 * len(transformer_update.WAYS)
    assert rows[0] == "| SANA-1.6B (1.60 B, F = 1.00 TFLOP) | 7 | 4 | published | 0.250 | 0.500 | 0.750 | 1.50 |"
    assert rows[-1].startswith("| PixArt-Sigma-XL-2 (0.61 B") and 'checkpointing="block"' in rows[-1]


def test_an_unknown_model_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "update", "--model", "flux,sd4"]) == 2
    assert "There is no model 'sd4' to measure. Models: flux, sd35m," in capsys.readouterr().err


def test_u_nets_are_measured_where_no_model_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(update, "measure", lambda name, **_: {"forward": 0.5, "backward": 0.25, "saved": 2.0})
    assert main(["bench", "speed", "update"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(update.MODELS) * len(update.WAYS)
    assert rows[0] == "| SD 1.5, 512 x 512 | published | 0.500 | 0.250 | 0.750 | 2.00 |"
