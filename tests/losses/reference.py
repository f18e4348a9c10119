"""The losses written down a second time, as loops over Python's decimals: no tensor, no logarithm trick, no underflow.

Decimals carry 40 digits and exponents to -999999, so that the formulas can stand here exactly as they are printed, and
a central difference with a step of 1e-12 gives derivatives to 1e-20.
"""

from __future__ import annotations

import decimal
import itertools
from decimal import Decimal
from typing import Any, NamedTuple

decimal.getcontext().prec = 40
PI = Decimal("3.141592653589793238462643383279502884197")


def kernel(name: str, d: Decimal, width: Decimal) -> Decimal:
    if name == "cauchy":
        return 1 / (width * d * d + 1)
    rbf = (-d * d / (2 * width * width)).exp()
    return rbf if name == "rbf" else rbf / ((2 * PI).sqrt() * width)


def loss(
    name: str,
    z: list,
    ages: list[float],
    subject: list[int] | None = None,
    *,
    temperature: float = 0.1,
    kernel_name: str = "rbf",
    sigma_years: float = 2.0,
    similarity: str = "cosine",
    same_subject: str = "exclude",
    bin_years: float = 2.0,
) -> Decimal:
    """z[scan][view][dimension] as floats or decimals -> the mean over all anchors."""
    subject = subject or list(range(len(z)))
    index = [(n, v) for n in range(len(z)) for v in range(len(z[0]))]
    unit = {(n, v): _unit(z[n][v]) for n, v in index}
    tau, sigma = Decimal(temperature), Decimal(sigma_years)

    def s(i: tuple, t: tuple) -> Decimal:
        c = sum(a * b for a, b in zip(unit[i], unit[t], strict=True))
        return (c - 1) / tau if similarity == "shifted" else c / tau

    def kin(i: tuple, t: tuple) -> bool:
        return i[0] == t[0] or (same_subject == "positive" and subject[i[0]] == subject[t[0]])

    def w(i: tuple, t: tuple) -> Decimal:
        distance = Decimal(0) if kin(i, t) else Decimal(ages[i[0]]) - Decimal(ages[t[0]])
        return kernel(kernel_name, distance, sigma)

    def in_a(i: tuple, t: tuple) -> bool:
        other_scan = i[0] != t[0] and subject[i[0]] == subject[t[0]]
        return i != t and not (same_subject == "exclude" and other_scan)

    def same_bin(i: tuple, t: tuple) -> bool:
        return kin(i, t) or ages[i[0]] // bin_years == ages[t[0]] // bin_years

    total = Decimal(0)
    for i in index:
        A = [t for t in index if in_a(i, t)]
        if name in ("infonce", "supcon"):
            positives = [k for k in A if (kin(i, k) if name == "infonce" else same_bin(i, k))]
            share = {k: 1 / Decimal(len(positives)) for k in positives}
        else:
            sum_w = sum(w(i, t) for t in A)
            share = {k: w(i, k) / sum_w for k in A}
        denominator = sum((s(i, t) * (1 - w(i, t)) if name == "exp" else s(i, t)).exp() for t in A)
        for k, p in share.items():
            total -= p * (s(i, k).exp() / denominator).ln()
    return total / len(index)


def directional_derivative(name: str, z: list, ages: list[float], direction: list, *args: Any, **keys: Any) -> Decimal:
    """d/dh of the loss at z + h direction, h = 0."""
    h = Decimal("1e-12")

    def moved(sign: int) -> list:
        return [
            [[Decimal(a) + sign * h * Decimal(b) for a, b in zip(x, y, strict=True)] for x, y in zip(X, Y, strict=True)]
            for X, Y in zip(z, direction, strict=True)
        ]

    return (loss(name, moved(1), ages, *args, **keys) - loss(name, moved(-1), ages, *args, **keys)) / (2 * h)


def _unit(x: list) -> list[Decimal]:
    x = [Decimal(a) for a in x]
    length = sum(a * a for a in x).sqrt()
    return [a / length for a in x]


class Batch(NamedTuple):
    label: str
    ages: list[float]
    views: int
    subject: list[int] | None = None
    keys: dict[str, Any] = {}  # noqa: RUF012 (a constant)


class Row(NamedTuple):
    name: str
    keys: dict[str, Any]
    batch: Batch

    def __str__(self) -> str:
        words = [self.name, *(str(value) for value in self.keys.values()), self.batch.label, f"V{self.batch.views}"]
        return "-".join(words)


MIXED = [21.0, 22.5, 22.5, 40.0, 41.9, 63.0, 85.25]
BATCHES = [
    *(Batch("mixed ages", MIXED, views) for views in (1, 2, 3)),
    Batch("one scan", [50.0], 2),
    Batch("one scan", [50.0], 3),
    Batch("two scans", [50.0, 53.0], 1),
    Batch("two scans", [50.0, 53.0], 2),
    *(Batch("all ages equal", [33.0] * 4, views) for views in (1, 2)),
    *(Batch("isolated age", [20.0, 21.0, 95.0], views) for views in (1, 2)),
    Batch("nobody near", [5.0, 35.0, 65.0, 99.0], 1),
    Batch("cold", MIXED, 2, keys={"temperature": 0.01}),
    Batch("warm and narrow", MIXED, 2, keys={"temperature": 0.5, "sigma_years": 0.5, "bin_years": 5.0}),
    *(
        Batch(f"repeated people {same}", MIXED, views, [7, 7, 3, 3, 7, 9, 1], {"same_subject": same})
        for same in ("exclude", "positive")
        for views in (1, 2)
    ),
    Batch("one person", [60.0, 61.0, 66.0], 1, [5, 5, 5], {"same_subject": "exclude"}),
    Batch("one person", [60.0, 61.0, 66.0], 2, [5, 5, 5], {"same_subject": "exclude"}),
    Batch("one person", [60.0, 61.0, 66.0], 2, [5, 5, 5], {"same_subject": "positive"}),
]
KERNELS = ("rbf", "gaussian", "cauchy")
ROWS = [
    *(
        Row("exp", {"kernel": kernel_name, "similarity": similarity}, batch)
        for kernel_name, similarity, batch in itertools.product(KERNELS, ("cosine", "shifted"), BATCHES)
    ),
    *(Row("yaware", {"kernel": kernel_name}, batch) for kernel_name, batch in itertools.product(KERNELS, BATCHES)),
    *(Row("infonce", {}, batch) for batch in BATCHES if batch.views > 1),
    *(Row("supcon", {}, batch) for batch in BATCHES),
]
