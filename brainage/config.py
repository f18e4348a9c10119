"""One experiment, described completely: `brainage.schema` says what there is, YAML files hold the values.

An experiment file is a small difference: its optional `base:` names another experiment, its other keys override that
one, and `key=value` words of the command line override both. Unknown keys are refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.errors import ConfigError
from brainage.schema import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    Experiment,
    HealthConfig,
    LossConfig,
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
    "HealthConfig",
    "LossConfig",
    "OptimConfig",
    "TrackingConfig",
    "TrainerConfig",
    "apply_overrides",
    "check_experiment",
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
]

# Keys that change where or how a run is executed and watched, not what it learns.
NOT_TRAINING = (
    "description", "runs", "tracking", "evaluate", "checkpoint", "health",
    "data.root", "data.store", "data.workers", "data.prepare_workers", "data.resident",
    "trainer.progress", "trainer.threads",
)  # fmt: skip


POSITIVE = (
    "data.batch_size", "loss.temperature", "loss.sigma_years", "optim.lr", "trainer.epochs", "trainer.devices",
    "augment.views", "encoder.width", "encoder.head_dim", "checkpoint.every_steps", "checkpoint.keep",
    "health.every_steps", "evaluate.bootstrap", "evaluate.seeds", "loss.bin_years", "loss.huber_delta_years",
    "optim.step_epochs", "trainer.validate_every_epochs",
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
    return apply_overrides(config, overrides or [])


def apply_overrides(config: Any, overrides: list[str]) -> Experiment:
    """An experiment (or its OmegaConf form) with `key=value` words applied; raises ConfigError naming the word."""
    config = OmegaConf.structured(config) if isinstance(config, Experiment) else config
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"override {word!r}: expected key=value, for example loss.sigma_years=4")
        try:
            values = OmegaConf.from_dotlist([word])
        except Exception as error:
            raise ConfigError(f"override {word!r}: not readable as YAML ({' '.join(str(error).split())})") from error
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
    flat = flatten(experiment)
    for key in POSITIVE:
        if not flat[key] > 0:
            raise ConfigError(f"{key}={flat[key]}: expected a number above 0")
    for key, value in dataclasses.asdict(experiment.augment).items():
        if key.endswith(("_p", "_share")) and not 0 <= value <= 1:
            raise ConfigError(f"augment.{key}={value}: expected a share between 0 and 1")
    if experiment.loss.name == "infonce" and experiment.augment.views < 2:
        raise ConfigError(
            "loss.name=infonce: expected augment.views of 2 or more, since the other view is the positive"
        )


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


def network_name(experiment: Experiment) -> str:
    """What people call a network: experiment, loss and seed."""
    return f"{experiment.name} {experiment.loss.name} seed {experiment.seed}"


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
        if not isinstance(values, DictConfig):
            raise ConfigError(
                f"{path}: expected keys and values, found {type(OmegaConf.to_container(values)).__name__}"
            )
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
