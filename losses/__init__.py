"""Pure functions on attention maps, one idea a file; they know no model and no method."""

from t2ictl.losses.overlap import overlap_loss, soft_overlap
from t2ictl.losses.presence import presence_loss
from t2ictl.losses.retention import retention_loss

__all__ = ["overlap_loss", "presence_loss", "retention_loss", "soft_overlap"]
