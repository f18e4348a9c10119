"""Cluster-robust variance of least squares that holds with few people: CR2, and t with Satterthwaite's freedom.

n rows (visits) of P people, K terms. Rows are those of a regression that has been whitened by a working covariance, or
plain ones; people are independent, rows of one person are not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from brainage.errors import DataError

_ROUNDING = 1e-9
_LOST = 1e-6  # share of a variance that rests on people who are fitted exactly


class ClusterRobust(NamedTuple):
    """`covariance` of the K effects, and what the degrees of freedom of any weighted sum of them follow from."""

    covariance: np.ndarray  # [K, K]
    bread: np.ndarray  # [K, K] inverse of X'X
    once: np.ndarray  # [P, K, K] X_i' (I - H_ii)^-1/2 X_i of each person, H the hat matrix
    twice: np.ndarray  # [P, K, K] X_i' (I - H_ii)^-1 X_i

    def freedom(self, row: np.ndarray) -> float:
        """Degrees of freedom of the variance of row' effects, `row` [K], were the working covariance the true one.

        (tr B)^2 / tr B^2 with B [P, P] the form of the variance in the residuals (Bell and McCaffrey 2002). Raises
        DataError where the sum rests on people who are fitted exactly: their residuals say nothing of its error.
        """
        pull = self.bread @ row
        own = np.einsum("j,pjk,k->p", pull, self.twice, pull)
        shared = self.once @ pull  # [P, K]
        lent = np.einsum("pj,jk,pk->p", shared, self.bread, shared)
        total = float(own.sum() - lent.sum())
        if not abs(total / float(row @ pull) - 1) < _LOST:
            raise DataError("one person alone tells a term: nothing is left to judge its error by")
        cross = self.bread @ (shared.T @ shared)
        return total**2 / float(((own - 2 * lent) * own).sum() + np.trace(cross @ cross))

    def scaled(self, scale: np.ndarray) -> ClusterRobust:
        """The same for effects multiplied with `scale` [K]."""
        outer = np.outer(scale, scale)
        return ClusterRobust(self.covariance * outer, self.bread * outer, self.once / outer, self.twice / outer)


def cluster_robust(terms: np.ndarray, residuals: np.ndarray, codes: np.ndarray) -> ClusterRobust:
    """CR2 of Bell and McCaffrey (2002) for `terms` [n, K], `residuals` [n] of least squares on them and `codes` [n] of
    people, 0 to P - 1 in order.

    Residuals of a person are multiplied with the symmetric (I - H_ii)^-1/2: the variance is unbiased were the rows
    independent with one spread, and close to it otherwise. With one row a person it is HC2. Directions in which a
    person is fitted exactly count for nothing. On whitened rows this is CR2 of generalised least squares, with the root
    taken after whitening; Pustejovsky and Tipton (2018) take another root, of the same expectation.
    """
    count, visits = terms.shape[1], np.bincount(codes)
    bread = np.linalg.inv(terms.T @ terms)
    first = np.cumsum(visits) - visits
    once, twice = np.empty((2, len(visits), count, count))
    scores = np.empty((len(visits), count))
    for size in np.unique(visits):
        people = np.flatnonzero(visits == size)
        rows = first[people, None] + np.arange(size)
        own = terms[rows]  # [p, size, K]
        across = own.transpose(0, 2, 1)
        left, vectors = np.linalg.eigh(np.eye(size) - own @ bread @ across)
        kept = left > _ROUNDING
        root = np.where(kept, left, np.inf)[:, None, :] ** -0.5
        turned = across @ vectors  # [p, K, size]
        once[people] = (turned * root) @ turned.transpose(0, 2, 1)
        twice[people] = (turned * root**2) @ turned.transpose(0, 2, 1)
        scores[people] = np.einsum("pks,pts,pt->pk", turned * root, vectors, residuals[rows])
    return ClusterRobust(bread @ (scores.T @ scores) @ bread, bread, once, twice)
