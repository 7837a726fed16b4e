"""The embedded models: what each is, where its folder lies, and how it is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from t2ictl.errors import BadSetting, shown

__all__ = ["DEFAULT", "MODELS", "EmbeddedModel", "embedded_name", "installed_models", "measured_as", "model_path"]

DEFAULT = "shapes"
_HERE = Path(__file__).parent
#: Where the models but the first lie, each in a folder of its name.
PLACE = _HERE / "models"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model that comes with the library. All of them draw the same world with the same autoencoder.

    Args:
        about: what it is, in a phrase.
        pipeline: the class of diffusers that runs it.
        steps: denoising steps with which it is measured.
        guidance: scale of classifier-free guidance with which it is measured.
    """

    about: str
    pipeline: str
    steps: int = 20
    guidance: float = 3.0


#: By name. Which of them are there, :func:`installed_models` says.
MODELS = {
    DEFAULT: EmbeddedModel(
        about="a U-Net whose text encoder was trained along with it", pipeline="StableDiffusionPipeline"
    ),
    "shapes-clip": EmbeddedModel(about="a U-Net on a frozen CLIP", pipeline="StableDiffusionPipeline"),
    "shapes-dit": EmbeddedModel(
        about="a transformer with flow matching, on two frozen CLIPs and a frozen T5",
        pipeline="StableDiffusion3Pipeline",
    ),
}


def _place(name: str) -> Path:
    return _HERE / "model" if name == DEFAULT else PLACE / name


def installed_models() -> tuple[str, ...]:
    """List the embedded models whose weights are there.

    Returns:
        Their names, ``"shapes"`` first.

    Example:
        >>> installed_models()[0]
        'shapes'
    """
    return tuple(name for name in MODELS if (_place(name) / "model_index.json").is_file())


def model_path(name: str = DEFAULT) -> Path:
    """Return where the packaged diffusers folder of a model is.

    Args:
        name: of an embedded model.

    Returns:
        A folder for ``from_pretrained`` of the pipeline's class.

    Raises:
        BadSetting: if there is no embedded model of that name, or its weights are not installed.

    Example:
        >>> (model_path() / "model_index.json").is_file()
        True
    """
    there = installed_models()
    if name in there:
        return _place(name)
    listed = f"Embedded models that are there: {', '.join(there)}."
    if isinstance(name, str) and name in MODELS:
        raise BadSetting(
            f"The weights of the embedded model {name!r} are not in this installation.",
            f"{listed} A folder of yours with that name is ./{name}.",
        )
    raise BadSetting(f"There is no embedded model {shown(name)}.", listed)


def embedded_name(folder: Path) -> str | None:
    """Return which embedded model a folder holds.

    Args:
        folder: of a pipeline.

    Returns:
        Its name; None if the folder is none of the packaged ones.

    Example:
        >>> embedded_name(model_path()), embedded_name(Path("elsewhere"))
        ('shapes', None)
    """
    return next((name for name in MODELS if _place(name) == folder), None)


def measured_as(model: str | Path) -> EmbeddedModel:
    """Find how a model of this world is measured: a folder as the embedded model whose pipeline it has.

    Args:
        model: name of an embedded model, or a diffusers folder.

    Returns:
        The embedded model; ``"shapes"`` for a folder of another pipeline.

    Example:
        >>> measured_as("shapes-dit").pipeline, measured_as(model_path()).guidance
        ('StableDiffusion3Pipeline', 3.0)
    """
    if isinstance(model, str) and model in MODELS:
        return MODELS[model]
    try:
        index = json.loads((Path(model) / "model_index.json").read_text(encoding="utf-8"))
        kind = index.get("_class_name")
    except (OSError, ValueError, AttributeError):  # loading it says what is wrong
        kind = None
    return next((each for each in MODELS.values() if each.pipeline == kind), MODELS[DEFAULT])
