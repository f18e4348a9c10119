"""Frozen representations: one row a scan, found again by its key.

Legend: n scans, F trunk features, D outputs of the head.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from brainage.data.source import ScanSource
from brainage.data.table import KEY
from brainage.pretraining.module import PretrainingModule


def embed(
    module: PretrainingModule, data: ScanSource, rows: np.ndarray, *, device: str = "cpu", batch_size: int = 16
) -> pd.DataFrame:
    """KEY columns, `trunk` [F] and `head` [D] (float32 vectors) of the given rows of a store, in their order.

    No augmentation; BatchNorm uses its running statistics. For a supervised module the head is the age in years.
    Raises ContractError, before anything is computed, when the scans are not what the encoder was trained on.
    """
    module.contract.refuse_other(data.contract, f"{module.experiment.name} (trained encoder)")
    samples = data.store.arrays
    module = module.eval().to(device)
    trunk, head = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = np.stack([samples[row] for row in rows[start : start + batch_size]])
            features, output = module.embed(torch.from_numpy(batch).to(device))
            trunk.append(features.cpu().numpy())
            head.append(output.cpu().numpy())
    keys = data.table[KEY].iloc[rows].reset_index(drop=True)
    return keys.assign(trunk=list(np.concatenate(trunk)), head=list(np.concatenate(head)))
