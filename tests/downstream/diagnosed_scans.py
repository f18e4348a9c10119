"""A few simulated scans of people with and without a diagnosis, as much of a ScanSource as fine-tuning looks at."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

from brainage.imaging.contract import InputContract
from tests.scans import FEATURES

VECTORS = InputContract("features", "vector", (FEATURES,))
VOLUMES = InputContract("vbm", "volume", (1, 12, 12, 12), spacing_mm=(8.0,) * 3, origin_mm=(0.0,) * 3, axes="RAS")


def cohort(contract=VECTORS, people=48, effect=0.0, seed=0):
    """(data, labels): patients differ from the others by `effect` standard deviations in every second value."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(people) % 3 == 0).astype(int)
    arrays = rng.normal(50, 20, (people, *contract.shape)) + 20 * effect * labels.reshape(
        -1, *[1] * len(contract.shape)
    )
    arrays[..., ::2] -= 20 * effect * labels.reshape(-1, *[1] * len(contract.shape))
    table = pd.DataFrame({"cohort": "c", "participant_id": [f"n{i:03d}" for i in range(people)]})
    table = table.assign(session_id="1", run="", age_years=70.0)
    store = SimpleNamespace(arrays=arrays.astype(contract.dtype))
    return SimpleNamespace(contract=contract, table=table, store=store), labels
