"""Time and peak memory of the downstream stages on 20,000 embeddings, beside the plain scikit-learn way.

    python experiments/benchmarks/downstream.py --threads 1 2
    python experiments/benchmarks/downstream.py --stages site --ways ours --saga --gp

Each stage runs in a process of its own, so that peaks are its own (libraries and features included). Simulated
features, seed 0: 512 columns whose spread falls as a power of their rank, 64 sites of unlike sizes, 30 % of the people
with AD, one scan a person; every probe is fitted on everybody. Plain ways that take minutes are measured on a part and
multiplied, which the last column says. On one thread CPU seconds are the wall time of a machine without other jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

STAGES = ("ridge", "age_bootstrap", "gap", "diagnosis", "site")
APART = ("saga", "gp")
WAYS = ("ours", "scikit-learn")
SITES, TRAITS = 64, 20
RESAMPLES, LOOPED = 10_000, 40  # resamples of ours; those of the plain loop, which are multiplied
SHUFFLES, SAGA_ITERATIONS = 200, 3


class People(NamedTuple):
    X: np.ndarray  # float32 [n, 512]
    age: np.ndarray
    site: np.ndarray  # text
    ill: np.ndarray  # bool
    sex: np.ndarray  # text
    persons: np.ndarray  # text

    @property
    def predicted(self) -> np.ndarray:
        """[n] an age in years that is 5 years off, and 4 years too old with AD."""
        return self.age + np.random.default_rng(2).normal(0, 5, len(self.age)) + 4 * self.ill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--saga", action="store_true", help="also the published probe: 150 iterations, extrapolated")
    parser.add_argument("--gp", action="store_true", help="also the Gaussian process")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(*chosen.one, simulated(chosen.scans, chosen.features))))
        return
    print("| stage | way | threads | wall s | CPU s | peak GB | what |\n|" + " --- |" * 7)
    for threads in chosen.threads:
        rows = []
        for stage in (*chosen.stages, *(name for name in APART if getattr(chosen, name))):
            for way in chosen.ways if stage in STAGES else ("ours",):
                rows.append((stage, way, in_a_process(stage, way, threads, chosen)))
                show(stage, way, threads, rows[-1][2])
        for way in chosen.ways:
            parts = [row for stage, one, row in rows if one == way and stage in STAGES]
            if not parts:
                continue
            sums = {name: sum(row[name] for row in parts) for name in ("wall_s", "cpu_s")}
            show("total", way, threads, sums | {"peak_gb": max(row["peak_gb"] for row in parts), "what": ""})


def in_a_process(stage: str, way: str, threads: int, chosen: argparse.Namespace) -> dict:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    size = ["--scans", str(chosen.scans), "--features", str(chosen.features)]
    command = [sys.executable, __file__, *size, "--one", stage, way]
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(stage: str, way: str, threads: int, row: dict) -> None:
    numbers = " | ".join(f"{row[name]:.2f}" for name in ("wall_s", "cpu_s", "peak_gb"))
    print(f"| {stage} | {way} | {threads} | {numbers} | {row['what']} |", flush=True)


def measure(stage: str, way: str, people: People) -> dict:
    """Seconds and peak of one stage. A stage gives what it found, and pairs (factor, work) that it is made of."""
    stages = (OURS | OUR_APART) if way == "ours" else PLAIN
    wall = cpu = 0.0
    what = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for factor, work in stages[stage](people):
            start, busy = time.perf_counter(), time.process_time()
            found = work()
            wall += factor * (time.perf_counter() - start)
            cpu += factor * (time.process_time() - busy)
            what += [str(found)] + ([f"{factor:g} times a part"] if factor != 1 else [])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall_s": wall, "cpu_s": cpu, "peak_gb": peak, "what": ", ".join(what)}


def our_ridge(p: People):
    from brainage.downstream.probes import RidgeProbe

    yield 1, lambda: f"alpha {RidgeProbe().fit(p.X, p.age, p.persons).alpha_:g}"


def plain_ridge(p: People):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    from brainage.downstream.probes import PENALTIES, grouped_folds

    search = GridSearchCV(Ridge(), {"alpha": PENALTIES}, scoring="r2", cv=grouped_folds(p.persons, 0))
    X = p.X.astype(np.float64)
    yield 1, lambda: f"alpha {search.fit(X, p.age).best_params_['alpha']:g}"


def our_age_bootstrap(p: People):
    from brainage.statistics.bootstrap import bootstrap
    from brainage.statistics.metrics import AGE_METRICS

    predicted = p.predicted
    statistics = {k: (lambda w, metric=metric: metric(p.age, predicted, w)) for k, metric in AGE_METRICS.items()}
    yield 1, lambda: f"{len(bootstrap(statistics, p.persons, resamples=RESAMPLES, seed=0))} metrics"


def plain_age_bootstrap(p: People):
    from sklearn import metrics

    def score(rows: np.ndarray) -> None:
        age, found = p.age[rows], predicted[rows]
        metrics.mean_absolute_error(age, found), metrics.root_mean_squared_error(age, found)
        metrics.r2_score(age, found), np.corrcoef(age, found), (found - age).mean(), np.polyfit(age, found, 1)

    predicted = p.predicted
    yield RESAMPLES / LOOPED, lambda: resampled(len(p.age), score)


def resampled(n: int, score: Callable[[np.ndarray], None]) -> str:
    generator = np.random.default_rng(0)
    for _ in range(LOOPED):
        score(generator.integers(0, n, n))
    return f"{LOOPED} resamples"


def our_gap(p: People):
    from brainage.config import EvaluateConfig
    from brainage.downstream.gap import evaluate_gap

    config = EvaluateConfig(bootstrap=RESAMPLES)
    yield 1, lambda: f"{len(evaluate_gap(readout(p), config=config, seed=0).results)} rows"


def our_diagnosis(p: People):
    from brainage.config import EvaluateConfig
    from brainage.downstream.diagnosis import evaluate_diagnosis

    config = EvaluateConfig(bootstrap=RESAMPLES, pairs=["CN-AD"], predictors=["probe"])

    def work() -> str:
        rows = evaluate_diagnosis(readout(p), pd.DataFrame(), config=config, seed=0).results
        return f"AUC {rows.set_index('metric').loc['auc', 'estimate']:.3f}"

    yield 1, work


def plain_diagnosis(p: People):
    from sklearn import metrics
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from brainage.downstream.classifiers import PENALTIES

    X, truth = p.X.astype(np.float64), p.ill.astype(int)
    options = {"tol": 1e-5, "max_iter": 5000, "l1_ratios": (0.0,), "use_legacy_attributes": False}
    nested = LogisticRegressionCV(Cs=list(PENALTIES), cv=4, scoring="neg_log_loss", **options)
    found = {}

    def fit() -> str:
        model = make_pipeline(StandardScaler(), nested)
        found["probe"] = cross_val_predict(model, X, truth, cv=5, method="predict_proba")[:, 1]
        table = np.column_stack([p.age, p.sex == "M"])
        found["age_sex"] = cross_val_predict(LogisticRegression(), table, truth, cv=5, method="predict_proba")[:, 1]
        return f"AUC {metrics.roc_auc_score(truth, found['probe']):.3f}"

    def score(rows: np.ndarray) -> None:
        for one in found.values():
            y, s = truth[rows], one[rows]
            metrics.roc_auc_score(y, s), metrics.average_precision_score(y, s), metrics.brier_score_loss(y, s)
            metrics.balanced_accuracy_score(y, s > truth.mean())

    yield 1, fit
    yield RESAMPLES / LOOPED, lambda: resampled(len(truth), score)


def our_site(p: People):
    from brainage.downstream.probes import SiteProbe
    from brainage.downstream.site_rows import shuffled_accuracies
    from brainage.statistics.bootstrap import bootstrap
    from brainage.statistics.metrics import balanced_accuracy

    def work() -> str:
        probe = SiteProbe().fit(p.X, p.site, p.persons)
        named = probe.predict(p.X)  # as many as can be scored; those of the fit, since only time is looked at
        statistic = {"accuracy": lambda w: balanced_accuracy(p.site, named, w)}
        bootstrap(statistic, p.persons, resamples=RESAMPLES, seed=0)
        shuffled_accuracies(p.site, named[None], p.persons, shuffles=SHUFFLES, seed=1)
        state = "converged" if probe.converged_ else "NOT converged"
        return f"{state}, C {probe.C_:g}, accuracies {' '.join(f'{value:.3f}' for value in probe.scores_)}"

    yield 1, work


def plain_site(p: People):
    """One fold of five, all penalties, no resamples. Its tolerance of 1e-4 is met far from the optimum."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    from brainage.downstream.probes import PENALTIES, grouped_folds

    train, held_out = grouped_folds(p.persons, 0)[0]
    X = p.X.astype(np.float64)

    def work() -> str:
        models = [LogisticRegression(C=C, max_iter=5000).fit(X[train], p.site[train]) for C in PENALTIES]
        found = [balanced_accuracy_score(p.site[held_out], model.predict(X[held_out])) for model in models]
        return f"accuracies {' '.join(f'{value:.3f}' for value in found)}"

    yield 5.25, work  # five folds, and one fit of everybody: 1.25 of a fold's rows, one of five penalties


