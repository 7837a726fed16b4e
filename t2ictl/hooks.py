"""The hook on the denoiser, and how it is taken out without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

__all__ = ["DenoiserHook"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
HOOK_NAME = "t2ictl"


class DenoiserHook(ModelHook):
    """Calls the session before and after each forward pass of the denoiser.

    Registered through diffusers' own registry, so that it stacks with other hooks. What the
    registry leaves behind on removal (``_diffusers_hook`` and ``forward`` in the module's
    ``__dict__``) is taken out.

    Args:
        before: gets positional and keyword arguments of the forward pass, returns those to use.
        after: is told that the forward pass is over.
    """

    def __init__(self, before: Callable[..., Arguments], after: Callable[[], None]) -> None:
        super().__init__()
        self._before, self._after = before, after
        self._module: nn.Module | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Arguments:
        """Hand the arguments to the session."""
        return self._before(*args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Tell the session that the pass is over."""
        self._after()
        return output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser without this hook: the passes that the session makes for itself."""
        return self.fn_ref.forward(*args, **kwargs)

    def install(self, module: nn.Module) -> None:
        """Register on a denoiser, or register again if something has since taken the hook out.

        Model offloading of accelerate re-creates ``forward`` after every pipeline call, and with
        it drops every hook that was registered later.

        Args:
            module: the denoiser.
        """
        if self._module is not None:
            if module.__dict__.get("forward") is self._installed:
                return
            self.remove()
        self._module = module
        self._had_registry = "_diffusers_hook" in module.__dict__
        self._had_forward = module.__dict__.get("forward")
        HookRegistry.check_if_exists_or_initialize(module).register_hook(self, HOOK_NAME)
        self._installed = module.__dict__["forward"]

    def remove(self) -> None:
        """Take the hook out and leave the denoiser's ``__dict__`` as it was found."""
        module, self._module = self._module, None
        if module is None:
            return
        current = module.__dict__.get("forward")
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None and registry.get_hook(HOOK_NAME) is self:
            registry.remove_hook(HOOK_NAME, recurse=False)
        if registry is not None and not self._had_registry and not registry.hooks:
            module.__dict__.pop("_diffusers_hook", None)
        if current is self._installed:
            if self._had_forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = self._had_forward
        elif current is not None and registry is not None and not registry.hooks:
            # Someone replaced `forward` after us; the registry has just put an older one in its place.
            module.forward = current
