"""Controls, one method a module or a package.

Importing a class loads its method and no other. A class is found by its name, whichever module it lives in: a new
method is a new file. One more line, below, tells type checkers of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.processors.attend_and_excite import AttendAndExcite as AttendAndExcite
    from t2ictl.processors.attention_segregation import AttentionSegregation as AttentionSegregation
    from t2ictl.processors.box_diff import BoxDiff as BoxDiff
    from t2ictl.processors.contrastive_attention import ContrastiveAttention as ContrastiveAttention
    from t2ictl.processors.divide_and_bind import DivideAndBind as DivideAndBind
    from t2ictl.processors.initial_noise import InitialNoise as InitialNoise
    from t2ictl.processors.isolation_reposition import IsolationReposition as IsolationReposition
    from t2ictl.processors.layout_guidance import LayoutGuidance as LayoutGuidance
    from t2ictl.processors.linguistic_binding import LinguisticBinding as LinguisticBinding
    from t2ictl.processors.map_alignment import MapAlignment as MapAlignment
    from t2ictl.processors.predicated_diffusion import PredicatedDiffusion as PredicatedDiffusion
    from t2ictl.processors.self_cross_guidance import SelfCrossGuidance as SelfCrossGuidance
    from t2ictl.processors.structured_guidance import StructuredGuidance as StructuredGuidance
    from t2ictl.processors.token_flow import TokenFlow as TokenFlow
    from t2ictl.processors.token_merging import TokenMerging as TokenMerging

# What methods add beside their controls: names of the package ``t2ictl`` (``t2ictl.story``) and commands
# (``t2ictl story``). Only their places are written here, so that the core names none and nothing is loaded early.
EXPORTS = {
    "Scene": "t2ictl.processors.isolation_reposition.story.scenes:Scene",
    "Story": "t2ictl.processors.isolation_reposition.story.result:Story",
    "Subject": "t2ictl.processors.isolation_reposition.subjects:Subject",
    "flow": "t2ictl.processors.token_flow.analysis.analysis:flow",
    "story": "t2ictl.processors.isolation_reposition.story.story:story",
}
COMMANDS = {
    "flow": "t2ictl.processors.token_flow.analysis.command:flow",
    "story": "t2ictl.processors.isolation_reposition.story.command:story",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 't2ictl.processors' has no attribute {name!r}")
    # By convention AttendAndExcite lives in attend_and_excite: that module alone is loaded.
    for module in pkgutil.iter_modules(__path__):
        if module.name.replace("_", "") == name.lower():
            found = getattr(importlib.import_module(f"{__name__}.{module.name}"), name, None)
            if found is not None:
                return found
    from t2ictl.controls.registry import broken_controls, list_controls

    for control in list_controls().values():
        if control.__name__ == name:
            return control
    broken = "; ".join(f"{module}: {error}" for module, error in broken_controls().items())
    reason = f" (failed to import: {broken})" if broken else ""
    raise AttributeError(f"module 't2ictl.processors' has no control {name!r}{reason}")


def __dir__() -> list[str]:
    from t2ictl.controls.registry import list_controls

    return sorted(control.__name__ for control in list_controls().values())
