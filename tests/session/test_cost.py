"""What a call cost, as plain data."""

from __future__ import annotations

import torch

from t2ictl.session.cost import Cost, peak_bytes, start_peak


def test_cost_is_plain_data() -> None:
    assert Cost(forwards=3).to_dict() == {
        "forwards": 3,
        "extra_forwards": 0,
        "backwards": 0,
        "seconds": 0.0,
        "peak_bytes": 0,
    }
    start_peak(torch.device("cpu"))
    assert peak_bytes(torch.device("cpu")) > 2**20
