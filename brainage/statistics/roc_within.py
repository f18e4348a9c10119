"""How well scores tell two classes apart within folds: only people whom one model scored are compared.

n people, K folds, R resamples, M score vectors. Scores of two models have no common zero: pooled over folds they rank
people by fold as well. Where the class share differs between folds (whole sites held out) that is a bias, since a
model trained without a site that is rich in cases puts everybody there higher. Pooling the case-control pairs of folds
instead is free of it (Parker, Gunter and Bedo 2007; Airola et al. 2011, who leave out one pair at a time).

Weighted functions as in `roc`, with the fold [n] of each person besides; folds of one class hold no pair.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from brainage.statistics import roc


def auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Share of the case-control pairs within folds that the case wins, ties counting half, [R]; NaN without a pair.

    Of calls (0 or 1) it is the balanced accuracy within folds, each fold weighing as many as its pairs.

    >>> truth, scores, fold = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.7, 0.9]), np.array([0, 0, 1, 1, 1])
    >>> auc(truth, scores, np.array([[1.0, 1, 1, 1, 1], [2.0, 1, 1, 1, 0]]), fold).round(3).tolist()  # 2 of 3, 2 of 3
    [0.667, 0.667]
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for here in _parts(truth, fold):
        drawn = weights[:, here]
        of_fold = (drawn @ truth[here]) * (drawn @ (1 - truth[here]))
        won += of_fold * np.nan_to_num(roc.auc(truth[here], scores[here], drawn))
        pairs += of_fold
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Mean of the folds' average precision by their number of cases, [R], over folds that hold both classes.

    Its chance level is `chance_precision`, well above the share of cases where folds are small.
    """
    found, cases = np.zeros(len(weights)), np.zeros(len(weights))
    for here in _parts(truth, fold):
        drawn = weights[:, here]
        positive = drawn @ truth[here]
        positive *= drawn @ (1 - truth[here]) > 0  # a resample without controls there says nothing of precision
        found += positive * np.nan_to_num(roc.average_precision(truth[here], scores[here], drawn))
        cases += positive
    return np.divide(found, cases, out=np.full(len(found), np.nan), where=cases > 0)


def chance_precision(truth: np.ndarray, fold: np.ndarray) -> float:
    """`average_precision` that a random order of each fold has on average: a case at rank i of n has precision
    (1 + (i - 1) (k - 1) / (n - 1)) / i with k cases, and every rank is as likely.

    >>> chance_precision(np.array([1, 0]), np.array([0, 0]))  # first of two, or second
    0.75
    """
    found, cases = 0.0, 0
    for here in _parts(truth, fold):
        n, k = int(here.sum()), int(truth[here].sum())
        others = (k - 1) / (n - 1)
        found += k * (others + (1 - others) * float((1 / np.arange(1, n + 1)).mean()))
        cases += k
    return found / cases if cases else float("nan")


def delong(truth: np.ndarray, scores: np.ndarray, fold: np.ndarray) -> roc.DeLong:
    """`auc` of each row of `scores` [M, n] and their covariance: of a mean of independent folds, weighed by their
    pairs, each by DeLong's. The folds are taken as given: it says nothing of other sites.

    A fold with one person of a class shows no variance there and gets that of the class's other folds, pooled. NaN
    where no fold has two people of a class.
    """
    truth, scores = np.asarray(truth), np.atleast_2d(np.asarray(scores, dtype=np.float64))
    parts = list(_parts(truth, fold))
    pairs = np.array([truth[here].sum() * (1 - truth[here]).sum() for here in parts], dtype=np.float64)
    nothing = np.full((len(scores), len(scores)), np.nan)
    if not parts:
        return roc.DeLong(nothing[0], nothing)
    share, beaten = pairs / pairs.sum(), [roc.placements(truth[here], scores[:, here]) for here in parts]
    areas = sum(s * of_case.mean(axis=1) for s, (of_case, _) in zip(share, beaten, strict=True))
    covariance = np.zeros_like(nothing)
    for of_class in zip(*beaten, strict=True):  # cases of each fold, then controls of each fold
        sizes = np.array([values.shape[1] for values in of_class])
        if sizes.max() < 2:
            return roc.DeLong(np.asarray(areas), nothing)
        squares = [_squares(values) for values in of_class]
        pooled = np.sum(squares, axis=0) / (sizes - 1).sum()
        for s, n, own in zip(share, sizes, squares, strict=True):
            covariance += s**2 * (own / (n - 1) if n > 1 else pooled) / n
    return roc.DeLong(np.asarray(areas), covariance)


def paired(truth: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """bool [n]: people of folds that hold both classes."""
    found = np.zeros(len(truth), dtype=bool)
    for here in _parts(truth, fold):
        found |= here
    return found


def _parts(truth: np.ndarray, fold: np.ndarray) -> Iterator[np.ndarray]:
    """bool [n] of each fold that holds both classes."""
    for one in np.unique(fold):
        here = fold == one
        if 0 < truth[here].sum() < here.sum():
            yield here


def _squares(values: np.ndarray) -> np.ndarray:
    """Sums of squares and products about the mean, [M, M], of values [M, n]."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred @ centred.T
