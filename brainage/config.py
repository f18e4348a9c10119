"""One experiment, described completely: the dataclasses are the schema, YAML files hold the values.

An experiment file is a small difference: its optional `base:` names another experiment, its other keys override that
one, and `key=value` words of the command line override both. Unknown keys are refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.errors import ConfigError


@dataclass
class DataConfig:
    cohort: str = "openbhb"  # a name in data_modules.COHORTS
    root: str = ""  # folder of the cohort as it was downloaded
    modality: str = "vbm"  # which of the cohort's images or tables to read
    store: str = "auto"  # folder of the array store; auto: stores/<cohort>_<modality>_<hash of the root>
    spacing_mm: float = 0.0  # voxel size of the model grid for cohorts read as NIfTI; 0: the cohort's own grid
    split: str = ""  # TSV with cohort, participant_id, split; empty: the official split of the cohort
    external_sites: list[str] = field(default_factory=list)  # sites held out whole, where no official split exists
    internal_fraction: float = 0.2  # people of the other sites kept for test_internal, where no official split exists
    val_fraction: float = 0.1  # people of train carved out as val, never trained on
    split_seed: int = 0  # seed of every split that brainage draws itself
    limit: int = 0  # first n scans of each split only; 0: all
    batch_size: int = 64  # subjects in the global batch, over all devices
    workers: int = 0  # loader processes a device; 0: the training process reads (fast: the store is a memory map)
    prepare_workers: int = 0  # processes of `prepare`; 0: one a core
    resident: Literal["none", "host", "device"] = "none"  # where all arrays live during training
    intensity: Literal["none", "zscore", "standardise"] = "zscore"  # an image by itself | a feature by the train set


@dataclass
class AugmentConfig:
    """Probabilities are per view and per operation; 0 switches an operation off."""

    views: int = 2  # views of each subject in a batch
    flip_p: float = 0.0  # mirror left and right
    affine_p: float = 0.0
    rotate_degrees: float = 10.0  # each axis, uniform in [-r, r]
    scale: float = 0.1  # isotropic, uniform in [1 - s, 1 + s]
    translate_mm: float = 8.0  # each axis, uniform in [-t, t]
    crop_p: float = 0.0
    crop_share: float = 0.75  # edge length kept by a random crop, resized back to the grid
    blur_p: float = 0.0
    blur_sigma_mm: list[float] = field(default_factory=lambda: [0.1, 1.0])  # uniform
    noise_p: float = 0.0
    noise_sd: list[float] = field(default_factory=lambda: [0.1, 1.0])  # uniform; units of the normalised input
    intensity_p: float = 0.0
    gain: float = 0.2  # multiplied by uniform [1 - g, 1 + g]
    offset: float = 0.1  # plus uniform [-o, o], units of the normalised input
    gamma: float = 0.0  # contrast: power exp(uniform [-g, g]) of the image rescaled to [0, 1]
    cutout_p: float = 0.0
    cutout_share: float = 0.25  # edge length of the box set to zero; vectors: share of features set to zero


@dataclass
class EncoderConfig:
    name: str = "resnet18"  # a name in brainage.encoders.ENCODERS
    width: float = 1.0  # multiplies the channels of every layer
    norm: Literal["batch", "group", "none"] = "batch"
    hidden: list[int] = field(default_factory=lambda: [256, 256])  # hidden widths of the mlp encoder
    dropout: float = 0.0  # mlp encoder only
    head: Literal["mlp", "mlp_bn", "linear"] = "mlp_bn"  # projection head; mlp is the published one
    head_dim: int = 128  # length of the embedding the contrastive loss sees


@dataclass
class LossConfig:
    name: str = "exp"  # a name in brainage.losses.CONTRASTIVE or SUPERVISED
    similarity: Literal["cosine", "shifted"] = "cosine"  # exp only; shifted is what the published code trains
    temperature: float = 0.1
    kernel: Literal["rbf", "gaussian", "cauchy"] = "rbf"
    sigma_years: float = 2.0  # kernel width (cauchy: gamma)
    same_subject: Literal["exclude", "positive"] = "exclude"  # two scans of one person in a batch
    bin_years: float = 2.0  # width of SupCon's age bins
    huber_delta_years: float = 1.0


@dataclass
class OptimConfig:
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 5e-5
    momentum: float = 0.9  # sgd only
    schedule: Literal["constant", "step", "cosine"] = "step"
    step_epochs: int = 10  # step: multiply by step_gamma every so many epochs
    step_gamma: float = 0.9
    warmup_epochs: float = 0.0  # linear from 0, before the schedule
    clip_norm: float = 0.0  # gradient norm; 0: no clipping


@dataclass
class TrainerConfig:
    epochs: int = 300
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the encoder; losses are always fp32
    compile: bool = False  # torch.compile of the encoder
    deterministic: bool = True  # bit-equal repeats; false may be faster on a GPU
    threads: int = 0  # CPU threads; 0: torch's choice
    fast_dev_run: bool = False  # one train and one validation batch, nothing kept
    overfit_batches: int = 0  # train on the first n batches only, again and again: must reach a low loss
    validate_every_epochs: int = 1
    progress: bool = True


@dataclass
class CheckpointConfig:
    resume: str = "auto"  # auto: the last good checkpoint of this configuration | never | path of a checkpoint
    every_steps: int = 500  # also at the end of training
    keep: int = 2  # newest checkpoints kept, so that a torn one can be stepped over


@dataclass
class HealthConfig:
    every_steps: int = 20  # steps between two looks at the embedding
    patience: int = 25  # looks in a row that must agree before a run is stopped
    collapse_margin: float = 0.01  # collapsed: loss within this share of its value on a constant embedding
    min_effective_rank: float = 1.5  # collapsed too: effective rank of the embedding below this
    stop: bool = True  # false: warn only


@dataclass
class TrackingConfig:
    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "brainage"
    log_individuals: bool = False  # send per-person predictions to MLflow (data use agreements often forbid it)


@dataclass
class EvaluateConfig:
    after_training: bool = False  # `pretrain` goes on with the evaluation and the report
    features: Literal["trunk", "head"] = "trunk"
    fit_splits: list[str] = field(default_factory=lambda: ["train", "val"])  # people the probes are fitted on
    bootstrap: int = 2000  # resamples of subjects behind every interval
    baselines: list[str] = field(default_factory=lambda: ["untrained", "pca_ridge"])
    losses: list[str] = field(default_factory=lambda: ["l1"])  # sibling networks trained alike, shown side by side
    seeds: int = 1  # each network is trained with seed, seed + 1, ...
    site_probe_published: bool = False  # also saga with 150 iterations, as published; slow with many sites
    allow_seen: bool = False  # score people the encoder was trained on
    scatter_points: int = 2000  # points a figure draws at most


@dataclass
class Experiment:
    name: str = "experiment"
    description: str = ""
    seed: int = 0
    runs: str = "runs"  # folder of the run folders
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


# Keys that change where or how a run is executed and watched, not what it learns.
NOT_TRAINING = (
    "description", "runs", "tracking", "evaluate", "checkpoint", "health",
    "data.root", "data.store", "data.workers", "data.prepare_workers", "data.resident",
    "trainer.progress", "trainer.threads",
)  # fmt: skip


def shipped_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that come with brainage (beside the package when installed from a checkout)."""
    package = Path(__file__).parent
    folder = package / "experiments" if (package / "experiments").is_dir() else package.parent / "experiments"
    return {path.stem: path for path in sorted((folder / "pretrain").glob("*.yaml"))}


