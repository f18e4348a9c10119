"""A checklist after TRIPOD+AI (Collins et al. 2024): what a paper on a prediction model reports, and where it is here.

Topics are in our words and numbered as the items of the statement, so that an author finds them there. An item is
answered by the software where a section of this page shows it, and else says what the author must add.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Item(NamedTuple):
    """`where`: anchors of sections, or names of parts of a cohort's section; `add`: what the author must write."""

    number: str
    topic: str
    where: tuple[str, ...] = ()
    add: str = ""


class Answer(NamedTuple):
    """`places`: (address, title) of the sections that answer it; none: not answered by the software."""

    number: str
    topic: str
    places: list[tuple[str, str]]
    add: str


ITEMS = [
    Item("1", "Title names the kind of study, the outcome and who it is about", (), "the title."),
    Item("2", "Abstract in the form that the statement gives", (), "the abstract."),
    Item("3a–c", "Medical context, purpose and users, known inequalities in care", (), "the introduction."),
    Item("4", "Aims: a model developed, judged, or both", (), "the aims and hypotheses."),
    Item("5a", "Where the data come from, for training and for judging", ("cohort", "who", "methods"),
         "why these cohorts, and whom they stand for."),
    Item("5b", "When the data were collected", (), "dates of recruitment and follow-up."),
    Item("6a", "Settings and number of centres", ("cohort", "who"), "what kind of centres they are."),
    Item("6b", "Who could take part", ("cohort", "who"),
         "the cohorts' own criteria; here are the exclusions after them."),
    Item("6c", "Treatments received", (), "treatments that may bear on the outcome."),
    Item("7", "Preparation of the data and quality control", ("methods", "cohort"),
         "preprocessing before the scans came here."),
    Item("8a–c", "The outcome: what, when, how judged and by whom", ("methods",),
         "how age and diagnosis were ascertained, and whether blind to the scan."),
    Item("9a–c", "Predictors: which and how measured", ("methods",), "scanners and sequences."),
    Item("10", "How the sample size came about", ("cohort",), "whether it is enough for the question."),
    Item("11", "Missing data", ("cohort", "who"), "why they are missing; here is how many were left out and for what."),
    Item("12a", "How the data were used: training, choosing, judging", ("methods", "cohort")),
    Item("12b–c", "Form of predictors; kind of model, training, tuning, internal validation",
         ("methods", "training", "reproduce"),
         "why this kind of model."),
    Item("12d", "Differences between centres in the analysis", ("site", "errors")),
    Item("12e", "Measures of performance and how models are compared", ("methods", "words")),
    Item("12f–g", "Updates of the model; how predictions were computed", ("methods", "reproduce")),
    Item("13", "Unequal classes and what was done about them", ("diagnosis",), "why, where classes were reweighted."),
    Item("14", "Fairness: what was done towards it", ("fairness",),
         "ancestry, education and income, which are not in the tables."),
    Item("15", "Output of the model, and thresholds", ("methods", "diagnosis"), "a threshold, if one is to be used."),
    Item("16", "How training and judging data differ", ("results", "who", "cohort")),
    Item("17", "Ethics", (), "approvals and consent."),
    Item("18a–d", "Funding, interests, protocol, registration", (), "all four."),
    Item("18e–f", "Sharing of data and code", ("reproduce",), "where data and code can be had."),
    Item("19", "Patients and public", (), "how they were involved, or that they were not."),
    Item("20a", "Flow of people, with and without the outcome", ("cohort", "who", "survival"),
         "a flow diagram from the cohort's own counts."),
    Item("20b–c", "Characteristics of the people; training beside judging", ("cohort", "who")),
    Item("21", "People and events in each analysis", ("results", "diagnosis", "survival")),
    Item("22", "The model in full, so that others can predict", ("reproduce",), "where the checkpoint can be had."),
    Item("23a", "Performance with intervals, and in subgroups", ("results", "age", "gap", "diagnosis", "fairness")),
    Item("23b", "Performance across centres", ("errors", "site")),
    Item("24", "Results of an update", (), "if the model was updated."),
    Item("25", "What the results mean, beside earlier studies", (), "the discussion."),
    Item("26", "Limitations", (), "the warnings at the top of this page are a start."),
    Item("27a–c", "Poor or absent input, users' skills, what comes next", (), "for the use that is meant."),
]  # fmt: skip


def answered(sections: Mapping[str, str], parts: Mapping[str, list[tuple[str, str]]]) -> list[Answer]:
    """Every item with the places that answer it.

    `sections`: anchor -> title of sections that show something; `parts`: name of a part (`gap`) -> (address, title) in
    each cohort's section.
    """
    answers = []
    for item in ITEMS:
        places = [(anchor, sections[anchor]) for anchor in item.where if anchor in sections]
        places += [place for name in item.where for place in parts.get(name, [])]
        answers.append(Answer(item.number, item.topic, places, item.add or ("" if places else "this item.")))
    return answers
