"""Planted truths come back: simulated people with age, sex, site, acceleration and disease effects, 1,000 seeds.

Predicted age = offset + slope x biological age + noise (slope below 1: regression to the mean), with biological age =
age + acceleration. Seeds and the 99.9 % binomial bounds of 95 % are fixed in advance: 92.6 to 97.1 % of 1,000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from brainage.downstream.gap import NAMES
from brainage.statistics.bias import CORRECTIONS, Scans
from brainage.statistics.contrasts import Scale, adjusted_contrast
from brainage.statistics.cross_fit import cross_fit
from brainage.statistics.seeds import holm

SEEDS = 1000
LOW, HIGH = 0.926, 0.971
ACCELERATION_SD_YEARS = 2.0


class Gaps(NamedTuple):
    years: dict[str, np.ndarray]
    scale: Callable[[np.ndarray], Scale]


class Study(NamedTuple):
    scans: Scans
    group: np.ndarray  # 0 CN, 1 MCI, 2 AD
    site: np.ndarray
    acceleration_years: np.ndarray
    predicted_years: np.ndarray

    def gaps(self, fitted_on: np.ndarray | None = None, names=tuple(CORRECTIONS)) -> Gaps:
        """Raw and corrected gaps of everybody, cross-fitted over the healthy, and the error of Cole's factor."""
        everybody = np.ones(len(self.group), dtype=bool)
        fitted_on = self.group == 0 if fitted_on is None else fitted_on
        given = self.scans, self.predicted_years, fitted_on, everybody
        fits = {name: cross_fit(CORRECTIONS[name](), *given, seed=0) for name in names}
        raw = {"none": self.predicted_years - self.scans.age_years}
        return Gaps(raw | {name: fit.gap_years for name, fit in fits.items()}, fits["cole"].whole.scale)

    def contrasts(self, gaps: Gaps, one: int, other: int) -> dict:
        rows = (self.group == one) | (self.group == other)
        covariates = np.column_stack([self.scans.age_years, self.scans.is_male])[rows]
        values = np.column_stack(list(gaps.years.values()))[rows]
        scales = {list(gaps.years).index("cole"): gaps.scale(self.scans.persons[rows])}
        found = adjusted_contrast(values, (self.group == one)[rows], covariates, self.site[rows], scales)
        return dict(zip(gaps.years, found, strict=True))


def study(seed, effects=(0.0, 2.0, 5.0), slope=0.7, noise_years=3.0, people=(120, 70, 50)) -> Study:
    """Patients are older, more often men, spread unevenly over sites that shift the prediction, and vary more."""
    rng = np.random.default_rng([2026, seed])
    group = np.repeat([0, 1, 2], people)
    n = len(group)
    age = np.clip(rng.normal(70 + 2 * group, 7), 50, 95)
    male, site = (rng.random(n) < 0.4 + 0.1 * group).astype(float), rng.integers(0, 5, n)
    site = np.where((group == 2) & (site == 0), 1, site)  # a site without patients of AD
    acceleration = rng.normal(0, ACCELERATION_SD_YEARS * np.array([1, 1.2, 1.5])[group]) + np.array(effects)[group]
    predicted = (
        70 * (1 - slope) + slope * (age + acceleration) + 1.5 * male + 0.8 * site + rng.normal(0, noise_years, n)
    )
    return Study(Scans(age, male, np.arange(n, dtype=np.uint64)), group, site, acceleration, predicted)


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "noise_years"), [(1.0, 0.0), (0.7, 3.0)], ids=["biological age", "an encoder"])
def test_intervals_of_the_adjusted_contrasts_hold_the_planted_effects(slope, noise_years):
    """Raw, Beheshti and conditional gaps hold slope x effect; Cole's division gives the effect itself back."""
    held = {(name, pair): [] for name in NAMES for pair in ((2, 0), (1, 0), (2, 1))}
    effects = np.array([0.0, 2.0, 5.0])
    for seed in range(SEEDS):
        people = study(seed, slope=slope, noise_years=noise_years)
        gaps = people.gaps()
        for one, other in ((2, 0), (1, 0), (2, 1)):
            for name, found in people.contrasts(gaps, one, other).items():
                planted = (effects[one] - effects[other]) * (1.0 if name == "cole" else slope)
                held[name, (one, other)].append(found.difference.low <= planted <= found.difference.high)
    rates = {key: np.mean(values) for key, values in held.items()}
    print({f"{name} {one}-{other}": rate for (name, (one, other)), rate in rates.items()})
    for key, rate in rates.items():
        assert LOW <= rate <= HIGH, f"{key}: {rate}"


