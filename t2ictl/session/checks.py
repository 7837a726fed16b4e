"""What a session refuses before the pipeline is called: controls that cannot act, maps that cannot be recorded."""

from __future__ import annotations

from collections.abc import Sequence

from t2ictl.attention.layers import Layer, select_layers
from t2ictl.controls.base import Control
from t2ictl.errors import BadSetting, PromptUnknown, UnsupportedPipeline
from t2ictl.families import Adapter
from t2ictl.maps.recorder import Recording

__all__ = ["check_needs", "check_words", "recorded_layers"]


def check_needs(controls: Sequence[Control], adapter: Adapter) -> None:
    """See that a family offers what controls need.

    Args:
        controls: the controls of a session.
        adapter: the pipeline's family.

    Raises:
        UnsupportedPipeline: if something is missing.
    """
    for control in controls:
        if missing := sorted(control.needs - adapter.offers):
            raise UnsupportedPipeline(
                f"{type(control).__name__} needs {' and '.join(missing)}, which pipelines of the family "
                f"{adapter.family!r} do not offer.",
                "docs/transformers.md lists which control acts on which family.",
            )


def recorded_layers(recording: Recording | None, adapter: Adapter) -> tuple[Layer, ...]:
    """Find the layers whose maps are to be recorded.

    Args:
        recording: what to record, or None.
        adapter: the pipeline's family.

    Returns:
        Layers in which places attend to words; none if nothing is recorded.

    Raises:
        NoLayerMatched: if the filter matches no such layer.
        BadSetting: for a reading of joint attention that one of them does not have.
    """
    if recording is None:
        return ()
    # The maps of self-attention are over places, not over words.
    where = recording.layers
    layers = select_layers(adapter.word_layers, where) if where else adapter.semantic_layers
    others = [layer.address for layer in layers if layer.text == "keys"]
    if recording.kind not in ("text", "all_keys") and others:
        raise BadSetting(
            f"Recording.kind {recording.kind!r} reads joint attention, and {others[0]} is cross-attention.",
            "Use kind='text'.",
        )
    if recording.text_mass and adapter.port.component == "unet":
        raise BadSetting("In a U-Net places attend to text alone.", "Leave out text_mass: it would be 1 everywhere.")
    return layers


def check_words(controls: Sequence[Control], recording: Recording | None, problem: str) -> None:
    """See that nobody needs the words of a call that has none.

    Args:
        controls: the controls of a session.
        recording: what to record, or None.
        problem: why words cannot be named; empty where they can.

    Raises:
        PromptUnknown: if somebody does.
    """
    wanting = [type(control).__name__ for control in controls if control.needs_words]
    wanting += ["record="] if recording is not None else []
    remedy = "Name them: controlled(..., prompt='...'), or encode inside the session with pipe.encode_prompt."
    if wanting:
        raise PromptUnknown(
            f"The pipeline was called with prompt_embeds only, and {', '.join(wanting)} needs the words.",
            problem or remedy,
        )
