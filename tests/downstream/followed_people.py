"""People followed over visits, with planted slopes of their gap and planted conversions; shared by the tests."""

import numpy as np
import pandas as pd

from brainage.data.table import KEY
from brainage.downstream.readout import READOUT_COLUMNS, Readout

SLOPES = {"CN": 0.0, "MCI": 0.2, "AD": 0.5}


def make_gaps(people=120, visits=4, slopes=SLOPES, slope_sd=0.15, noise=1.0, seed=0, conversion=0.0, hazard_gap=0.0):
    """GAP_COLUMNS of `people` equally of the groups of `slopes`; the raw gap falls by 0.1 a year of age besides.

    `conversion`: yearly hazard of a worse diagnosis at gap 0; `hazard_gap`: its log ratio per year of baseline gap.
    """
    rng = np.random.default_rng(seed)
    groups = np.array(list(slopes))[np.arange(people) % len(slopes)]
    rows = []
    for person, group in enumerate(groups):
        age, sex = rng.uniform(60, 85), "FM"[rng.integers(2)]
        level, slope = rng.normal(0, 2), slopes[group] + rng.normal(0, slope_sd)
        level += 2.0 * list(slopes).index(group)
        times = np.r_[0.0, np.arange(1, visits) + rng.uniform(-0.2, 0.2, visits - 1)]
        gap = level + slope * times + 0.03 * (age - 72) + rng.normal(0, noise, visits)
        rate = conversion * np.exp(hazard_gap * gap[0])
        turns = rng.exponential(1 / rate) if rate > 0 and group != "AD" else np.inf
        worse = {"CN": "MCI", "MCI": "AD"}.get(group, group)
        for visit, years in enumerate(times):
            rows.append((f"p{person:05d}", f"v{visit}", age + years, sex, worse if years >= turns else group, years,
                         gap[visit]))  # fmt: skip
    names = ["participant_id", "session_id", "age_years", "sex", "diagnosis", "visit_years", "gap_beheshti_years"]
    frame = pd.DataFrame(rows, columns=names)
    frame["gap_none_years"] = frame["gap_beheshti_years"] - 0.1 * (frame["age_years"] - 70)
    for other in ("cole", "conditional"):
        frame[f"gap_{other}_years"] = frame["gap_beheshti_years"]
    frame["predicted_age_years"] = frame["age_years"] + frame["gap_none_years"]
    frame = frame.assign(cohort="adni", run="1", split="test_external", site="far", model="exp", seed=0)
    frame["corrected_by"] = -1
    frame["mci_outcome"], frame["healthy"] = pd.NA, frame["diagnosis"] == "CN"
    text = [*KEY, "split", "site", "sex", "diagnosis", "mci_outcome", "model"]
    return frame.astype(dict.fromkeys(text, "string")).sample(frac=1, random_state=seed).reset_index(drop=True)


def make_readout(gaps):
    return Readout(
        label="exp",
        seed=0,
        cohort="adni",
        table=gaps[[*READOUT_COLUMNS, "mci_outcome"]].copy(),
        features=np.zeros((len(gaps), 2), dtype=np.float32),
        predicted_age_years=gaps["predicted_age_years"].to_numpy(dtype=float),
        correct=gaps["healthy"].to_numpy(dtype=bool),
        score=np.ones(len(gaps), dtype=bool),
    )


def found(results, metric, **parts):
    """The one row of a metric and parts (`contrast="MCI-CN"`)."""
    from brainage.downstream.results import parts_of

    rows = [row for row in results.to_dict("records") if row["metric"] == metric and parts_of(row["note"]) == parts]
    assert len(rows) == 1, f"{metric} {parts}: {len(rows)} rows"
    return rows[0]
