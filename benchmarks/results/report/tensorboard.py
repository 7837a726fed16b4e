"""The figures of a report as TensorBoard shows them: one run an arm, so that arms can be switched on and off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from t2ictl.benchmarks.extras import need
from t2ictl.benchmarks.results.report.scores import Scored
from t2ictl.benchmarks.results.statistics.comparison import Comparison

__all__ = ["write_events"]


def write_events(folder: Path, compared: Comparison | None, scored: Sequence[Scored], sheets: Sequence[Path]) -> None:
    """Write shares, means of scores, and contact sheets.

    Args:
        folder: for ``tensorboard --logdir``; one folder an arm is made in it.
        compared: shares of outcomes, or None.
        scored: learned metrics.
        sheets: images.

    Raises:
        MissingExtra: if tensorboard is not installed.
    """
    need("tensorboard", extra="tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    values: dict[str, dict[str, float]] = {}
    for row in () if compared is None else compared.shares.to_dict("records"):
        values.setdefault(row["arm"], {})[f"{row['category']}/{row['outcome']}"] = row["estimate"]
    for each in scored:
        for entry in each.table:
            values.setdefault(entry["arm"], {})[f"{entry['category']}/{each.name}"] = entry["mean"]
    for arm, named in values.items():
        with SummaryWriter(str(folder / arm.replace(":", "@"))) as writer:
            for name, value in named.items():
                writer.add_scalar(name, value, 0)
    with SummaryWriter(str(folder / "sheets")) as writer:
        for path in sheets:
            with Image.open(path) as image:
                writer.add_image(path.stem, np.asarray(image.convert("RGB")), 0, dataformats="HWC")
