"""A small run folder as the other stages leave one: invented people, plausible numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, Experiment, save_experiment
from brainage.data.table import KEY, write_table, write_tsv
from brainage.downstream.age import paired_mae_difference
from brainage.downstream.results import RESULT_COLUMNS, results_frame, write_results

SPLITS = {"train": 160, "val": 20, "test_internal": 60, "test_external": 50}
SITES = {"train": ["Guys", "HH"], "val": ["Guys", "HH"], "test_internal": ["Guys", "HH"], "test_external": ["IOP"]}
ERRORS_YEARS = {"exp": 5.5, "l1": 6.5, "untrained": 9.0, "pca_ridge": 7.5}
MEAN_PREDICTOR_YEARS = {"test_internal": 13.9, "test_external": 12.8}
PERSON_PREFIX = "ZQXV"  # occurs in identifiers and nowhere else


def write_fake_run(
    folder: Path, *, evaluated: bool = True, seeds: int = 1, sites: int = 0, scale: int = 1, loss: str = "exp"
) -> Path:
    """Write the run folder; `sites` > 0 replaces the hospitals by so many sites, `scale` multiplies the people."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    experiment = Experiment(name="ixi_thickness_exp", description="Cortical thickness of IXI, one hospital held out.")
    experiment.data.cohort, experiment.data.modality, experiment.data.root = "ixi", "thickness", "/data/ixi"
    experiment.data.external_sites, experiment.data.intensity = ["IOP"], "standardise"
    experiment.encoder.name, experiment.loss.name, experiment.evaluate.seeds = "mlp", loss, seeds
    experiment.augment.noise_p = 0.5
    save_experiment(experiment, folder / "config.yaml")
    table = _table(rng, sites, scale)
    write_table(table, folder / "table.parquet")
    people = table[["cohort", "participant_id", "split"]].drop_duplicates()
    write_tsv(people, folder / "split.tsv")
    write_tsv(_dropped(), folder / "dropped.tsv")
    _write_training(folder, rng)
    if evaluated:
        predictions = _predictions(rng, table, seeds, loss)
        write_table(predictions, folder / "predictions.parquet")
        write_results(_results(predictions), folder / "results.csv")
        _write_embedding(folder / "embeddings" / f"{loss}-seed0.parquet", rng, table)
    return folder


def _table(rng: np.random.Generator, sites: int, scale: int) -> pd.DataFrame:
    rows = []
    for split, count in SPLITS.items():
        names = SITES[split]
        if sites:
            half = sites // 2
            names = [
                f"site{i:02d}_acq{i % 3}" for i in (range(half, sites) if split == "test_external" else range(half))
            ]
        for _ in range(count * scale):
            number = len(rows)
            person = f"{PERSON_PREFIX}{number:04d}"
            age = float(np.clip(rng.normal(48, 16), 20, 86))
            rows.append(
                ["ixi", person, "1", "1", rng.choice(names), age, rng.choice(["F", "M"]), split, f"{person}.csv"]
            )
    table = pd.DataFrame(rows, columns=[*KEY, "site", "age_years", "sex", "split", "path"])
    text = {name: "string" for name in table.columns if name != "age_years"}
    return table.astype(text).assign(diagnosis=pd.Series("CN", index=table.index, dtype="string"), visit_years=0.0)


def _dropped() -> pd.DataFrame:
    reasons = [
        "age_years 999 is outside 0 to 120 years",
        "age_years -4 is outside 0 to 120 years",
        "age_years missing",
        f"exact duplicate of scan ixi/{PERSON_PREFIX}0003/1/1",
        f"{PERSON_PREFIX}9004: table.csv row 17 is truncated",
    ]
    people = [f"{PERSON_PREFIX}{9000 + i}" for i in range(len(reasons))]
    return pd.DataFrame(
        {"cohort": "ixi", "participant_id": people, "session_id": "1", "run": "1", "reason": reasons}
    ).assign(path=[f"{person}.csv" for person in people])[[*KEY, "path", "reason"]]


