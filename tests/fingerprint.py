"""One hash for each thing that the library computes: the guard of every refactoring.

``python -m tests.fingerprint`` prints the table; ``--check`` compares it with the committed one, line by line, and
``--write`` writes that. A hash covers every bit of the latents (or images), the word maps, the losses and moves, and
the counted work of one case. Bits depend on the processor and on the versions of torch and diffusers, which the table
names in its first line: make one before a change and one after it, on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import t2ictl
from t2ictl.controls.base import Control
from t2ictl.controls.layouts import Region
from t2ictl.guidance.rules import NoiseSearch, Refinement, StepSize
from t2ictl.processors import (
    AttendAndExcite,
    AttentionSegregation,
    BoxDiff,
    IsolationReposition,
    StructuredGuidance,
    TokenFlow,
    TokenMerging,
)
from t2ictl.processors.isolation_reposition.story.scenes import Scene
from t2ictl.processors.isolation_reposition.subjects import Subject
from tests import tiny
from tests.processors.isolation_reposition.image_cases import LATENT

TABLE = Path(__file__).parent / "data" / "fingerprint.txt"
SINGLE = "a red circle and a blue square"
BATCH = [SINGLE, "a cat and a dog", "a green star"]
STEPS = 4

Case = tuple[str, Callable[[], bytes]]


def shapes(**_: Any) -> Any:
    """The embedded model, quiet."""
    pipe = t2ictl.load("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES: dict[str, Callable[[], Any]] = {"shapes": shapes, "sd": tiny.sd, "sdxl": tiny.sdxl}


def default(cls: type[Control]) -> Control:
    """A control with its defaults; a search for noise ends early."""
    names = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {"search": {"max_steps": 2}} if "search" in names else {}
    return cls(**settings, preset="none")


def variants() -> dict[str, Callable[[], Sequence[Control]]]:
    """Settings that reach arithmetic which the defaults do not."""
    left = Region(word="circle", box=(0.0, 0.0, 0.5, 1.0))
    portraits = (Subject(name="cat", prompt="photo of a cat"), Subject(name="dog", prompt="photo of a dog"))
    return {
        "merging, rows merged": lambda: [TokenMerging(merge=True, binding_steps=2, end_tokens="on")],
        "merging, members masked": lambda: [TokenMerging(merge=True, removal="mask", pooled="merged")],
        "merging, members zero": lambda: [TokenMerging(merge=True, removal="zero", pooled="zero", stretch=False)],
        "merging, objects": lambda: [TokenMerging(prompt_kind="object", merge=True, noun_weight=0.5)],
        "structured, keys": lambda: [StructuredGuidance(mode="keys")],
        "structured, keys of the paper": lambda: [StructuredGuidance(mode="keys", conjunction="paper", aliasing=True)],
        "structured, both branches": lambda: [StructuredGuidance(branch="both", weighting="token", levels="lowest")],
        "structured, by depth": lambda: [StructuredGuidance(weighting="depth", positions="prompt", levels="highest")],
        "flow, masked": lambda: [TokenFlow(how="masked", special="masked", pooled="masked")],
        "flow, alone": lambda: [TokenFlow(how="alone", special="empty", pooled="empty")],
        "segregation, refined": lambda: [
            AttentionSegregation(
                presence=0.5,
                layout=(left,),
                region="half_max",
                refinement=Refinement(thresholds=((0.0, 0.9),), max_iterations=2),
            )
        ],
        "segregation, regions of the update": lambda: [AttentionSegregation(regions_from="update", region="top20")],
        "segregation, one step length": lambda: [
            AttentionSegregation(step=StepSize(scale=0.05, mode="normalized", max_norm=0.02, every=2))
        ],
        "excite, parity": lambda: [AttendAndExcite(parity=True)],
        "excite, the words alone": lambda: [
            AttendAndExcite(normalize_over="prompt_words", smoothing="none", layers=("up",))
        ],
        "excite, no competition": lambda: [AttendAndExcite(normalize_over="none", smoothing="attend_and_excite")],
        "boxes": lambda: [BoxDiff(layout=(left,), topk_ratio=0.5)],
        "several at once": lambda: [AttendAndExcite(), AttentionSegregation(), StructuredGuidance(), TokenFlow()],
        "isolation, portraits": lambda: [IsolationReposition(subjects=portraits)],
        "isolation, latents": lambda: [IsolationReposition(**LATENT, subject_text="inserted")],
        "isolation, spelled": lambda: [
            IsolationReposition(subjects=portraits, subject_text="in_full", branch="cond", aspect="fit", isolation=0.5)
        ],
    }


def call(pipe: Any, controls: Sequence[Control], prompt: Any, *, record: bool, **more: Any) -> bytes:
    """One call under control, everything that came of it."""
    with t2ictl.controlled(pipe, controls, record=record) as session:
        latents = tiny.run(pipe, prompt, steps=STEPS, **more)
    found = Bits()
    found.add(latents)
    for entry in session.trace:
        for name, value in sorted(entry.terms.items()):
            found.add(name, value)
        found.add(entry.step.index, entry.total, entry.length, entry.skipped, entry.refined)
    found.add(session.cost.forwards, session.cost.extra_forwards, session.cost.backwards)
    if record:
        for name, maps in sorted(session.record.maps.items()):
            found.add(name, maps)
    return found.value()


class Bits:
    """Collects values as bytes, with their shapes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *values: Any) -> None:
        """Add tensors, images, or anything that prints the same each time."""
        for value in values:
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().contiguous()
                self._hash.update(f"{tuple(value.shape)} {value.dtype}".encode())
                self._hash.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
            elif hasattr(value, "tobytes"):
                self._hash.update(np.asarray(value).tobytes())
            else:
                self._hash.update(repr(value).encode())
            self._hash.update(b"\0")

    def value(self) -> bytes:
        """The digest so far."""
        return self._hash.digest()


