"""What every cohort file provides: a canonical table, an input contract and a way to read one sample.

Readers know disk layouts and nothing of training; they are cheap to build, picklable, and import neither torch nor
lightning.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.config import nearest
from brainage.data.table import CohortTable
from brainage.errors import ConfigError, DataError
from brainage.imaging.contract import InputContract


@dataclass(frozen=True)
class NoOptions:
    """Of a cohort that can be read in one way only."""


class CohortReader(ABC):
    """A cohort as it was downloaded, seen through one modality."""

    name: ClassVar[str]
    modalities: ClassVar[dict[str, str]]  # modality -> one line for people
    Options: ClassVar[type] = NoOptions  # frozen dataclass: the keys of `data.options`; names ending in _file are paths

    def __init__(
        self, root: str | Path, modality: str, spacing_mm: float = 0.0, options: Mapping[str, Any] | None = None
    ) -> None:
        """Check the door: ConfigError on an unknown modality or option, DataError when `root` is no folder."""
        self.options = _checked_options(self.name, self.Options, options or {})
        if modality not in self.modalities:
            raise ConfigError(f"{self.name}: modality {modality!r} unknown{nearest(modality, list(self.modalities))}")
        self.root = Path(root)
        self.modality = modality
        self.spacing_mm = spacing_mm
        if not str(root) or not self.root.is_dir():
            raise DataError(
                f"{self.name}: folder {str(root)!r} not found; name the downloaded cohort with data.root=DIR (DATA=DIR)"
            )

    @abstractmethod
    def table(self) -> CohortTable:
        """Canonical table (one row a scan; split not yet set) and the dropped rows. Opens no array.

        `path` is a locator relative to `root`: `file`, `file.zip!member` or `file.npy#row`.
        """

    @abstractmethod
    def contract(self) -> InputContract:
        """What `read` returns."""

    @abstractmethod
    def read(self, path: str) -> np.ndarray:
        """The sample at a locator: float32, shape and axes of the contract; DataError naming the file if damaged."""

    def stamp(self, path: str) -> str:
        """`size:mtime_ns` of the file behind a locator, `absent` where there is none: what notices a replaced file.

        Kept nowhere, so that a reader which outlives the replacement notices it too; asking for the many rows of one
        file costs some microseconds each.
        """
        try:
            found = os.stat(self.root / re.split("[!#]", path, maxsplit=1)[0])
        except OSError:
            return "absent"
        return f"{found.st_size}:{found.st_mtime_ns}"

    def without_scan(self) -> list[str]:
        """People whom the cohort's tables name, but who have no scan of this modality: no dropped scans, since there
        never were any, yet not to be passed over in silence."""
        return []

    def notes(self) -> list[str]:
        """Lines for the plan: what of the table a user should know and no reason of a dropped scan says."""
        return []

    def official_split(self) -> pd.DataFrame | None:
        """Columns cohort, participant_id, split (train, test_internal, test_external), or None where none exists."""
        return None


def _checked_options(cohort: str, schema: type, values: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(schema)]
    for key in values:
        if key not in known:
            hint = nearest(key, known) if known else "; this cohort has none"
            raise ConfigError(f"data.options.{key}: unknown for cohort {cohort}{hint}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"data.options.{key}: {str(error).splitlines()[0]}") from error
