"""The losses written down a second time, as loops over Python's decimals: no tensor, no logarithm trick, no underflow.

Decimals carry 40 digits and exponents to -999999, so that the formulas can stand here exactly as they are printed, and
a central difference with a step of 1e-12 gives derivatives to 1e-20.
"""

from __future__ import annotations

import decimal
import functools
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
    normalise: str = "row",
    as_published_code: bool = False,
    site: list[int] | None = None,
    progress: float = 1.0,
    repel_nearest: int = 0,
    site_repulsion: float = 1.0,
    age_balance: float = 0.0,
) -> Decimal:
    """z[scan][view][dimension] as floats or decimals -> the mean over all anchors."""
    subject = subject or list(range(len(z)))
    index = [(n, v) for n in range(len(z)) for v in range(len(z[0]))]
    unit = {(n, v): _unit(z[n][v]) for n, v in index}
    tau, sigma = Decimal(temperature), Decimal(sigma_years)

    @functools.cache
    def s(i: tuple, t: tuple) -> Decimal:
        if name == "rnc":
            square = sum((Decimal(a) - Decimal(b)) ** 2 for a, b in zip(z[i[0]][i[1]], z[t[0]][t[1]], strict=True))
            return -Decimal(square).sqrt() / tau
        c = sum(a * b for a, b in zip(unit[i], unit[t], strict=True))
        return (c - 1) / tau if similarity == "shifted" else c / tau

    @functools.cache
    def cosine(i: tuple, t: tuple) -> Decimal:
        return sum((a * b for a, b in zip(unit[i], unit[t], strict=True)), Decimal(0))

    @functools.cache
    def distance(i: tuple, t: tuple) -> Decimal:
        return Decimal(0) if kin(i, t) else abs(Decimal(ages[i[0]]) - Decimal(ages[t[0]]))

    def kin(i: tuple, t: tuple) -> bool:
        return i[0] == t[0] or (same_subject == "positive" and subject[i[0]] == subject[t[0]])

    @functools.cache
    def w(i: tuple, t: tuple) -> Decimal:
        distance = Decimal(0) if kin(i, t) else Decimal(ages[i[0]]) - Decimal(ages[t[0]])
        return kernel(kernel_name, distance, sigma)

    def in_a(i: tuple, t: tuple) -> bool:
        other_scan = i[0] != t[0] and subject[i[0]] == subject[t[0]]
        return i != t and not (same_subject == "exclude" and other_scan)

    def same_bin(i: tuple, t: tuple) -> bool:
        return kin(i, t) or ages[i[0]] // bin_years == ages[t[0]] // bin_years

    @functools.cache
    def rarity(n: int) -> Decimal:
        density = sum(kernel("rbf", Decimal(ages[n]) - Decimal(age), Decimal(2)) for age in ages) / len(ages)
        return density ** -Decimal(age_balance)

    def anchor_weight(n: int) -> Decimal:
        return rarity(n) * len(z) / sum(rarity(m) for m in range(len(z)))

    def pushers(i: tuple, A: list) -> list:
        """Those of A(i) that repel."""
        if not repel_nearest:
            return A
        scans = max(round(len(z) + (repel_nearest - len(z)) * progress), 1)
        return sorted(A, key=lambda t: -cosine(i, t))[: len(z[0]) * scans]

    def times(i: tuple, t: tuple) -> Decimal:
        """How often t counts in what repels i."""
        same_site = site is not None and site[i[0]] == site[t[0]] and not kin(i, t)
        return Decimal(site_repulsion) if same_site else Decimal(1)

    @functools.cache
    def repulsion(i: tuple, t: tuple) -> Decimal:
        return times(i, t) * (s(i, t) * (1 - w(i, t)) if name == "exp" else s(i, t)).exp()

    def beyond(i: tuple, k: tuple, A: list) -> list:
        """Whom the positive k of anchor i is compared with."""
        if name == "thr":
            return [t for t in pushers(i, A) if distance(i, t) > distance(i, k)]
        if name == "rnc":
            return [t for t in pushers(i, A) if distance(i, t) >= distance(i, k)]
        return pushers(i, A)

    def share(i: tuple, A: list) -> dict:
        if name in ("infonce", "supcon", "rnc"):
            test = {"infonce": kin, "supcon": same_bin, "rnc": lambda i, k: True}[name]
            positives = [k for k in A if test(i, k)]
            return {k: 1 / Decimal(len(positives)) for k in positives}
        if normalise == "column":
            return {k: w(i, k) / sum(w(t, k) for t in index if in_a(k, t)) for k in A}
        return {k: w(i, k) / sum(w(i, t) for t in A) for k in A}

    total = Decimal(0)
    for i in index:
        A = [t for t in index if in_a(i, t)]
        published = {}
        if as_published_code:  # one denominator: t as often as there is somebody k with w_tk < w_ti
            published = {t: sum(float(w(t, k)) < float(w(t, i)) for k in index) for t in pushers(i, A)}
        for k, p in share(i, A).items():
            if as_published_code:
                denominator = sum((n * repulsion(i, t) for t, n in published.items()), Decimal(0))
            else:
                denominator = sum((repulsion(i, t) for t in beyond(i, k, A)), Decimal(0))
            if denominator:
                total -= anchor_weight(i[0]) * p * (s(i, k).exp() / denominator).ln()
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
    *(Row("yaware", {"normalise": "column"}, batch) for batch in BATCHES),
    *(Row("infonce", {}, batch) for batch in BATCHES if batch.views > 1),
    *(Row("supcon", {}, batch) for batch in BATCHES),
    *(Row("thr", {"kernel": kernel_name}, batch) for kernel_name, batch in itertools.product(KERNELS, BATCHES)),
    *(Row("thr", {"as_published_code": True}, batch) for batch in BATCHES),
    *(Row("rnc", {"temperature": 2.0}, batch) for batch in BATCHES if "temperature" not in batch.keys),
]
# What goes beyond the formulas, on batches with sites; of every loss.
SITES = [0, 0, 1, 1, 0, 2, 1]
BEYOND = [
    {"site_repulsion": 3.0},
    {"site_repulsion": 0.25},
    {"repel_nearest": 2},
    {"repel_nearest": 1, "progress": 0.4},
    {"age_balance": 1.0},
    {"age_balance": 0.5, "site_repulsion": 2.0, "repel_nearest": 3, "progress": 0.5},
]
