"""The OpenBHB challenge's three-fold mode: its probes, on folds of the public training people that the kit fixes.

n people of the kit's `train.tsv`, in its order; D features. The kit (github ramp-kits/brain_age_with_site_removal,
`problem.py`) reads three folds, each of rows to fit on, of rows of the same sites (`internal_test`) and of rows of
other sites (`external_test`). A fold's probes are fitted on its train rows: Ridge, alpha in {1e-2..1e2}, by R2 over
five unshuffled folds, and LogisticRegression (saga, 150 iterations), C on the same grid, by balanced accuracy over five
stratified folds. The challenge score here is the leaderboard's, BAcc^0.3 x external MAE; the kit's own "combined" value
(external MAE x BAcc + internal MAE / 64) is another and is not given.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from brainage.config import EvaluateConfig
from brainage.data.table import person_keys
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.probes import PENALTIES, PUBLISHED_ITERATIONS, SiteProbe, fit_note, people
from brainage.downstream.results import EXTERNAL, INTERNAL, result_row, results_frame
from brainage.downstream.site import challenge_value
from brainage.errors import DataError, LeakageError
from brainage.statistics.bootstrap import Interval
from brainage.statistics.metrics import balanced_accuracy, mae_years

PARTS = ("train", "internal_test", "external_test")  # keys of a fold in the kit's file
SCORES = (
    (INTERNAL, "mae_years"),
    (EXTERNAL, "mae_years"),
    (INTERNAL, "balanced_accuracy"),  # of sites
    (f"{INTERNAL}+{EXTERNAL}", "challenge_score"),
)  # split and metric
_INNER_FOLDS = 5


class ChallengeFold(NamedTuple):
    """Row numbers of the kit's `train.tsv`, counted from 0 without its header."""

    name: str
    train: np.ndarray
    internal_test: np.ndarray
    external_test: np.ndarray


class FoldScores(NamedTuple):
    values: tuple[float, float, float, float]  # as SCORES
    note: str


def read_challenge_folds(path: str | Path) -> list[ChallengeFold]:
    """The folds of `cv_splits_indices.json` of the kit, {"fold0": {"train": [...], "internal_test": ...}, ...}.

    Raises DataError when the file is absent, is no such file, or a row is in two parts of a fold. The file
    `cv_splits.json` of the zip form is read where it has this layout.
    """
    try:
        kept = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as the challenge's folds ({error}); download the kit again") from error
    if not isinstance(kept, dict) or not kept or not all(_is_fold(fold) for fold in kept.values()):
        raise DataError(f'{path}: expected {{"fold0": {{{", ".join(PARTS)}}}, ...}} with lists of row numbers')
    folds = [
        ChallengeFold(str(name), *(np.array(fold[p], dtype=np.intp) for p in PARTS)) for name, fold in kept.items()
    ]
    for fold in folds:
        rows = np.concatenate(fold[1:])
        if len(np.unique(rows)) < len(rows) or rows.min(initial=0) < 0:
            raise DataError(f"{path}: {fold.name} holds a row twice, or a negative one")
    return folds


def score_challenge_folds(
    features: Features | Sequence[Features],
    table: pd.DataFrame,
    folds: Sequence[ChallengeFold],
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
) -> pd.DataFrame:
    """Rows of the task `challenge_folds`: each fold (`folds=fold0`) and the mean over folds (`folds=mean`).

    `table` holds the kit's training people in the order of its `train.tsv`, one row a person, since folds are row
    numbers; `features`: one network's for all folds, or one a fold (of a network trained on that fold's train rows).
    The site probe is the converged one, and with `config.site_probe_published` also the kit's own, as the task
    `challenge_folds_published`. The mean has no interval: the folds share people. Raises DataError when a fold's rows
    are not in the table, an internal site is unknown to its train rows or an external one is known, LeakageError when a
    person is fitted on and scored, or a network has seen scored people.
    """
    each = [features] * len(folds) if isinstance(features, Features) else list(features)
    if not folds or len(each) != len(folds):
        raise DataError(f"challenge: expected features of every fold, found {len(each)} for {len(folds)} folds")
    rows: list[dict[str, Any]] = []
    for published in (False, True) if config.site_probe_published else (False,):
        scores = []
        for one, fold in zip(each, folds, strict=True):
            parts = _checked_parts(table, fold)
            refuse_seen_features(one, pd.concat(parts[1:]), allow=config.allow_seen)
            scores.append(score_fold(one, *parts, seed=seed, published=published))
        task = "challenge_folds_published" if published else "challenge_folds"
        for fold, found in zip(folds, scores, strict=True):
            part = f"folds={fold.name}"
            rows += _rows(each[0].label, cohort, task, found, _people_of(table, [fold]), part)
        rows += _rows(each[0].label, cohort, task, _mean_of(scores), _people_of(table, folds), "folds=mean")
    return results_frame(rows)


