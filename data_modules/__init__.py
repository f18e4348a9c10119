"""Cohorts: one module each turns a disk layout into the canonical table; nothing else knows a layout."""

from __future__ import annotations

from data_modules.ixi import IXI
from data_modules.openbhb import OpenBHB
from data_modules.reader import CohortReader

COHORTS: dict[str, type[CohortReader]] = {"openbhb": OpenBHB, "ixi": IXI}
