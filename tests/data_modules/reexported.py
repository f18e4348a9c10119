"""A simulated OpenBHB whose study IXI is there a second time, as a cohort of its own: other ids, other intensities.

`write_pair` gives the two folders and who is who. `Reexported` reads the second one, with OpenBHB's contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from brainage.config import DataConfig, MemberConfig
from brainage.data.table import finish_table
from brainage.imaging.simulate import BrainSimulator, Scan
from data_modules.cohort import CohortDataModule
from data_modules.openbhb import OpenBHB
from data_modules.reader import CohortReader
from data_modules.simulated.openbhb import write_openbhb

SPACING_MM = 8.0
PEOPLE, AGAIN, STRANGERS = 120, 12, 24


class Reexported(CohortReader):
    """people.tsv and one .npy a person, RAS."""

    name = "reexported"
    modalities: ClassVar = {"vbm": "grey matter"}

    def table(self):
        people = pd.read_csv(self.root / "people.tsv", sep="\t", dtype=str)
        path = people["participant_id"] + ".npy"
        return finish_table(people.assign(cohort="ixi", session_id="1", path=path), source=str(self.root))

    def contract(self):
        return OpenBHB(self.root / "like", "vbm").contract()

    def read(self, path):
        return np.load(self.root / path)


class Pair(NamedTuple):
    openbhb: Path
    ixi: Path
    truth: dict[str, str]  # id in the second cohort -> id in OpenBHB


def write_pair(folder: Path) -> Pair:
    openbhb = write_openbhb(folder / "openbhb", subjects=PEOPLE, seed=5, spacing_mm=SPACING_MM, workers=1)
    sheet = pd.read_csv(openbhb / "participants.tsv", sep="\t", dtype=str)
    again = np.sort(np.random.default_rng(0).choice(len(sheet), AGAIN, replace=False))
    sheet["study"] = "GSP"
    sheet.loc[again, "study"] = "IXI"
    sheet.to_csv(openbhb / "participants.tsv", sep="\t", index=False)
    ixi = folder / "ixi_again"
    ixi.mkdir()
    (ixi / "like").symlink_to(openbhb)
    reader = OpenBHB(openbhb, "vbm")
    paths = reader.table().table.set_index("participant_id")["path"]
    draw = np.random.default_rng(1)
    rows, truth = [], {}
    for number, row in enumerate(sheet.iloc[again].itertuples()):
        name = f"IXI{number + 1:03d}"
        truth[name] = row.participant_id
        np.save(ixi / f"{name}.npy", _exported_again(reader.read(paths[row.participant_id]), draw))
        rows.append((name, {"male": "M", "female": "F"}[row.sex], float(row.age), "Guys"))
    simulator = BrainSimulator(SPACING_MM, seed=77)
    for number in range(STRANGERS):
        name, age = f"IXI{number + 101:03d}", float(draw.uniform(20, 80))
        scan = Scan(name, "1", f"hospital{number % 2}", "FM"[number % 2], age)
        np.save(ixi / f"{name}.npy", simulator.grey_matter(scan)[None].astype(np.float32))
        rows.append((name, scan.sex, age, ["HH", "IOP"][number % 2]))
    people = pd.DataFrame(rows, columns=["participant_id", "sex", "age_years", "site"])
    people.to_csv(ixi / "people.tsv", sep="\t", index=False)
    return Pair(openbhb, ixi, truth)


def mixture(pair: Pair, folder: Path, *, second: str = "reexported", **values) -> CohortDataModule:
    """Members `openbhb` and `ixi`, their stores in `folder`."""
    members = {
        "openbhb": MemberConfig(root=str(pair.openbhb), store=str(folder / "openbhb")),
        "ixi": MemberConfig(cohort=second, root=str(pair.ixi), store=str(folder / "ixi")),
    }
    values = {"batch_size": 8, "members": members, "store": str(folder / "mixture"), "prepare_workers": 1} | values
    return CohortDataModule(DataConfig(cohort="mixture", **values))


def _exported_again(volume: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Other intensities, a grid that lies elsewhere by a fraction of a millimetre, half precision."""
    moved = ndimage.shift(volume[0], draw.normal(0, 0.2 / SPACING_MM, 3), order=1)
    return (1.9 * np.maximum(moved, 0) ** np.exp(draw.normal(0, 0.03)))[None].astype(np.float16).astype(np.float32)
