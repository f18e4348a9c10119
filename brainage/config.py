"""One experiment, described completely: `brainage.schema` says what there is, YAML files hold the values.

An experiment file is a small difference: its optional `base:` names another experiment, its other keys override that
one, and `key=value` words of the command line override both. Unknown keys are refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.errors import ConfigError
from brainage.experiment_files import chain_of, find_experiment, nearest, read_yaml, shipped_experiments
from brainage.runtime.files import write_atomically
from brainage.schema import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    Experiment,
    FinetuneConfig,
    HealthConfig,
    LossConfig,
    MemberConfig,
    OptimConfig,
    TrackingConfig,
    TrainerConfig,
)

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Experiment",
    "FinetuneConfig",
    "HealthConfig",
    "LossConfig",
    "MemberConfig",
    "OptimConfig",
    "TrackingConfig",
    "TrainerConfig",
    "apply_overrides",
    "check_experiment",
    "differing_keys",
    "flatten",
    "from_plain",
    "load_experiment",
    "nearest",
    "network_name",
    "read_experiment",
    "run_folder",
    "save_experiment",
    "shipped_experiments",
    "sibling",
    "to_plain",
    "training_hash",
    "training_values",
    "with_values",
    "write_section",
]

# Keys that change where or how a run is executed and watched, not what it learns.
NOT_TRAINING = (
    "description", "runs", "tracking", "evaluate", "finetune", "checkpoint", "health",
    "data.root", "data.store", "data.workers", "data.prepare_workers", "data.resident",
    "trainer.progress", "trainer.threads",
)  # fmt: skip
# How the global batch is dealt to devices changes only what BatchNorm sees, where it is not synchronised.
DEALING = ("trainer.devices", "trainer.nodes")
# The same for keys whose names an experiment makes up: where a member or a file of a cohort's options lies.
NOT_TRAINING_OPEN = re.compile(r"data\.(members\.[^.]+\.(root|store|options\.\w+_file)|options\.\w+_file)")

OPEN_KEYS = ("data.options", "data.members", "data.weights")  # dictionaries: their keys are the experiment's
_MEMBER = "|".join(f.name for f in dataclasses.fields(MemberConfig))
OPEN = re.compile(rf"data\.(options\..+|weights\..+|members\.[^.]+(\.({_MEMBER})|\.options\..+)?)")

POSITIVE = (
    "data.batch_size", "loss.temperature", "loss.sigma_years", "optim.lr", "trainer.epochs", "trainer.devices",
    "trainer.nodes",
    "augment.views", "encoder.width", "encoder.head_dim", "checkpoint.every_steps", "checkpoint.keep",
    "health.every_steps", "evaluate.bootstrap", "evaluate.seeds", "loss.bin_years", "loss.huber_delta_years",
    "loss.site_repulsion", "loss.regulariser_window_years",
    "optim.step_epochs", "trainer.validate_every_epochs", "health.patience", "trainer.accumulate",
    "finetune.last_stages", "finetune.rank", "finetune.epochs", "finetune.batch_size", "finetune.lr",
    "finetune.lr_decay", "evaluate.diagnosis_folds",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "data.split_seed", "data.limit", "data.workers", "data.prepare_workers", "data.spacing_mm",
    "data.mask_threshold", "data.folds", "data.fold",
    "loss.sigma_start_years", "loss.repel_nearest", "loss.age_balance", "loss.chunk_rows",
    "loss.site_penalty", "loss.regulariser_weight",
    "optim.weight_decay", "optim.momentum", "optim.warmup_epochs", "optim.clip_norm",
    "trainer.threads", "trainer.overfit_batches", "trainer.chunk_samples", "evaluate.scatter_points",
    "evaluate.site_permutations", "finetune.weight_decay",
)  # fmt: skip
SHARES = (
    "encoder.dropout", "finetune.dropout", "trainer.ema_decay",
    "augment.flip_p", "augment.affine_p", "augment.crop_p", "augment.blur_p", "augment.noise_p",
    "augment.intensity_p", "augment.cutout_p", "augment.cutout_share", "augment.crop_share",
)  # fmt: skip
NOT_EMPTY = ("tasks", "age_probes", "pairs", "predictors")
EVALUATED = {  # lists of evaluate -> the words they take
    "tasks": ("age", "gap", "diagnosis", "site", "longitudinal"),
    "age_probes": ("ridge", "kernel_ridge", "gaussian_process", "knn"),
    "correct_on": ("train", "val"),
    "nuisance": ("age", "sex", "tiv"),
    "harmonise": ("combat", "residual"),
    "pairs": ("CN-AD", "CN-MCI", "MCI-AD", "sMCI-pMCI"),
    "predictors": ("age_sex", "gap", "probe", "finetuned", "scratch"),
}
FOLDERS = (
    "runs",
    "data.root",
    "data.store",
    "data.split",
    "data.mask",
)  # `~` is the home folder; a shell leaves it in key=~/x


def load_experiment(name_or_path: str, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment by its shipped name or its file, then apply `key=value` overrides; without a `name` key its
    name is the file's.

    Raises ConfigError naming the file or word, the unknown key and the nearest known one.
    """
    config = OmegaConf.structured(Experiment)
    path = find_experiment(name_or_path)
    for source, values in chain_of(path):
        config = _merge(config, {"name": source.stem, **values}, str(source))
    return apply_overrides(config, overrides or [])