def load_experiment(name_or_path: str, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment by its shipped name or its file, then apply `key=value` overrides.

    Raises ConfigError naming the file or word, the unknown key and the nearest known one.
    """
    config = OmegaConf.structured(Experiment)
    path = _find(name_or_path)
    for source, values in _chain(path):
        config = _merge(config, values, str(source))
    config.name = path.stem
    for word in overrides or []:
        if "=" not in word:
            raise ConfigError(f"override {word!r}: expected key=value, for example loss.sigma_years=4")
        key, text = word.split("=", 1)
        try:
            values = OmegaConf.from_dotlist([word])
        except Exception as error:
            raise ConfigError(f"override {key}={text}: not readable as YAML ({error})") from error
        config = _merge(config, values, f"override {word!r}")
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    check_experiment(experiment)
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """Refuse values that no run could use; raises ConfigError with the key, the value and what is allowed."""
    from brainage.encoders.names import ENCODER_NAMES
    from brainage.losses.names import CONTRASTIVE_NAMES, SUPERVISED_NAMES

    _choice("encoder.name", experiment.encoder.name, ENCODER_NAMES)
    _choice("loss.name", experiment.loss.name, CONTRASTIVE_NAMES + SUPERVISED_NAMES)
    for loss in experiment.evaluate.losses:
        _choice("evaluate.losses", loss, CONTRASTIVE_NAMES + SUPERVISED_NAMES)
    for baseline in experiment.evaluate.baselines:
        _choice("evaluate.baselines", baseline, ("untrained", "pca_ridge", "ridge"))
    positive = {
        "data.batch_size": experiment.data.batch_size,
        "loss.temperature": experiment.loss.temperature,
        "loss.sigma_years": experiment.loss.sigma_years,
        "optim.lr": experiment.optim.lr,
        "trainer.epochs": experiment.trainer.epochs,
        "trainer.devices": experiment.trainer.devices,
        "augment.views": experiment.augment.views,
        "encoder.width": experiment.encoder.width,
        "checkpoint.every_steps": experiment.checkpoint.every_steps,
        "checkpoint.keep": experiment.checkpoint.keep,
        "health.every_steps": experiment.health.every_steps,
        "evaluate.bootstrap": experiment.evaluate.bootstrap,
        "evaluate.seeds": experiment.evaluate.seeds,
    }
    for key, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{key}={value}: expected a number above 0")
    for key, value in dataclasses.asdict(experiment.augment).items():
        if key.endswith(("_p", "_share")) and not 0 <= value <= 1:
            raise ConfigError(f"augment.{key}={value}: expected a share between 0 and 1")
    if experiment.loss.name == "infonce" and experiment.augment.views < 2:
        raise ConfigError("loss.name=infonce: expected augment.views of 2 or more, since the other view is the positive")


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write every key with its value, so that the file alone repeats the run."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(experiment)), encoding="utf-8")


def read_experiment(path: Path) -> Experiment:
    """Read a file written by `save_experiment`; its `name` key is kept."""
    return from_plain(OmegaConf.to_container(OmegaConf.load(path)), str(path))


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """Nested dictionaries of plain Python values (what a checkpoint may hold)."""
    return dataclasses.asdict(experiment)


def from_plain(values: Any, source: str = "checkpoint") -> Experiment:
    """The inverse of `to_plain`; keys a newer schema added get their defaults, unknown ones are refused."""
    merged = _merge(OmegaConf.structured(Experiment), OmegaConf.create(values), source)
    experiment = OmegaConf.to_object(merged)
    assert isinstance(experiment, Experiment)
    return experiment


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
    """The flat keys that decide what is learnt: everything but NOT_TRAINING."""
    return {
        key: value
        for key, value in flatten(experiment).items()
        if not any(key == name or key.startswith(name + ".") for name in NOT_TRAINING)
    }


def training_hash(experiment: Experiment) -> str:
    """Eight hex digits of the training configuration; equal for equal training, whatever the machine."""
    text = json.dumps(training_values(experiment), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_folder(experiment: Experiment) -> Path:
    """`<runs>/<name>-<training hash>`."""
    return Path(experiment.runs) / f"{experiment.name}-{training_hash(experiment)}"


def sibling(experiment: Experiment, loss: str, seed: int) -> Experiment:
    """The same experiment with another loss and seed: the network it is compared with."""
    return dataclasses.replace(experiment, seed=seed, loss=dataclasses.replace(experiment.loss, name=loss))


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint for a typo: `; did you mean X?`, or the list of known names when none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"experiment file {path}: not found")
        return path
    shipped = shipped_experiments()
    if name_or_path not in shipped:
        raise ConfigError(f"experiment {name_or_path!r}: not shipped{nearest(name_or_path, list(shipped))}")
    return shipped[name_or_path]


def _chain(path: Path) -> list[tuple[Path, Any]]:
    """The file and its bases, the oldest ancestor first."""
    chain: list[tuple[Path, Any]] = []
    while True:
        if any(path == seen for seen, _ in chain):
            raise ConfigError(f"{path}: `base` names itself through {' -> '.join(p.name for p, _ in chain)}")
        try:
            values = OmegaConf.load(path)
        except Exception as error:
            raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
        if not OmegaConf.is_dict(values):
            raise ConfigError(f"{path}: expected keys and values, found {type(OmegaConf.to_container(values)).__name__}")
        base = values.pop("base", None)
        chain.append((path, values))
        if base is None:
            return chain[::-1]
        beside = path.parent / f"{base}.yaml"
        path = beside if beside.is_file() else _find(str(base))


def _merge(config: Any, values: Any, source: str) -> Any:
    unknown = sorted(set(_keys(OmegaConf.to_container(values))) - set(flatten(Experiment())))
    for key in unknown:
        raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, list(flatten(Experiment())))}")
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{source}: key {key!r}: {str(error).splitlines()[0]}") from error


def _keys(values: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves of nested dictionaries; sections given as a whole must be dictionaries."""
    sections = {name for name, value in to_plain(Experiment()).items() if isinstance(value, dict)}
    names: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" in sections:
            names += _keys(value, f"{prefix}{key}.")
        elif value is None and f"{prefix}{key}" in sections:
            continue  # a section whose keys are all commented out
        else:
            names.append(f"{prefix}{key}")
    return names


def _choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value}: unknown{nearest(value, known)}")