@pytest.mark.slow
def test_the_interval_of_hedges_g_holds_the_planted_effect_size():
    """Residual sd given age, sex and site is that of slope x acceleration and noise, equal in both groups here."""
    planted, held = 0.7 * 3 / np.hypot(0.7 * 2, 2), []
    for seed in range(SEEDS):
        rng = np.random.default_rng([7, seed])
        first, age, site = np.arange(90) < 30, rng.uniform(60, 85, 90), rng.integers(0, 3, 90)
        gap = 0.7 * (rng.normal(0, 2, 90) + 3 * first) - 0.3 * age + site + rng.normal(0, 2, 90)
        low, high = adjusted_contrast(gap[:, None], first, age[:, None], site)[0].hedges_g[1:]
        held.append(low <= planted <= high)
    print(f"hedges g: {np.mean(held)}")
    assert LOW <= np.mean(held) <= HIGH


@pytest.mark.slow
@pytest.mark.parametrize("people", [(120, 70, 50), (100, 40, 10)], ids=["as usual", "ten patients"])
def test_without_a_planted_effect_one_in_twenty_contrasts_is_called(people):
    found = []
    for seed in range(SEEDS):
        simulated = study(50_000 + seed, effects=(0, 0, 0), people=people)
        gaps = simulated.gaps(names=("beheshti", "cole"))
        pairs = [simulated.contrasts(gaps, one, other) for one, other in ((2, 0), (1, 0), (2, 1))]
        found.append([[pair[name].p for name in gaps.years] for pair in pairs])
    p = np.array(found)  # [seeds, contrasts, corrections]
    rates = (p < 0.05).mean(axis=0)
    family = np.mean([min(holm(one)) < 0.05 for one in p[:, :, 1]])
    print(f"false positives (contrasts x corrections) {rates.tolist()}, any after Holm {family}")
    assert (rates >= 1 - HIGH).all()
    assert (rates <= 1 - LOW).all()
    assert family <= 1 - LOW


@pytest.mark.slow
def test_corrections_remove_the_age_slope_of_new_healthy_people_and_leave_the_group_effect():
    slopes = {name: [] for name in NAMES}
    effects = {name: [] for name in NAMES}
    for seed in range(300):
        people = study(90_000 + seed, people=(300, 70, 60))
        fitted_on = np.arange(len(people.group)) < 150  # healthy people, who are then not looked at
        new = Study(*(part.at(~fitted_on) if isinstance(part, Scans) else part[~fitted_on] for part in people))
        gaps = people.gaps(fitted_on)
        gaps = gaps._replace(years={name: gap[~fitted_on] for name, gap in gaps.years.items()})
        healthy = new.group == 0
        for name, gap in gaps.years.items():
            slopes[name].append(np.polyfit(new.scans.age_years[healthy], gap[healthy], 1)[0])
        for name, found in new.contrasts(gaps, 2, 0).items():
            effects[name].append(found.difference.estimate)
    print({name: (np.mean(slopes[name]), np.mean(effects[name])) for name in NAMES})
    assert np.mean(slopes["none"]) == pytest.approx(-0.3, abs=0.01)
    for name in NAMES[1:]:
        error = np.std(slopes[name], ddof=1) / np.sqrt(300)
        assert abs(np.mean(slopes[name])) < 3.3 * error
        assert error < 0.006  # against a raw slope of -0.3
    np.testing.assert_allclose(effects["beheshti"], effects["none"])  # the adjustment for age holds the line
    for name, planted in (("conditional", 3.5), ("cole", 5.0)):
        error = np.std(effects[name], ddof=1) / np.sqrt(300)
        assert abs(np.mean(effects[name]) - planted) < 3.3 * error


@pytest.mark.slow
def test_the_corrected_gap_follows_the_planted_acceleration_the_better_the_encoder():
    """From an encoder of much noise and strong regression to the mean to biological age itself."""
    encoders = [(0.4, 5.0), (0.5, 4.0), (0.7, 3.0), (0.9, 1.0), (1.0, 0.0)]
    r = {name: np.empty((len(encoders), 60)) for name in NAMES}
    for e, (slope, noise_years) in enumerate(encoders):
        for seed in range(60):
            people = study(70_000 + seed, slope=slope, noise_years=noise_years)
            for name, gap in people.gaps().years.items():
                r[name][e, seed] = np.corrcoef(gap, people.acceleration_years)[0, 1]
    means = {name: values.mean(axis=1) for name, values in r.items()}
    print({name: values.round(3).tolist() for name, values in means.items()})
    for name in NAMES[1:]:
        assert (np.diff(means[name]) > 0.02).all()
        assert means[name][-1] > 0.9  # sex and site still shift the prediction
        assert (means[name][:-1] > means["none"][:-1]).all()