def _write_training(folder: Path, rng: np.random.Generator, steps: int = 400) -> None:
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            loss = 3.1 + 0.95 * np.exp(-step / 90) + rng.normal(0, 0.03)
            metrics = {"train/loss": loss, "train/lr": 1e-4 * 0.9 ** (step // 60)}
            if step % 20 == 0:
                metrics |= {
                    "health/collapse_loss": 4.05, "health/loss_over_collapse": loss / 4.05,
                    "health/effective_rank": 2 + step / 40, "health/alignment": 0.2, "health/uniformity": -2.1,
                    "speed/images_per_s": rng.normal(5200, 200), "speed/loader_wait_share": 0.04,
                }  # fmt: skip
            if step % 50 == 0:
                metrics |= {"val/loss": loss + 0.08}
            file.write(json.dumps({"step": step, "time_ms": 1000 * step, "metrics": metrics}) + "\n")
    environment = {
        "command": "brainage pretrain ixi_thickness_exp", "python": "3.11.9", "hostname": "node-of-jane",
        "packages": {"torch": "2.13.0", "lightning": "2.6.6"}, "git": {"commit": "0123abc", "dirty": False},
        "split_hash": "00112233aabbccdd",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "health.json").write_text(json.dumps({"status": "ok", "message": "", "last": "loss 0.77 of collapse"}))
    finished = {"checkpoint": "step_00000400.ckpt", "split_hash": "00112233aabbccdd", "seconds": 312.0}
    (folder / "finished.json").write_text(json.dumps(finished))
    contract = {"modality": "freesurfer_thickness", "kind": "vector", "shape": [68]}
    (folder / "contract.json").write_text(json.dumps(contract))


def _predictions(rng: np.random.Generator, table: pd.DataFrame, seeds: int, loss: str) -> pd.DataFrame:
    tested = table[table["split"].str.startswith("test")]
    networks = [(model, seed) for model in dict.fromkeys([loss, "l1"]) for seed in range(seeds)]
    frames = []
    for model, seed in [*networks, ("untrained", 0), ("pca_ridge", 0)]:
        shrunk = 48 + 0.8 * (tested["age_years"] - 48)
        predicted = shrunk + rng.normal(0, ERRORS_YEARS.get(model, 6), len(tested))
        frames.append(tested.assign(model=model, seed=seed, predicted_age_years=predicted))
    columns = [*KEY, "split", "site", "age_years", "sex", "model", "seed", "predicted_age_years"]
    predictions = pd.concat(frames, ignore_index=True)[columns]
    return predictions.astype({"model": "string", "seed": "int64"})


def _results(predictions: pd.DataFrame) -> pd.DataFrame:
    """As `brainage evaluate` writes them: one row for all seeds of a model, with their sd in the note."""
    rows: list[list[object]] = []
    for (model, split), part in predictions.groupby(["model", "split"], sort=False):
        errors = [one["predicted_age_years"] - one["age_years"] for _, one in part.groupby("seed")]
        maes, n = [error.abs().mean() for error in errors], len(errors[0])
        listed = ", ".join(str(seed) for seed in range(len(errors)))
        note = f"{n} scans" + (f"; seeds {listed}, sd over seeds {np.std(maes, ddof=1):.3g}" if len(maes) > 1 else "")
        mae = float(np.mean(maes))
        rows.append([model, "ixi", split, "age", "mae_years", mae, mae - 0.8, mae + 0.9, n, note])
        near = mae + 0.1
        rows.append([model, "ixi", split, "age_standardised", "mae_years", near, near - 0.8, near + 0.9, n, note])
        note += "; ridge on 180 scans, alpha 10"
        rows.append([model, "ixi", split, "age", "pearson_r", 0.9, 0.85, 0.94, n, note])
        rows += _part_rows(str(model), str(split), part)
        if split == "test_internal":
            note = f"{n} scans; lbfgs converged, C 1"
            rows.append([model, "ixi", split, "site", "balanced_accuracy", 0.61, 0.55, 0.67, n, note])
        else:
            both, score = "test_internal+test_external", 0.61**0.3 * mae
            rows.append([model, "ixi", both, "challenge", "challenge_score", score, 0.8 * score, 1.1 * score, n, ""])
    for split, value in MEAN_PREDICTOR_YEARS.items():
        note = "predicts 46.9 years for everybody"
        rows.append(["mean_predictor", "ixi", split, "age", "mae_years", value, value - 1, value + 1, 50, note])
    rows.append(["chance", "ixi", "test_internal", "site", "balanced_accuracy", 0.5, np.nan, np.nan, 60, "1 / 2 sites"])
    whole = results_frame(dict(zip(RESULT_COLUMNS, row, strict=True)) for row in rows)
    first, *others = (part for _, part in predictions.groupby("model", sort=False))
    config = EvaluateConfig(bootstrap=200)
    pairs = [paired_mae_difference(first, other, cohort="ixi", config=config, seed=0) for other in others]
    return pd.concat([whole, *pairs], ignore_index=True)


def _part_rows(model: str, split: str, rows: pd.DataFrame) -> list[list[object]]:
    out: list[list[object]] = []
    decade = (rows["age_years"] // 10 * 10).astype(int)
    error = (rows["predicted_age_years"] - rows["age_years"]).abs()
    for kind, names in (("band", decade.astype(str) + "-" + (decade + 9).astype(str)), ("site", rows["site"])):
        for name, values in error.groupby(names):
            n = rows.loc[values.index, "participant_id"].nunique()
            mean, half = values.mean(), 1.96 * values.std() / np.sqrt(n) if n >= 5 else np.nan
            note = f"{kind}={name}; {n} scans"
            out.append([model, "ixi", split, f"age_by_{kind}", "mae_years", mean, mean - half, mean + half, n, note])
    return out


def _write_embedding(path: Path, rng: np.random.Generator, table: pd.DataFrame) -> None:
    path.parent.mkdir()
    tested = table[table["split"].str.startswith("test")]
    age = (tested["age_years"].to_numpy(float) - 48) / 16
    site = tested["site"].astype("category").cat.codes.to_numpy(float)
    vectors = rng.normal(0, 0.25, (len(tested), 16)).astype(np.float32)
    vectors[:, 0] += age
    vectors[:, 1] += 0.4 * np.sin(2 * age) + 0.03 * site
    frame = tested[KEY].assign(trunk=list(vectors), head=list(vectors[:, :8]))
    frame.to_parquet(path)
