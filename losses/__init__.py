"""Pure functions on attention maps, one idea a module; they know no model and no method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.losses.alignment import alignment_loss as alignment_loss
    from t2ictl.losses.boxes import box_losses as box_losses
    from t2ictl.losses.boxes import layout_energy as layout_energy
    from t2ictl.losses.contrast import contrastive_loss as contrastive_loss
    from t2ictl.losses.distances import cosine as cosine
    from t2ictl.losses.distances import jensen_shannon as jensen_shannon
    from t2ictl.losses.distances import symmetric_divergence as symmetric_divergence
    from t2ictl.losses.entropy import entropy_loss as entropy_loss
    from t2ictl.losses.entropy import mean_entropy_share as mean_entropy_share
    from t2ictl.losses.groups import apart as apart
    from t2ictl.losses.groups import described as described
    from t2ictl.losses.groups import together as together
    from t2ictl.losses.linguistic_binding import linguistic_binding_loss as linguistic_binding_loss
    from t2ictl.losses.linguistic_binding import piecewise_binding_loss as piecewise_binding_loss
    from t2ictl.losses.overlap import overlap_loss as overlap_loss
    from t2ictl.losses.overlap import soft_overlap as soft_overlap
    from t2ictl.losses.predicates import correspondence_loss as correspondence_loss
    from t2ictl.losses.predicates import existence_loss as existence_loss
    from t2ictl.losses.predicates import leak_table as leak_table
    from t2ictl.losses.predicates import possession_table as possession_table
    from t2ictl.losses.presence import presence_loss as presence_loss
    from t2ictl.losses.retention import retention_loss as retention_loss
    from t2ictl.losses.self_attention import conflict_loss as conflict_loss
    from t2ictl.losses.self_attention import drift_loss as drift_loss
    from t2ictl.losses.self_attention import outside_peak_loss as outside_peak_loss
    from t2ictl.losses.self_attention import published_self_cross_loss as published_self_cross_loss
    from t2ictl.losses.self_attention import self_cross_loss as self_cross_loss
    from t2ictl.losses.semantic_binding import semantic_binding_loss as semantic_binding_loss
    from t2ictl.losses.variation import attend_and_bind_loss as attend_and_bind_loss
    from t2ictl.losses.variation import attendance_loss as attendance_loss
    from t2ictl.losses.variation import binding_loss as binding_loss
    from t2ictl.losses.variation import total_variation as total_variation

_HOME = {
    "alignment": ("alignment_loss",),
    "boxes": (
        "box_losses",
        "layout_energy",
    ),
    "contrast": ("contrastive_loss",),
    "distances": (
        "cosine",
        "jensen_shannon",
        "symmetric_divergence",
    ),
    "entropy": (
        "entropy_loss",
        "mean_entropy_share",
    ),
    "groups": (
        "apart",
        "described",
        "together",
    ),
    "linguistic_binding": (
        "linguistic_binding_loss",
        "piecewise_binding_loss",
    ),
    "overlap": (
        "overlap_loss",
        "soft_overlap",
    ),
    "predicates": (
        "correspondence_loss",
        "existence_loss",
        "leak_table",
        "possession_table",
    ),
    "presence": ("presence_loss",),
    "retention": ("retention_loss",),
    "self_attention": (
        "conflict_loss",
        "drift_loss",
        "outside_peak_loss",
        "published_self_cross_loss",
        "self_cross_loss",
    ),
    "semantic_binding": ("semantic_binding_loss",),
    "variation": (
        "attend_and_bind_loss",
        "attendance_loss",
        "binding_loss",
        "total_variation",
    ),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    # Late, so that a name loads its own module only.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
