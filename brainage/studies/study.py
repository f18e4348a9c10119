"""A study: one base experiment, changed in named ways (arms), each trained with the same seeds and compared with one.

    description: one line
    base: openbhb_exp             # a shipped experiment or a YAML file
    overrides: {}                 # dotted keys of every arm
    arms:                         # name -> dotted keys
      l1: {loss.name: l1}
    grid: {}                      # dotted key -> values: every combination is an arm too
    reference: exp                # the arm that the others are compared with
    compare: []                   # task/split/metric of results.csv (see metrics.py); the first is drawn first
    baselines: []                 # scored once, beside the reference's first seed
    seeds: [0, 1, 2]
    evaluate_on: adni             # a shipped evaluation or a YAML file: every cell is judged on that cohort as well
    evaluate_on_overrides: {}     # dotted keys of that evaluation; on the command line: on.data.root=DIR
    small: {}                     # what differs in the form that runs on a simulated cohort, see SmallStudy

An arm may also say how many people or sites it trains on: `subset.people`, `subset.sites` (brainage.studies.subsets).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainage.errors import ConfigError
from brainage.experiment_files import find_shipped, nearest, read_yaml, shipped
from brainage.studies.metrics import Metric

MAIN_METRICS = (
    "age/test_external/mae_years",
    "age/test_internal/mae_years",
    "site/test_internal/balanced_accuracy",
    "challenge/test_internal+test_external/challenge_score",
)
SUBSET = "subset."
_WORD = re.compile(r"[\w.+-]+")


@dataclass
class SimulatedCohort:
    """What the small form is run on."""

    layout: str = "openbhb"  # a published layout that the command line can write
    subjects: int = 240
    seed: int = 0
    spacing_mm: float = 6.0
    options: dict[str, Any] = field(default_factory=dict)  # further keywords of the layout's writer


@dataclass
class SmallStudy:
    """Empty keys are those of the study; `overrides` come after its own."""

    base: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)  # in place of the study's arms and grid, where given
    grid: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    compare: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    evaluate_on: str = ""
    evaluate_on_overrides: dict[str, Any] = field(default_factory=dict)
    simulate: SimulatedCohort = field(default_factory=SimulatedCohort)
    simulate_on: SimulatedCohort | None = None  # the cohort of evaluate_on


@dataclass
class Study:
    name: str = ""  # the file's own
    description: str = ""
    base: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    compare: list[str] = field(default_factory=lambda: list(MAIN_METRICS))
    baselines: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate_on: str = ""
    evaluate_on_overrides: dict[str, Any] = field(default_factory=dict)
    small: SmallStudy = field(default_factory=SmallStudy)


@dataclass(frozen=True)
class Form:
    """One form of a study, the full or the small one, with its grid spelt out."""

    name: str
    description: str
    base: str
    overrides: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    reference: str
    compare: list[str]
    baselines: list[str]
    seeds: list[int]
    simulate: SimulatedCohort | None  # None: the cohort of the experiment
    evaluate_on: str = ""  # empty: on no other cohort
    evaluate_on_overrides: dict[str, Any] = field(default_factory=dict)
    simulate_on: SimulatedCohort | None = None


def shipped_studies() -> dict[str, Path]:
    """Name -> file of the studies that come with brainage."""
    return shipped("studies")


def load_study(name_or_path: str) -> Study:
    """Read a study by its shipped name or its file; ConfigError names the file, the key and the nearest known one."""
    path = find_shipped("studies", name_or_path, "study")
    values = {"name": path.stem, **read_yaml(path)}
    _refuse_unknown(values, Study, str(path))
    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: key {getattr(error, 'full_key', '?')!r}: {str(error).splitlines()[0]}") from error
    assert isinstance(study, Study)
    for small in (False, True):
        form_of(study, small=small, source=str(path))
    return study


def form_of(study: Study, *, small: bool, source: str = "") -> Form:
    """The full or the small form; ConfigError on arms, metrics or seeds that no form could have."""
    own, source = study.small, source or study.name
    arms, grid = (own.arms, own.grid) if small and (own.arms or own.grid) else (study.arms, study.grid)
    form = Form(
        name=study.name + ("_small" if small else ""),
        description=study.description,
        base=(small and own.base) or study.base,
        overrides={**study.overrides, **(own.overrides if small else {})},
        arms=_arms(arms, grid, source),
        reference=(small and own.reference) or study.reference,
        compare=[_spelled(text, source) for text in (small and own.compare) or study.compare],
        baselines=list(study.baselines),
        seeds=list((small and own.seeds) or study.seeds),
        simulate=own.simulate if small else None,
        evaluate_on=(small and own.evaluate_on) or study.evaluate_on,
        evaluate_on_overrides={**study.evaluate_on_overrides, **(own.evaluate_on_overrides if small else {})},
        simulate_on=own.simulate_on if small else None,
    )
    _check(form, f"{source} (small)" if small else source)
    return form


def _arms(arms: dict[str, Any], grid: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Named arms, then every combination of the grid.

    >>> list(_arms({}, {"loss.kernel": ["rbf", "cauchy"], "loss.sigma_years": [2]}, ""))
    ['rbf_sigma_years_2', 'cauchy_sigma_years_2']
    """
    found: dict[str, dict[str, Any]] = {}
    for name, changes in arms.items():
        if not isinstance(changes, dict | None):
            raise ConfigError(f"{source}: arms.{name}: expected dotted keys, such as {{loss.name: l1}}; {changes!r}")
        found[str(name)] = changes or {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{source}: grid.{key}: expected a list of values, found {values!r}")
    for values in itertools.product(*grid.values()) if grid else ():
        changes = dict(zip(grid, values, strict=True))
        words = (v if isinstance(v, str) else f"{k.rpartition('.')[2]}_{v}" for k, v in changes.items())
        name = "_".join(words)
        if name in found:
            raise ConfigError(f"{source}: two arms are called {name!r}; rename the one under arms")
        found[name] = changes
    return found


def _check(form: Form, source: str) -> None:
    if not form.base:
        raise ConfigError(f"{source}: base is empty; expected a shipped experiment or a YAML file")
    if len(form.arms) < 2:
        raise ConfigError(f"{source}: {len(form.arms)} arms; expected two or more under arms or grid")
    for name in form.arms:
        if not _WORD.fullmatch(name):
            raise ConfigError(f"{source}: arm {name!r}: expected letters, digits, '_', '.', '+' or '-': it names files")
    if form.reference not in form.arms:
        raise ConfigError(f"{source}: reference {form.reference!r} is no arm{nearest(form.reference, list(form.arms))}")
    if not form.seeds or len(set(form.seeds)) < len(form.seeds) or min(form.seeds) < 0:
        raise ConfigError(f"{source}: seeds {form.seeds}: expected different numbers of 0 or more")
    if not form.compare:
        raise ConfigError(f"{source}: compare is empty; expected task/split/metric, such as {MAIN_METRICS[0]}")
    elsewhere = [metric for metric in form.compare if Metric.of(metric).on]
    if elsewhere and not form.evaluate_on:
        raise ConfigError(f"{source}: compare {elsewhere[0]!r}: there is no other cohort; say evaluate_on")
    if form.simulate and bool(form.evaluate_on) != bool(form.simulate_on):
        raise ConfigError(f"{source}: evaluate_on and small.simulate_on: expected both or neither")
    if form.evaluate_on_overrides and not form.evaluate_on:
        raise ConfigError(f"{source}: evaluate_on_overrides: there is no other cohort; say evaluate_on")


def _spelled(text: str, source: str) -> str:
    try:
        return str(Metric.of(text))
    except ValueError as error:
        raise ConfigError(f"{source}: compare {text!r}: {error}{nearest(text, MAIN_METRICS)}") from error


def _refuse_unknown(values: dict[str, Any], of: type, source: str, prefix: str = "") -> None:
    """Keys of the schema only; what stands under arms, grid, overrides and options is the study's own."""
    sections = {"small": SmallStudy, "simulate": SimulatedCohort, "simulate_on": SimulatedCohort}
    known = [f.name for f in dataclasses.fields(of)]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {prefix + str(key)!r}{nearest(str(key), known)}")
        if key in sections and isinstance(value, dict):
            _refuse_unknown(value, sections[key], source, f"{prefix}{key}.")
