"""Controls: frozen settings of a method, the plan they make, and the registry that finds them."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from t2ictl.errors import BadSetting, ControlConflict, NeedsSession
from t2ictl.named_files import no_files

if TYPE_CHECKING:
    from torch import Tensor

    from t2ictl.adapters.base import Adapter
    from t2ictl.attention import Edit, Step
    from t2ictl.lanes import Lanes
    from t2ictl.objectives import Objective
    from t2ictl.sites import Site
    from t2ictl.spans import Prompt
    from t2ictl.text_states import Encode, TextEdit, TextStates

__all__ = [
    "Control",
    "Plan",
    "PlanContext",
    "Watch",
    "broken_controls",
    "control_from_dict",
    "control_to_dict",
    "get_control",
    "list_controls",
    "register_control",
]


@dataclass(frozen=True, kw_only=True)
class PlanContext:
    """What a control may know when it makes its plan, before the pipeline has computed anything.

    Args:
        adapter: the pipeline's family: its layers, its sizes, its text encoders.
        prompts: the parsed prompts of this call, one for each prompt that the user gave.
        lanes: the rows of the batch.
        encode: encodes other texts as the pipeline encodes its prompt in this call; None: as it would by itself.
        negative_prompts: the parsed negative prompts, one for each prompt; empty where there are none.
    """

    adapter: Adapter
    prompts: tuple[Prompt, ...]
    lanes: Lanes
    encode: Encode | None = None
    negative_prompts: tuple[Prompt, ...] = ()

    def encoded(self, texts: Sequence[str], first: Sequence[int] | None = None) -> TextStates:
        """Encode texts of a control's own, in one batch.

        Args:
            texts: any texts.
            first: for each text the position from which on its words are read; None: from 1, as any text.

        Returns:
            Their states, one row a text.

        Raises:
            UnsupportedPipeline: if a text encoder was taken out of the pipeline.
        """
        if self.encode is not None:
            return self.encode(texts, first)
        return self.adapter.encode(self.adapter.pipe.encode_prompt, {"device": self.adapter.device}, texts, first)

    @property
    def row_prompts(self) -> tuple[Prompt, ...]:
        """The prompt of each picture."""
        return tuple(self.prompts[lane.prompt] for lane in self.lanes.only("cond").lanes)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Reads the maps of the passes that make the picture, and changes nothing in them.

    Args:
        sites: the cross-attention layers whose mean map it wants.
        take: gets ``maps_BYXT`` of the conditional rows and the step, at the end of each evaluation.
    """

    sites: tuple[Site, ...]
    take: Callable[[Tensor, Step], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a control does in one pipeline call. All state of the call lives behind it.

    Args:
        objectives: what moves the latents.
        edits: pairs of the sites of an edit and the edit.
        owns: things that only one control can set (``"cross.values"``, ...); two owners conflict.
        push: moves the latents without a look at the maps. Gets the scaled latents ``x_BCYX``, one row a
            picture, and the step; gives the moves ``dx_BCYX`` to make one after the other, or none. They are made where
            objectives would make theirs, after these.
        pin: puts other latents in the place of some pictures'. Gets the scaled latents ``x_BCYX``, one row a picture,
            and the step; gives all of them, the others as they were. It comes last, at every evaluation.
        text: what is done to the text states; only one control of a session can.
        watches: who reads the maps of the passes that make the picture.
    """

    objectives: tuple[Objective, ...] = ()
    edits: tuple[tuple[tuple[Site, ...], Edit], ...] = ()
    owns: tuple[str, ...] = ()
    push: Callable[[Tensor, Step], Sequence[Tensor]] | None = None
    pin: Callable[[Tensor, Step], Tensor] | None = None
    text: TextEdit | None = None
    watches: tuple[Watch, ...] = ()


class Control:
    """Base of all controls: frozen settings, and ``plan``, which turns them into a plan.

    A subclass is a settings class registered with :func:`register_control`. With strength 0 a
    control must give an empty plan: then the picture is bit-equal to the plain one.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    needs_words: ClassVar[bool] = True
    moves_words: ClassVar[bool] = False
    """Whether its plan gives words other places in the text rows; such a control plans before the others."""
    has_losses: ClassVar[bool] = True
    """Whether its plan has losses, by which something moves; a control without edits attention only."""

    def plan(self, context: PlanContext) -> Plan:
        """Make the plan for one pipeline call.

        Args:
            context: adapter, prompts and batch layout of the call.

        Returns:
            The plan; an empty one leaves the picture alone.
        """
        raise NotImplementedError

    @classmethod
    def processors(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Give plain attention processors that work without a session, where the method allows it.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts that it will be called with.
            **settings: the control's fields.

        Returns:
            A dict for ``unet.set_attn_processor``.

        Raises:
            NeedsSession: if the method moves latents, which no attention processor can do.
        """
        raise NeedsSession(
            f"{cls.__name__} acts on the latents between steps, which an attention processor cannot reach.",
            f"Use it in a session: with t2ictl.controlled(pipe, [{cls.__name__}()]): ...",
        )

    @classmethod
    def embeds(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Give text embeddings that work without a session, where the method allows it.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts.
            **settings: the control's fields.

        Returns:
            Keyword arguments for a call of the pipeline.

        Raises:
            NeedsSession: if the method does not act on text embeddings.
        """
        raise NeedsSession(
            f"{cls.__name__} does not act on text embeddings.",
            f"Use it in a session: with t2ictl.controlled(pipe, [{cls.__name__}()]): ...",
        )


C = TypeVar("C", bound=type[Control])
_REGISTRY: dict[str, type[Control]] = {}
_BROKEN: dict[str, str] = {}


def register_control(name: str, *, paper: str, families: tuple[str, ...] = ("sd", "sdxl")) -> Callable[[C], C]:
    """Register a control under a name, for the command line, the editor and the benchmarks.

    Args:
        name: lower case, words joined by underscores.
        paper: authors, title, year, arXiv id.
        families: pipeline families it acts on.

    Returns:
        The class decorator.

    Raises:
        ControlConflict: if another control already has the name.
    """

    def register(cls: C) -> C:
        """File the class, unless another one has the name."""
        if not name.isidentifier() or name != name.lower():
            raise BadSetting(f"{name!r} cannot be a control's name.", "Use lower case and underscores.")
        known = _REGISTRY.get(name)
        if known is not None and not _is_same_class(known, cls):
            raise ControlConflict(
                f"Both {known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__} "
                f"want the name {name!r}.",
                "Rename one.",
            )
        cls.name, cls.paper, cls.families = name, paper, families
        # A cell that is run again, or a module that is reloaded, brings the newer definition.
        if known is None or known.__module__ == cls.__module__:
            _REGISTRY[name] = cls
        return cls

    return register


def _is_same_class(known: type, cls: type) -> bool:
    """Tell whether two classes are one: defined again, or found under a second module name (a stray double import)."""
    if known.__qualname__ != cls.__qualname__:
        return False
    homes = [getattr(sys.modules.get(each.__module__), "__file__", None) for each in (known, cls)]
    here, there = (home and os.path.realpath(home) for home in homes)
    return known.__module__ == cls.__module__ or (here is not None and here == there)


def _discover() -> None:
    """Import every module of t2ictl.processors and every installed entry point, once each."""
    import t2ictl.processors as home

    names = [f"{home.__name__}.{module.name}" for module in pkgutil.iter_modules(home.__path__)]
    loaders: list[tuple[str, Callable[[], Any]]] = [(n, lambda n=n: importlib.import_module(n)) for n in names]  # type: ignore[misc]
    loaders += [(point.value, point.load) for point in entry_points(group="t2ictl.controls")]
    for name, load in loaders:
        try:
            load()
            _BROKEN.pop(name, None)
        except Exception as error:  # one broken file must not take the others down, nor be hidden
            _BROKEN[name] = f"{type(error).__name__}: {error}"


def list_controls() -> dict[str, type[Control]]:
    """List all controls: those of this library and those of installed packages.

    Returns:
        Class by name, in alphabetical order.

    Example:
        >>> "attention_segregation" in list_controls()
        True
    """
    _discover()
    return dict(sorted(_REGISTRY.items()))


def broken_controls() -> dict[str, str]:
    """List control modules that could not be imported, each with its error.

    Returns:
        Error by module name; empty if all is well.
    """
    _discover()
    return dict(_BROKEN)


def get_control(name: str) -> type[Control]:
    """Find a control by name.

    Args:
        name: as in :func:`list_controls`.

    Returns:
        The class.

    Raises:
        BadSetting: if there is no such control; the message lists what there is, and what could not be imported.
    """
    known = list_controls()
    if name not in known:
        broken = "".join(f" ({module} failed to import: {error})" for module, error in _BROKEN.items())
        raise BadSetting(f"There is no control {name!r}.{broken}", f"Known: {', '.join(known)}.")
    return known[name]


def control_to_dict(control: Control) -> dict[str, Any]:
    """Write a control as plain JSON data.

    Args:
        control: a registered control.

    Returns:
        ``{"control": name, field: value, ...}``.

    Example:
        >>> from t2ictl.processors import AttentionSegregation
        >>> control_from_dict(control_to_dict(AttentionSegregation(strength=0.5))).strength
        0.5
    """
    from pydantic import TypeAdapter

    return {"control": control.name, **TypeAdapter(type(control)).dump_python(control, mode="json")}


def control_from_dict(data: Mapping[str, Any], *, files: bool = True) -> Control:
    """Read a control back from plain JSON data.

    Args:
        data: as :func:`control_to_dict` writes it.
        files: whether masks and pictures may be files that the data name; False for data from strangers.

    Returns:
        The control.

    Raises:
        BadSetting: if the control or one of its fields is unknown, a value is out of range, or a file is named that
            may not be.
    """
    values = dict(data)
    cls = get_control(str(values.pop("control", "")))
    unknown = sorted(set(values) - {each.name for each in fields(cls)})  # type: ignore[arg-type]
    if unknown:
        raise BadSetting(f"{cls.__name__} has no field {unknown}.", "Was this written by a newer version?")
    with contextlib.nullcontext() if files else no_files():
        return cls(**values)
