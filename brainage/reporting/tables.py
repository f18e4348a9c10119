"""Tables of the report: numbers for CSV, the same rows as short text for the page and for LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.table import PERSON
from brainage.downstream.results import CHANCE, FEWEST_PEOPLE, MEAN_PREDICTOR, RESULT_COLUMNS, SCORED
from brainage.reporting.run_folder import RunFolder, model_and_seed
from brainage.reporting.style import SPLIT_NAMES

# task and metric of results.csv
MAE = ("age", "mae_years")
MAE_STANDARDISED = ("age_standardised", "mae_years")
SITE_BACC = ("site", "balanced_accuracy")
CHALLENGE = ("challenge", "challenge_score")
BOTH_TESTS = "+".join(SCORED)
BASELINES = ("untrained", "pca_ridge", "ridge")
SEEDLESS = ("pca_ridge", "ridge", MEAN_PREDICTOR)  # nothing in them is drawn at random
MODEL_NAMES = {
    "exp": "L^exp", "thr": "L^thr", "rnc": "Rank-N-Contrast", "yaware": "y-Aware", "infonce": "InfoNCE",
    "supcon": "SupCon",
    "l1": "L1, supervised", "l2": "L2, supervised", "huber": "Huber, supervised",
    "untrained": "Untrained encoder", "pca_ridge": "PCA + ridge", "ridge": "Ridge on raw values",
    "mean_predictor": "Mean predictor",
}  # fmt: skip
# phrases of notes in results.csv
SEEDS_NOTE = re.compile(r"seeds (?P<seeds>\d[\d, ]*), sd over seeds (?P<sd>[\d.e+-]+)")
MATCHED_NOTE = re.compile(
    r"matched seeds (?P<seeds>\d[\d, ]*): sd of their differences (?P<sd>[\d.e+-]+), "
    r"the first is better in (?P<better>\d+)"
)


@dataclass
class Cell:
    """A value with smaller lines under it (its interval, what to compare it with)."""

    main: str
    small: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.main, *self.small])


@dataclass
class Table:
    """`data` goes to CSV, `shown` (text or Cell) to the page and to LaTeX; equal rows in equal order."""

    name: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame
    note: str = ""
    words: tuple[str, ...] = ()  # columns of words, set to the left, besides the first; the others are numbers
    strong: tuple[int, ...] = ()  # rows to stand out
    reasons: tuple[str, ...] = ()  # why numbers are missing, each with its rows

    def is_words(self, column: str) -> bool:
        """Whether a column of `shown` is set to the left."""
        return column in (self.shown.columns[0], *self.words)


@dataclass
class Estimate:
    """One metric of one model: with several seeds the mean over the networks, with the intervals' mean ends."""

    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    seeds: int = 0
    seed_sd: float = np.nan

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.estimate))

    def columns(self, name: str) -> dict[str, float]:
        """The estimate and its interval as columns of a table."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}

    def cell(self, digits: int, *lines: str, scale: float = 1) -> Cell:
        """The estimate over its interval and further lines."""
        if not self:
            return Cell("–")
        small = tuple(filter(None, [self.interval(digits, scale), *lines]))
        return Cell(f"{self.estimate * scale:.{digits}f}", small)

    def interval(self, digits: int, scale: float = 1) -> str:
        """`[low, high]`, or nothing where there is none."""
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return ""
        return f"[{self.low * scale:.{digits}f}, {self.high * scale:.{digits}f}]"

    def seeds_line(self, digits: int, scale: float = 1) -> str:
        """The standard deviation over seeds, or nothing where there is one seed."""
        return f"seed sd {self.seed_sd * scale:.{digits}f}" if np.isfinite(self.seed_sd) else ""


def model_name(model: str) -> str:
    """The name a reader knows.

    >>> model_name("exp"), model_name("l1_head")
    ('L^exp', 'L1, own age head')
    """
    if model.endswith("_head"):  # a supervised network judged by the ages that it predicts itself
        return model_name(model.removesuffix("_head")).removesuffix(", supervised") + ", own age head"
    return MODEL_NAMES.get(model, model)


def models(run: RunFolder) -> list[tuple[str, str]]:
    """(cohort, model) pairs with an age MAE: the run's own cohort and loss first, then siblings, then baselines."""
    rows = _rows(run, *MAE)
    rows = rows[rows["split"].isin(SCORED) & (rows["model"] != MEAN_PREDICTOR)]
    pairs = list(dict.fromkeys(zip(rows["cohort"], rows["model"], strict=True)))

    def rank(pair: tuple[str, str]) -> tuple[bool, int]:
        cohort, model = pair
        order = 0 if model == run.model else 2 + BASELINES.index(model) if model in BASELINES else 1
        return cohort != run.experiment.data.cohort, order

    return sorted(pairs, key=rank)


