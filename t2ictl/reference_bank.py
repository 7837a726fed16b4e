"""What the layers saw of the portraits of a story, kept for the calls that follow.

Portraits are made once. A call that shows them keeps, for every evaluation and every layer that reads them, what their
keys and values are projected from, at the positions of the subject alone: one tensor serves both, where keys and values
would be two. Later calls read it as rows behind those of their own batch. All of it lies in the memory of the host, and
there is a limit to it.

Legend: ``N`` position, ``M`` kept position, ``C`` channels, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from t2ictl.attention import AttentionCall
from t2ictl.errors import NotRecorded
from t2ictl.places import Places

__all__ = ["ReferenceBank", "Telling"]


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
        self._states[subject, call.step.index, call.site.address, role] = kept_MC

    def inside(self, subject: str, call: AttentionCall) -> Tensor:
        """Give where a subject was in its portrait when this evaluation was made.

        Args:
            subject: whose portrait.
            call: the layer and the evaluation.

        Returns:
            ``inside_YX``, boolean.

        Raises:
            NotRecorded: if it was not kept.
        """
        return self._found(self._inside, (subject, call.step.index, call.size))

    def states(self, subject: str, call: AttentionCall, role: str) -> Tensor:
        """Give what a layer saw of a portrait, zero where the subject was not.

        Args:
            subject: whose portrait.
            call: the layer and the evaluation.
            role: the side of the guidance.

        Returns:
            ``states_NC`` on the CPU.

        Raises:
            NotRecorded: if it was not kept.
        """
        kept_MC = self._found(self._states, (subject, call.step.index, call.site.address, role))
        states_NC = kept_MC.new_zeros(math.prod(call.size), kept_MC.shape[1])
        states_NC[self.inside(subject, call).flatten()] = kept_MC
        return states_NC

    def _found(self, held: dict[tuple, Tensor], key: tuple) -> Tensor:
        if key not in held:
            raise NotRecorded(
                f"Nothing was kept of the portrait of {key[0]!r} at evaluation {key[1]} ({key[2]}).",
                "Show the portraits with the same steps, size and guidance as the scenes.",
            )
        return held[key]


@dataclass(kw_only=True)
class Telling:
    """What a call knows of the story that it is a part of.

    Args:
        names: one for each picture of the call, the same however the story is cut into calls: what is drawn for a
            picture is drawn by its name.
        bank: what earlier calls kept of portraits, and where this one keeps them; None if portraits are not read.
        places: where the subjects of this call are; set when its plan is made, and known at its end.
    """

    names: tuple[str, ...]
    bank: ReferenceBank | None = None
    places: Places | None = None

    def absent(self, prompts: tuple[str, ...], subjects: dict[str, str]) -> tuple[str, ...]:
        """Names of the subjects whose portraits are in the bank and not in the call.

        Args:
            prompts: of the call.
            subjects: prompt of the portrait by name.

        Returns:
            The names, in the order of ``subjects``.
        """
        held = frozenset() if self.bank is None else self.bank.subjects
        return tuple(name for name, prompt in subjects.items() if name in held and prompt not in prompts)
