"""The sections that a run's evaluations add to its report: one a cohort, with a part for each task told of."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from brainage.reporting.age_section import age
from brainage.reporting.cohort_headline import cohort_headline
from brainage.reporting.data_sheet import data_sheet
from brainage.reporting.diagnosis_section import diagnosis
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.gap_section import gap
from brainage.reporting.longitudinal_section import longitudinal, survival
from brainage.reporting.mae_auc_section import mae_auc
from brainage.reporting.page import Block, Page, Section
from brainage.reporting.site_section import fairness, site
from brainage.reporting.tables import model_name


def who(evaluation: Evaluation) -> list[Block]:
    """The data sheet of another cohort, all of whom are judged; the run's own has its section."""
    if evaluation.own:
        return []
    if evaluation.table is None:
        return [Block("text", "There is no table.parquet of this cohort: who is in it is not known here.")]
    judged = evaluation.table.assign(split=pd.array(["test_external"] * len(evaluation.table), dtype="string"))
    return data_sheet(evaluation.canvas, judged, evaluation.dropped, evaluation.quality)


PARTS: list[tuple[str, str, Callable[[Evaluation], list[Block]]]] = [  # anchor, title, blocks
    ("who", "Who was judged", who),
    ("age", "Age", age),
    ("gap", "Brain-age gap", gap),
    ("diagnosis", "Diagnosis", diagnosis),
    ("site", "Site", site),
    ("fairness", "Subgroups", fairness),
    ("longitudinal", "Over the years", longitudinal),
    ("survival", "Time to conversion", survival),
    ("mae-auc", "Age error against diagnosis", mae_auc),
]


def cohort_section(evaluation: Evaluation) -> Section:
    """One section, its parts under headings with addresses of their own."""
    title = f"{evaluation.cohort}, own test people" if evaluation.own else f"Judged on {evaluation.name}"
    return Section(evaluation.anchor, title, lambda page: _blocks(evaluation, page))


def _blocks(evaluation: Evaluation, page: Page) -> list[Block]:
    built = [(name, title, build(evaluation)) for name, title, build in PARTS]
    built = [part for part in built if part[2]]
    if not built:
        return [page.missing(f"{evaluation.name}: there are no results.", f"brainage evaluate {page.run.path}")]
    seed = page.run.experiment.seed
    lead = (
        f"Figures are of one network ({model_name(evaluation.model)}, seed {seed} or the first there is); numbers of "
        "several seeds are means over them where the tables say so. Intervals are 95 %, over people unless told."
    )
    address = {name: f"{evaluation.anchor}-{name}" for name, _, _ in built}
    blocks = [Block("text", lead), *cohort_headline(evaluation)]
    if len(built) > 1:
        blocks.append(Block("contents", [(address[name], title) for name, title, _ in built]))
    for name, title, found in built:
        blocks += [Block("heading", address[name], title), *found]
        page.parts.setdefault(name, []).append((address[name], f"{title} ({evaluation.name or evaluation.cohort})"))
    return blocks