def estimate(run: RunFolder, cohort: str, model: str, split: str, task: str, metric: str) -> Estimate:
    """One metric of one model on a whole split; an empty Estimate where it was not measured.

    Of several seeds: the row of all seeds together where there is one, the mean over the networks where not.
    """
    rows = _rows(run, task, metric)
    rows = rows[(rows["model"] == model) & (rows["cohort"] == cohort) & (rows["split"] == split)]
    if rows.empty:
        return Estimate()
    each, pooled = rows[rows["seed"].notna()], rows[rows["seed"].isna()]
    values = pooled if len(pooled) else each
    told = SEEDS_NOTE.search(values["note"].iloc[0])
    seeds = len(told["seeds"].split(",")) if told else max(len(each), 1)
    return Estimate(
        estimate=float(values["estimate"].mean()), low=float(values["low"].mean()), high=float(values["high"].mean()),
        n=int(values["n"].max()), seeds=seeds,
        seed_sd=float(told["sd"]) if told else float(each["estimate"].std()) if len(each) > 1 else np.nan,
    )  # fmt: skip


def mean_predictor(run: RunFolder, cohort: str, split: str) -> Estimate:
    """MAE of answering every person with the mean age of the people fitted on."""
    return estimate(run, cohort, MEAN_PREDICTOR, split, *MAE)


def parts(run: RunFolder, kind: str) -> pd.DataFrame:
    """MAE of the main network on each part (site or band) of the tests: split, part, estimate, low, high, n."""
    rows = _rows(run, f"age_by_{kind}", MAE[1], whole=False)
    rows = rows[rows["split"].isin(SCORED) & rows["cohort"].eq(run.experiment.data.cohort)]
    own = rows[rows["run"] == run.label]
    own = own if len(own) else rows[rows["run"] == run.model]
    own = own[own["n"] >= FEWEST_PEOPLE].rename(columns={"part_name": "part"})
    return own[["split", "part", "estimate", "low", "high", "n"]].reset_index(drop=True)


def _rows(run: RunFolder, task: str, metric: str, *, whole: bool = True) -> pd.DataFrame:
    columns = [*RESULT_COLUMNS, "model", "seed", "part_kind", "part_name"]
    rows = pd.DataFrame(columns=columns) if run.results is None else run.results
    rows = rows[(rows["task"] == task) & (rows["metric"] == metric) & rows["estimate"].notna()]
    return rows[(rows["part_kind"] == "") == whole]


def headline(run: RunFolder) -> Table | None:
    """Models side by side on the two test splits; None before an evaluation."""
    pairs = models(run)
    if not pairs:
        return None
    cohorts = list(dict.fromkeys(cohort for cohort, _ in pairs))
    every = pairs + [(cohort, MEAN_PREDICTOR) for cohort in cohorts]
    data, shown = zip(*[_headline_row(run, cohort, model) for cohort, model in every], strict=True)
    note = (
        "Lower is better in every column of numbers. Brackets: 95 % interval by bootstrap over people. “mean” is the "
        "error of answering everyone with the mean age of the people fitted on. Site BAcc is the balanced accuracy of "
        "reading the site from the embedding, on the internal test, with chance under it. n counts people, with "
        "their youngest and oldest age under it."
    )
    if any(row["seeds"] > 1 for row in data):
        note += (
            " Several seeds: the mean over the networks, trained alike but for the seed; “seed sd” is the standard "
            "deviation over them, which the intervals do not contain."
        )
    rows = pd.DataFrame(shown)
    return Table(
        "headline", "Age and site read from the frozen embedding", pd.DataFrame(data),
        rows if len(cohorts) > 1 else rows.drop(columns="Cohort"), note, words=("Cohort",),
        strong=tuple(i for i, (_, model) in enumerate(every) if model == run.model),
    )  # fmt: skip


