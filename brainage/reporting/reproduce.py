"""What it takes to repeat a run: command, configuration, code, versions, split, seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from brainage.config import training_hash
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.run_folder import RunFolder

PRIVATE = re.compile(
    r"host|user|home|cwd|executable|pid$", re.IGNORECASE
)  # of the machine and its people, not of the run


class Reproduction(NamedTuple):
    """`facts` are (name, value) pairs; `evaluated` the commands after training, RUN and DATA stand for folders."""

    command: str
    evaluated: list[str]
    config: str
    facts: list[tuple[str, str]]


def reproduce(run: RunFolder, evaluations: Sequence[Evaluation] = ()) -> Reproduction:
    """Commands, YAML and facts of a run and of the cohorts that it was judged on."""
    experiment = run.experiment
    command = run.environment.get("command")
    seeds = sorted(set(run.results["seed"].dropna().astype(int))) if run.results is not None else [experiment.seed]
    finished = run.finished or {}
    facts = [
        ("experiment", experiment.name),
        ("training configuration", training_hash(experiment)),
        ("split hash", str(run.environment.get("split_hash") or finished.get("split_hash") or "not recorded")),
        ("seeds of the networks", ", ".join(map(str, seeds or [experiment.seed]))),
        ("checkpoint", str(finished.get("checkpoint", "training has not finished"))),
    ]
    if run.environment.get("split_source") != "file":
        facts.insert(4, ("seed of the split", str(experiment.data.split_seed)))
    if "seconds" in finished:
        facts.append(("training time", _duration(float(finished["seconds"]))))
    rest = {key: value for key, value in run.environment.items() if key not in ("command", "split_hash")}
    facts += [(name, text) for name, text in _flat(rest) if not PRIVATE.search(name) and text]
    return Reproduction(
        str(command or f"brainage pretrain config.yaml name={experiment.name}"),
        _evaluated(run, evaluations),
        OmegaConf.to_yaml(OmegaConf.structured(experiment)),
        facts,
    )


def _evaluated(run: RunFolder, evaluations: Sequence[Evaluation]) -> list[str]:
    own = ["brainage evaluate RUN"] if run.results is not None else []
    return own + [f"brainage evaluate RUN --on {one.name} data.root=DATA" for one in evaluations if not one.own]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key} ")
        else:
            pairs.append((f"{prefix}{key}".replace("_", " "), _text(value)))
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(42.4), _duration(3725)
    ('42 s', '1 h 02 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
