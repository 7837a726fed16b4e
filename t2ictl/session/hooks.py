"""The hook on the denoiser, and how it and everything else set there is taken out without leaving a trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

__all__ = ["DenoiserHook", "Frozen", "copy_without", "warn_of_other_listeners"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
HOOK_NAME = "t2ictl"
_CHECKPOINTING = "gradient_checkpointing"


class DenoiserHook(ModelHook):
    """Calls the session before and after each forward pass of the denoiser.

    Registered through diffusers' own registry, so that it stacks with other hooks. What the
    registry leaves behind on removal (``_diffusers_hook`` and ``forward`` in the module's
    ``__dict__``) is taken out.

    Args:
        before: gets positional and keyword arguments of the forward pass, returns those to use.
        after: gets what the forward pass returned.
        failed: gets what the forward pass raised, and may raise another error in its place.
    """

    def __init__(
        self, before: Callable[..., Arguments], after: Callable[[Any], None], failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__()
        self._before, self._after, self._failed = before, after, failed
        self._inner: Callable[..., Any] | None = None
        self._module: nn.Module | None = None
        self._installed: Any = None
        self._had_registry = self._had_forward = False

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Arguments:
        """Hand the arguments to the session."""
        return self._before(*args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Notify the session that the pass is over."""
        self._after(output)
        return output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser without this hook: the passes that the session makes for itself."""
        inner = self._inner if self.fn_ref.forward == self._watched else self.fn_ref.forward
        assert inner is not None
        return inner(*args, **kwargs)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass that makes the image."""
        assert self._inner is not None
        try:
            return self._inner(*args, **kwargs)
        except BaseException as error:
            self._failed(error)
            raise

    def install(self, module: nn.Module) -> None:
        """Register on a denoiser, or register again if something has since taken or wrapped the hook.

        Model offloading of accelerate re-creates ``forward`` after every pipeline call, and with
        it drops every hook that was registered later.

        Args:
            module: the denoiser.
        """
        if self._module is None:
            self._had_registry = "_diffusers_hook" in module.__dict__
            self._had_forward = "forward" in module.__dict__
            self._module = module  # known before anything is set, for a break in between
        elif module.__dict__.get("forward") is self._installed:
            return
        else:
            self._unregister(self._module)
        self._installed = None
        HookRegistry.check_if_exists_or_initialize(module).register_hook(self, HOOK_NAME)
        self._installed = module.__dict__["forward"]
        # The registry forgets this when a hook below ours is taken out; then errors pass unseen, and nothing is lost.
        self._inner, self.fn_ref.forward = self.fn_ref.forward, self._watched

    def remove(self) -> None:
        """Take the hook out; leave the denoiser's ``__dict__`` as it was found. After a break it can be run again."""
        module = self._module
        if module is None:
            return
        self._unregister(module)
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and not self._had_registry and not registry.hooks:
            del module.__dict__["_diffusers_hook"]
        # The registry puts the class's own method back as an attribute of the instance.
        left = module.__dict__.get("forward")
        if not self._had_forward and getattr(left, "__func__", None) is type(module).forward:
            del module.__dict__["forward"]
        self._module = None

    def _unregister(self, module: nn.Module) -> None:
        """Take the hook out of the chain of hooks, wherever in it it now stands."""
        current, reference = module.__dict__.get("forward"), self.fn_ref
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and registry.get_hook(HOOK_NAME) is self:
            if reference.forward == self._watched:
                reference.forward = self._inner
            registry.remove_hook(HOOK_NAME, recurse=False)
            if current is None:
                module.__dict__.pop("forward", None)
            elif self._installed is not None and current is not self._installed:
                # Someone replaced `forward` after us; the registry has just put an older one in its place.
                module.forward = current
        if reference is not None:
            # Whoever wrapped `forward` after us keeps ours inside: from now on it passes everything on.
            reference.pre_forward = lambda module, *args, **kwargs: (args, kwargs)
            reference.post_forward = lambda module, output: output


def copy_without(module: nn.Module, names: Sequence[str]) -> Callable[[dict[int, Any]], nn.Module]:
    """Return what ``copy.deepcopy`` is to do with a denoiser in a session: a copy of it as it was found.

    The chain of hooks is made anew, since its functions would go on calling the module that was copied.

    Args:
        module: the denoiser.
        names: attributes that the session has set there, beside its hook.

    Returns:
        A function for the instance's ``__deepcopy__``.
    """

    def copied(memo: dict[int, Any]) -> nn.Module:
        """Copy everything but what the session has set."""
        registry = vars(module).get("_diffusers_hook")
        chain = ("_diffusers_hook", "forward") if registry is not None else ()
        made = type(module).__new__(type(module))
        memo[id(module)] = made
        own = {name: value for name, value in vars(module).items() if name not in (*names, *chain)}
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in own.items()})
        if registry is not None and registry._fn_refs:
            innermost = _unwatched(registry._fn_refs[0].forward)
            if getattr(innermost, "__func__", None) is not type(module).forward:
                made.__dict__["forward"] = copy.deepcopy(innermost, memo)
            for name in registry._hook_order:
                if name != HOOK_NAME:
                    other = copy.deepcopy(registry.hooks[name], memo)
                    HookRegistry.check_if_exists_or_initialize(made).register_hook(other, name)
        return made

    return copied


def _unwatched(forward: Any) -> Any:
    hook = getattr(forward, "__self__", None)
    return hook._inner if isinstance(hook, DenoiserHook) else forward


def warn_of_other_listeners(denoiser: nn.Module) -> None:
    """Warn if another tool listens at attention layers: it hears the session's own passes as well.

    Args:
        denoiser: the model.
    """
    layers: list[Any] = [each for each in denoiser.modules() if hasattr(each, "processor")]
    hooked = {
        id(each) for layer in layers for each in layer.modules() if each._forward_hooks or each._forward_pre_hooks
    }
    foreign = {
        type(layer.processor).__name__
        for layer in layers
        if not type(layer.processor).__module__.startswith(("diffusers.", "t2ictl."))
    }
    if hooked or foreign:
        found = [f"hooks at {len(hooked)} modules"] * bool(hooked) + sorted(foreign)
        warnings.warn(
            f"Attention layers carry {' and '.join(found)} of another tool, which hears the session's own passes, too. "
            "In these torch.is_grad_enabled() is true, in those that make the image it is not.",
            RuntimeWarning,
            stacklevel=2,
        )


class Frozen:
    """Ask for no gradient of weights, and drop no activations, in extra passes only.

    The pass that makes the image keeps the flags that it has always had: torch picks other
    kernels for weights that ask for a gradient, even where none is taken, and rounds differently.
    Gradient checkpointing would run layers a second time, when nobody listens to their maps.
    Flags are read anew for each pass: between two evaluations weights may come and go, or be frozen by the user.

    Args:
        module: the denoiser.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._asking: list[nn.Parameter] = []
        self._dropping: list[nn.Module] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the flags for the length of a ``with`` block."""
        # Known before the first is changed, so that a break at any line leaves nothing that `restore` cannot find.
        self._asking = [each for each in self._module.parameters() if each.requires_grad]
        self._dropping = [each for each in self._module.modules() if getattr(each, _CHECKPOINTING, False)]
        try:
            self._set(False)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the flags back. It can be run again after a break."""
        self._set(True)
        self._asking, self._dropping = [], []

    def _set(self, value: bool) -> None:
        for parameter in self._asking:
            parameter.requires_grad_(value)
        for module in self._dropping:
            setattr(module, _CHECKPOINTING, value)
