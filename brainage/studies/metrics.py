"""How a study names a number of its cells: as results.csv does, on the own cohort or on the one of `evaluate_on`.

age/test_external/mae_years                                  task/split/metric, of the whole split
site/test_internal/balanced_accuracy subset=age_matched      of a part: words of results.PARTS behind it
on:diagnosis/test_external/auc pair=CN-AD predictor=probe    of the evaluation on the other cohort
"""

from __future__ import annotations

from dataclasses import dataclass

from brainage.data.table import SPLITS
from brainage.downstream.results import PARTS

ON = "on:"


@dataclass(frozen=True)
class Metric:
    """`parts`: word and name, in the order of results.PARTS."""

    on: bool
    task: str
    split: str
    name: str
    parts: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [f"{self.task}/{self.split}/{self.name}", *map("=".join, self.parts)]
        return ON * self.on + " ".join(words)

    @classmethod
    def of(cls, text: str) -> Metric:
        """The metric that `text` spells; ValueError where it spells none.

        >>> str(Metric.of("on:diagnosis/test_external/auc predictor=probe pair=CN-AD"))
        'on:diagnosis/test_external/auc pair=CN-AD predictor=probe'
        """
        where, *words = text.removeprefix(ON).split()
        task, _, rest = where.partition("/")
        split, _, name = rest.partition("/")
        if not (task and name and set(split.split("+")) <= set(SPLITS)):
            raise ValueError("expected task/split/metric")
        parts = dict(word.partition("=")[::2] for word in words)
        for kind, value in parts.items():
            if kind not in PARTS or not value:
                raise ValueError(f"{kind!r}: expected word=name behind the metric, with a word of {', '.join(PARTS)}")
        return cls(text.startswith(ON), task, split, name, in_order(parts))


def in_order(parts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Parts as a metric holds them."""
    return tuple((kind, parts[kind]) for kind in PARTS if kind in parts)