def numbers(value: Any) -> Iterator[float]:
    """All numbers of nested results, in the order of their fields; names may change, numbers may not."""
    if isinstance(value, bool | int | float):
        yield float(value)
    elif is_dataclass(value):
        for each in fields(value):
            yield from numbers(getattr(value, each.name))
    elif isinstance(value, Mapping):
        yield from numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers(each)


def control_cases() -> Iterator[Case]:
    """Every registered control with its defaults, on every pipeline; and no control."""
    classes: dict[str, type[Control] | None] = {"none": None, **t2ictl.list_controls()}
    for home, build in PIPELINES.items():
        for name, cls in classes.items():
            for kind, prompt in (("single", SINGLE), ("batch", BATCH)):
                for record in (False, True):
                    label = f"{home} | {name} | {kind} | {'recorded' if record else 'not recorded'}"
                    yield (
                        label,
                        lambda b=build, c=cls, p=prompt, r=record: call(  # type: ignore[misc]
                            b(), [] if c is None else [default(c)], p, record=r
                        ),
                    )


def variant_cases() -> Iterator[Case]:
    """Further settings, on the tiny pipelines."""
    for home in ("sd", "sdxl"):
        for name, make in variants().items():
            prompt: Any = SINGLE
            if "isolation" in name:
                prompt = ["photo of a cat", "photo of a dog", "a cat and a dog on a bench"]
            if name == "isolation, latents":
                prompt = prompt[2:] * 2
            yield (
                f"{home} | {name}",
                lambda h=home, m=make, p=prompt: call(PIPELINES[h](), m(), p, record=True),  # type: ignore[misc]
            )
    yield "sd | checkpointed", lambda: generated(tiny.sd(), [AttendAndExcite()], checkpointing="all")
    yield "sd | unguided", lambda: call(tiny.sd(), [AttendAndExcite()], SINGLE, record=True, guidance_scale=1.0)
    for name in ("pndm", "heun", "lcm", "euler_ancestral"):

        def other(name: str = name) -> bytes:
            pipe = tiny.sd()
            pipe.scheduler = tiny.scheduler(name, pipe)
            return call(pipe, [AttentionSegregation()], SINGLE, record=True)

        yield f"sd | scheduler {name}", other


