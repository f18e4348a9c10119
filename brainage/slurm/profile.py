"""What to ask a cluster for: a profile is a short YAML file of plain keys, `slurm.key=value` words override it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.errors import ConfigError
from brainage.experiment_files import find_shipped, nearest, read_yaml, shipped

PREFIX = "slurm."
_TIME = re.compile(r"(\d+-\d{1,2}(:\d{2}){0,2}|\d+:\d{2}(:\d{2})?)")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Profile:
    name: str = ""  # the file's own
    description: str = ""
    account: str = ""  # who pays; empty: the cluster's default, here and below
    partition: str = ""
    qos: str = ""
    time: str = "24:00:00"  # of one go; a run that needs more is requeued and continues
    nodes: int = 1
    tasks_per_node: int = 1  # one a device
    gpus_per_node: int = 1  # 0: train on CPUs
    gpu_type: str = ""  # as the cluster calls it, such as a100
    cpus_per_task: int = 8
    memory: str = ""  # of a node, such as 64G
    signal_seconds: int = 120  # SIGUSR1 so long before the time is over: enough for a step, a validation, a checkpoint
    sbatch: list[str] = field(default_factory=list)  # further options, such as --exclusive
    modules: list[str] = field(default_factory=list)  # module load ...
    setup: list[str] = field(default_factory=list)  # lines of shell before anything starts
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""  # what starts brainage there, such as apptainer exec ...; empty: the Python that submits
    logs: str = "runs/slurm"  # folder of logs, scripts and the list of submitted jobs

    @property
    def tasks(self) -> int:
        """Processes that train together."""
        return self.nodes * self.tasks_per_node


def shipped_profiles() -> dict[str, Path]:
    """Name -> file of the profiles that come with brainage."""
    return shipped("slurm")


def load_profile(name_or_path: str, overrides: list[str] | None = None) -> Profile:
    """Read a profile by its shipped name or its file, then apply `key=value` words.

    Raises ConfigError naming the file or word, the key and the nearest known one, or a value that sbatch would refuse.
    """
    path = find_shipped("slurm", name_or_path, "profile")
    config = _merge(OmegaConf.structured(Profile), {"name": path.stem, **read_yaml(path)}, str(path))
    for word in overrides or []:
        if "=" not in word:
            raise ConfigError(f"{PREFIX}{word}: expected {PREFIX}key=value, for example {PREFIX}time=04:00:00")
        key, _, value = word.partition("=")
        config = _merge(config, _value_of(key, value), f"{PREFIX}{word}")
    profile = OmegaConf.to_object(config)
    assert isinstance(profile, Profile)
    _check(profile, str(path))
    return profile


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Words of the experiment, and those of the profile without their prefix.

    >>> split_overrides(["loss.sigma_years=4", "slurm.time=04:00:00"])
    (['loss.sigma_years=4'], ['time=04:00:00'])
    """
    own = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], own


def _value_of(key: str, value: str) -> dict[str, Any]:
    """Texts as they are written (YAML would read 04:00:00 as a number), everything else as YAML."""
    kinds = {field.name: field.type for field in dataclasses.fields(Profile)}
    if kinds.get(key) == "str":
        return {key: value}
    try:
        return dict(OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"])))  # type: ignore[arg-type]
    except Exception as error:
        raise ConfigError(f"{PREFIX}{key}={value}: not readable as YAML ({' '.join(str(error).split())})") from error


def _merge(config: Any, values: dict[str, Any], source: str) -> Any:
    known = [field.name for field in dataclasses.fields(Profile)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, known)}")
    values = {key: value for key, value in values.items() if value is not None}  # a key whose value is commented out
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{source}: key {key!r}: {str(error).splitlines()[0]}") from error


def _check(profile: Profile, source: str) -> None:
    for key in ("nodes", "tasks_per_node", "cpus_per_task"):
        if getattr(profile, key) < 1:
            raise ConfigError(f"{source}: {key}={getattr(profile, key)}: expected 1 or more")
    if not _TIME.fullmatch(profile.time):
        raise ConfigError(f"{source}: time={profile.time}: expected a text in quotes, '12:00:00' or '2-00:00:00'")
    if not 0 < profile.signal_seconds <= 65535:
        raise ConfigError(f"{source}: signal_seconds={profile.signal_seconds}: expected 1 to 65535 (sbatch --signal)")
    if profile.gpus_per_node not in (0, profile.tasks_per_node):
        raise ConfigError(
            f"{source}: gpus_per_node={profile.gpus_per_node} for tasks_per_node={profile.tasks_per_node}: expected "
            "one task a GPU (or gpus_per_node=0)"
        )
    for key in ("account", "partition", "qos", "gpu_type", "memory", "logs"):
        if re.search(r"\s", getattr(profile, key)):
            raise ConfigError(f"{source}: {key}={getattr(profile, key)!r}: expected one word")
    for option in profile.sbatch:
        if not option.startswith("-") or "\n" in option:
            raise ConfigError(f"{source}: sbatch: {option!r}: expected an option of sbatch, such as --exclusive")
    for name in profile.environment:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{source}: environment: {name!r} cannot be the name of a variable")
