"""The k splits of a cross-validation as files, with an index that says what each of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brainage.data.drawing import first_scans
from brainage.data.splits import read_split, split_hash, write_split
from brainage.data.table import PERSON, SPLITS, write_tsv
from brainage.errors import ConfigError

INDEX = "folds.tsv"


def write_folds(table: pd.DataFrame, out: str | Path, splits: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Write the split frames of all folds to `out`/fold_0.tsv ..., then `out`/folds.tsv, whose rows are returned.

    Its rows: `fold`, `file`, `split_hash`, the number of people of each split, and the mean age in years (of people, at
    their first scan) of train and of both tests. A file holds its val people too: a run with `data.split=<file>` has
    the hash of the run that drew that fold itself (with val_fraction=0, of which a file cannot tell, give
    `data.val_fraction=0` to both). Raises ConfigError on fewer than two, and when `out` holds other folds.
    """
    out = Path(out)
    if len(splits) < 2:
        raise ConfigError(f"data.folds={len(splits)}: expected 2 or more to write")
    ages = first_scans(table).set_index(PERSON)["age_years"]
    files = {f"fold_{fold}.tsv": split for fold, split in enumerate(splits)}
    index = pd.DataFrame(
        {"fold": fold, "file": file, "split_hash": split_hash(split), **_counts(split, ages)}
        for fold, (file, split) in enumerate(files.items())
    )
    _refuse_other_folds(out, index)
    out.mkdir(parents=True, exist_ok=True)
    for name, split in files.items():
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
