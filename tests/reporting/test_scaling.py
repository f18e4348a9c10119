"""A study beside the run: what it wrote is shown, and another folder is refused."""

import pandas as pd
import pytest

from brainage.errors import DataError
from brainage.reporting.page import Page
from brainage.reporting.run_folder import read_run
from brainage.reporting.scaling_section import scaling


def test_a_studys_figures_and_means_are_shown(run_folder, tmp_path):
    study = tmp_path / "scaling_small"
    (study / "figures").mkdir(parents=True)
    (study / "tables").mkdir()
    page = Page(read_run(run_folder), study=study)
    with pytest.raises(DataError, match=r"no study\.html"):
        scaling(page)
    (study / "study.html").write_text("x")
    (study / "figures" / "age_mae.svg").write_text("<svg/>")
    rows = [
        ["all", "age/test_external/mae_years", 4.0, 3.5, 4.5, 0.2],
        ["half", "age/test_external/mae_years", 5.0, None, None, None],
    ]
    summary = pd.DataFrame(rows, columns=["arm", "metric", "estimate", "low", "high", "seed_sd"])
    summary.to_csv(study / "tables" / "summary.csv", index=False)
    _, figures, table = scaling(page)
    assert [drawn.name for drawn in figures.content] == ["age_mae"]
    assert list(map(str, table.content.shown.iloc[:, 1])) == ["4.000 [3.500, 4.500] seed sd 0.200", "5.000"]