def our_saga(p: People):
    from sklearn.linear_model import LogisticRegression

    from brainage.downstream.probes import PUBLISHED_ITERATIONS, grouped_folds

    train, _ = grouped_folds(p.persons, 0)[0]
    X = p.X[train].astype(np.float64)
    model = LogisticRegression(C=1.0, solver="saga", max_iter=SAGA_ITERATIONS, random_state=0)

    def work() -> str:
        model.fit(X, p.site[train])
        return f"{SAGA_ITERATIONS} iterations of one fit"

    yield 26.25 * PUBLISHED_ITERATIONS / SAGA_ITERATIONS, work


def our_gp(p: People):
    from brainage.downstream.age_probes import AGE_PROBES

    yield 1, lambda: AGE_PROBES["gaussian_process"](seed=0).fit(p.X, p.age, p.persons).note_


OURS = {
    "ridge": our_ridge, "age_bootstrap": our_age_bootstrap, "gap": our_gap, "diagnosis": our_diagnosis,
    "site": our_site,
}  # fmt: skip
OUR_APART = {"saga": our_saga, "gp": our_gp}
PLAIN = {
    "ridge": plain_ridge, "age_bootstrap": plain_age_bootstrap, "gap": lambda p: iter(()),
    "diagnosis": plain_diagnosis, "site": plain_site,
}  # fmt: skip


