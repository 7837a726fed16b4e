"""The engine on a device: precision, restoring, batches, kernels, and memory at the sizes of published models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import tiny
from tests.gpu import cases

pytestmark = pytest.mark.gpu
FAMILIES = {"sd": tiny.sd, "sd2": tiny.sd2, "sdxl": tiny.sdxl}
HALVES = [torch.float16, torch.bfloat16]
Rows = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    """Figures of all tests of this file, printed at its end."""
    found: Rows = []
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + cases.table(found, "cuda") + "\n")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_losses_and_moves_are_finite(family: str, dtype: torch.dtype, rows: Rows) -> None:
    exact = cases.losses_and_moves(cases.place(FAMILIES[family](), "cuda"))
    half = cases.losses_and_moves(cases.place(FAMILIES[family](dtype=dtype), "cuda"))
    rows.append((f"{family} {dtype}", "first loss, float32 and half", f"{exact['loss']:.4f} {half['loss']:.4f}"))
    rows.append((f"{family} {dtype}", "first move, float32 and half", f"{exact['move']:.4f} {half['move']:.4f}"))
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_everything_is_restored(family: str, dtype: torch.dtype) -> None:
    cases.restored(cases.place(FAMILIES[family](dtype=dtype), "cuda"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_recording_is_silent(family: str, dtype: torch.dtype) -> None:
    cases.record_is_silent(cases.place(FAMILIES[family](dtype=dtype), "cuda"))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_equal_single_runs(family: str, rows: Rows) -> None:
    controlled, plain = cases.batch_row_difference(cases.place(FAMILIES[family](), "cuda"))
    rows.append((f"{family} float32", "row of a batch, controlled and plain", f"{controlled:.1e} {plain:.1e}"))
    assert controlled <= max(1e-3, 5 * plain)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_every_kernel_runs(dtype: torch.dtype, rows: Rows) -> None:
    # Half precision kernels want heads of a multiple of 8.
    pipe = cases.place(tiny.sd(dtype=dtype, block_out_channels=(16, 32, 32, 32)), "cuda")
    found = cases.kernels(pipe)
    rows.extend((f"sd {dtype}", f"kernel {name}", state) for name, state in found.items())
    assert found.pop("MATH") == "ran"
    assert "ran" in found.values()


@pytest.mark.parametrize(("family", "side"), [("sd", 64), ("sdxl", 128)])
def test_memory_of_one_update_at_published_sizes(family: str, side: int, rows: Rows) -> None:
    pipe: Any = cases.published(family, "cuda", torch.float16)
    early = cases.one_update(pipe, side, truncate=True)
    try:
        whole = cases.one_update(pipe, side, truncate=False)
    except torch.OutOfMemoryError:
        whole = dict.fromkeys(early, float("inf"))  # more than the device has
    for figure, value in early.items():
        rows.append((f"{family} float16, {side} x {side}", f"{figure}, ended early", f"{value:.2f}"))
        rows.append((f"{family} float16, {side} x {side}", f"{figure}, whole", f"{whole[figure]:.2f}"))
    assert early["saved MiB"] < whole["saved MiB"]
    assert early["peak MiB"] < whole["peak MiB"]
