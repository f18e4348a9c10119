"""A few simulated people as a ScanSource, without any file but the store: what the training tests run on."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from brainage.config import Experiment, from_plain, load_experiment, save_experiment
from brainage.data.table import finish_table
from brainage.imaging.contract import InputContract
from data_modules.cohort import CohortDataModule
from data_modules.reader import CohortReader

FEATURES = 12


class VectorCohort(CohortReader):
    """40 people at four sites whose 12 features follow age, their site, and noise."""

    name = "vectors"
    modalities: ClassVar = {"vbm": "features"}

    def table(self):
        rng = np.random.default_rng(0)
        people = pd.DataFrame(
            {
                "cohort": "vectors",
                "participant_id": [f"p{number:03d}" for number in range(40)],
                "session_id": "1",
                "site": [f"site{number % 4}" for number in range(40)],
                "age_years": rng.uniform(20, 80, 40),
                "sex": "F",
                "path": [str(number) for number in range(40)],
            }
        )
        return finish_table(people, source="vectors")

    def contract(self):
        return InputContract(modality="features", kind="vector", shape=(FEATURES,))

    def read(self, path):
        number = int(path)
        age = _ages(self)[number]
        rng = np.random.default_rng([1, number])
        weights = np.linspace(-1, 1, FEATURES)
        return (4 * (number % 4) + weights * age + rng.normal(size=FEATURES) * 3).astype(np.float32)


@functools.cache
def _ages(reader):
    """Years of everybody; `finish_table` takes a while for forty reads."""
    return reader.table().table["age_years"].to_list()


class SimulatedScans(CohortDataModule):
    """The vector cohort behind the ordinary data module, its store in a temporary folder."""

    def __init__(self, experiment: Experiment | None = None, reader: type[VectorCohort] = VectorCohort) -> None:
        experiment = experiment or small_experiment("runs")
        self.folder = tempfile.TemporaryDirectory()
        config = dataclasses.replace(
            experiment.data, root=self.folder.name, store=str(Path(self.folder.name) / "store"), prepare_workers=1,
            external_sites=["site3"],
        )  # fmt: skip
        super().__init__(config, reader=reader(config.root, "vbm"), seed=experiment.seed)


def small_experiment(runs: str | Path, *overrides: str) -> Experiment:
    """A run of 12 steps in 3 epochs on the vector cohort: seconds on one core."""
    base = {
        "name": "small",
        "runs": str(runs),
        "data": {"batch_size": 5, "intensity": "standardise", "external_sites": ["site3"]},
        "augment": {"noise_p": 1.0},
        "encoder": {"name": "mlp", "hidden": [16], "head_dim": 8},
        "trainer": {"epochs": 3, "threads": 1, "accelerator": "cpu", "progress": False},
        "optim": {"lr": 1e-3},
        "checkpoint": {"every_steps": 2},
        "health": {"every_steps": 2, "patience": 100},
        "tracking": {"enabled": False},
        "evaluate": {"bootstrap": 50},
    }
    experiment = from_plain(base)
    if overrides:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.yaml"
            save_experiment(experiment, path)
            experiment = load_experiment(str(path), list(overrides))
    return experiment
