"""The k splits of a cross-validation as files, with an index that says what each of them holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from brainage.config import DataConfig
from brainage.data.drawing import first_scans
from brainage.data.splits import carve_val, draw_split, read_split, split_hash, write_split
from brainage.data.table import PERSON, SPLITS, write_tsv
from brainage.errors import ConfigError

INDEX = "folds.tsv"


def write_folds(
    table: pd.DataFrame,
    out: str | Path,
    *,
    folds: int,
    seed: int,
    external_sites: Iterable[str] = (),
    internal_fraction: float = DataConfig.internal_fraction,
    external_cohorts: Iterable[str] = (),
    stratify: Sequence[str] = (),
    folds_by: str = "person",
    val_fraction: float = DataConfig.val_fraction,
) -> pd.DataFrame:
    """Write all k splits to `out`/fold_0.tsv ..., then `out`/folds.tsv, and give what the latter holds.

    Its rows: `fold`, `file`, `split_hash`, the number of people of each split, and the mean age in years (of people, at
    their first scan) of train and of both tests. A file holds its val people too: a run with `data.split=<file>` has
    the hash of a run with these keys and `data.fold` (with val_fraction=0, of which a file cannot tell, give
    `data.val_fraction=0` to both). Raises ConfigError when `out` holds other folds, and what `draw_split` raises.
    """
    sites, cohorts, out = list(external_sites), list(external_cohorts), Path(out)
    if folds < 2:
        raise ConfigError(f"data.folds={folds}: expected 2 or more to write")
    ages = first_scans(table).set_index(PERSON)["age_years"]
    splits, rows = {}, []
    for fold in range(folds):
        drawn = draw_split(
            table, external_sites=sites, internal_fraction=internal_fraction, seed=seed, external_cohorts=cohorts,
            stratify=stratify, folds=folds, fold=fold, folds_by=folds_by,
        )  # fmt: skip
        split = carve_val(drawn, fraction=val_fraction, seed=seed, table=table, stratify=stratify)
        splits[f"fold_{fold}.tsv"] = split
        rows.append({"fold": fold, "file": f"fold_{fold}.tsv", "split_hash": split_hash(split), **_counts(split, ages)})
    index = pd.DataFrame(rows)
    _refuse_other_folds(out, index)
    out.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        write_split(split, out / name)
    write_tsv(index, out / INDEX)
    return index


def _counts(split: pd.DataFrame, ages: pd.Series) -> dict[str, float]:
    years = ages.reindex(pd.MultiIndex.from_frame(split[PERSON])).to_numpy()
    of = {name: (split["split"] == name).to_numpy() for name in SPLITS}
    test = of["test_internal"] | of["test_external"]
    means = {"train_age_years": years[of["train"]].mean(), "test_age_years": years[test].mean()}
    return {name: int(there.sum()) for name, there in of.items()} | {k: round(float(v), 2) for k, v in means.items()}


def _refuse_other_folds(out: Path, index: pd.DataFrame) -> None:
    ours = dict(zip(index["file"], index["split_hash"], strict=True))
    for path in sorted(out.glob("fold_*.tsv")):
        if split_hash(read_split(path)) != ours.get(path.name):
            raise ConfigError(f"{path}: of other folds; expected an empty folder, or the folds of these very keys")
