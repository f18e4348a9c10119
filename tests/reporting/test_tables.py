"""Tables: every number is the one of the run's files, and nothing in them names a person."""

import numpy as np
import pandas as pd
import pytest

from brainage.data.table import read_table, write_table
from brainage.downstream.results import read_results, write_results
from brainage.reporting.cohort import ages_by_site, anonymous_reasons, dropped_sheet, site_sheet, split_sheet
from brainage.reporting.run_folder import read_run
from brainage.reporting.table_files import escape_latex, to_latex
from brainage.reporting.table_files import write_table as write_files
from brainage.reporting.tables import (
    Cell,
    Table,
    all_results,
    differences,
    headline,
    parts,
)


def _cell(table, model: str, column: str) -> Cell:
    names = [str(cell.main) for cell in table.shown["Model"]]
    return table.shown[column][names.index(model)]


def test_the_headline_has_the_numbers_of_the_results_with_interval_and_mean_predictor(run_folder):
    results = read_results(run_folder / "results.csv").set_index(["run", "split", "task", "metric"])
    table = headline(read_run(run_folder))
    assert [cell.main for cell in table.shown["Model"]] == [
        "L^exp", "L1, supervised", "Untrained encoder", "PCA + ridge", "Mean predictor",
    ]  # fmt: skip
    whole = results.loc[("l1", "test_external", "age", "mae_years")]
    cell = _cell(table, "L1, supervised", "MAE external (years)")
    assert cell.main == f"{whole['estimate']:.2f}"
    assert cell.small == (f"[{whole['low']:.2f}, {whole['high']:.2f}]", "mean 12.80")
    assert _cell(table, "L^exp", "Site BAcc (%)") == Cell("61.0", ("[55.0, 67.0]", "chance 50.0"))
    scored = read_table(run_folder / "predictions.parquet")["age_years"]
    assert _cell(table, "L^exp", "n, ages int / ext").main == "60 / 50"
    assert f"–{scored.max():.0f}" in _cell(table, "L^exp", "n, ages int / ext").small[0]


def test_the_parts_of_a_split_do_not_leak_into_its_headline(run_folder):
    table = headline(read_run(run_folder))
    assert len(table.data) == 5
    assert not any("=" in note for note in all_results(read_run(run_folder)).data["note"])


def test_the_run_itself_is_first_and_the_only_strong_row(run_folder):
    table = headline(read_run(run_folder))
    assert table.strong == (0,)
    assert table.data["model"].tolist()[0] == "exp"


def test_several_seeds_show_their_number_and_spread(reported):
    note = read_results(reported / "results.csv").query("run == 'l1' and split == 'test_internal'")["note"].iloc[0]
    sd = float(note.split("sd over seeds ")[1])
    table = headline(read_run(reported))
    assert _cell(table, "L1, supervised", "Model").small == ("2 seeds",)
    assert f"seed sd {sd:.2f}" in _cell(table, "L1, supervised", "MAE internal (years)").small
    assert _cell(table, "PCA + ridge", "Model").small == ()
    assert _cell(table, "Untrained encoder", "Model").small == ("1 of 2 seeds",)
    assert "seed sd" in table.note


def test_networks_that_were_scored_one_by_one_are_averaged(run_folder):
    frame = read_results(run_folder / "results.csv")
    own = (frame["run"] == "exp") & (frame["metric"] == "mae_years") & (frame["task"] == "age")
    two = [frame[own].assign(run=f"exp-seed{i}", estimate=5.0 + i, low=4.0, high=9.0) for i in (0, 1)]
    write_results(pd.concat([frame[~own], *two], ignore_index=True), run_folder / "results.csv")
    row = headline(read_run(run_folder)).data.iloc[0]
    assert row["model"] == "exp"
    assert row["mae_internal"] == 5.5
    assert row["mae_internal_seed_sd"] == pytest.approx(np.sqrt(0.5))
    assert row["seeds"] == 2


def test_there_is_no_headline_before_an_evaluation(run_folder):
    (run_folder / "results.csv").unlink()
    run = read_run(run_folder)
    assert headline(run) is None
    assert all_results(run) is None
    assert differences(run) is None


