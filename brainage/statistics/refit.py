"""Corrections refitted to resampled people: what their own error adds to the interval of a corrected gap.

n scans, P people whom a correction was fitted on, R resamples, p columns of its design, K folds of a cross-fit.
A correction is a regression, its refit to people counted 0, 1, 2 ... times a weighted one, and the sums that that needs
are a product of weights [R, P] with a few sums of each person.
"""

from __future__ import annotations

import numpy as np

from brainage.statistics.bias import Scans
from brainage.statistics.cross_fit import CrossFit

_MOST_LEVERAGE = 0.9  # of one person, who would otherwise move the refits more than tenfold
_SINGULAR = 1e-6  # least over largest eigenvalue, in a basis in which the sample itself has 1


class Refits:
    """The refits of one correction, to residuals divided by 1 - leverage and moved back onto least squares itself.

    Undivided residuals of few people understate the error (HC3, MacKinnon and White 1985; Davison and Hinkley 1997,
    section 6.2). Lines of age are exact. `Conditional` keeps its knots, those of the whole in folds too, and is
    refitted without its variance weights, which widens about as much as the error of those weights does.
    """

    def __init__(self, found: CrossFit, scans: Scans, predicted_years: np.ndarray) -> None:
        """`scans` and predicted ages [n] are those that `found.whole` was fitted on."""
        self.correction, self.dealt = found.whole, found.dealt
        design, values = self.correction.design(scans), self.correction.values(scans, predicted_years)
        codes = np.searchsorted(self.correction.persons_, scans.persons)
        weights = 1.0 / np.bincount(codes)[codes]
        triangle = np.linalg.qr(design * np.sqrt(weights)[:, None], mode="r")
        self._to_design = np.linalg.pinv(triangle, rcond=1e-10)  # [p, p]
        basis = design @ self._to_design  # products of it sum to the unit matrix over the sample
        leverage = np.bincount(codes, weights * (basis**2).sum(axis=1))[codes]  # of a person: scans are alike
        leverage = np.minimum(leverage, _MOST_LEVERAGE)
        residuals = values - design @ self.correction.coef_
        plain = self._sums_of(basis, values, weights, codes)
        self._sums = self._sums_of(basis, values + residuals * leverage / (1 - leverage), weights, codes)
        once = np.ones((1, len(self.dealt)))
        moved = self._solved(once, self._sums)
        self._back = {fold: exact - moved[fold] for fold, exact in self._solved(once, plain).items()}

    def _sums_of(self, basis: np.ndarray, values: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """[P, p (p + 1)] products of each person's basis with basis and values."""
        right = np.column_stack([basis, values]) * weights[:, None]
        sums = np.zeros((len(self.dealt), basis.shape[1] * right.shape[1]))
        np.add.at(sums, codes, (basis[:, :, None] * right[:, None, :]).reshape(len(values), -1))
        return sums

    def coefficients(self, weights: np.ndarray) -> dict[int, np.ndarray]:
        """Fold -> [R, p] without its people, and -1 -> of everybody, of weights [R, P]; NaN where not determined."""
        found = self._solved(weights, self._sums)
        return {fold: coefficients + self._back[fold] for fold, coefficients in found.items()}

    def _solved(self, weights: np.ndarray, sums: np.ndarray) -> dict[int, np.ndarray]:
        whole = weights @ sums
        found = {-1: self._solve(whole)}
        for fold in np.unique(self.dealt[self.dealt >= 0]):
            here = self.dealt == fold
            found[int(fold)] = self._solve(whole - weights[:, here] @ sums[here])
        return found

    def gap_years(self, coefficients: np.ndarray, scans: Scans, predicted_years: np.ndarray) -> np.ndarray:
        """[R, n] corrected gaps by coefficients [R, p]."""
        residuals = -coefficients @ self.correction.design(scans).T
        residuals += self.correction.values(scans, predicted_years)
        residuals /= self.correction.divisor(coefficients)[:, None]
        return residuals

    def _solve(self, sums: np.ndarray) -> np.ndarray:
        p = len(self._to_design)
        square, side = np.split(sums.reshape(-1, p, p + 1), [p], axis=2)
        eigenvalues = np.linalg.eigvalsh(square)
        poor = ~(eigenvalues[:, 0] > _SINGULAR * eigenvalues[:, -1])
        square[poor] = np.eye(p)
        found = np.linalg.solve(square, side)[:, :, 0] @ self._to_design.T
        found[poor] = np.nan
        return found
