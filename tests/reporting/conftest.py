import shutil
from pathlib import Path

import pytest

from brainage.reporting.report import write_report
from tests.reporting.fake_evaluation import write_fake_evaluation
from tests.reporting.fake_run import write_fake_run


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run folder with its report; read only."""
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "ixi_thickness_exp-0711a27c", seeds=2)
    write_report(folder, pdf=False)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """An evaluated run folder to damage."""
    return write_fake_run(tmp_path / "run")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one evaluation, without a report; to copy."""
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "run", seeds=2)
    write_fake_evaluation(folder)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(source, tmp_path / "run"))
