"""What the page explains and cites: only what the run used."""

from __future__ import annotations

from collections.abc import Sequence

from brainage.reporting.evaluations import Evaluation
from brainage.reporting.methods import GLOSSARY, Definition, Reference
from brainage.reporting.run_folder import RunFolder

LOSS_REFERENCES = {  # losses -> what they are from
    ("exp", "thr"): Reference(
        "Barbano C. A., Dufumier B., Duchesnay E., Grangetto M., Gori P. (2023). Contrastive learning for regression "
        "in multi-site brain age prediction. ISBI 2023. arXiv 2211.08326.",
        "https://arxiv.org/abs/2211.08326",
    ),
    ("yaware",): Reference(
        "Dufumier B. et al. (2021). Contrastive learning with continuous proxy meta-data for 3D MRI classification. "
        "MICCAI 2021.",
        "https://arxiv.org/abs/2106.08808",
    ),
    ("rnc",): Reference(
        "Zha K., Cao P., Son J., Yang Y., Katabi D. (2023). Rank-N-Contrast: learning continuous representations for "
        "regression. NeurIPS 2023. arXiv 2210.01189.",
        "https://arxiv.org/abs/2210.01189",
    ),
    ("supcon",): Reference(
        "Khosla P. et al. (2020). Supervised contrastive learning. NeurIPS 2020. arXiv 2004.11362.",
        "https://arxiv.org/abs/2004.11362",
    ),
}  # fmt: skip
ALWAYS = [
    Reference(
        "Barbano C. A., Dufumier B., Duchesnay E., Grangetto M., Gori P. (2025). Robust brain age estimation from "
        "structural MRI with contrastive learning. arXiv 2507.01794.",
        "https://arxiv.org/abs/2507.01794",
    ),
    Reference(
        "Dufumier B. et al. (2022). OpenBHB: a large-scale multi-site brain MRI data-set for age prediction and "
        "debiasing. NeuroImage 263, 119637.",
        "https://doi.org/10.1016/j.neuroimage.2022.119637",
    ),
    Reference(
        "Collins G. S., Moons K. G. M., Dhiman P. et al. (2024). TRIPOD+AI statement: updated guidance for reporting "
        "clinical prediction models that use regression or machine learning methods. BMJ 385, e078378.",
        "https://doi.org/10.1136/bmj-2023-078378",
    ),
]
COX = Reference(
    "Cox D. R. (1972). Regression models and life-tables. Journal of the Royal Statistical Society B 34, 187–220.",
    "https://doi.org/10.1111/j.2517-6161.1972.tb00899.x",
)
KAPLAN = Reference(
    "Kaplan E. L., Meier P. (1958). Nonparametric estimation from incomplete observations. Journal of the American "
    "Statistical Association 53, 457–481.",
    "https://doi.org/10.1080/01621459.1958.10501452",
)
LAIRD = Reference(
    "Laird N. M., Ware J. H. (1982). Random-effects models for longitudinal data. Biometrics 38, 963–974.",
    "https://doi.org/10.2307/2529876",
)
BEHESHTI = Reference(
    "Beheshti I., Nugent S., Potvin O., Duchesne S. (2019). Bias-adjustment in neuroimaging-based brain age "
    "frameworks: a robust scheme. NeuroImage: Clinical 24, 102063.",
    "https://doi.org/10.1016/j.nicl.2019.102063",
)
COLE = Reference(
    "Cole J. H. et al. (2018). Brain age predicts mortality. Molecular Psychiatry 23, 1385–1392.",
    "https://doi.org/10.1038/mp.2017.62",
)
DE_LANGE_2019 = Reference(
    "de Lange A.-M. G. et al. (2019). Population-based neuroimaging reveals traces of childbirth in the maternal "
    "brain. "
    "PNAS 116, 22341–22346.",
    "https://doi.org/10.1073/pnas.1910666116",
)
DE_LANGE_2022 = Reference(
    "de Lange A.-M. G. et al. (2022). Mind the gap: performance metric evaluation in brain-age prediction. Human Brain "
    "Mapping 43, 3113–3129.",
    "https://doi.org/10.1002/hbm.25837",
)
BUTLER = Reference(
    "Butler E. R. et al. (2021). Pitfalls in brain age analyses. Human Brain Mapping 42, 4092–4101.",
    "https://doi.org/10.1002/hbm.25533",
)
HEDGES = Reference(
    "Hedges L. V. (1981). Distribution theory for Glass's estimator of effect size and related estimators. Journal of "
    "Educational Statistics 6, 107–128.",
    "https://doi.org/10.3102/10769986006002107",
)
HOLM = Reference(
    "Holm S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, "
    "65–70.",
    "https://www.jstor.org/stable/4615733",
)
MCGRAW = Reference(
    "McGraw K. O., Wong S. P. (1996). Forming inferences about some intraclass correlation coefficients. Psychological "
    "Methods 1, 30–46.",
    "https://doi.org/10.1037/1082-989X.1.1.30",
)
DELONG = Reference(
    "DeLong E. R., DeLong D. M., Clarke-Pearson D. L. (1988). Comparing the areas under two or more correlated "
    "receiver "
    "operating characteristic curves: a nonparametric approach. Biometrics 44, 837–845.",
    "https://doi.org/10.2307/2531595",
)
SUN = Reference(
    "Sun X., Xu W. (2014). Fast implementation of DeLong's algorithm for comparing the areas under correlated receiver "
    "operating characteristic curves. IEEE Signal Processing Letters 21, 1389–1393.",
    "https://doi.org/10.1109/LSP.2014.2337313",
)
JOHNSON = Reference(
    "Johnson W. E., Li C., Rabinovic A. (2007). Adjusting batch effects in microarray expression data using empirical "
    "Bayes methods. Biostatistics 8, 118–127.",
    "https://doi.org/10.1093/biostatistics/kxj037",
)
FORTIN = Reference(
    "Fortin J.-P. et al. (2018). Harmonization of cortical thickness measurements across scanners and sites. "
    "NeuroImage 167, 104–120.",
    "https://doi.org/10.1016/j.neuroimage.2017.11.024",
)
VOVK = Reference(
    "Vovk V., Gammerman A., Shafer G. (2005). Algorithmic learning in a random world. Springer.",
    "https://doi.org/10.1007/b106715",
)
LEI = Reference(
    "Lei J., G'Sell M., Rinaldo A., Tibshirani R. J., Wasserman L. (2018). Distribution-free predictive inference for "
    "regression. Journal of the American Statistical Association 113, 1094–1111.",
    "https://doi.org/10.1080/01621459.2017.1307116",
)
PARKER = Reference(
    "Parker B. J., Günter S., Bedo J. (2007). Stratification bias in low signal microarray studies. BMC Bioinformatics "
    "8, 326.",
    "https://doi.org/10.1186/1471-2105-8-326",
)
TASK_REFERENCES = {  # task with a number -> what its methods are from
    "gap": [BUTLER, DE_LANGE_2022], "gap_contrast": [HEDGES, HOLM], "gap_repeat": [MCGRAW], "age_interval": [VOVK, LEI],
    "diagnosis": [DELONG, SUN, PARKER], "diagnosis_paired": [DELONG, SUN, HOLM], "longitudinal": [LAIRD],
    "survival": [KAPLAN, COX],
}  # fmt: skip
CORRECTION_REFERENCES = {"beheshti": [BEHESHTI], "cole": [COLE, DE_LANGE_2019]}
GAP_GLOSSARY = {  # task -> words that its tables and figures use
    "gap": [
        Definition("Gap", "Predicted minus chronological age, in years; above 0 the brain looks older than it is."),
        Definition("Corrected gap", "The gap without its dependence on age in healthy people outside the test."),
    ],
    "gap_contrast": [
        Definition("Hedges' g", "Difference of two groups in units of their standard deviation, for small samples."),
        Definition("Holm", "A correction of p values for how many comparisons were made."),
    ],
    "gap_repeat": [Definition("ICC", "Share of the variance that is between people and not between their repeats.")],
    "age_interval": [Definition("Coverage", "Share of people whose age lies in the interval that was given.")],
    "diagnosis": [
        Definition("AUC", "Chance that a patient scores above a healthy person; 0.5 is guessing."),
        Definition("Average precision", "Area under precision against recall; guessing gives the share of patients."),
        Definition("Brier", "Mean squared error of the predicted probability; lower is better."),
        Definition("Calibration slope", "1: probabilities mean what they say; below 1: they are too extreme."),
    ],
    "survival": [
        Definition("Hazard ratio", "How many times faster events come with each more year of gap."),
        Definition("Concordance", "Chance that of two people the one with the higher risk converts first."),
    ],
}  # fmt: skip


