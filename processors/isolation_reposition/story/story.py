"""Stories: several images in which the same subjects stay themselves, told with isolation and reposition attention.

The portraits of the subjects are made once, and the scenes read them. What fits into one call is one call; what does
not is cut into several, and what layers saw of the portraits is kept for the later ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from t2ictl.controls.base import Control
from t2ictl.errors import BadSetting
from t2ictl.families import find_adapter, parse
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.processors.isolation_reposition.story.generator import Detector, StoryGenerator
from t2ictl.processors.isolation_reposition.story.result import Story, StoryImage
from t2ictl.processors.isolation_reposition.story.scenes import Scene, check_story
from t2ictl.processors.isolation_reposition.story.settings import StorySettings
from t2ictl.processors.isolation_reposition.subjects import Subject

__all__ = ["Detector", "check", "story"]


def story(
    pipe: Any,
    subjects: Sequence[Subject],
    scenes: Sequence[Scene],
    *,
    control: IsolationReposition | None = None,
    controls: Sequence[Control] = (),
    detector: Detector | None = None,
    on_image: Callable[[StoryImage], Any] | None = None,
    finished: Sequence[StoryImage] = (),
    **settings: Any,
) -> Story:
    """Make the images of a story so that the subjects stay apart, and stay themselves.

    With ``reposition="resample"`` this takes S + T generations for S subjects and T scenes, a rehearsal of the scenes
    its share of T more. With ``"latent"`` it takes S + 2T, or S + 3T with whole rehearsals: each scene reads one
    composite with every subject where it wants it. A subject that has an ``image`` needs no portrait in latent mode.

    Args:
        pipe: a diffusers pipeline.
        subjects: who is in the story.
        scenes: its images.
        control: settings of the method; its subjects, concepts and layout are filled in here.
        controls: other controls that act on all images.
        detector: gives where subjects are in an image, in the place of their words' maps: in rehearsals, and, in
            latent mode, in portraits.
        on_image: called with each image as soon as it is made, so that nothing is lost if a later call fails.
        finished: images of an earlier run. Those that were made with these very settings, pipeline and versions are
            not made again; for scenes that are missing, portraits are, since no image holds what scenes read of them.
        **settings: further fields of :class:`StorySettings`: ``seed``, ``steps``, ``guidance_scale``, ``places``, ...

    Returns:
        The story.

    Raises:
        BadSetting: if the story cannot be told as it stands; nothing has been made then.
        SpanNotFound: if a subject is not in the prompt of its portrait, or of a scene that it is said to be in.
        ShapeMismatch: if a mask has not the size of the image.

    Example:
        >>> import t2ictl
        >>> from t2ictl.processors.isolation_reposition.story.scenes import Scene
        >>> assignment = [Subject(name="circle", prompt="a red circle"), Subject(name="square", prompt="a blue square")]
        >>> told = t2ictl.story(t2ictl.load("shapes"), assignment, [Scene(prompt="a circle and a square")], steps=2)
        >>> len(told.scenes), dict(told.generations)
        (1, {'portraits': 2, 'scenes': 1})
    """
    wanted = StorySettings(subjects=tuple(subjects), scenes=tuple(scenes), **settings)
    method = IsolationReposition() if control is None else control
    there = check(pipe, wanted, method, detector)
    return StoryGenerator(pipe, wanted, method, tuple(controls), detector, there, on_image, finished).tell()


def check(
    pipe: Any, wanted: StorySettings, method: IsolationReposition, detector: Detector | None = None
) -> tuple[tuple[str, ...], ...]:
    """Find out who is in each scene, and whether the story can be told; nothing is made.

    Args:
        pipe: a diffusers pipeline.
        wanted: the story.
        method: settings of the method.
        detector: if there is one.

    Returns:
        Names of the subjects of each scene.

    Raises:
        BadSetting, SpanNotFound, ShapeMismatch: as :func:`story`.
    """
    if method.subjects or method.concepts or method.layout:
        raise BadSetting("The control has subjects, concepts or a layout of its own.", "The story's are used.")
    adapter = find_adapter(pipe)
    size = tuple(given or own for given, own in zip((wanted.height, wanted.width), adapter.native_size, strict=True))
    read = functools.partial(parse, pipe, parser=wanted.parser)
    there = check_story(wanted.subjects, wanted.scenes, (size[0], size[1]), read)
    if method.reposition == "latent":
        _check_images(wanted.subjects, detector)
    return there


def _check_images(subjects: Sequence[Subject], detector: Detector | None) -> None:
    for subject in subjects:
        if subject.image is not None and subject.region is None and detector is None:
            raise BadSetting(
                f"With reposition='latent' the image of {subject.name!r} is cut out, and nothing says where it is.",
                "Give Subject(box=...) or Subject(mask=...), or a detector.",
            )
