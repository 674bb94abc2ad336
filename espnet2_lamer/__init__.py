"""Lamer-SSL for ESPnet: layer-aware mixtures of LoRA experts in HuBERT.

Importing this package is cheap: what needs ESPnet or torch is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet2_lamer.registry import register
    from espnet2_lamer.upstream import load_model

__version__ = "0.2.0"
__all__ = ["__version__", "load_model", "register"]

_HOMES = {"register": "espnet2_lamer.registry", "load_model": "espnet2_lamer.upstream"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
