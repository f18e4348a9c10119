"""Time, peak memory and error of the age probes, each in a process of its own.

    python experiments/benchmarks/age_probes.py --scans 2000 20000 --threads 1 2

Simulated features: 12 hidden traits, age a smooth function of three of them, seen through a random mixture into 512
columns with noise, one scan a person. `gaussian_process exact` is the same code with every scan an inducing point;
`scikit-learn` its GaussianProcessRegressor with the same kernel. MAE is on 2,000 other people, who are predicted too.
On one thread CPU seconds are the wall time of a machine without other jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

WAYS = ("ridge", "kernel_ridge", "gaussian_process", "knn", "gaussian_process exact", "scikit-learn gaussian_process")
EXACT_SCANS = 2000  # above, the exact forms are left out: n^2 doubles and n^3 steps
FEATURES, TRAITS, NEW = 512, 12, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one[0], int(chosen.one[1]))))
        return
    columns = ("fit s", "fit CPU s", "predict CPU s", "peak GB", "MAE years")
    print(f"| probe | scans | threads | {' | '.join(columns)} | chosen |\n|{' --- |' * (len(columns) + 4)}")
    for scans in chosen.scans:
        for way in chosen.ways:
            if " " in way and scans > EXACT_SCANS:
                continue
            for threads in chosen.threads:
                count = str(threads)
                names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
                command = [sys.executable, __file__, "--one", way, str(scans)]
                done = subprocess.run(
                    command, env=os.environ | dict.fromkeys(names, count), capture_output=True, text=True, check=True
                )
                row = json.loads(done.stdout.splitlines()[-1])
                found = " | ".join(f"{row[name]:.2f}" for name in list(row)[:-1])
                print(f"| {way} | {scans} | {threads} | {found} | {row['note']} |", flush=True)


def measure(way: str, scans: int) -> dict[str, object]:
    """Fit one probe in this process; the peak is that of the whole process, libraries and data included."""
    import numpy as np

    X, ages, groups = simulated(scans)
    new, truth, _ = simulated(NEW, seed=1)
    probe = build(way, scans)
    start, busy = time.perf_counter(), time.process_time()
    probe.fit(X, ages, groups)
    fitted, worked = time.perf_counter(), time.process_time()
    predicted = probe.predict(new)
    done = time.process_time()
    return {
        "fit_s": fitted - start,
        "fit_cpu_s": worked - busy,
        "predict_cpu_s": done - worked,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mae_years": float(np.abs(predicted - truth).mean()),
        "note": getattr(probe, "note_", f"alpha {probe.alpha_:g}" if hasattr(probe, "alpha_") else ""),
    }


def build(way: str, scans: int):
    from brainage.downstream.age_probes import AGE_PROBES
    from brainage.downstream.kernel_probes import GaussianProcessProbe

    if way.startswith("scikit-learn"):
        return ScikitLearn()
    return GaussianProcessProbe(most_exact=scans) if way.endswith("exact") else AGE_PROBES[way](seed=0)


class ScikitLearn:
    """The plain way: one start from the median distance, so that it has no restarts to pay for."""

    def fit(self, X, y, groups):
        import numpy as np
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        self.mean, self.sd, self.y = X.mean(axis=0), X.std(axis=0), y.mean()
        smooth = ConstantKernel(100.0, (1e-2, 1e7)) * RBF(np.sqrt(2 * X.shape[1]), (1e-1, 1e4))
        kernel = smooth + WhiteKernel(10.0, (1e-3, 1e4))
        self.model = GaussianProcessRegressor(kernel, alpha=1e-10).fit((X - self.mean) / self.sd, y - self.y)
        self.note_ = str(self.model.kernel_)
        return self

    def predict(self, X):
        return self.y + self.model.predict((X - self.mean) / self.sd)


def simulated(scans: int, seed: int = 0):
    """Features [n, 512], ages [n] in years, people [n]; one mixture whatever the seed."""
    import numpy as np

    mixture = np.random.default_rng(99).normal(size=(TRAITS, FEATURES))
    rng = np.random.default_rng(seed)
    traits = rng.normal(size=(scans, TRAITS))
    ages = 50 + 10 * traits[:, 0] + 6 * np.tanh(2 * traits[:, 1]) + 3 * traits[:, 2] ** 2 + rng.normal(0, 3, scans)
    X = traits @ mixture + rng.normal(0, 2, (scans, FEATURES))
    return X.astype(np.float32), ages, np.arange(scans).astype(str)


if __name__ == "__main__":
    main()
