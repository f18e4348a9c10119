"""IXI cortical thickness with each hospital held out in turn: age, gap, site, and what harmonisation does to both.

    python experiments/benchmarks/ixi_hospitals.py DATA [--bootstrap 2000] [--permutations 1000] [--seed 0]

DATA is the folder with the IXI tables, or the one above it. Thicknesses as they are (mm, 68 regions; no network) go
through the ridge age probe, bias correction of the gap, the converged site probe, ComBat and residualisation with age
and sex kept. Two hospitals are fitted on (80 % of their people) and tested within (test_internal), the third is
test_external; nothing is fitted on either test. Prints one markdown table. About 15 s of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, load_experiment
from brainage.downstream.age import evaluate_age
from brainage.downstream.features import Features, raw_features
from brainage.downstream.gap import evaluate_gap
from brainage.downstream.readouts import own_readout
from brainage.downstream.results import parts_of
from brainage.downstream.site import evaluate_site
from brainage.downstream.site_controls import evaluate_site_controls
from data_modules.cohort import CohortDataModule

HOSPITALS = ("Guys", "HH", "IOP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bootstrap", type=int, default=2000)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = EvaluateConfig(
        bootstrap=options.bootstrap, site_permutations=options.permutations, nuisance=["age", "sex"],
        harmonise=["combat", "residual"],
    )  # fmt: skip
    columns = {name: table_row(evaluate_held_out(options.data, name, config, options.seed)) for name in HOSPITALS}
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, seed {options.seed}; intervals: 95 % over people"
    )
    print(f"({options.bootstrap} resamples), of chance the central 95 % of {options.permutations} shuffles\n")
    print(f"| held out | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for what in next(iter(columns.values())):
        print(f"| {what} | {' | '.join(cells[what] for cells in columns.values())} |")


def held_out(data: Path, hospital: str, folder: str, seed: int) -> tuple[Features, pd.DataFrame]:
    """Thicknesses and table of everybody, `hospital` being test_external."""
    root = data / "ixi_tables" if (data / "ixi_tables").is_dir() else data
    overrides = [
        f"data.root={root}", f"data.external_sites=[{hospital}]", f"data.split_seed={seed}",
        f"data.store={folder}/{hospital}", "data.prepare_workers=1",
    ]  # fmt: skip
    experiment = load_experiment("ixi_thickness_exp", overrides)
    scans = CohortDataModule(experiment.data, seed=seed)
    scans.prepare()
    return raw_features(np.asarray(scans.store.arrays), scans.table), scans.table


def evaluate_held_out(data: Path, hospital: str, config: EvaluateConfig, seed: int) -> pd.DataFrame:
    """Every result row of one choice of the hospital held out."""
    with tempfile.TemporaryDirectory() as folder:
        features, table = held_out(data, hospital, folder, seed)
    shared: dict[str, Any] = {"cohort": "ixi", "config": config, "seed": seed}
    age = evaluate_age(features, table, **shared)
    readout = own_readout(features, table, age.predictions, **shared)
    site = evaluate_site(features, table, **shared)
    controls = evaluate_site_controls(features, table, evaluation=site, **shared)
    outside = (readout.table["split"] == "test_external").to_numpy(dtype=bool)
    gap = evaluate_gap(dataclasses.replace(readout, score=outside), config=config, seed=seed)
    return pd.concat([age.results, gap.results, site.results, controls.results], ignore_index=True)


def table_row(results: pd.DataFrame) -> dict[str, str]:
    """What -> the cell of one hospital held out."""
    within, outside, pairs = "test_internal", "test_external", {"subset": "age_matched"}
    combat, residual = {"after": "combat"}, {"after": "residual"}

    def shown(metric: str, split: str, task: str, digits: int, parts: dict[str, str] | None = None, **of: str) -> str:
        row = find(results, of.get("run", "ridge"), split, task, metric, parts or {})
        ends = "" if np.isnan(row["low"]) else f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
        return f"{row['estimate']:.{digits}f}{ends}"

    def accuracy(parts: dict[str, str] | None = None, metric: str = "balanced_accuracy") -> str:
        return shown(metric, within, "site", 2, parts)

    def p(parts: dict[str, str] | None = None) -> str:
        return f"p {shown('p', within, 'site', 3, parts)}"

    def people_of(split: str) -> str:
        return str(find(results, "ridge", split, "age", "mae_years", {})["n"])

    corrections = ("none", "beheshti")
    slopes = [shown("age_slope", outside, "gap", 2, {"group": "CN", "correction": name}) for name in corrections]
    return {
        "n within, held out": f"{people_of(within)}, {people_of(outside)}",
        "MAE within (years)": shown("mae_years", within, "age", 2),
        "MAE held out": shown("mae_years", outside, "age", 2),
        "mean predictor within, held out": ", ".join(
            shown("mae_years", split, "age", 2, run="mean_predictor").split(" ")[0] for split in (within, outside)
        ),
        "gap's slope on age held out: raw; corrected": "; ".join(slopes),
        "site BAcc within": accuracy(),
        "by chance": f"{accuracy(metric='chance_balanced_accuracy')}, {p()}",
        "by age alone": accuracy({"predictor": "age"}),
        "age-matched": f"{accuracy(pairs)}; by chance {accuracy(pairs, 'chance_balanced_accuracy')}",
        "age and sex regressed out": accuracy({"after": "nuisance", "term": "age, sex"}),
        "after ComBat": f"{accuracy(combat)}, {p(combat)}",
        "after residualisation": f"{accuracy(residual)}, {p(residual)}",
        "MAE within after ComBat; residualisation": "; ".join(
            shown("mae_years", within, "age", 2, parts) for parts in (combat, residual)
        ),
        "MAE held out after ComBat; residualisation": "; ".join(
            shown("mae_years", outside, "age", 2, parts) for parts in (combat, residual)
        ),
    }


def find(results: pd.DataFrame, run: str, split: str, task: str, metric: str, parts: dict[str, str]) -> pd.Series:
    """The one row."""
    columns = ["run", "split", "task", "metric"]
    rows = results[(results[columns] == [run, split, task, metric]).all(axis=1)]
    rows = rows[[parts_of(note) == parts for note in rows["note"]]]
    if len(rows) != 1:
        raise SystemExit(f"expected one row {run}/{split}/{task}/{metric} {parts}, found {len(rows)}")
    return rows.iloc[0]


if __name__ == "__main__":
    main()
