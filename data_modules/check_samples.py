"""Checks of a cohort's samples: what is read, which way up it is, and that a store holds the same."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brainage.data.array_store import ArrayStore
from brainage.data.masking import Mask
from brainage.data.store import prepare_store
from brainage.imaging.anatomy import axis_scores, off_centre_mm
from data_modules.check_inspected import Inspected, WrongError
from data_modules.reader import CohortReader

OFF_CENTRE_MM = 20.0  # distance of the centre of mass from where the contract's space puts it


def samples(cohort: Inspected) -> str:
    contract = cohort.reader.contract()
    seen: dict[str, str] = {}
    for path in cohort.paths():
        sample = cohort.sample(path)
        if sample.dtype != np.float32 or sample.shape != contract.shape:
            raise WrongError(f"{path}: expected float32 {contract.shape}, found {sample.dtype} {sample.shape}")
        if not np.isfinite(sample).all() or np.ptp(sample) == 0:
            raise WrongError(f"{path}: values are constant or not finite")
        digest = hashlib.blake2b(np.ascontiguousarray(sample).data).hexdigest()
        if digest in seen:
            raise WrongError(f"{path} and {seen[digest]} hold the same values")
        seen[digest] = path
    return f"{len(seen)} scans of {contract.shape} read"


def anatomy(cohort: Inspected) -> str:
    contract = cohort.reader.contract()
    if contract.kind == "vector" or "head" in contract.modality:
        return "not applicable: needs brains or grey matter maps"
    margins = []
    for path in cohort.paths()[:3]:
        volume = cohort.sample(path)[0]
        scores = axis_scores(volume, contract.affine, contract.modality)
        best = max(scores, key=lambda name: scores[name])
        upright = max(scores["x y z"], scores["-x y z"])
        if best not in ("x y z", "-x y z"):
            raise WrongError(
                f"{path}: axes read as RAS fit the MNI template better as {best!r} ({scores[best]:.2f}) than as they "
                f"are ({upright:.2f}): permuted or flipped on the way"
            )
        margins.append(upright - max(score for name, score in scores.items() if not name.endswith("x y z")))
        away_mm = off_centre_mm(volume, contract)
        if np.linalg.norm(away_mm) > OFF_CENTRE_MM:
            raise WrongError(
                f"{path}: centre of mass is {away_mm.round().tolist()} mm from where {contract.space} has it: is the "
                "origin of the contract right?"
            )
    return f"upright by a margin of {min(margins):.2f} in correlation; sides cannot be checked"


def store(cohort: Inspected) -> str:
    built = _prepared(cohort)
    if len(built) != len(cohort.rows):
        raise WrongError(
            f"{len(cohort.rows) - len(built)} of {len(cohort.rows)} scans not stored, see {built.path}/dropped.tsv"
        )
    for index, path in enumerate(built.table["path"]):
        source = cohort.sample(path).astype(built.contract.dtype)
        if not np.array_equal(built.read([index])[0], source):
            raise WrongError(f"{path}: the stored values differ from what read() gives in {source.dtype}")
    return f"{len(built)} scans equal to the last bit of {built.contract.dtype}"


def masked(cohort: Inspected) -> str:
    """A store of the voxels inside a mask gives the scans back, 0 outside it."""
    if cohort.reader.contract().kind != "volume":
        return "not applicable: needs volumes"
    tissue = cohort.sample(cohort.paths()[0])[0] > 0
    mask = Mask("tissue of the first scan", 0.0, tissue)
    built = _prepared(cohort, mask)
    for index, path in enumerate(built.table["path"]):
        source = np.where(tissue, cohort.sample(path), 0).astype(built.contract.dtype)
        if not np.array_equal(built.read([index])[0], source):
            raise WrongError(f"{path}: what an in-mask store gives back differs from read() inside the mask")
    return f"{len(built)} scans equal inside a mask of {mask.voxels} of {tissue.size} voxels"


def again(cohort: Inspected) -> str:
    before = _fingerprint(_prepared(cohort).path)
    after = _fingerprint(_prepared(cohort).path)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    for path in cohort.paths():
        if cohort.reader.stamp(path) == "absent":
            raise WrongError(f"{path}: its stamp is 'absent', so that a replaced file would go unnoticed")
    if changed:
        raise WrongError(f"preparing a second time changed {', '.join(changed)}")
    return "a second preparation changes no byte"


def repeatable(cohort: Inspected) -> str:
    """The same folder gives the same table: nothing hangs on a clock, a hash seed or the order of a listing."""
    fresh = cohort.reader.table()
    for name in ("table", "dropped"):
        one, two = getattr(cohort.table, name), getattr(fresh, name)
        if not one.equals(two):
            raise WrongError(f"{name}: a second call of table() gives other rows ({len(one)}, then {len(two)})")
    return "a second call of table() gives the same rows"


def travels(cohort: Inspected) -> str:
    copy: CohortReader = pickle.loads(pickle.dumps(cohort.reader))
    path = cohort.paths()[0]
    if not np.array_equal(copy.read(path), cohort.sample(path)):
        raise WrongError(f"{path}: another process would read other values")
    return "the reader can be sent to other processes"


SAMPLE_CHECKS: dict[str, Callable[[Inspected], str]] = {
    "samples": samples,
    "anatomy": anatomy,
    "store": store,
    "masked": masked,
    "again": again,
    "repeatable": repeatable,
    "travels": travels,
}


def _prepared(cohort: Inspected, mask: Mask | None = None) -> ArrayStore:
    rows = cohort.rows[:2] if mask else cohort.rows
    return prepare_store(
        cohort.table.table.iloc[rows], cohort.reader.contract(), cohort.reader.read,
        cohort.scratch / ("masked" if mask else "store"),
        workers=1, dropped=cohort.table.dropped, stamp=cohort.reader.stamp, mask=mask,
    )  # fmt: skip


def _fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        file.name: (file.stat().st_mtime_ns, hashlib.blake2b(file.read_bytes()).hexdigest())
        for file in folder.iterdir()
    }
