"""The experiment in sentences, with what each word means and where it comes from."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from brainage.config import AugmentConfig, DataConfig, Experiment, LossConfig
from brainage.data.table import PERSON, SPLITS
from brainage.downstream.results import EXTERNAL
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.reporting.run_folder import RunFolder

LOSSES = {
    "exp": (
        "L^exp (Barbano et al. 2023, 2025): each sample attracts every other one in proportion to how near their ages "
        "are (weight w), and in the denominator every similarity is multiplied by 1 − w, so that repulsion grows with "
        "the age distance: − Σ [w / Σw] log( exp(s) / Σ exp(s (1 − w)) ), averaged over samples"
    ),
    "thr": (
        "L^thr (Barbano et al. 2023): a positive, weighted by how near its age is (weight w), repels only samples "
        "further in age from the anchor than itself: − Σ [w / Σw] log( exp(s) / Σ exp(s of those further away) ), "
        "averaged over samples"
    ),
    "rnc": (
        "Rank-N-Contrast (Zha et al. 2023): for every pair, samples at least as far in age from the first as the "
        "second is are pushed further away from it than the second, by the distance of embeddings that are not "
        "normalised"
    ),
    "yaware": (
        "y-Aware InfoNCE (Dufumier et al. 2021): the InfoNCE terms of all pairs, weighted by how near their ages are: "
        "− Σ [w / Σw] log( exp(s) / Σ exp(s) ), averaged over samples"
    ),
    "infonce": "InfoNCE: the other view of the same scan against everyone else in the batch, whatever their age",
    "supcon": "supervised contrastive loss: everyone of the same age bin attracts, everyone else in the batch repels",
    "l1": "L1: mean absolute difference between predicted and chronological age, from a linear head",
    "l2": "L2: mean squared difference between predicted and chronological age, from a linear head",
    "huber": "Huber: squared difference for small errors of age, absolute for large ones, from a linear head",
}
SIMILARITIES = {
    "cosine": "s is the cosine similarity of two embeddings divided by the temperature",
    "shifted": "s is the cosine similarity minus 1, divided by the temperature (as the published code trains)",
}
ENCODERS = {
    "resnet18": "3D ResNet-18", "resnet34": "3D ResNet-34", "resnet50": "3D ResNet-50",
    "densenet121": "3D DenseNet-121", "alexnet": "3D AlexNet", "mlp": "multilayer perceptron",
}  # fmt: skip
HEADS = {
    "mlp": "linear, ReLU, linear", "mlp_bn": "linear, batch normalisation, ReLU, linear", "linear": "one linear layer",
}  # fmt: skip
AUGMENTATIONS = {
    "flip_p": "left-right flip", "affine_p": "affine", "crop_p": "random crop", "blur_p": "blur", "noise_p": "noise",
    "intensity_p": "intensity", "cutout_p": "cut-out",
}  # fmt: skip


SOURCES = {
    "held out": "The cohort was held out whole.",
    "official": "People are in the splits that the cohort came with.",
    "file": "People are in the splits of a file that was given.",
    "drawn": "People were put into splits by a hash of who they are.",
}
MOST_SITES_NAMED = 6


class Definition(NamedTuple):
    term: str
    text: str


class Reference(NamedTuple):
    text: str
    address: str


GLOSSARY = [
    Definition("MAE", "Mean absolute error: the mean of |predicted − chronological age|, in years."),
    Definition("RMSE", "Root of the mean squared error, in years; large errors weigh more than in the MAE."),
    Definition("R²", "Share of the variance of age that is explained; 0 for predicting the mean, negative when worse."),
    Definition("r", "Pearson correlation of predicted and chronological age; blind to a constant offset."),
    Definition(
        "Mean predictor", "Answers everyone with the mean age of the people fitted on. The least a model must beat."
    ),
    Definition("Internal / external", "Test people from sites that were trained on / from sites that were not."),
    Definition(
        "Site BAcc",
        "Balanced accuracy of a logistic regression that reads the site from the embedding, on the internal test. "
        "Chance is one over the number of sites; lower means that less of the scanner is left in the embedding.",
    ),
    Definition("L_c", "Challenge score of OpenBHB: BAcc (as a fraction) to the power 0.3, times the external MAE."),
    Definition("Collapse value", "The loss of an encoder that gives everyone the same embedding, for the same ages."),
    Definition("Effective rank", "How many directions the embedding uses: exp of the entropy of its singular values."),
    Definition("95 % interval", "Percentile bootstrap over people; it does not include the luck of the training seed."),
]


def methods(run: RunFolder) -> list[str]:
    """Paragraphs that say what was done, generated from the configuration and the table of scans used."""
    return [
        " ".join(filter(None, [_data(run), _split(run)])),
        _network(run.experiment),
        _training(run.experiment),
        _evaluation(run),
    ]


def encoder_name(experiment: Experiment) -> str:
    """Name of the encoder with its width where that is not the published one."""
    encoder = experiment.encoder
    width = "" if encoder.width == 1 else f" × {encoder.width:g} width"
    return ENCODERS.get(encoder.name, encoder.name) + width


def _data(run: RunFolder) -> str:
    data, contract = run.experiment.data, run.contract
    shape = " × ".join(str(n) for n in contract.get("shape", [])[-3:])
    cohorts = ", ".join(data.members) if data.members else data.cohort
    form = contract.get("modality", data.modality) if data.members else data.modality
    text = f"Scans of the cohort{'s' * bool(data.members)} {cohorts} were used in the form “{form}”"
    if contract.get("kind") == "volume":
        spacing = " × ".join(f"{mm:g}" for mm in contract.get("spacing_mm", []))
        text += f" ({shape} voxels of {spacing} mm" + (f", {contract['space']})" if contract.get("space") else ")")
    elif contract.get("kind") == "vector":
        text += f" ({shape} values a scan)"
    rules = {
        "zscore": "each sample was z-scored by itself",
        "standardise": "each feature was standardised by the train set",
    }
    return f"{text}; {rules.get(data.intensity, 'intensities were left as stored')}."


def _split(run: RunFolder) -> str:
    """Who is where, counted in the table: a key of the configuration need not have acted."""
    if run.table is None:
        return ""
    people = run.table.drop_duplicates([*PERSON, "split"])["split"].value_counts()
    count = {split: int(people.get(split, 0)) for split in SPLITS}
    said = [
        _source(str(run.environment.get("split_source") or "")),
        _drawn(run.experiment.data),
        _external(run.table, count[EXTERNAL]),
    ]
    learnt = count["train"] + count["val"]
    who = f"{count['val']} of {learnt} training people were" if count["val"] else "Nobody was"
    said.append(f"{who} set apart for validation.")
    return " ".join(filter(None, said))


def _drawn(data: DataConfig) -> str:
    """How a split was drawn, beyond a hash."""
    told = [f"Drawn splits keep the shares of {', '.join(data.stratify)}."] if data.stratify else []
    if data.folds:
        told.append(f"This is fold {data.fold} of {data.folds}, by {data.folds_by}.")
    return " ".join(told)


def _source(source: str) -> str:
    """
    >>> _source("openbhb official, ixi held out")
    'openbhb: People are in the splits that the cohort came with. ixi: The cohort was held out whole.'
    """
    if source in SOURCES or not source:
        return SOURCES.get(source, "")
    members = [re.fullmatch(rf"(.+) ({'|'.join(SOURCES)})", part) for part in source.split(", ")]
    return " ".join(f"{found[1]}: {SOURCES[found[2]]}" for found in members if found)


def _external(table: pd.DataFrame, people: int) -> str:
    sites = table["site"].astype("string")
    external = sorted(sites[table["split"] == EXTERNAL].dropna().unique())
    shared = set(external) & set(sites[table["split"] != EXTERNAL].dropna())
    if not people:
        return "There is no external test."
    if not external:
        return f"The external test is {people} people whose site is not known."
    if shared:
        where = f"{len(shared)} of its {len(external)} sites"
        return f"The external test is {people} people; people of {where} are in other splits too."
    listed = f"{len(external)} sites" + (f" ({', '.join(external)})" if len(external) <= MOST_SITES_NAMED else "")
    named = f"The site {external[0]} was" if len(external) == 1 else f"The {listed} were"
    return f"{named} held out whole as the external test, {people} people."


def _network(experiment: Experiment) -> str:
    encoder, loss = experiment.encoder, experiment.loss
    hidden = f" with hidden layers of {', '.join(map(str, encoder.hidden))}" if encoder.name == "mlp" else ""
    text = f"The encoder is a {encoder_name(experiment)}{hidden}"
    if loss.name in CONTRASTIVE_NAMES:
        text += f", followed by a projection head ({HEADS[encoder.head]}) to {encoder.head_dim} dimensions"
    return f"{text}. It was trained with {LOSSES.get(loss.name, f'the {loss.name} loss')}.{_loss_settings(loss)}"


def _loss_settings(loss: LossConfig) -> str:
    if loss.name not in CONTRASTIVE_NAMES:
        return f" Huber's transition lies at {loss.huber_delta_years:g} years." if loss.name == "huber" else ""
    settings = [f"temperature {loss.temperature:g}"]
    if loss.name != "rnc":
        settings.insert(0, SIMILARITIES[loss.similarity if loss.name == "exp" else "cosine"])
    if loss.name in ("exp", "yaware", "thr"):
        start = f"{loss.sigma_start_years:g} years at the start and " if loss.sigma_start_years else ""
        settings.append(f"w is a {loss.kernel} kernel of {start}{loss.sigma_years:g} years on the age difference")
    if loss.name == "supcon":
        settings.append(f"age bins are {loss.bin_years:g} years wide")
    settings += _beyond_the_formula(loss)
    same = "are left out of each other's sums" if loss.same_subject == "exclude" else "count as of the same age"
    return f" Here {'; '.join(settings)}; two scans of one person {same}."


def _beyond_the_formula(loss: LossConfig) -> list[str]:
    """What departs from the published loss."""
    told = {
        "in place of its formula, what the published code computes": loss.name == "thr" and loss.as_published_code,
        "weights w are divided by column sums": loss.name == "yaware" and loss.normalise == "column",
        f"towards the end only the {loss.repel_nearest} nearest scans repel": loss.repel_nearest > 0,
        f"samples of the same site repel {loss.site_repulsion:g} times": loss.site_repulsion != 1,
        f"anchors are weighted by the density of their age to the power −{loss.age_balance:g}": loss.age_balance > 0,
        f"{loss.site_penalty:g} times the dependence of embedding and site (HSIC) is added": loss.site_penalty > 0,
    }
    return [words for words, there in told.items() if there]


def _training(experiment: Experiment) -> str:
    optim, trainer, views = experiment.optim, experiment.trainer, experiment.augment.views
    schedule = {
        "constant": "a constant rate",
        "step": f"the rate multiplied by {optim.step_gamma:g} every {optim.step_epochs} epochs",
        "cosine": "cosine decay",
    }[optim.schedule]
    name = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[optim.name]
    text = (
        f"{name} with learning rate {_short(optim.lr)}, weight decay {_short(optim.weight_decay)} and {schedule}; "
        f"batches of {experiment.data.batch_size} subjects with {views} view{'s' if views > 1 else ''} each; up to "
        f"{trainer.epochs} epochs in {trainer.precision}. The last checkpoint was kept; none was chosen on a test set. "
    )
    return text + _augmentation(experiment.augment)


def _augmentation(augment: AugmentConfig) -> str:
    used = {word: getattr(augment, key) for key, word in AUGMENTATIONS.items() if getattr(augment, key) > 0}
    if not used:
        return "No augmentation was applied."
    return f"Views were augmented with (probability): {', '.join(f'{word} ({p:g})' for word, p in used.items())}."


def _evaluation(run: RunFolder) -> str:
    evaluate = run.experiment.evaluate
    features = "encoder's features" if run.features == "trunk" else "projection head's output"
    return (
        f"The network was frozen and its {features} embedded every scan. Age was read out by ridge regression (penalty "
        "chosen by five-fold cross-validation grouped by person), without standardisation; a second ridge, on features "
        "standardised by the people fitted on and over a wider grid, checks how far the scale decides; the site by "
        "multinomial logistic regression, scored on the internal test only. All were fitted on "
        f"{' and '.join(evaluate.fit_splits)}. Intervals are percentiles of {evaluate.bootstrap} bootstrap "
        "resamples of people. The protocol follows the OpenBHB challenge (Dufumier et al. 2022)."
    )


def _short(value: float) -> str:
    """A small number as people write it.

    >>> _short(5e-5), _short(0.001)
    ('5e-5', '0.001')
    """
    return f"{value:g}".replace("e-0", "e-")
