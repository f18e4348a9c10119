"""A cohort whose samples are a function of their locator, so that any stored byte can be checked."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.data.masking import Mask
from brainage.data.store import ArrayStore, prepare_store
from brainage.data.table import finish_table
from brainage.errors import DataError
from brainage.imaging.contract import InputContract

REPOSITORY = Path(__file__).parents[2]
VOLUME = InputContract("gm", "volume", (1, 16, 16, 32), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0, 0, 0), axes="RAS")
MASK = Mask("ball.nii.gz", 0.5, np.random.default_rng(0).random(VOLUME.shape[1:]) > 0.7)
VECTOR = InputContract("rois", "vector", (3,), features=("a", "b", "c"))


def sample_of(path: str, contract: InputContract = VOLUME) -> np.ndarray:
    return np.random.default_rng(int(path)).normal(size=contract.shape).astype(np.float32)


@dataclass
class Cohort:
    """Reads samples and misbehaves on request: path -> what goes wrong there; every read leaves a line in `log`."""

    folder: Path
    trouble: dict[str, str] = field(default_factory=dict)
    contract: InputContract = VOLUME

    def read(self, path: str) -> np.ndarray:
        with open(self.folder / "reads.log", "a") as log:
            log.write(f"{path} {os.getpid()}\n")
        sample = sample_of(path, self.contract)
        trouble = self.trouble.get(path, "")
        if trouble == "nan":
            sample.flat[1] = np.nan
        elif trouble == "large":
            sample.flat[1] = 1e6
        elif trouble == "shape":
            return sample[..., :-1]
        elif trouble == "damaged":
            raise DataError(f"scan{path}.npy:\ttruncated,\n120 of 400 bytes")
        elif trouble == "odd":
            raise RuntimeError("")
        elif trouble == "memory":
            raise MemoryError
        elif trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif trouble == "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        elif trouble == "wait":
            while not (self.folder / "go").exists():
                time.sleep(0.02)
        return sample

    def reads(self) -> list[str]:
        log = self.folder / "reads.log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def people(n: int = 12, **columns: object) -> pd.DataFrame:
    raw = pd.DataFrame({"cohort": "c", "participant_id": [f"p{i:02d}" for i in range(n)], "age_years": 30.0})
    raw["path"] = [str(100 - i) for i in range(n)]
    return finish_table(raw.assign(**columns), source="test").table


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def build(
    folder: Path,
    name: str = "store",
    n: int = 12,
    workers: int = 1,
    mask: Mask | None = None,
    shard: tuple[int, int] | None = None,
    **trouble: str,
) -> ArrayStore:
    cohort = Cohort(folder, {key.lstrip("p"): value for key, value in trouble.items()})
    return prepare_store(people(n), VOLUME, cohort.read, folder / name, workers=workers, mask=mask, shard=shard)


def build_elsewhere(
    folder: Path, workers: int = 1, masked: bool = False, shard: tuple[int, int] | None = None, **trouble: str
) -> subprocess.Popen:
    """The same in another process; it shares nothing with this one but the disk."""
    code = f"""
from pathlib import Path
from tests.data.odd_cohort import MASK, build
if __name__ == "__main__":
    mask = MASK if {masked} else None
    build(Path({str(folder)!r}), workers={workers}, mask=mask, shard={shard}, **{trouble!r})
"""
    script = folder / f"build{shard[0] if shard else ''}.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)
