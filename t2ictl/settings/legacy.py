"""Settings that were written under older names: what each is called now.

Schema 1 is the layout before the names of the field were taken over. Reading it maps the old names and values; settings
that have the new ones already pass through unchanged. Before schema 3 there were no presets: a field that was left out
had its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgraded", "upgraded_control"]

#: Old and new names of fields that several controls share.
_SHARED = {"rivals": "normalize_over", "sites": "layers", "ref_sites": "ref_layers"}
#: Those of one control.
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "box_diff": {"share": "topk_ratio"},
    "contrastive_attention": {"memory": "previous_maps"},
    "isolation_reposition": {"told": "subject_text", "memory": "ema"},
    "self_cross_guidance": {"enough": "presence_threshold"},
    "token_merging": {"entropy": "entropy_steps", "semantic": "binding_steps", "targets": "thresholds"},
}
#: Values, by the new name of their field.
_VALUES: Mapping[str, Mapping[str, str]] = {
    "normalize_over": {"row": "all_tokens", "words": "prompt_words"},
    "subject_text": {"portrait": "portrait_prompt", "spliced": "inserted", "spelled": "in_full"},
}
#: Fields of the settings inside settings, by the name that these have in a control.
_LATENT_STEP = {"size": "scale", "decay": "final_scale_sq", "limit": "max_norm"}
_EMBED_STEP = {"size": "scale", "decay": "final_scale"}
_INNER: Mapping[str, Mapping[str, str]] = {
    "step": _LATENT_STEP,
    "semantic_step": _EMBED_STEP,
    "refinement": {
        "targets": "thresholds",
        "most": "max_iterations",
        "stale": "decide_before_update",
        "look": "check_every",
    },
    "search": {"most": "max_steps", "rate": "lr", "divergence": "kl_threshold", "weight": "kl_weight"},
}
_TOP = {"picture": "image", "there": "subjects_by_scene"}


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in data.items()}


def upgraded_control(data: Mapping[str, Any]) -> dict[str, Any]:
    """Bring one control as JSON data to the names of today.

    Args:
        data: as :func:`t2ictl.control_to_dict` wrote it, now or under schema 1.

    Returns:
        A new dict.

    Example:
        >>> upgraded_control({"control": "box_diff", "share": 0.5, "rivals": "row", "step": {"size": 5.0}})
        {'control': 'box_diff', 'topk_ratio': 0.5, 'normalize_over': 'all_tokens', 'step': {'scale': 5.0}}
    """
    name = str(data.get("control", ""))
    made = _renamed(data, {**_SHARED, **_FIELDS.get(name, {})})
    for field, values in _VALUES.items():
        if isinstance(made.get(field), str):
            made[field] = values.get(made[field], made[field])
    if name == "token_merging" and made.get("preset") in ("attribute", "object"):
        made["prompt_kind"] = made.pop("preset")  # the name is that of a field of all controls now
    for field, names in _INNER.items():
        if isinstance(made.get(field), Mapping):
            is_embed_step = name == "token_merging" and field == "step"
            made[field] = _renamed(made[field], _EMBED_STEP if is_embed_step else names)
    return made


def _without_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"preset": "none", **upgraded_control(data)}


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring settings of an older schema to the names of today.

    Args:
        settings: as they stand in an image, a JSON or a YAML file; those of a newer schema pass through.

    Returns:
        A new dict; its ``"schema"`` stays what was written.

    Example:
        >>> upgraded({"picture": 0, "controls": [{"control": "attend_and_excite", "sites": ["up"]}]})
        {'image': 0, 'controls': [{'preset': 'none', 'control': 'attend_and_excite', 'layers': ['up']}]}
    """
    schema = settings.get("schema", 1)
    if not isinstance(schema, int) or schema > 2:
        return dict(settings)
    made = _renamed(settings, _TOP) if schema < 2 else dict(settings)
    if isinstance(made.get("controls"), list):
        made["controls"] = [_without_preset(each) if isinstance(each, Mapping) else each for each in made["controls"]]
    if schema == 2:
        return made
    if isinstance(made.get("control"), Mapping):  # a story's file names the settings of its one method
        made["control"] = upgraded_control({"control": "isolation_reposition", **made["control"]})
    if isinstance(made.get("story"), Mapping):
        made["story"] = upgraded({**made["story"], "schema": 1})
        del made["story"]["schema"]
    return made
