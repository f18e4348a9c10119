"""Container recipes install what is tested, from files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = {name: (ROOT / "containers" / name).read_text() for name in ("Dockerfile", "brainage.def")}


def copied(name: str) -> set[str]:
    if name == "Dockerfile":
        lines = re.findall(r"^COPY (.+) \S+$", RECIPES[name], re.MULTILINE)
    else:
        lines = re.findall(r"^    (\S+) /opt/brainage/\S+$", RECIPES[name], re.MULTILINE)
    return {word for line in lines for word in line.split()}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_copies_what_the_build_needs_and_installs_the_tested_versions(name):
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "brainage", "data_modules", "experiments"}
    assert copied(name) == needed
    assert all((ROOT / path).exists() for path in needed)
    assert "-c constraints.txt ." in RECIPES[name]
    assert "python:3.11-slim-bookworm" in RECIPES[name]