def simulated(scans: int, features: int) -> People:
    rng = np.random.default_rng(0)
    site = rng.choice(SITES, scans, p=rng.dirichlet(np.full(SITES, 2.0)))
    age = np.clip(rng.uniform(20, 90, scans) + rng.normal(0, 5, SITES)[site], 18, 95)
    ill = rng.random(scans) < 0.3
    latent = rng.normal(size=(scans, features)) + 0.18 * rng.normal(size=(SITES, features))[site]
    latent[:, :TRAITS] += ((age - 50) / 20)[:, None] * rng.normal(size=TRAITS)
    latent[:, TRAITS : 2 * TRAITS] += 0.3 * ill[:, None] * rng.normal(size=TRAITS)
    mixture = np.linalg.qr(rng.normal(size=(features, features)))[0]
    X = (latent * np.arange(1, features + 1) ** -0.7) @ mixture * 3 + 0.5
    names = np.array([f"site{number:02d}" for number in range(SITES)])[site]
    persons = np.array([f"p{number:06d}" for number in range(scans)])
    return People(X.astype(np.float32), age, names, ill, rng.choice(["F", "M"], scans), persons)


def readout(p: People):
    from brainage.downstream.readout import Readout, healthy

    table = pd.DataFrame({"cohort": "c", "participant_id": p.persons, "session_id": "1", "run": "1"})
    table = table.assign(site=p.site, sex=p.sex, diagnosis=np.where(p.ill, "AD", "CN"), split="test_external")
    table = table.astype("string").assign(age_years=p.age, visit_years=0.0)
    return Readout("exp", 0, "c", table, p.X, p.predicted, healthy(table), np.ones(len(table), dtype=bool))


if __name__ == "__main__":
    main()
