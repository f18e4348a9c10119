"""Methods of the tasks beyond age and site in sentences, for those only that gave a number."""

from __future__ import annotations

from collections.abc import Sequence

from brainage.config import EvaluateConfig
from brainage.reporting.clinical_figures import predictor_name
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.references import afters, computed, corrections

FORMS = {
    "beheshti": "the gap's regression on age is subtracted (Beheshti et al. 2019)",
    "cole": "the regression of predicted on chronological age is inverted (Cole et al. 2018; de Lange et al. 2019)",
    "conditional": "the median gap at each age is subtracted",
}
HARMONISED = {
    "combat": "ComBat (Johnson et al. 2007; Fortin et al. 2018)", "residual": "regression on site",
}  # fmt: skip
MODES = {"full": "all of its weights", "last": "its last stages", "low_rank": "low-rank updates of its weights"}


def task_methods(evaluations: Sequence[Evaluation]) -> list[str]:
    """One paragraph a cohort that was judged."""
    paragraphs = []
    for evaluation in evaluations:
        tasks, settings = computed(evaluation), evaluation.settings
        told = [
            _where(evaluation),
            _intervals(settings) if "age_interval" in tasks else "",
            _gap(evaluation) if "gap" in tasks else "",
            CONTRASTS if "gap_contrast" in tasks else "",
            REPEATS if "gap_repeat" in tasks else "",
            _diagnosis(evaluation) if "diagnosis" in tasks else "",
            _site(evaluation),
            LONGITUDINAL if "longitudinal" in tasks else "",
            SURVIVAL if "survival" in tasks else "",
        ]
        if len(list(filter(None, told))) > 1:
            groups = (told[:5], told[5:7], told[7:])
            paragraphs += [" ".join(filter(None, some)) for some in groups if any(some)]
    return paragraphs


CONTRASTS = (
    "Groups were compared by linear regression of the gap on group, age, sex and site, one scan a person, with "
    "standard "
    "errors that allow for unequal variances; effect sizes are Hedges' g, and p values are corrected after Holm within "
    "each kind of gap."
)
REPEATS = "Agreement of two scans of a person within 90 days is the intraclass correlation (McGraw and Wong 1996)."
LONGITUDINAL = (
    "Change over visits was modelled by a mixed model of the gap on years × group, age at the first visit and "
    "sex, with "
    "an intercept and a slope of its own for every person (Laird and Ware 1982); people with one visit are counted, "
    "not modelled. It holds if who drops out depends on what was seen before only."
)
SURVIVAL = (
    "Time to conversion was described by Kaplan and Meier's estimate, by strata of the gap at the first visit, and "
    "modelled by Cox's proportional hazards (1972) with the gap in years; people who did not convert count up to their "
    "last visit."
)


def _where(evaluation: Evaluation) -> str:
    if evaluation.own:
        return f"On the test people of {evaluation.cohort}:"
    fitted = {
        "run": "as fitted on the people of this run",
        "cohort": "fitted anew on the cohort's own healthy people, in folds, so that everybody is predicted by others",
    }[evaluation.settings.age_fitted_on]
    return (
        f"The frozen network was then judged on {evaluation.cohort}, none of whom it was trained on; its age probe is "
        f"{fitted}."
    )


def _intervals(settings: EvaluateConfig) -> str:
    return (
        f"Predicted ages have split-conformal intervals meant to hold {100 * settings.conformal_coverage:g} % of "
        "people "
        "(Vovk et al. 2005; Lei et al. 2018), from the absolute errors of people whom the probe was not fitted on."
    )


def _gap(evaluation: Evaluation) -> str:
    used = [FORMS[name] for name in corrections(evaluation) if name in FORMS]
    chosen = evaluation.settings.correction
    frame = evaluation.frame("gaps")
    crossed = frame is not None and "corrected_by" in frame and bool((frame["corrected_by"] >= 0).any())
    fitted = (
        "cross-fitted: healthy people in folds, each person corrected by a fit on others"
        if crossed
        else f"fitted on healthy people of {' and '.join(evaluation.settings.correct_on)} and applied to the others"
    )
    text = "The gap is predicted minus chronological age."
    if used:
        text += (
            f" It is given raw and corrected for its dependence on age: {'; '.join(used)}; corrections were {fitted}."
        )
        text += (
            f" Other analyses read the {'raw gap' if chosen == 'none' else f'gap corrected by the form “{chosen}”'}."
        )
        text += (
            " The accuracy of corrected ages is not a measure of the model (Butler et al. 2021; de Lange et al. 2022)."
        )
    return text


def _diagnosis(evaluation: Evaluation) -> str:
    rows, settings = evaluation.rows("diagnosis"), evaluation.settings
    rows = rows[rows["estimate"].notna()]
    pairs, predictors = (list(dict.fromkeys(rows[column])) for column in ("pair", "predictor"))
    text = (
        f"The pairs {', '.join(filter(None, pairs))} were told apart by "
        f"{_and([predictor_name(p) for p in predictors])}, "
        f"each fitted in {settings.diagnosis_folds} outer folds of people with inner folds for penalties, so that "
        "everybody is scored by a fit on others. Areas under the ROC curve are compared on the same people (DeLong et "
        "al. 1988; Sun and Xu 2014)."
    )
    if settings.diagnosis_by_site:
        text += " The same was done with whole sites held out in turn."
    if settings.diagnosis_by_site or {"finetuned", "scratch"} & set(predictors):
        text += (
            " With sites held out, and for networks, only people scored by the same model are compared (Parker et al. "
            "2007)."
        )
    if {"finetuned", "scratch"} & set(predictors):
        tuned = evaluation.finetune
        text += f" Fine-tuning trained {MODES[tuned.mode]} for {tuned.epochs} epoch{'s' * (tuned.epochs != 1)}."
    shares = [share for share in settings.label_shares if share < 1]
    if shares:
        text += f" Fits were repeated on {_and([f'{100 * share:g} %' for share in shares])} of the labels."
    return text


def _site(evaluation: Evaluation) -> str:
    rows, told = evaluation.rows("site"), []
    if len(rows) and (rows["predictor"] == "age").any():
        told.append("from age alone")
    if len(rows) and (rows["subset"] == "age_matched").any():
        told.append("among people matched on age")
    ways = [HARMONISED.get(name, name) for name in afters(evaluation)]
    text = f"The site was also read {_and(told)}." if told else ""
    if ways:
        text += f" Features were harmonised by {_and(ways)}, fitted on training people."
    nuisance = evaluation.settings.nuisance
    if nuisance and ways:
        text += f" Kept as declared nuisance variables: {', '.join(nuisance)}."
    permutations = evaluation.settings.site_permutations
    if (told or ways) and permutations:
        text += f" Chance is told by {permutations} shuffles of site over people."
    return text.strip()


def _and(words: list[str]) -> str:
    """
    >>> _and(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
