"""A cohort that says which scan each sample is: 24 people at three sites, the first eight scanned twice."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from brainage.config import DataConfig
from brainage.data.table import finish_table
from brainage.imaging.contract import InputContract
from data_modules.cohort import CohortDataModule
from data_modules.reader import CohortReader


class Visits(CohortReader):
    """24 people at three sites, the first eight scanned twice; a sample says which scan it is."""

    name = "visits"
    modalities: ClassVar = {"vbm": "number of the scan, thrice"}
    reads: ClassVar[list[str]] = []

    def table(self):
        people = [(number, "1") for number in range(24)] + [(number, "2") for number in range(8)]
        return finish_table(
            pd.DataFrame(
                {
                    "cohort": "visits",
                    "participant_id": [f"p{number:02d}" for number, _ in people],
                    "session_id": [session for _, session in people],
                    "site": [f"site{number % 3}" for number, _ in people],
                    "age_years": [30.0 + number + int(session) for number, session in people],
                    "path": [f"{number}{session}" for number, session in people],
                }
            ),
            source="visits",
        )

    def contract(self):
        return InputContract(modality="scan number", kind="vector", shape=(3,))

    def read(self, path):
        self.reads.append(path)
        return np.full(3, int(path), dtype=np.float32)


def visits(folder: Path, *, seed: int = 0, overfit_batches: int = 0, **values) -> CohortDataModule:
    values = {"batch_size": 4, "external_sites": ["site2"], "store": str(folder / "store")} | values
    config = DataConfig(cohort="visits", root=str(folder), prepare_workers=1, **values)
    return CohortDataModule(config, reader=Visits(config.root, "vbm"), seed=seed, overfit_batches=overfit_batches)
