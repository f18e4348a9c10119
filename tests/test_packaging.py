"""The wheel holds everything: installed elsewhere, without the checkout, the command line finds its experiments."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from brainage.config import shipped_experiments

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def run(*words: str, **options) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT))
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_both_packages_the_experiments_and_the_template_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("brainage", "data_modules")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".j2")
    }
    experiments = {f"brainage/{path.relative_to(ROOT).as_posix()}" for path in EXPERIMENTS.rglob("*") if path.is_file()}
    assert files == sources | experiments
    assert "brainage/reporting/templates/report.html.j2" in files
    assert "brainage/experiments/pretrain/demo.yaml" in files


def test_the_wheel_says_what_it_needs_and_how_it_is_started(wheel):
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "brainage = brainage.cli:main" in texts["entry_points.txt"]
    assert "Requires-Dist: torch" in texts["METADATA"]
    assert "License-Expression: MIT" in texts["METADATA"]
    assert "LICENSE" in texts


def test_an_installed_wheel_lists_the_experiments_far_from_the_checkout(wheel, tmp_path):
    target = tmp_path / "installed"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    )
    script = (
        "import brainage, data_modules, sys; print(brainage.__file__); print(data_modules.__file__);"
        "sys.argv = ['brainage', 'experiments']; from brainage.cli import main; main()"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target)}
    library, cohorts, *lines = run(sys.executable, "-c", script, cwd=elsewhere, env=environment).splitlines()
    assert Path(library).is_relative_to(target)
    assert Path(cohorts).is_relative_to(target)
    assert [line.split()[0] for line in lines] == list(shipped_experiments())
    assert not list(elsewhere.iterdir())


def test_an_installed_wheel_explains_a_typo_in_one_line(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = "import sys; sys.argv = ['brainage', 'prepare', 'openbhb_ex']; from brainage.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2
    assert done.stderr == "error: experiment 'openbhb_ex': not shipped; did you mean 'openbhb_exp'?\n"
