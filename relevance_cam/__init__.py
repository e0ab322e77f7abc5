"""Saliency maps of torchvision ResNets at the depth of any residual stage.

Needs torch, torchvision and numpy, and no other part of the project. A method is loaded when it is
first used, so that `import relevance_cam` needs no torch. names.py says how to add a method.
"""

from importlib import import_module

from .names import METHODS

_MODULES = {class_name: module for module, class_name in METHODS.values()}

__all__ = list(_MODULES)


def load_method(name: str) -> type:
    """Give the class of a method by its name on the command line, such as "grad-cam"."""
    _, class_name = METHODS[name]
    return __getattr__(class_name)


def __getattr__(name: str) -> type:
    """Load a method's class when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    """List the methods with what is loaded already."""
    return sorted({*globals(), *__all__})