def score_fold(
    features: Features,
    train: pd.DataFrame,
    internal: pd.DataFrame,
    external: pd.DataFrame,
    *,
    seed: int,
    published: bool,
) -> FoldScores:
    """The kit's two probes fitted on `train`; with `published` its saga, else a converged site probe."""
    X, inside = join(features, train).astype(np.float64), join(features, internal).astype(np.float64)
    ridge = GridSearchCV(Ridge(), {"alpha": list(PENALTIES)}, scoring="r2", cv=_INNER_FOLDS)
    ridge.fit(X, train["age_years"].to_numpy(dtype=np.float64))
    near, far = (
        float(
            mae_years(part["age_years"].to_numpy(dtype=np.float64), ridge.predict(values), np.ones((1, len(part))))[0]
        )
        for part, values in ((internal, inside), (external, join(features, external).astype(np.float64)))
    )
    fit = _published_sites if published else _converged_sites
    predicted, note = fit(X, train, inside, seed)
    truth = internal["site"].to_numpy(dtype=str)
    accuracy = float(balanced_accuracy(truth, predicted, np.ones((1, len(truth))))[0])
    note = f"{len(train)} scans fitted, alpha {ridge.best_params_['alpha']:g}; {note}"
    return FoldScores((near, far, accuracy, float(challenge_value(accuracy, far))), note)


def _published_sites(X: np.ndarray, train: pd.DataFrame, asked: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    model = LogisticRegression(solver="saga", max_iter=PUBLISHED_ITERATIONS, random_state=seed)
    search = GridSearchCV(model, {"C": list(PENALTIES)}, scoring="balanced_accuracy", cv=StratifiedKFold(_INNER_FOLDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # part of the protocol
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        search.fit(X, train["site"].to_numpy(dtype=str))
    return search.predict(asked), f"saga, {PUBLISHED_ITERATIONS} iterations, C {search.best_params_['C']:g}"


def _converged_sites(X: np.ndarray, train: pd.DataFrame, asked: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    probe = SiteProbe(seed=seed).fit(X, train["site"].to_numpy(dtype=str), people(train))
    return probe.predict(asked), f"lbfgs {'converged' if probe.converged_ else 'NOT converged'}, {fit_note(probe, 'C')}"


def _checked_parts(table: pd.DataFrame, fold: ChallengeFold) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    name = f"challenge, {fold.name}"
    for part, rows in zip(PARTS, fold[1:], strict=True):
        if len(rows) == 0:
            raise DataError(f"{name}: no row in {part}")
        if rows.max() >= len(table):
            raise DataError(
                f"{name}: row {rows.max()} in {part}, but the table has {len(table)}: not the kit's train.tsv?"
            )
    train, internal, external = (table.iloc[rows] for rows in fold[1:])
    both = person_keys(train).isin(person_keys(pd.concat([internal, external])))
    if both.any():
        raise LeakageError(f"{name}: {int(both.sum())} fitted scans are of people who are scored too")
    if pd.concat([train, internal])["site"].isna().any():
        raise DataError(f"{name}: scans of train or internal_test without a site")
    known = train["site"].unique()
    for part, rows, expected in (("internal_test", internal, True), ("external_test", external, False)):
        wrong = rows["site"].dropna()[rows["site"].dropna().isin(known) != expected]
        if len(wrong):
            state = "unknown to" if expected else "known to"
            raise DataError(
                f"{name}: {len(wrong)} scans of {part} are of sites {state} its train rows, first {wrong.iloc[0]}; "
                "are the rows of the table in the order of the kit's train.tsv?"
            )
    return train, internal, external


def _rows(
    run: str, cohort: str, task: str, found: FoldScores, counts: tuple[int, int], part: str
) -> list[dict[str, Any]]:
    inside, outside = counts
    n = {INTERNAL: inside, EXTERNAL: outside, f"{INTERNAL}+{EXTERNAL}": inside + outside}
    return [
        result_row(run, cohort, split, task, metric, Interval(value, np.nan, np.nan), n[split], part, found.note)
        for (split, metric), value in zip(SCORES, found.values, strict=True)
    ]


def _mean_of(scores: Sequence[FoldScores]) -> FoldScores:
    values = np.array([found.values for found in scores])
    spread = f", sd of the challenge score over folds {values[:, 3].std(ddof=1):.3g}" if len(scores) > 1 else ""
    near, far, accuracy, score = values.mean(axis=0).tolist()
    return FoldScores((near, far, accuracy, score), f"mean of {len(scores)} folds, which share people{spread}")


def _people_of(table: pd.DataFrame, folds: Sequence[ChallengeFold]) -> tuple[int, int]:
    """Distinct people in the internal and in the external tests of these folds."""
    persons = people(table)
    inside, outside = (
        np.concatenate(rows) for rows in ([f.internal_test for f in folds], [f.external_test for f in folds])
    )
    return len(np.unique(persons[inside])), len(np.unique(persons[outside]))


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(part), list) and all(type(row) is int for row in fold[part]) for part in PARTS
    )
