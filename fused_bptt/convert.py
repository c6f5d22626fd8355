"""``nn.RNN`` to :class:`fused_bptt.RNN` and back, in place inside a model."""

from __future__ import annotations

import warnings
import weakref
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)


def same_state(module: nn.Module, source: type[nn.Module], target: type[Module]) -> Module:
    """A ``target`` with all the state of ``module``, a ``source``.

    ``nn.RNN`` and ``fused_bptt.RNN`` keep the same attributes, so the new module takes over the old
    one's. The dictionaries of parameters, buffers and hooks are the same objects (the handles of
    hooks stay valid, and a parameter assigned to one module is the other's too); training mode and
    what the user attached are copied. Parametrizations are properties of a class of the module's
    own, which is made again.

    Raises:
        TypeError: ``module`` is not exactly a ``source``; a subclass may compute anything.
    """
    kind: Any = type(module)
    cls: Any = target
    if kind.__bases__ == (source,) and parametrize.is_parametrized(module):
        cls = type(kind.__name__, (target,), dict(kind.__dict__))
    elif kind is not source:
        raise TypeError(
            f"module: expected {source.__module__}.{source.__qualname__}, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )
    twin = cls.__new__(cls)
    twin.__dict__ = module.__dict__.copy()
    twin.__dict__.pop("_observers", None)  # they observe the one module
    hooks: Any = module._load_state_dict_pre_hooks
    for hook in hooks.values():
        if getattr(hook, "with_module", False):  # it knows its module by a weak reference
            hook.module = weakref.ref(twin)
    return twin  # type: ignore[no-any-return]


def replace_rnn(model: nn.Module) -> nn.Module:
    """Replaces every ``nn.RNN`` inside ``model`` by a :class:`fused_bptt.RNN`, in place.

    Parameters are shared, so optimizers that hold them go on working; hooks, their handles and the
    training mode are kept. What derives from ``nn.RNN`` but is not one (a subclass, a scripted
    module) stays as it is, and a warning names it.

    Args:
        model: any module.

    Returns:
        ``model`` itself; or, when ``model`` is an ``nn.RNN``, the module that replaces it.

    Warns:
        UserWarning: something was not replaced; the message lists each name and why.
    """
    from .module import RNN  # module.py imports this file

    replaced: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}

    def replacement(name: str, module: nn.Module) -> nn.Module:
        if module in replaced:
            return replaced[module]
        if isinstance(module, nn.RNN):
            try:
                replaced[module] = RNN.from_torch(module)
            except TypeError:
                left[name] = f"{type(module).__qualname__} is a subclass of nn.RNN"
        elif getattr(module, "original_name", None) == "RNN":
            left[name] = "it is a scripted module"
        return replaced.get(module, module)

    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children skips shared ones
            if child is None:
                continue
            new = replacement(f"{path}.{name}" if path else name, child)
            if new is not child:
                setattr(parent, name, new)
    model = replacement("(the model itself)", model)
    if left:
        names = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        warnings.warn(f"replace_rnn left these as they are: {names}", stacklevel=2)
    return model
