"""Losses as pure functions; the dictionaries CONTRASTIVE and SUPERVISED are the whole registry.

Their names alone live in `names.py`. Everything else is loaded on first use, because importing this package must not
import torch: the command line checks a loss name before anything slow starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brainage.losses.contrastive import CONTRASTIVE, contrastive_loss
    from brainage.losses.supervised import SUPERVISED, supervised_loss

__all__ = ["CONTRASTIVE", "SUPERVISED", "contrastive_loss", "supervised_loss"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = name.lower().removesuffix("_loss")  # the dictionary and the binder carry the name of their file
    return getattr(import_module(f"{__name__}.{module}"), name)
