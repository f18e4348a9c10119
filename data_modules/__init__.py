"""Cohorts: one module each turns a disk layout into the canonical table; nothing else knows a layout."""

from __future__ import annotations

from data_modules.adni import ADNI
from data_modules.bids import BIDS
from data_modules.icbm import ICBM
from data_modules.ixi import IXI
from data_modules.oasis3 import OASIS3
from data_modules.openbhb import OpenBHB
from data_modules.reader import CohortReader
from data_modules.ukb import UKBiobank

COHORTS: dict[str, type[CohortReader]] = {
    "openbhb": OpenBHB,
    "adni": ADNI,
    "ukb": UKBiobank,
    "oasis3": OASIS3,
    "icbm": ICBM,
    "ixi": IXI,
    "bids": BIDS,
}
