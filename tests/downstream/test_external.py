"""Other tools' features: read by id whatever the spelling, judged by the code that judges our own, to the digit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainage.config import apply_overrides
from brainage.data.table import KEY, finish_table, read_table, read_tsv, scan_keys
from brainage.downstream.evaluate import evaluate
from brainage.downstream.evaluate_cohort import Judging
from brainage.downstream.external import UNKNOWN_TRAINING, judge_features, judge_stage
from brainage.downstream.feature_table import read_feature_table
from brainage.downstream.features import join, read_embeddings
from brainage.downstream.results import parts_of, read_results
from brainage.errors import ConfigError, DataError, LeakageError
from tests.downstream.test_evaluate import copy_of

NUMBERS = ["split", "task", "metric", "estimate", "low", "high", "n"]


def scans(*ids, **columns):
    """A table of (participant, session) scans of one cohort."""
    frame = pd.DataFrame(ids, columns=["participant_id", "session_id"]).assign(
        cohort="c", age_years=np.arange(len(ids)) + 30.0, path="x", **columns
    )
    return finish_table(frame, source="test").table


def written(folder, frame, name="features.csv"):
    path = folder / name
    if name.endswith(".parquet"):
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return path


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """(experiment, scans, results of evaluate(), folder, embeddings)."""
    experiment, data, folder = copy_of(finished, tmp_path_factory.mktemp("external"))
    experiment = apply_overrides(
        experiment, ["evaluate.losses=[]", "evaluate.baselines=[]", "evaluate.site_permutations=20"]
    )
    results = evaluate(experiment, data, folder)
    return experiment, data, results, folder, read_embeddings(folder / "embeddings" / "exp-seed0.parquet")


def as_columns(embeddings, keys=("participant_id",)):
    values = pd.DataFrame(embeddings.trunk.astype(float)).add_prefix("f")
    return pd.concat([embeddings.keys[list(keys)].reset_index(drop=True), values], axis=1)


def same_numbers(found, wanted, label):
    def rows(frame, name):
        own = frame[frame["run"] == name].reset_index(drop=True)
        return own[NUMBERS].assign(parts=[str(parts_of(note)) for note in own["note"]])

    pd.testing.assert_frame_equal(rows(found, label), rows(wanted, "exp"), check_exact=True)
    assert len(rows(found, label)) > 20


@pytest.mark.parametrize("name", ["theirs.csv", "theirs.tsv", "theirs.parquet"])
def test_exported_embeddings_get_the_numbers_that_their_network_got(evaluated, tmp_path, name):
    experiment, data, results, _, embeddings = evaluated
    shuffled = as_columns(embeddings).sample(frac=1, random_state=1)
    path = written(tmp_path, shuffled, name)
    features = read_feature_table(path, data.table, label="tool")
    np.testing.assert_array_equal(join(features, data.table), embeddings.trunk)
    if name == "theirs.csv":
        found = judge_stage(experiment, data, path, "tool", tmp_path / "out")
        same_numbers(found, results, "tool")
        pd.testing.assert_frame_equal(read_results(tmp_path / "out" / "results.csv"), found)
        own = found[found["run"] == "tool"]
        assert own["note"].str.endswith(UNKNOWN_TRAINING).all()
        assert set(found["run"]) == set(results["run"]) - {"exp"} | {"tool"}
        for file in ("evaluation.yaml", "predictions.parquet", "gaps.parquet", "dropped.tsv"):
            assert (tmp_path / "out" / file).is_file()
        assert read_table(tmp_path / "out" / "gaps.parquet")["model"].unique().tolist() == ["tool"]


def test_a_file_of_our_own_embeddings_remembers_whom_its_network_saw(evaluated, tmp_path):
    experiment, data, results, folder, _ = evaluated
    path = folder / "embeddings" / "exp-seed0.parquet"
    features = read_feature_table(path, data.table, label="tool")
    assert features.seen.sum() == (data.table["split"] == "train").sum()
    found = judge_features(experiment, data, features, tmp_path / "out")
    same_numbers(found, results, "tool")
    assert not found["note"].str.contains(UNKNOWN_TRAINING).any()
    as_other = apply_overrides(experiment, ["evaluate.age_fitted_on=cohort"])
    with pytest.raises(LeakageError):  # everybody would be judged, people of train too
        judge_features(as_other, data, features, tmp_path / "all")


def test_another_cohort_is_judged_whole_as_a_network_is(evaluated, tmp_path):
    experiment, data, _, folder, embeddings = evaluated
    experiment = apply_overrides(experiment, ["evaluate.age_fitted_on=cohort"])
    features = read_feature_table(written(tmp_path, as_columns(embeddings)), data.table, label="tool")
    found = judge_features(experiment, data, features, tmp_path / "out")
    judging = Judging(experiment, data, folder, tmp_path / "network")
    judging.model("exp", [0], lambda _: (features.__class__(**(vars(features) | {"label": "exp"})), {}))
    same_numbers(found, judging.write(), "tool")
    assert found.loc[found["task"] == "age", "split"].unique().tolist() == ["test_external"]
    assert found.loc[found["run"] == "tool", "note"].str.endswith(UNKNOWN_TRAINING).all()
    assert len(read_table(tmp_path / "out" / "predictions.parquet")) == len(data.table)


def test_scans_without_a_vector_are_left_out_counted_and_listed(evaluated, tmp_path):
    experiment, data, results, _, embeddings = evaluated
    tested = data.table[data.table["split"] == "test_external"]
    gone = scan_keys(embeddings.keys) == scan_keys(tested).iloc[0]
    features = read_feature_table(written(tmp_path, as_columns(embeddings)[~gone.to_numpy()]), data.table, label="tool")
    found = judge_features(experiment, data, features, tmp_path / "out")
    assert found["note"].str.contains("1 of 40 scans have no vector and are left out, 1 people with them").all()

    def n(frame, run):
        rows = frame[(frame["run"] == run) & (frame["split"] == "test_external") & (frame["task"] == "age")]
        return rows[rows["metric"] == "mae_years"]["n"].iloc[0]

    assert n(found, "tool") == n(results, "exp") - 1
    dropped = read_tsv(tmp_path / "out" / "dropped.tsv")
    assert dropped["participant_id"].tolist() == [tested["participant_id"].iloc[0]]
    assert dropped["reason"].str.contains("no vector").all()


def test_too_few_scans_with_a_vector_are_refused(evaluated, tmp_path):
    experiment, data, _, _, embeddings = evaluated
    splits = data.table.set_index("participant_id")["split"]
    train = as_columns(embeddings).loc[lambda f: f["participant_id"].map(splits) == "train"]
    features = read_feature_table(written(tmp_path, train), data.table, label="tool")
    with pytest.raises(DataError, match=r"tool: 0 of the \d+ scans in \w+ have a vector; expected 50% or more"):
        judge_features(experiment, data, features, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_folder_is_not_written_over(evaluated, tmp_path):
    experiment, data, _, folder, embeddings = evaluated
    features = read_feature_table(written(tmp_path, as_columns(embeddings)), data.table, label="tool")
    with pytest.raises(ConfigError, match="a run folder"):
        judge_features(experiment, data, features, folder)


@pytest.mark.parametrize("label", ["mean_predictor", "tool-seed1", "a/b", "", "a b"])
def test_a_label_that_results_cannot_bear_is_refused_before_the_file_is_read(evaluated, tmp_path, label):
    experiment, data, *_ = evaluated
    with pytest.raises(ConfigError, match="--label"):
        judge_stage(experiment, data, tmp_path / "absent.csv", label, tmp_path / "out")


def test_features_that_are_all_equal_are_an_error_and_no_folder(evaluated, tmp_path):
    experiment, data, _, _, embeddings = evaluated
    flat = as_columns(embeddings)[["participant_id"]].assign(f0=1.0, f1=2.0)
    features = read_feature_table(written(tmp_path, flat), data.table, label="tool")
    with pytest.raises(DataError, match="collapsed"):
        judge_features(experiment, data, features, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["sub-A1", "SUB-b2"], ["a1", "B2"]),  # case and prefix
        (["7", "0012"], ["007", "12"]),  # zeros, on either side
        (["IXI2", "IXI12"], ["IXI002", "IXI012"]),  # within a word
        (["12", "012"], ["012", "12"]),  # both spellings are people of their own: exact ones win
    ],
)
def test_ids_join_whatever_their_spelling(tmp_path, theirs, ours):
    table = scans(*((one, pd.NA) for one in ours))
    path = written(tmp_path, pd.DataFrame({"Participant_ID": theirs, "v": [1.0, 2.0]}))
    features = read_feature_table(path, table, label="t")
    found = dict(zip(features.keys["participant_id"], features.values[:, 0], strict=True))
    wanted = [2.0, 1.0] if theirs[1] == ours[0] else [1.0, 2.0]
    assert [found[one] for one in ours] == wanted


def test_zeros_that_would_make_two_people_one_are_kept(tmp_path, capsys):
    table = scans(("0012", pd.NA), ("012", pd.NA), ("3", pd.NA))
    path = written(tmp_path, pd.DataFrame({"participant_id": ["12", "03"], "v": [1.0, 2.0]}))
    features = read_feature_table(path, table, label="t")
    assert features.keys["participant_id"].tolist() == ["3"]
    assert "1 of 2 rows are of no scan of the cohort, first '12'" in capsys.readouterr().err
    both = written(tmp_path, pd.DataFrame({"participant_id": ["03", "003", "0012"], "v": [1.0, 2.0, 4.0]}))
    features = read_feature_table(both, table, label="t")
    assert features.keys["participant_id"].tolist() == ["0012"]


def test_sessions_join_by_their_own_column(tmp_path):
    table = scans(("1", "M00"), ("1", "M12"), ("2", "M00"))
    frame = pd.DataFrame({"participant_id": [1, 1, 2], "session_id": ["ses-M12", "ses-m0", "M00"], "v": [1.0, 2, 3]})
    features = read_feature_table(written(tmp_path, frame), table, label="t")
    assert features.values[:, 0].tolist() == [2, 1, 3]
    assert features.keys[KEY].equals(table[KEY])


def test_an_unused_session_column_does_no_harm(tmp_path):
    table = scans(("1", pd.NA), ("2", pd.NA))
    frame = pd.DataFrame({"participant_id": [2, 1], "session_id": ["x", "x"], "v": [1.0, 2.0]})
    assert read_feature_table(written(tmp_path, frame), table, label="t").values[:, 0].tolist() == [2, 1]


def test_a_list_column_is_read_as_the_vector(tmp_path):
    frame = pd.DataFrame({"participant_id": ["2", "1"], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    features = read_feature_table(written(tmp_path, frame, "v.parquet"), scans(("1", pd.NA), ("2", pd.NA)), label="t")
    assert features.values.tolist() == [[3, 4], [1, 2]]


GOOD = pd.DataFrame({"participant_id": ["1", "2", "3"], "a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]})


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (GOOD.assign(participant_id=["x", "y", "z"]), r"none of its 3 rows joins .*3 scans by participant_id: 'x'"),
        (GOOD.rename(columns={"participant_id": "who"}), "column 'participant_id' missing; found who, a, b"),
        (GOOD.assign(participant_id=["1", "2", "sub-2"]), "1 scans have more than one row by participant_id"),
        (GOOD.assign(b=["left", "1", "x"]), "column 'b': expected numbers, found 2 of 3 cells of text"),
        (GOOD.assign(b=[np.nan, 1, np.inf]), r"1 of 2 columns hold NaN.*'b' in 2 of 3 rows"),
        (GOOD.assign(b=[1e300, 1, 1]), r"1 of 2 columns hold NaN"),
        (GOOD.assign(Age=[1, 2, 3]), "column 'Age' is a fact about the scan"),
        (GOOD.assign(split=1), "column 'split' is a fact"),
        (GOOD.reset_index().rename(columns={"index": ""}), "a column without a name"),
        (GOOD[["participant_id"]], "no column of features"),
        (GOOD.iloc[:0], "no rows"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_judged_is_refused_with_the_reason(tmp_path, frame, said):
    table = scans(("1", pd.NA), ("2", pd.NA), ("3", pd.NA))
    with pytest.raises(DataError, match=said):
        read_feature_table(written(tmp_path, frame), table, label="t")


def test_one_row_for_several_scans_of_a_person_asks_for_the_session(tmp_path):
    table = scans(("1", "a"), ("1", "b"), ("2", "a"))
    with pytest.raises(DataError, match="1 ids stand for several scans each, first '1'; add a column session_id"):
        read_feature_table(written(tmp_path, GOOD.iloc[:2]), table, label="t")


@pytest.mark.parametrize(
    ("name", "said"), [("absent.csv", "file not found"), ("table.xlsx", "expected a file that ends in .csv")]
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, said):
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(DataError, match=said):
        read_feature_table(tmp_path / name, scans(("1", pd.NA)), label="t")


def test_lists_of_several_lengths_are_refused(tmp_path):
    frame = pd.DataFrame({"participant_id": ["1", "2"], "vector": [[1.0, 2.0], [3.0]]})
    with pytest.raises(DataError, match="vectors of one length"):
        read_feature_table(written(tmp_path, frame, "v.parquet"), scans(("1", pd.NA)), label="t")
