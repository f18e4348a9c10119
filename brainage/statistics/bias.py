"""Corrections of the age bias of predicted ages: fitted on healthy people who are then not scored.

n scans. A brain-age model calls the young too old and the old too young (regression to the mean), so that its gap
(predicted minus chronological age) falls with age. A correction learns that bias from healthy people and gives the gap
without it. It remembers whom it was fitted on and refuses to correct them: their bias would be removed by their own
errors. `cross_fit.cross_fit` corrects healthy people who are scored too. Every person counts once in a fit,
however many scans there are. Estimators keep to scikit-learn's manners.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.table import person_numbers
from brainage.errors import DataError, LeakageError
from brainage.statistics.contrasts import Scale
from brainage.statistics.robust import KNOTS, natural_spline

FEWEST_HEALTHY = 10  # people a correction is fitted on
LEAST_SLOPE = 0.1  # of predicted on chronological age; a division by less blows errors up more than tenfold
SPREAD_KNOTS = (0.05, 0.5, 0.95)  # quantiles of age
_PEOPLE_A_COLUMN = 10  # of a smooth curve; with fewer it is a straight line
_ROUNDS = 20


class Scans(NamedTuple):
    """What a correction needs to know of n scans besides their predicted ages."""

    age_years: np.ndarray  # float64 [n]
    is_male: np.ndarray  # float64 [n], NaN where unknown
    persons: np.ndarray  # uint64 [n]: a number of each scan's person, so that no name is kept

    @classmethod
    def of(cls, table: pd.DataFrame) -> Scans:
        """Of a canonical table (columns age_years, sex and those of a person)."""
        male = table["sex"].map({"M": 1.0, "F": 0.0}).to_numpy(dtype=np.float64, na_value=np.nan)
        return cls(table["age_years"].to_numpy(dtype=np.float64), male, person_numbers(table))

    def at(self, rows: np.ndarray) -> Scans:
        return Scans(self.age_years[rows], self.is_male[rows], self.persons[rows])


class Correction(ABC):
    """What all corrections share: who was fitted on, at which ages, and that nobody of them is corrected.

    `sex` adds a difference between men and women to the expectation; the default leaves it to the tasks, which adjust
    for sex themselves.
    """

    name = ""
    coef_: np.ndarray  # [p], of `design`

    def __init__(self, *, sex: bool = False) -> None:
        self.sex = sex

    def fit(self, scans: Scans | pd.DataFrame, predicted_years: np.ndarray) -> Correction:
        """`predicted_years` [n] of healthy people, predicted without having seen them.

        Raises DataError on fewer than FEWEST_HEALTHY people, values that are not finite, or a single age.
        """
        scans = scans if isinstance(scans, Scans) else Scans.of(scans)
        predicted = np.asarray(predicted_years, dtype=np.float64)
        self.persons_, codes, counts = np.unique(scans.persons, return_inverse=True, return_counts=True)
        if len(self.persons_) < FEWEST_HEALTHY:
            raise DataError(
                f"bias correction {self.name!r}: expected {FEWEST_HEALTHY} or more healthy people to fit on, "
                f"found {len(self.persons_)}"
            )
        if not (np.isfinite(predicted).all() and np.isfinite(scans.age_years).all()):
            raise DataError(f"bias correction {self.name!r}: ages or predicted ages to fit on are not finite")
        self.age_range_ = float(scans.age_years.min()), float(scans.age_years.max())
        if np.ptp(scans.age_years) < 1e-6:
            raise DataError(f"bias correction {self.name!r}: all healthy people have one age; no slope can be fitted")
        self._fit_sex(scans)
        self._fit(scans, predicted, 1.0 / counts[codes])
        return self

    def transform(self, scans: Scans | pd.DataFrame, predicted_years: np.ndarray) -> np.ndarray:
        """Corrected gap in years [n]. Raises LeakageError on people whom it was fitted on."""
        scans = self._refuse_fitted(scans)
        return self._transform(scans, np.asarray(predicted_years, dtype=np.float64))

    def outside(self, age_years: np.ndarray) -> np.ndarray:
        """bool [n]: ages at which the correction is an extrapolation."""
        return (age_years < self.age_range_[0]) | (age_years > self.age_range_[1])

    @abstractmethod
    def describe(self) -> str:
        """The fitted correction as a phrase of a note."""

    @abstractmethod
    def design(self, scans: Scans) -> np.ndarray:
        """[n, p] what the bias is linear in, of a fitted correction."""

    def values(self, scans: Scans, predicted: np.ndarray) -> np.ndarray:
        """[n] what is regressed on the design: the gap, where not said otherwise."""
        return predicted - scans.age_years

    def divisor(self, coef: np.ndarray) -> np.ndarray:
        """[...] what residuals are divided by to be corrected gaps, of coefficients [..., p]."""
        return np.ones(coef.shape[:-1])

    @abstractmethod
    def _fit(self, scans: Scans, predicted: np.ndarray, weights: np.ndarray) -> None: ...

    def _transform(self, scans: Scans, predicted: np.ndarray) -> np.ndarray:
        return (self.values(scans, predicted) - self.design(scans) @ self.coef_) / self.divisor(self.coef_)

    def _refuse_fitted(self, scans: Scans | pd.DataFrame) -> Scans:
        scans = scans if isinstance(scans, Scans) else Scans.of(scans)
        both = np.unique(scans.persons[np.isin(scans.persons, self.persons_)])
        if len(both):
            raise LeakageError(
                f"bias correction {self.name!r}: fitted on {len(both)} people who are then scored; fit it on other "
                "healthy people, or use cross_fit"
            )
        return scans

    def _fit_sex(self, scans: Scans) -> None:
        known = scans.is_male[np.isfinite(scans.is_male)]
        self.share_male_ = float(known.mean()) if len(known) else np.nan
        self.uses_sex_ = self.sex and len(np.unique(known)) == 2  # of one sex alone nothing is learnt of the other

    def _with_sex(self, design: np.ndarray, scans: Scans) -> np.ndarray:
        """`design` [n, p] with a last column male, centred; 0 where sex is unknown."""
        if not self.uses_sex_:
            return design
        return np.column_stack([design, np.nan_to_num(scans.is_male - self.share_male_)])

    def _sex_phrase(self) -> str:
        if self.sex and not self.uses_sex_:
            return ", sex left out: the healthy people are not of both sexes"
        return ", and sex" if self.uses_sex_ else ""


class _Line(Correction):
    """What is linear in age."""

    def design(self, scans: Scans) -> np.ndarray:
        return self._with_sex(np.column_stack([scans.age_years, np.ones(len(scans.age_years))]), scans)


class Beheshti(_Line):
    """gap = a age + b on healthy people; the corrected gap is gap - (a age + b) (Beheshti et al. 2019).

    >>> scans = Scans(np.arange(50.0, 62.0), np.zeros(12), np.arange(12, dtype=np.uint64))
    >>> fitted = Beheshti().fit(scans, 0.5 * scans.age_years + 30)
    >>> new = Scans(np.array([60.0]), np.zeros(1), np.array([99], dtype=np.uint64))
    >>> round(float(fitted.transform(new, np.array([63.0]))[0]), 6)
    3.0
    """

    name = "beheshti"

    def _fit(self, scans: Scans, predicted: np.ndarray, weights: np.ndarray) -> None:
        self.coef_ = _least_squares(self.design(scans), self.values(scans, predicted), weights)

    def describe(self) -> str:
        return f"gap = {self.coef_[0]:.3g} age + {self.coef_[1]:.3g} on healthy people{self._sex_phrase()}"


class Cole(_Line):
    """predicted = a age + b on healthy people, inverted: corrected age (predicted - b) / a (Cole et al. 2018).

    Its gap is Beheshti's divided by a, so errors and group differences grow alike; without that division (de Lange and
    Cole 2020) it is Beheshti's. `fit` raises DataError when a is not above LEAST_SLOPE and twice its standard error:
    the quotient would have no meaning.
    """

    name = "cole"

    def _fit(self, scans: Scans, predicted: np.ndarray, weights: np.ndarray) -> None:
        design = self.design(scans)
        self.coef_ = _least_squares(design, predicted, weights)
        slope, residuals = float(self.coef_[0]), predicted - design @ self.coef_
        pull = weights * (design @ np.linalg.pinv(design.T @ (design * weights[:, None]))[0])
        moved = pull * residuals / np.sqrt(1 - _leverage(design, weights))  # [n] how each scan moved the slope
        by_person = np.bincount(np.searchsorted(self.persons_, scans.persons), moved)
        error = float(np.sqrt((by_person**2).sum()))  # HC2, clustered by person
        if not slope > max(LEAST_SLOPE, 2 * error):
            raise DataError(
                f"bias correction 'cole': predicted age rises by {slope:.3g} (standard error {error:.2g}) a year of "
                f"age in the healthy, expected more than {LEAST_SLOPE} and than two standard errors; it divides by that"
            )
        self.log_scale_ = -by_person / slope  # of each of persons_: how much they moved the log of 1 / a

    def scale(self, persons: np.ndarray) -> Scale:
        """The error of the factor 1 / a, for a contrast of `persons` [n], each once; 0 for those not fitted on."""
        places = np.minimum(np.searchsorted(self.persons_, persons), len(self.persons_) - 1)
        own = np.where(self.persons_[places] == persons, self.log_scale_[places], 0.0)
        return Scale(own, float((self.log_scale_**2).sum() - (own**2).sum()))

    def values(self, scans: Scans, predicted: np.ndarray) -> np.ndarray:
        return predicted

    def divisor(self, coef: np.ndarray) -> np.ndarray:
        return coef[..., 0]

    def describe(self) -> str:
        a, b = self.coef_[:2]
        return f"predicted = {a:.3g} age + {b:.3g} on healthy people, gaps times {1 / a:.3g}{self._sex_phrase()}"


class Conditional(Correction):
    """Gap minus its smooth mean given age, and its z-score by the smooth sd given age, of healthy people.

    Normal location and scale: the mean is a natural cubic spline of age (knots at KNOTS), the log of the variance one
    of three knots, fitted in turn by weighted least squares and by a gamma regression of squared residuals over
    1 - leverage (Smyth 1989; Smyth and Verbyla 1999; the normal case of GAMLSS, Rigby and Stasinopoulos 2005). Straight
    lines where there are fewer than ten people a column. Beyond the fitted ages the mean goes on straight and the sd
    stays as it is at the end.
    """

    name = "conditional"

    def _fit(self, scans: Scans, predicted: np.ndarray, weights: np.ndarray) -> None:
        n = len(self.persons_)
        self.knots_, self.spread_knots_ = (
            np.quantile(scans.age_years, quantiles if n >= _PEOPLE_A_COLUMN * len(quantiles) else (0.05, 0.95))
            for quantiles in (KNOTS, SPREAD_KNOTS)
        )
        gap, mean, spread = self.values(scans, predicted), self.design(scans), self._spread(scans)
        log_variance = np.zeros(len(gap))
        coef: np.ndarray | None = None
        for _ in range(_ROUNDS):
            precision = weights * np.exp(-log_variance)
            self.coef_ = _least_squares(mean, gap, precision)
            squares = (gap - mean @ self.coef_) ** 2 / (1 - _leverage(mean, precision))
            if squares.max() < 1e-12:
                raise DataError("bias correction 'conditional': the gaps of the healthy do not vary given age")
            coef = _log_variance(spread, squares, weights, coef)
            before, log_variance = log_variance, spread @ coef
            if np.abs(log_variance - before).max() < 1e-6:
                break
        self.spread_coef_ = coef

    def design(self, scans: Scans) -> np.ndarray:
        return self._with_sex(natural_spline(scans.age_years, self.knots_), scans)

    def z(self, scans: Scans | pd.DataFrame, predicted_years: np.ndarray) -> np.ndarray:
        """[n] corrected gap over the sd of healthy people of that age. Raises LeakageError as `transform`."""
        scans = self._refuse_fitted(scans)
        return self._transform(scans, np.asarray(predicted_years, dtype=np.float64)) / self.sd_years(scans)

    def sd_years(self, scans: Scans) -> np.ndarray:
        """[n] sd of the gap of healthy people of these ages."""
        return np.exp(0.5 * (self._spread(scans) @ self.spread_coef_))

    def describe(self) -> str:
        curve = "natural spline" if len(self.knots_) > 2 else "straight line (few people)"
        return f"mean gap given age by a {curve} on healthy people{self._sex_phrase()}"

    def _spread(self, scans: Scans) -> np.ndarray:
        return natural_spline(np.clip(scans.age_years, *self.age_range_), self.spread_knots_)


CORRECTIONS: dict[str, type[Correction]] = {kind.name: kind for kind in (Beheshti, Cole, Conditional)}


def _least_squares(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    return np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]


def _leverage(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    Q = np.linalg.qr(design * np.sqrt(weights)[:, None])[0]
    return np.minimum((Q**2).sum(axis=1), 0.99)


def _log_variance(design: np.ndarray, squares: np.ndarray, weights: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    """Gamma regression with a log link: coefficients [p] of the log of the expected `squares`."""
    coef = np.zeros(design.shape[1]) if start is None else start.copy()
    if start is None:
        coef[0] = np.log(np.average(squares, weights=weights))
    for _ in range(_ROUNDS):
        fitted = design @ coef
        step = _least_squares(design, squares / np.exp(fitted) - 1, weights)
        coef += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return coef
