"""What the layers saw of the portraits of a story, kept for the calls that follow.

Portraits are made once. A call that shows them keeps, for every evaluation and every layer that reads them, what their
keys and values are projected from, at the positions of the subject alone: one tensor serves both, where keys and values
would be two. Later calls read it as rows behind those of their own batch. All of it lies in the memory of the host, and
there is a limit to it.

Legend: ``N`` position, ``M`` kept position, ``C`` channels, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import math

from torch import Tensor

from t2ictl.attention.edits import AttentionCall
from t2ictl.errors import NotRecorded

__all__ = ["ReferenceBank"]


class ReferenceBank:
    """Holds what layers saw of portraits, up to a limit.

    Args:
        limit: most bytes that it may hold. Where more would be needed it lets go of everything and is full: then the
            portraits have to be shown again.

    Example:
        >>> ReferenceBank(limit=1 << 20).is_full
        False
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes, self.is_full = limit, 0, False
        self._inside: dict[tuple[str, int, tuple[int, int]], Tensor] = {}
        self._states: dict[tuple[str, int, str, str], Tensor] = {}

    @property
    def subjects(self) -> frozenset[str]:
        """Names of the subjects whose portraits it holds."""
        return frozenset(subject for subject, *_ in self._states)

    def keep(self, subject: str, call: AttentionCall, role: str, states_NC: Tensor, inside_YX: Tensor) -> None:
        """Keep what one layer sees of a portrait in one evaluation.

        Args:
            subject: whose portrait.
            call: the layer and the evaluation.
            role: the side of the guidance.
            states_NC: what keys and values are projected from, at all positions.
            inside_YX: True where the subject is.
        """
        if self.is_full:
            return
        kept_MC = states_NC.detach()[inside_YX.flatten().to(states_NC.device)].cpu()
        self.bytes += kept_MC.numel() * kept_MC.element_size()
        if self.bytes > self.limit:
            self.is_full, self.bytes = True, 0
            self._inside.clear()
            self._states.clear()
            return
        self._inside[subject, call.step.index, call.size] = inside_YX.cpu()
        self._states[subject, call.step.index, call.layer.address, role] = kept_MC

    def inside(self, subject: str, call: AttentionCall) -> Tensor:
        """Return where a subject was in its portrait when this evaluation was made.

        Args:
            subject: whose portrait.
            call: the layer and the evaluation.

        Returns:
            ``inside_YX``, boolean.

        Raises:
            NotRecorded: if it was not kept.
        """
        return self._found(self._inside, (subject, call.step.index, call.size))

    def states(self, subject: str, call: AttentionCall, role: str, like: Tensor) -> Tensor:
        """Return what a layer saw of a portrait, zero where the subject was not.

        Args:
            subject: whose portrait.
            call: the layer and the evaluation.
            role: the side of the guidance.
            like: a tensor whose device and precision are wanted; only what was kept goes there.

        Returns:
            ``states_NC``.

        Raises:
            NotRecorded: if it was not kept.
        """
        kept_MC = self._found(self._states, (subject, call.step.index, call.layer.address, role)).to(like)
        states_NC = kept_MC.new_zeros(math.prod(call.size), kept_MC.shape[1])
        places_M = self.inside(subject, call).flatten().nonzero().flatten().to(like.device)
        return states_NC.index_copy(0, places_M, kept_MC)

    def _found(self, held: dict[tuple, Tensor], key: tuple) -> Tensor:
        if key not in held:
            raise NotRecorded(
                f"Nothing was kept of the portrait of {key[0]!r} at evaluation {key[1]} ({key[2]}).",
                "Show the portraits with the same steps, size and guidance as the scenes.",
            )
        return held[key]
