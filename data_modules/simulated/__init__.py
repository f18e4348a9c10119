"""Published cohort layouts written with a planted truth: the demo and the tests read them like real downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_modules.simulated.adni import write_adni
from data_modules.simulated.bids import write_bids
from data_modules.simulated.icbm import write_icbm
from data_modules.simulated.ixi import write_ixi
from data_modules.simulated.oasis3 import write_oasis3
from data_modules.simulated.openbhb import write_openbhb
from data_modules.simulated.ukb import write_ukb

LAYOUTS: dict[str, Callable[..., Path]] = {  # by the name of the cohort that reads it
    "openbhb": write_openbhb,
    "adni": write_adni,
    "ukb": write_ukb,
    "oasis3": write_oasis3,
    "icbm": write_icbm,
    "ixi": write_ixi,
    "bids": write_bids,
}