def test_paired_differences_name_both_models_and_say_that_one_seed_is_one(run_folder):
    table = differences(read_run(run_folder))
    others = ["L1, supervised", "Untrained encoder", "PCA + ridge"]
    assert table.shown["Models"].tolist() == [f"L^exp minus {other}" for other in others]
    results = read_results(run_folder / "results.csv").set_index(["run", "split"])
    row = results.loc[("exp - l1", "test_external")]
    cell = table.shown["MAE external (years)"][0]
    assert cell == Cell(f"{row['estimate']:+.2f}", (f"[{row['low']:.2f}, {row['high']:.2f}]", "one seed"))
    assert table.data["external_difference_high"][0] == row["high"]
    assert "do not contain the spread over training seeds" in table.note


def test_paired_differences_of_matched_seeds_show_their_sd_and_whom_they_favour(reported):
    table = differences(read_run(reported))
    predictions = read_table(reported / "predictions.parquet").query("split == 'test_external'")
    error = (predictions["predicted_age_years"] - predictions["age_years"]).abs()
    maes = error.groupby([predictions["model"], predictions["seed"]]).mean()
    each = maes["exp"] - maes["l1"]
    row = table.data.set_index("models").loc["exp - l1"]
    assert row["external_difference"] == pytest.approx(each.mean())
    assert row["external_seed_sd"] == pytest.approx(each.std(), rel=0.01)
    assert row["external_seeds_better"] == (each < 0).sum()
    cells = dict(zip(table.shown["Models"], table.shown["MAE external (years)"], strict=True))
    assert f"{(each < 0).sum()} of 2 below 0" in cells["L^exp minus L1, supervised"].small
    assert "other seeds" in cells["L^exp minus PCA + ridge"].small


def test_parts_of_fewer_than_five_people_are_not_shown(run_folder):
    raw = read_results(run_folder / "results.csv").query("run == 'exp' and task == 'age_by_band'")
    found = parts(read_run(run_folder), "band")
    assert (raw["n"] < 5).any()
    assert len(found) == (raw["n"] >= 5).sum()


def test_the_split_sheet_counts_what_pandas_counts(run_folder):
    table = read_table(run_folder / "table.parquet")
    second = table.head(7).assign(session_id="2")
    table = pd.concat([table, second.astype(table.dtypes)], ignore_index=True)
    data = split_sheet(table).data.set_index("group")
    train = table[table["split"] == "train"]
    assert data.loc["train", "scans"] == len(train) == 167
    assert data.loc["train", "people"] == 160
    assert data.loc["train", "F"] + data.loc["train", "M"] == 167
    assert data.loc["train", "age_sd"] == pytest.approx(np.std(train["age_years"], ddof=1))
    assert data.loc["all", "scans"] == len(table)


def test_a_site_of_few_people_keeps_its_counts_but_neither_sexes_nor_ages(run_folder):
    table = read_table(run_folder / "table.parquet")
    table.loc[:3, "site"] = "tiny"
    sheet = site_sheet(table)
    row = sheet.shown[sheet.shown["Site"] == "tiny"].iloc[0]
    assert row["People"] == "4"
    assert {row[name] for name in ("F", "M", "Age range", "Age, mean ± sd")} == {"–"}
    assert (
        sheet.data.loc[sheet.data["group"] == "tiny", ["F", "M", "age_mean", "age_min", "age_max"]]
        .isna()
        .all(axis=None)
    )
    assert "fewer than 5 people are not shown" in sheet.note
    assert "tiny" not in ages_by_site(table)["site"].tolist()


