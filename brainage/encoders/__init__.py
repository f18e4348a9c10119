"""Networks that turn a sample into a feature vector, and the projection heads behind them.

`ENCODERS` (name -> class), `build_encoder` and `build_head` load on first use: `brainage.encoders.names` must stay
importable without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brainage.encoders.build import ENCODERS, build_encoder
    from brainage.encoders.heads import build_head

__all__ = ["ENCODERS", "build_encoder", "build_head"]


def __getattr__(name: str) -> Any:
    if name in ("ENCODERS", "build_encoder"):
        from brainage.encoders import build

        return getattr(build, name)
    if name == "build_head":
        from brainage.encoders.heads import build_head

        return build_head
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