def _headline_row(run: RunFolder, cohort: str, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    data: dict[str, Any] = {"cohort": cohort, "model": model, "seeds": 1}
    shown: dict[str, Any] = {"Model": Cell(model_name(model)), "Cohort": cohort}
    people, ages = [], []
    for split, word in zip(SCORED, ("internal", "external"), strict=True):
        mae, guess = estimate(run, cohort, model, split, *MAE), mean_predictor(run, cohort, split)
        low, high = age_range(run, cohort, model, split)
        data |= {"seeds": max(data["seeds"], mae.seeds), **mae.columns(f"mae_{word}"), f"n_{word}": mae.n}
        data |= {f"mae_{word}_seed_sd": mae.seed_sd, f"mae_{word}_mean_predictor": guess.estimate}
        data |= {f"age_{word}_min": low, f"age_{word}_max": high}
        beside = f"mean {guess.estimate:.2f}" if guess and model != MEAN_PREDICTOR else ""
        shown[f"MAE {word} (years)"] = mae.cell(2, mae.seeds_line(2), beside)
        people.append(str(mae.n) if mae else "–")
        ages.append(f"{low:.0f}–{high:.0f}" if np.isfinite(low) else "–")
    bacc, chance = (estimate(run, cohort, name, SCORED[0], *SITE_BACC) for name in (model, CHANCE))
    score = estimate(run, cohort, model, BOTH_TESTS, *CHALLENGE)
    data |= {**bacc.columns("site_bacc"), "site_chance": chance.estimate, **score.columns("l_c")}
    shown["Site BAcc (%)"] = bacc.cell(
        1, bacc.seeds_line(1, 100), f"chance {100 * chance.estimate:.1f}" if chance else "", scale=100
    )
    shown["L_c"] = score.cell(2, score.seeds_line(2))
    shown["n, ages int / ext"] = Cell(" / ".join(people), (" / ".join(ages),))
    planned = 1 if model in SEEDLESS else run.experiment.evaluate.seeds
    if max(data["seeds"], planned) > 1:
        counted = f"{data['seeds']} of {planned} seeds" if data["seeds"] < planned else f"{data['seeds']} seeds"
        shown["Model"] = Cell(model_name(model), (counted,))
    return data, shown


def differences(run: RunFolder) -> Table | None:
    """Pairs of models scored on the same people of the run's cohort; None where no pair was compared."""
    rows = _rows(run, "age", "mae_difference_years")
    rows = rows[rows["cohort"] == run.experiment.data.cohort]
    if rows.empty:
        return None
    data, shown = [], []
    for name, pair in rows.groupby("run", sort=False):
        numbers: dict[str, Any] = {"models": name}
        cells: dict[str, Any] = {"Models": " minus ".join(model_name(model_and_seed(m)[0]) for m in name.split(" - "))}
        for split, word in zip(SCORED, ("internal", "external"), strict=True):
            here = pair[pair["split"] == split]
            columns, cell = _difference(here.iloc[0]) if len(here) else ({}, Cell("–"))
            numbers |= {f"{word}_{column}": value for column, value in columns.items()}
            cells[f"MAE {word} (years)"] = cell
        data.append(numbers)
        shown.append(cells)
    note = (
        "Below 0: the first model errs less. An interval that holds 0 leaves open which one is better. 95 % intervals "
        "are over people only and do not contain the spread over training seeds: one that excludes 0 does not say that "
        "another training would. Where both models were trained with the same seeds, the sd of the difference over "
        "them and how many of them favour the first are under it; where not, “other seeds”."
    )
    caption = "Differences between models, on the same people"
    return Table("differences", caption, pd.DataFrame(data), pd.DataFrame(shown), note)


def _difference(row: pd.Series) -> tuple[dict[str, Any], Cell]:
    found, told = Estimate(row["estimate"], row["low"], row["high"]), MATCHED_NOTE.search(row["note"])
    columns: dict[str, Any] = {**found.columns("difference"), "n": row["n"], "note": row["note"]}
    lines = ["one seed" if "one seed" in row["note"] else "other seeds" if "not matched" in row["note"] else ""]
    if told is not None:
        count = len(told["seeds"].split(","))
        columns |= {"seeds": count, "seed_sd": float(told["sd"]), "seeds_better": int(told["better"])}
        lines = [f"seed sd {told['sd']}", f"{told['better']} of {count} below 0"]
    return columns, Cell(f"{found.estimate:+.2f}", tuple(filter(None, [found.interval(2), *lines])))


def age_range(run: RunFolder, cohort: str, model: str, split: str) -> tuple[float, float]:
    """Youngest and oldest person scored, in whole years; NaN without predictions or of fewer than FEWEST_PEOPLE."""
    if run.predictions is None:
        return np.nan, np.nan
    rows = run.predictions
    rows = rows[(rows["cohort"] == cohort) & (rows["split"] == split)]
    own = rows if model == MEAN_PREDICTOR else rows[[model_and_seed(label)[0] == model for label in rows["label"]]]
    if len(own.drop_duplicates(PERSON)) < FEWEST_PEOPLE:
        return np.nan, np.nan
    return float(own["age_years"].min().round()), float(own["age_years"].max().round())


def all_results(run: RunFolder) -> Table | None:
    """Every row of results.csv that is about a whole split."""
    if run.results is None:
        return None
    rows = run.results.loc[run.results["part_kind"] == "", RESULT_COLUMNS]
    shown = pd.DataFrame({
        "Model": rows["run"], "Split": rows["split"].map(_split_name),
        "Task": rows["task"], "Metric": rows["metric"],
        "Estimate": rows["estimate"].map(_number), "95 % interval": [
            Estimate(low=low, high=high).interval(3) for low, high in zip(rows["low"], rows["high"], strict=True)
        ],
        "n": rows["n"].map(lambda n: "–" if pd.isna(n) else f"{int(n)}"), "Note": rows["note"],
    })  # fmt: skip
    return Table("results", "All results", rows, shown, words=("Split", "Task", "Metric", "Note"))


def _split_name(split: str) -> str:
    return " + ".join(SPLIT_NAMES.get(one, one) for one in split.split("+"))


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