def apply_overrides(config: Any, overrides: list[str]) -> Experiment:
    """An experiment (or its OmegaConf form) with `key=value` words applied; raises ConfigError naming the word."""
    config = OmegaConf.structured(config) if isinstance(config, Experiment) else config
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"override {word!r}: expected key=value, for example loss.sigma_years=4")
        try:  # nothing behind the `=` is the empty text
            values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f'{word}""' if word.endswith("=") else word]))
        except Exception as error:
            raise ConfigError(f"override {word!r}: not readable as YAML ({' '.join(str(error).split())})") from error
        config = _merge(config, values, f"override {word!r}")
    for key in FOLDERS:
        OmegaConf.update(config, key, _without_tilde(OmegaConf.select(config, key)))
    for name in config.data.members:
        for key in ("root", "store", "split"):
            config.data.members[name][key] = _without_tilde(config.data.members[name][key])
    experiment = _as_experiment(config, "experiment")
    check_experiment(experiment)
    return experiment


def with_values(experiment: Experiment, values: dict[str, Any], source: str) -> Experiment:
    """An experiment with nested values of a file (`source`) in place of its own; ConfigError naming an unknown key."""
    return apply_overrides(_merge(OmegaConf.structured(experiment), values, source), [])


def check_experiment(experiment: Experiment) -> None:
    """Refuse values that no run could use; raises ConfigError with the key, the value and what is allowed."""
    from brainage.encoders.names import ENCODER_NAMES
    from brainage.losses.names import CONTRASTIVE_NAMES, SUPERVISED_NAMES

    _choice("encoder.name", experiment.encoder.name, ENCODER_NAMES)
    _choice("loss.name", experiment.loss.name, CONTRASTIVE_NAMES + SUPERVISED_NAMES)
    for loss in experiment.evaluate.losses:
        _choice("evaluate.losses", loss, CONTRASTIVE_NAMES + SUPERVISED_NAMES)
    for split in experiment.evaluate.fit_splits:
        _choice("evaluate.fit_splits", split, ("train", "val"))
    for baseline in experiment.evaluate.baselines:
        _choice("evaluate.baselines", baseline, ("untrained", "pca_ridge", "ridge"))
    for key, known in EVALUATED.items():
        words = getattr(experiment.evaluate, key)
        if not words and key in NOT_EMPTY:
            raise ConfigError(f"evaluate.{key} is empty: expected one or more of {', '.join(known)}")
        for value in words:
            _choice(f"evaluate.{key}", value, known)
    if not experiment.evaluate.label_shares:
        raise ConfigError("evaluate.label_shares is empty: expected shares of the labels, such as [1.0]")
    if experiment.evaluate.diagnosis_folds < 2:
        raise ConfigError(f"evaluate.diagnosis_folds={experiment.evaluate.diagnosis_folds}: expected 2 or more")
    for share in experiment.evaluate.label_shares:
        if not 0 < share <= 1:
            raise ConfigError(f"evaluate.label_shares: {share}: expected shares above 0 and up to 1")
    if not 0 < experiment.evaluate.conformal_coverage < 1:
        raise ConfigError(
            f"evaluate.conformal_coverage={experiment.evaluate.conformal_coverage}: expected a share between 0 and 1"
        )
    if not experiment.name or "/" in experiment.name:
        raise ConfigError(f"name={experiment.name!r}: expected a word without '/', since it names the run folder")
    flat = flatten(experiment)
    for key in POSITIVE:
        if not 0 < flat[key] < math.inf:
            raise ConfigError(f"{key}={flat[key]}: expected a number above 0")
    for key in NOT_NEGATIVE:
        if not 0 <= flat[key] < math.inf:
            raise ConfigError(f"{key}={flat[key]}: expected 0 or more")
    for key in SHARES:
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"{key}={flat[key]}: expected a share between 0 and 1")
    if experiment.data.batch_size < 2:
        raise ConfigError("data.batch_size=1: expected 2 or more scans, which the losses and BatchNorm compare")
    if "infonce" in (experiment.loss.name, *experiment.evaluate.losses) and experiment.augment.views < 2:
        raise ConfigError("infonce: expected augment.views of 2 or more, since the other view is the positive")


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write every key with its value, so that the file alone repeats the run."""
    write_section(experiment, path)


def write_section(section: Any, path: Path) -> None:
    """Write an experiment, or one section of it (such as its EvaluateConfig), as YAML."""
    text = OmegaConf.to_yaml(OmegaConf.structured(section))
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_experiment(path: Path) -> Experiment:
    """Read a file written by `save_experiment`; its `name` key is kept."""
    return from_plain(read_yaml(path), str(path))


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """Nested dictionaries of plain Python values (what a checkpoint may hold)."""
    return dataclasses.asdict(experiment)


def from_plain(values: Any, source: str = "checkpoint") -> Experiment:
    """The inverse of `to_plain`; keys a newer schema added get their defaults, unknown ones are refused."""
    return _as_experiment(_merge(OmegaConf.structured(Experiment), values, source), source)


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Dotted key -> value for every leaf.

    >>> flatten(Experiment())["loss.sigma_years"]
    2.0
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                flat[prefix + key] = value

    walk("", to_plain(experiment))
    return flat


def training_values(experiment: Experiment) -> dict[str, Any]:
    """The flat keys that decide what is learnt: everything but NOT_TRAINING, and DEALING where that changes nothing."""
    without = (*NOT_TRAINING, *(DEALING if experiment.trainer.sync_batchnorm else ()))
    return {
        key: value
        for key, value in flatten(experiment).items()
        if not any(key == name or key.startswith(name + ".") for name in without)
        and not NOT_TRAINING_OPEN.fullmatch(key)
    }


def differing_keys(before: Experiment, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """Training key -> (value before, value after) where they differ; None for a key that one of them does not have."""
    ours, theirs = training_values(before), training_values(after)
    keys = dict.fromkeys([*ours, *theirs])
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def training_hash(experiment: Experiment) -> str:
    """Eight hex digits of the training configuration; equal for equal training, whatever the machine."""
    text = json.dumps(training_values(experiment), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_folder(experiment: Experiment) -> Path:
    """`<runs>/<name>-<training hash>`."""
    return Path(experiment.runs) / f"{experiment.name}-{training_hash(experiment)}"


def network_name(experiment: Experiment) -> str:
    """What people call a network: experiment, loss and seed."""
    return f"{experiment.name} {experiment.loss.name} seed {experiment.seed}"


def sibling(experiment: Experiment, loss: str, seed: int) -> Experiment:
    """The same experiment with another loss and seed: the network it is compared with."""
    return dataclasses.replace(experiment, seed=seed, loss=dataclasses.replace(experiment.loss, name=loss))


def _merge(config: Any, values: dict[str, Any], source: str) -> Any:
    known = [*flatten(Experiment()), *OPEN_KEYS]
    sections = {name for name, value in to_plain(Experiment()).items() if isinstance(value, dict)}
    # a section whose keys are all commented out is None
    values = {key: value for key, value in values.items() if not (key in sections and value in (None, {}))}
    for key in sorted(key for key in set(_keys(values)) - set(known) if not OPEN.fullmatch(key)):
        raise ConfigError(f"{source}: unknown key {key!r}{_nearest_key(key, known)}")
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{source}: key {key!r}: {str(error).splitlines()[0]}") from error


def _nearest_key(key: str, known: list[str]) -> str:
    """As `nearest`, but a key without its section is found by its last word, and no list of all hundred keys."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    same = [name for name in known if name.rpartition(".")[2] == key]
    if same or close:
        return f"; did you mean {(same or close)[0]!r}?"
    return "; experiments/pretrain/openbhb_exp.yaml explains every key"


def _as_experiment(config: Any, source: str) -> Experiment:
    try:
        experiment = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{source}: key {key!r}: {str(error).splitlines()[0]}") from error
    assert isinstance(experiment, Experiment)
    return experiment


def _without_tilde(folder: str) -> str:
    return str(Path(folder).expanduser()) if folder.startswith("~") else folder


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves of nested dictionaries."""
    names: list[str] = []
    for key, value in values.items():
        names += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return names


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value}: unknown{nearest(value, known)}")
