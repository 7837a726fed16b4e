"""The functions of the GPU tests at toy size on the CPU, so that they are known to run where there is no device."""

from __future__ import annotations

import torch

from tests import tiny
from tests.gpu import cases


def test_losses_and_moves() -> None:
    exact, half = (
        cases.losses_and_moves(cases.place(tiny.sd(dtype=d), "cpu")) for d in (torch.float32, torch.bfloat16)
    )
    assert 0 < half["loss"] < 3 * exact["loss"] and half["move"] > 0


def test_restored_and_silent() -> None:
    pipe = cases.place(tiny.sd(), "cpu")
    cases.restored(pipe)
    cases.record_is_silent(pipe)


def test_batch_rows() -> None:
    controlled, plain = cases.batch_row_difference(tiny.sd())
    assert controlled <= max(1e-3, 5 * plain)


def test_kernels() -> None:
    found = cases.kernels(tiny.sd())
    assert found["MATH"] == "ran" and set(found.values()) <= {"ran", "none for these shapes"}


def test_one_update_at_published_topology() -> None:
    narrow = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 8, "attention_head_dim": 2}
    sd = cases.published("sd", "cpu", torch.float32, **narrow)
    few = {
        "block_out_channels": (8, 16, 32),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
    }
    sdxl = cases.published("sdxl", "cpu", torch.float32, norm_num_groups=8, **few)
    rows = []
    for name, pipe in (("sd", sd), ("sdxl", sdxl)):
        early, whole = (cases.one_update(pipe, 32, truncate=each) for each in (True, False))
        assert 0 < early["saved MiB"] < whole["saved MiB"]
        rows.append((name, "saved MiB", f"{early['saved MiB']:.2f}"))
    text = cases.table(rows, "cpu")
    assert "torch " + torch.__version__ in text and text.count("\n|") == 4
