"""Published cohort layouts written with a planted truth: the demo and the tests read them like real downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_modules.simulated.openbhb import write_openbhb

LAYOUTS: dict[str, Callable[..., Path]] = {"openbhb": write_openbhb}
