"""Rows of the task `site` beside the accuracy itself: what chance gives, and how rows of one network are gathered.

n scans, S seeds, m shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.downstream.features import Features
from brainage.downstream.predictions import Predicted, by_seed, stream
from brainage.downstream.results import FEWEST_PEOPLE, INTERNAL, missing_row, result_row
from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval, bootstrap, interval, seed_mean
from brainage.statistics.metrics import balanced_accuracy
from brainage.statistics.permutation import permutation_p, person_shuffles

SHUFFLE_COLUMNS = ["model", "seeds", "task", "parts", "shuffle", "balanced_accuracy"]


@dataclass
class SiteRows:
    """Rows and frames of one network as they come, and what every step needs."""

    features: Features
    cohort: str
    config: EvaluateConfig
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    frames: list[pd.DataFrame] = field(default_factory=list)

    def attempt(
        self, step: Callable[[], None], reason: str, splits: Sequence[str], task: str, metric: str, *parts: str
    ) -> None:
        """Take the step; where there is a reason not to, or it finds nothing to work on, say so in its rows."""
        try:
            if reason:
                raise DataError(reason)
            step()
        except DataError as error:
            for split in splits:
                self.missing(split, task, metric, str(error), *parts)

    def missing(self, split: str, task: str, metric: str, reason: str, *parts: str) -> None:
        self.rows.append(missing_row(self.features.label, self.cohort, split, task, metric, reason, *parts))

    def shuffles(self, block: Predicted, *parts: str, task: str = "site") -> None:
        shared: dict[str, Any] = {"cohort": self.cohort, "config": self.config, "seed": self.seed}
        rows, frame = shuffle_rows(block, *parts, task=task, **shared)
        self.rows += rows
        self.frames += [frame] if len(frame) else []

    def accuracy(self, scored: pd.DataFrame, named: np.ndarray, *notes: str, parts: tuple[str, ...]) -> None:
        """Balanced accuracy of the named sites [scored] with its interval, and what chance gives."""
        if scored.empty:
            raise DataError("no scored scan is left")
        frame = scored.assign(model=self.features.label, seed=int(self.features.seed), named=named)
        block = by_seed(frame, INTERNAL, "named")
        truth = block.scans["site"].to_numpy(dtype=str)
        statistic = {"accuracy": seed_mean(balanced_accuracy, truth, block.values)}
        drawn = stream(self.seed, INTERNAL)
        found = bootstrap(statistic, block.persons, resamples=self.config.bootstrap, seed=drawn)["accuracy"]
        where = (block.model, self.cohort, INTERNAL, "site", "balanced_accuracy")
        extent = f"{len(frame)} scans; {len(np.unique(truth))} sites scored"
        self.rows.append(result_row(*where, found, block.n, *parts, extent, *notes))
        self.shuffles(block, *parts)


def shuffle_rows(
    block: Predicted, *parts: str, cohort: str, config: EvaluateConfig, seed: int, task: str = "site"
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """What accuracy chance gives: rows `chance_balanced_accuracy` (mean and central 95 % of the shuffles) and `p`.

    The null is that a scored person's site has nothing to do with what the probe says of that person: the sites are
    dealt anew over the people of the test (`person_shuffles`), the predictions stay, nothing is refitted; with several
    seeds each shuffle is scored by the mean over them. The frame has SHUFFLE_COLUMNS, shuffle 0 being the truth. No
    rows without `config.site_permutations`; NaN with a reason for fewer than FEWEST_PEOPLE people or one site.
    """
    where = (block.model, cohort, block.split, task)
    truth, n = block.scans["site"].to_numpy(dtype=str), block.n
    one_site = len(np.unique(truth)) < 2
    if not config.site_permutations:
        return [], pd.DataFrame(columns=SHUFFLE_COLUMNS)
    if n < FEWEST_PEOPLE or one_site:
        reason = "people of one site only are scored" if one_site else f"fewer than {FEWEST_PEOPLE} people"
        rows = [missing_row(*where, name, reason, *parts) for name in ("chance_balanced_accuracy", "p")]
        return rows, pd.DataFrame(columns=SHUFFLE_COLUMNS)
    drawn = [*stream(seed, block.split), 1]  # other numbers than the resamples'
    values = shuffled_accuracies(truth, block.values, block.persons, shuffles=config.site_permutations, seed=drawn)
    frame = shuffle_frame(values, block.model, block.seeds, task, parts)
    null = "sites shuffled over the scored people, predictions fixed"
    return chance_rows(where, values, n, parts, null), frame


def chance_rows(
    where: tuple[str, str, str, str], values: np.ndarray, n: int, parts: Sequence[str], null: str
) -> list[dict[str, Any]]:
    """The two rows of `shuffle_rows` from the accuracies [1 + m] of the truth and of each shuffle."""
    note = f"{len(values) - 1} shuffles: {null}"
    chance = interval(float(values[1:].mean()), values[1:])
    p = Interval(permutation_p(values[0], values[1:]), np.nan, np.nan)
    return [
        result_row(
            *where, "chance_balanced_accuracy", chance, n, *parts, note, "mean and central 95 % of the shuffles"
        ),
        result_row(*where, "p", p, n, *parts, note, "(b + 1) / (m + 1)"),
    ]


def shuffle_frame(
    values: np.ndarray, model: str, seeds: Sequence[int], task: str, parts: Sequence[str]
) -> pd.DataFrame:
    """SHUFFLE_COLUMNS of the accuracies [1 + m]."""
    names = {"model": model, "seeds": ", ".join(map(str, seeds)), "task": task, "parts": "; ".join(parts)}
    return pd.DataFrame({**names, "shuffle": np.arange(len(values)), "balanced_accuracy": values})


def shuffled_accuracies(
    truth: np.ndarray, predicted: np.ndarray, persons: np.ndarray, *, shuffles: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Balanced accuracy [1 + m] of predictions [S, n] against the sites [n], as they are and shuffled over people."""
    classes, codes = np.unique(truth, return_inverse=True)
    named = np.searchsorted(classes, predicted).clip(max=len(classes) - 1)
    named[classes[named] != predicted] = -1  # a site that nobody scored is of
    share = 1 / (len(classes) * np.bincount(codes))  # of a scan of each site; shuffling keeps their numbers
    orders = [np.arange(len(truth)), *person_shuffles(persons, shuffles=shuffles, seed=seed)]
    return np.array([(share[codes[rows]] * (named == codes[rows])).sum() / len(named) for rows in orders])