def published_cases() -> Iterator[Case]:
    """Every registered control in its published form."""
    for name, cls in t2ictl.list_controls().items():
        settings: dict[str, Any] = {"search": NoiseSearch(max_steps=2)} if name == "initial_noise" else {}
        yield (
            f"sd | {name}, published",
            lambda c=cls, s=settings: call(tiny.sd(), [c.published(**s)], SINGLE, record=True),  # type: ignore[misc]
        )


def generated(pipe: Any, controls: Sequence[Control], **more: Any) -> bytes:
    """The bits of :func:`t2ictl.generate`."""
    result = t2ictl.generate(pipe, SINGLE, controls, seed=7, steps=STEPS, **more)
    found = Bits()
    found.add(*result.images)
    return found.value()


def verb_cases() -> Iterator[Case]:
    """Stories, the analysis of a prompt, and what works without a session."""

    def story(**settings: Any) -> bytes:
        cast = [Subject(name="circle", prompt="a red circle"), Subject(name="square", prompt="a blue square")]
        scenes = [Scene(prompt="a circle and a square"), Scene(prompt="a square below a circle")]
        told = t2ictl.story(shapes(), cast, scenes, steps=STEPS, seed=3, **settings)
        found = Bits()
        found.add(*told.scenes, sorted(told.generations.items()))
        return found.value()

    def flow() -> bytes:
        result = t2ictl.flow(
            shapes(), SINGLE, ["circle", "square"], judge="shapes", seeds=2, confirm=2, steps=STEPS, depths=(0.5,)
        )
        found = Bits()
        for part in (result.screen, result.tokens, result.leaks, result.repairs):
            found.add(*numbers(part))
        return found.value()

    def standalone(control: Any, **more: Any) -> bytes:
        pipe = tiny.sd()
        pipe.unet.set_attn_processor(control.attn_processors(pipe, [SINGLE], **more))
        found = Bits()
        found.add(tiny.run(pipe, SINGLE, steps=STEPS))
        return found.value()

    def embeds(control: Any) -> bytes:
        found = Bits()
        for name, value in sorted(control.embeds(tiny.sdxl(), [SINGLE]).items()):
            found.add(name, value)
        return found.value()

    yield "shapes | story", story
    yield "shapes | story, latent", lambda: story(control=IsolationReposition(reposition="latent"))
    yield "shapes | flow", flow
    yield "sd | processors of structured guidance", lambda: standalone(StructuredGuidance)
    yield "sd | processors of structured guidance, keys", lambda: standalone(StructuredGuidance, mode="keys")
    yield "sdxl | embeddings of token merging", lambda: embeds(TokenMerging(merge=True))
    yield "sdxl | embeddings of token flow", lambda: embeds(TokenFlow())


def cases() -> Iterator[Case]:
    """All cases in the order of the table."""
    yield from control_cases()
    yield from variant_cases()
    yield from published_cases()
    yield from verb_cases()


def head() -> str:
    """What the bits depend on."""
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    return f"# {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}; {versions}"


def line(label: str, run: Callable[[], bytes]) -> str:
    """One line of the table; a case that is refused is a case, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = run().hex()[:24]
        except t2ictl.errors.T2ictlError as error:
            found = f"refused: {type(error).__name__}"
    return f"{found:24} {label}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, write or check the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fingerprint", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--write", action="store_true", help="write the table to be committed")
    parser.add_argument("--only", default="", help="only cases with this text in their label")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    known = {row[25:]: row for row in TABLE.read_text(encoding="utf-8").splitlines()} if chosen.check else {}
    made, differing = [head()], 0
    if chosen.check and known.get(head()[25:]) != head():
        print(f"The committed table was made under other conditions than {head()}", file=sys.stderr)
    print(head())
    for label, run in cases():
        if chosen.only not in label:
            continue
        made.append(line(label, run))
        is_other = chosen.check and known.get(label) != made[-1]
        differing += is_other
        print(made[-1] + ("   DIFFERS" if is_other else ""), flush=True)
    if chosen.write:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join(made) + "\n", encoding="utf-8")
    if chosen.check:
        print(f"{len(made) - 1} cases, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