def test_dropped_reasons_are_counted_without_anything_that_names_a_person():
    dropped = pd.DataFrame({
        "participant_id": ["17", "18", "sub-A", "19", "Bob"],
        "path": ["a/17.npy", "a/18.npy", "a/A.npy", "19.npy", "b.npy"],
        "reason": [
            "age_years 999 is outside 0 to 120 years", "age_years -4 is outside 0 to 120 years",
            "exact duplicate of scan x/sub-A/1/1", "19: array 'deep 3' is flat", "Bob, 19 and 17: no file a/b.npy",
        ],
    })  # fmt: skip
    reasons = anonymous_reasons(dropped)
    assert reasons[0] == reasons[1] == "age_years … is outside 0 to 120 years"
    assert reasons[2] == "exact duplicate of scan …"
    for word in ("17", "18", "19", "Bob", "sub-A", "npy", "deep"):
        assert not any(word in reason for reason in reasons[2:])
    assert dropped_sheet(dropped).data["scans"].tolist() == [2, 1, 1, 1]


def test_a_number_that_every_row_shares_stays_in_the_reason():
    dropped = pd.DataFrame({"participant_id": ["a", "b"], "reason": ["Euler -300 below -217", "Euler -250 below -217"]})
    assert anonymous_reasons(dropped) == ["Euler … below -217"] * 2


def test_latex_has_booktabs_rules_one_line_a_row_and_escapes_everything():
    shown = pd.DataFrame({"Model": ["L^exp", "a_b & {c}"], "MAE (%)": [Cell("1", ("[0, 2]",)), "100 % \\ #~$"]})
    text = to_latex(Table("t", "Sites & scores_1", shown, shown))
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\begin{tabular}{lr}" in text
    assert r"$L^{\mathrm{exp}}$ & 1 [0, 2] \\" in text
    assert r"a\_b \& \{c\} & 100 \% \textbackslash{} \#\textasciitilde{}\$ \\" in text
    assert r"\caption{Sites \& scores\_1}" in text


def test_escaped_latex_has_no_character_that_latex_would_interpret():
    special = "&%$#_{}~^\\"
    escaped = escape_latex(special)
    for known in (r"\textasciitilde{}", r"\textasciicircum{}", r"\textbackslash{}", *(f"\\{c}" for c in "&%$#_{}")):
        escaped = escaped.replace(known, "", 1)
    assert escaped == ""


def test_csv_keeps_full_precision(tmp_path):
    data = pd.DataFrame({"x": [0.1234567890123]})
    write_files(Table("t", "T", data, data.map(str)), tmp_path)
    assert pd.read_csv(tmp_path / "t.csv")["x"][0] == 0.1234567890123
    assert (tmp_path / "t.tex").is_file()


def test_a_split_of_few_people_has_neither_sexes_nor_ages(run_folder):
    table = read_table(run_folder / "table.parquet")
    few = pd.concat([table[table["split"] != "val"], table[table["split"] == "val"].head(4)])
    sheet = split_sheet(few)
    assert sheet.data.set_index("group").loc["val", ["F", "M", "age_mean", "age_max"]].isna().all()
    assert sheet.shown.set_index("Split").loc["val", "People"] == "4"
    assert "fewer than 5 people" in sheet.note


def test_no_table_has_the_exact_age_of_the_youngest_or_oldest(run_folder):
    run = read_run(run_folder)
    exact = {float(age) for age in run.table["age_years"] if age % 1}
    for table in (split_sheet(run.table), site_sheet(run.table), headline(run)):
        numbers = table.data.select_dtypes("number").to_numpy().ravel()
        assert not exact & set(numbers[~np.isnan(numbers.astype(float))])


def test_the_age_range_of_few_people_is_not_shown(run_folder):
    frame = read_table(run_folder / "predictions.parquet")
    kept = (frame["split"] != "test_external") | (frame.groupby(["model", "split"]).cumcount() < 4)
    write_table(frame[kept], run_folder / "predictions.parquet")
    row = headline(read_run(run_folder)).data.iloc[0]
    assert np.isnan(row["age_external_max"])
    assert np.isfinite(row["age_internal_max"])


def test_ages_of_another_cohort_do_not_enter_the_age_range(run_folder):
    frame = read_table(run_folder / "predictions.parquet")
    other = frame.assign(cohort="other", age_years=99.0).astype(frame.dtypes)
    write_table(pd.concat([frame, other], ignore_index=True), run_folder / "predictions.parquet")
    assert headline(read_run(run_folder)).data["age_external_max"].max() < 90
