"""torch.compile with a way back: what cannot be compiled here runs as it is, and the person is told once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from brainage.runtime import warn


class Compiled:
    """An encoder behind torch.compile, called like it. Its weights keep their names: no module holds this.

    Compilation fails where it is asked for (an interpreter it does not know) or at a first batch (no C++ compiler, an
    operation it cannot lower). Then the encoder itself takes over for good; were the batch at fault it says so itself.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.function: Callable[[Tensor], Tensor] | None = None
        try:
            self.function = torch.compile(lambda x: encoder(x))
        except Exception as error:
            self._give_up(error)

    def __call__(self, x: Tensor) -> Tensor:
        if self.function is not None:
            try:
                return self.function(x)
            except torch.OutOfMemoryError:
                raise  # and would be raised again, behind a misleading warning
            except Exception as error:
                self._give_up(error)
        return self.encoder(x)

    def _give_up(self, error: Exception) -> None:
        self.function = None
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        warn(
            f"trainer.compile: torch.compile failed ({type(error).__name__}: {reason[:160]}); training goes on "
            "without it. It needs a C++ compiler (g++ or clang++) for CPUs and Triton for GPUs; trainer.compile=false "
            "is silent"
        )