def references(run: RunFolder, evaluations: Sequence[Evaluation]) -> list[Reference]:
    """What to cite, in the order of first use."""
    losses = {run.model, *(run.results["model"] if run.results is not None else [])}
    found = [ALWAYS[0], *(source for names, source in LOSS_REFERENCES.items() if losses & set(names)), *ALWAYS[1:]]
    for evaluation in evaluations:
        found += [source for task in computed(evaluation) for source in TASK_REFERENCES.get(task, [])]
        if "gap" in computed(evaluation):
            for correction in corrections(evaluation):
                found += CORRECTION_REFERENCES.get(correction, [])
        found += [JOHNSON, FORTIN] if "combat" in afters(evaluation) else []
    return list(dict.fromkeys(found))


def glossary(evaluations: Sequence[Evaluation]) -> list[Definition]:
    """The words of the page."""
    tasks = {task for evaluation in evaluations for task in computed(evaluation)}
    return [*GLOSSARY, *(word for task, words in GAP_GLOSSARY.items() if task in tasks for word in words)]


def computed(evaluation: Evaluation) -> list[str]:
    """Tasks with a number."""
    if evaluation.results is None:
        return []
    return list(dict.fromkeys(evaluation.results.loc[evaluation.results["estimate"].notna(), "task"]))


def corrections(evaluation: Evaluation) -> list[str]:
    """Corrections of the gap with a number, in the order of results."""
    rows = evaluation.rows("gap")
    return list(dict.fromkeys(rows.loc[rows["estimate"].notna(), "correction"])) if len(rows) else []


def afters(evaluation: Evaluation) -> list[str]:
    """Ways of harmonisation with a number."""
    if evaluation.results is None:
        return []
    rows = evaluation.results[evaluation.results["estimate"].notna()]
    return [name for name in dict.fromkeys(rows["after"]) if name]
