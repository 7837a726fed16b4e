"""The result of an analysis: its findings, and the report that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2ictl.processors.token_flow.analysis.findings import FlowFindings
from t2ictl.processors.token_flow.analysis.page import write_report

__all__ = ["FlowResult"]


@dataclass(frozen=True, kw_only=True)
class FlowResult(FlowFindings):
    """What :func:`t2ictl.flow` found, to be read in code or as a page."""

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, which needs no other file and no network, and its twin ``report.json``.

        Args:
            folder: made if it is not there.

        Returns:
            The HTML file.
        """
        return write_report(self, Path(folder))
