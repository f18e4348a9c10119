"""Experiment files: where they lie, and how each builds on its `base`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from brainage.errors import ConfigError


def shipped(folder: str) -> dict[str, Path]:
    """Name -> file of what comes with brainage in a folder of experiments/: pretrain, evaluate, studies, slurm.

    The folder lies beside the package when installed from a checkout.
    """
    package = Path(__file__).parent
    root = package / "experiments" if (package / "experiments").is_dir() else package.parent / "experiments"
    return {path.stem: path for path in sorted((root / folder).glob("*.yaml"))}


def shipped_experiments() -> dict[str, Path]:
    """Name -> file of the shipped experiments."""
    return shipped("pretrain")


def find_shipped(folder: str, name_or_path: str, what: str) -> Path:
    """The file of a shipped name, or the YAML file itself; ConfigError with the nearest name."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{what} file {path}: not found")
        return path
    known = shipped(folder)
    if name_or_path not in known:
        raise ConfigError(f"{what} {name_or_path!r}: not shipped{nearest(name_or_path, list(known))}")
    return known[name_or_path]


def find_experiment(name_or_path: str) -> Path:
    """The file of a shipped experiment, or the YAML file itself; ConfigError with the nearest name."""
    return find_shipped("pretrain", name_or_path, "experiment")


def with_root(overrides: list[str] | None, data: str, limit: int = 0) -> list[str]:
    """`key=value` words with what the options --data and --limit stand for.

    >>> with_root(["seed=1"], "/a b", 3)
    ['seed=1', 'data.root="/a b"', 'data.limit=3']
    """
    root = [f"data.root={json.dumps(data)}"] if data else []  # quoted: a folder may be called 007 or a#b
    return [*(overrides or []), *root, *([f"data.limit={limit}"] if limit else [])]


def chain_of(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, the oldest ancestor first; a `name` is its own file's, never a base's."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if any(path.resolve() == seen.resolve() for seen, _ in chain):
            raise ConfigError(f"{path}: `base` names itself through {' -> '.join(p.name for p, _ in chain)}")
        values = read_yaml(path)
        base = values.pop("base", None)
        chain.append((path, values))
        if base is None:
            return chain[::-1]
        path = _find_base(str(base), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; ConfigError naming the file."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint for a typo: `; did you mean X?`, or the list of known names when none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _find_base(base: str, path: Path) -> Path:
    """A base is a file beside the one that names it, else a shipped experiment."""
    for beside in (path.parent / f"{base}.yaml", path.parent / base):
        if beside.is_file() and beside.resolve() != path.resolve():
            return beside
    try:
        return find_experiment(base)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from error
