"""What keeps the house in order: who imports whom, how long a file may be, and that names in two places agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from brainage.encoders import ENCODERS
from brainage.encoders.names import ENCODER_NAMES
from brainage.losses import CONTRASTIVE, SUPERVISED
from brainage.losses.names import CONTRASTIVE_NAMES, SUPERVISED_NAMES

ROOT = Path(__file__).parents[1]
PACKAGES = ("brainage", "data_modules")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE = 400
SKIPPED = {
    ".git", ".venv", ".hypothesis", ".mypy_cache", ".ruff_cache", "__pycache__", "runs", "stores", "demo_data", "build",
    "dist", "mlartifacts",
}  # fmt: skip
TEXT = {".py", ".yaml", ".toml", ".md", ".txt", ".cff", ".j2", ".html", ""}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def written() -> list[Path]:
    """Every text file of the project, whether tracked yet or not."""
    files = (path for path in ROOT.rglob("*") if path.is_file() and path.suffix in TEXT)
    return [
        path
        for path in files
        if not SKIPPED & set(path.relative_to(ROOT).parts) and not path.name.startswith("mlflow.db")
    ]


def test_there_is_something_to_look_at():
    assert len(MODULES) > 50
    assert ROOT / "README.md" in written()
    assert ROOT / "Makefile" in written()


def test_the_library_never_imports_a_cohort_and_only_the_command_line_joins_them():
    joining = {name_of(path) for path in MODULES if "data_modules" in imports(path)}
    assert {name for name in joining if name.startswith("brainage/")} == {"brainage/cli.py"}


def test_every_module_says_what_it_is_for():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in MODULES}
    mute = [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not mute  # an empty __init__.py only marks a folder


def test_every_module_is_short_enough_to_read():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_nothing_is_left_for_later():
    unfinished = re.compile(r"NotImplementedError|\b(TODO|FIXME|XXX)\b")
    assert not [name_of(path) for path in MODULES if unfinished.search(path.read_text(encoding="utf-8"))]


def test_no_module_imports_the_tests():
    assert not [name_of(path) for path in MODULES if "tests" in imports(path)]


def test_nothing_names_the_place_where_it_was_written():
    places = ("/" + "work/", "." + "./shared")  # put together, or this file would name them
    here = {name_of(path) for path in written() if path != Path(__file__)}
    found = {name for name in here if any(place in (ROOT / name).read_text(encoding="utf-8") for place in places)}
    assert found <= {".ci/run"}


def test_names_that_can_be_checked_without_torch_are_the_names_there_are():
    assert set(CONTRASTIVE_NAMES) == set(CONTRASTIVE)
    assert set(SUPERVISED_NAMES) == set(SUPERVISED)
    assert set(ENCODER_NAMES) == set(ENCODERS)
    assert not set(CONTRASTIVE) & set(SUPERVISED)


def test_every_package_of_the_code_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    installed_as = {"sklearn": "scikit-learn", "markupsafe": "jinja2"}  # jinja2 brings markupsafe
    used = set().union(*map(imports, MODULES)) - set(sys.stdlib_module_names) - set(PACKAGES)
    missing = {name for name in used if installed_as.get(name, name) not in declared}
    assert not missing
