"""Tables of the report: numbers for CSV, the same rows as short text for the page and for LaTeX (booktabs)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.table import write_atomically
from brainage.downstream.results import RESULT_COLUMNS
from brainage.reporting.run_folder import RunFolder, model_and_seed
from brainage.reporting.style import SPLIT_NAMES

TESTS = ("test_internal", "test_external")
# task and metric of results.csv
MAE = ("age", "mae_years")
SITE_BACC = ("site", "balanced_accuracy")
CHALLENGE = ("challenge", "challenge_score")
MEAN_PREDICTOR, CHANCE = "mean_predictor", "chance"  # what the models are compared with, as runs of results.csv
BOTH_TESTS = "+".join(TESTS)
BASELINES = ("untrained", "pca_ridge", "ridge")
MODEL_NAMES = {
    "exp": "L^exp", "yaware": "y-Aware", "infonce": "InfoNCE", "supcon": "SupCon",
    "l1": "L1, supervised", "l2": "L2, supervised", "huber": "Huber, supervised",
    "untrained": "Untrained encoder", "pca_ridge": "PCA + ridge", "ridge": "Ridge on raw values",
    "mean_predictor": "Mean predictor",
}  # fmt: skip
FEWEST_PEOPLE = 5  # a group below this is neither averaged nor shown with its ages
SEEDS_NOTE = re.compile(r"seeds (?P<seeds>\d[\d, ]*), sd over seeds (?P<sd>[\d.e+-]+)")
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "–": "--", "—": "---", "…": r"\dots{}", "≥": r"$\geq$", "×": r"$\times$",
}  # fmt: skip


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
    rows = rows[rows["split"].isin(TESTS) & (rows["model"] != MEAN_PREDICTOR)]
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
    rows = rows[rows["split"].isin(TESTS) & rows["cohort"].eq(run.experiment.data.cohort)]
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
        note += " Several seeds: the mean over the networks; the intervals do not contain the sd over seeds."
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
    for split, word in zip(TESTS, ("internal", "external"), strict=True):
        mae, guess = estimate(run, cohort, model, split, *MAE), mean_predictor(run, cohort, split)
        low, high = age_range(run, cohort, model, split)
        data |= {"seeds": max(data["seeds"], mae.seeds), **mae.columns(f"mae_{word}"), f"n_{word}": mae.n}
        data |= {f"mae_{word}_seed_sd": mae.seed_sd, f"mae_{word}_mean_predictor": guess.estimate}
        data |= {f"age_{word}_min": low, f"age_{word}_max": high}
        sd = f"seed sd {mae.seed_sd:.2f}" if np.isfinite(mae.seed_sd) else ""
        beside = f"mean {guess.estimate:.2f}" if guess and model != MEAN_PREDICTOR else ""
        shown[f"MAE {word} (years)"] = mae.cell(2, sd, beside)
        people.append(str(mae.n) if mae else "–")
        ages.append(f"{low:.0f}–{high:.0f}" if np.isfinite(low) else "–")
    bacc, chance = (estimate(run, cohort, name, TESTS[0], *SITE_BACC) for name in (model, CHANCE))
    score = estimate(run, cohort, model, BOTH_TESTS, *CHALLENGE)
    data |= {**bacc.columns("site_bacc"), "site_chance": chance.estimate, **score.columns("l_c")}
    shown["Site BAcc (%)"] = bacc.cell(1, f"chance {100 * chance.estimate:.1f}" if chance else "", scale=100)
    shown["L_c"] = score.cell(2)
    shown["n, ages int / ext"] = Cell(" / ".join(people), (" / ".join(ages),))
    if data["seeds"] > 1:
        shown["Model"] = Cell(model_name(model), (f"{data['seeds']} seeds",))
    return data, shown


def differences(run: RunFolder) -> Table | None:
    """Pairs of models scored on the same people; None where no pair was compared."""
    rows = _rows(run, "age", "mae_difference_years")
    if rows.empty:
        return None
    pairs = [" minus ".join(model_name(model_and_seed(m)[0]) for m in name.split(" - ")) for name in rows["run"]]
    ends = [rows[name] for name in ("estimate", "low", "high")]
    shown = pd.DataFrame({
        "Models": pairs, "Split": rows["split"].map(_split_name),
        "MAE difference (years)": rows["estimate"].map(lambda value: f"{value:+.2f}"),
        "95 % interval": [Estimate(*row).interval(2) for row in zip(*ends, strict=True)],
        "n": rows["n"].map(str),
    })  # fmt: skip
    note = "Below 0: the first model errs less. An interval that holds 0 leaves open which one is better."
    data = rows[RESULT_COLUMNS]
    return Table("differences", "Differences between models, on the same people", data, shown, note, words=("Split",))


def age_range(run: RunFolder, cohort: str, model: str, split: str) -> tuple[float, float]:
    """Youngest and oldest person scored, in years; NaN without predictions."""
    if run.predictions is None:
        return np.nan, np.nan
    rows = run.predictions
    rows = rows[(rows["cohort"] == cohort) & (rows["split"] == split)]
    own = rows if model == MEAN_PREDICTOR else rows[[model_and_seed(label)[0] == model for label in rows["label"]]]
    ages = own["age_years"]
    return (float(ages.min()), float(ages.max())) if len(ages) else (np.nan, np.nan)


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


def write_table(table: Table, folder: Path) -> None:
    """Write `<name>.csv` and `<name>.tex` (booktabs) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{table.name}.csv", lambda path: table.data.to_csv(path, index=False))
    write_atomically(folder / f"{table.name}.tex", lambda path: path.write_text(to_latex(table), encoding="utf-8"))


def to_latex(table: Table) -> str:
    """A `table` environment for the booktabs package, every character escaped."""
    columns = "".join("l" if table.is_words(name) else "r" for name in table.shown.columns)
    lines = [" & ".join(map(escape_latex, map(str, row))) + r" \\" for row in table.shown.itertuples(index=False)]
    head = " & ".join(map(escape_latex, table.shown.columns)) + r" \\"
    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"  \centering\small",
        f"  \\caption{{{escape_latex(table.caption)}}}",
        f"  \\label{{tab:{table.name}}}", f"  \\begin{{tabular}}{{{columns}}}", r"    \toprule", f"    {head}",
        r"    \midrule", *(f"    {line}" for line in lines), r"    \bottomrule", r"  \end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def escape_latex(text: str) -> str:
    r"""Text as LaTeX prints it, with the names of losses and scores set as mathematics.

    >>> escape_latex("L^exp: 5 % of site_1")
    '$L^{\\mathrm{exp}}$: 5 \\% of site\\_1'
    """
    mathematics = {"L^exp": r"$L^{\mathrm{exp}}$", "L_c": "$L_c$"}
    pieces = re.split(r"(L\^exp|L_c)", text)
    return "".join(mathematics.get(piece) or "".join(LATEX.get(c, c) for c in piece) for piece in pieces)


def _split_name(split: str) -> str:
    return " + ".join(SPLIT_NAMES.get(one, one) for one in split.split("+"))


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
