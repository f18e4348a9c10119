"""The simulated BIDS dataset, read back: the planted truth, and what the layout leaves out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from brainage.imaging.simulate import BrainSimulator
from brainage.imaging.simulated_people import scans
from data_modules.bids import BIDS
from data_modules.check import assert_cohort
from data_modules.simulated.bids import MODALITIES, path_of, wide_sessions, write_bids
from data_modules.volumes import prepared_contract

SMALL = {"subjects": 9, "seed": 3, "spacing_mm": 8.0, "workers": 1}
REGIONS = {"table_file": "derivatives/regions.tsv"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_bids(tmp_path_factory.mktemp("bids") / "long", modalities=tuple(MODALITIES), **SMALL)


def truth_of(root):
    table = pd.read_csv(root / "simulation" / "truth.tsv", sep="\t", dtype={"participant_id": str, "session_id": str})
    return table.set_index(["participant_id", "session_id"]).sort_index()


def by_session(table):
    return table.set_index(["participant_id", "session_id"]).sort_index()


def reader_of(root, modality, **options):
    return BIDS(root, modality, 0.0 if modality in ("vbm", "quasiraw", "roi") else 8.0, options or None)


def check_truth(table, truth):
    pd.testing.assert_index_equal(table.index, truth.index, exact=False)
    for name in ("site", "sex", "diagnosis"):
        assert table[name].tolist() == truth[name].tolist()
    np.testing.assert_allclose(table["age_years"], truth["age_years"], atol=1e-9)
    np.testing.assert_allclose(table["visit_years"], truth["visit_years"], atol=0.6 / 365.25)
    np.testing.assert_array_equal(table["mmse"], truth["mmse"])


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_table_is_the_planted_truth_and_the_battery_passes(cohort, modality, tmp_path):
    reader = reader_of(cohort, modality, **(REGIONS if modality == "roi" else {}))
    table, truth = reader.table().table, truth_of(cohort)
    check_truth(by_session(table), truth[truth["scanned"] & truth["in_tables"]])
    assert_cohort(reader, tmp_path, scans=3)


def test_what_is_left_out_is_what_the_writer_left_out(cohort):
    truth = truth_of(cohort)
    dropped = reader_of(cohort, "head").table().dropped.fillna("")
    missed = truth[~truth["scanned"] & truth["in_tables"]].index
    unlisted = truth[~truth["in_tables"] & truth["scanned"]].index
    twice = truth[truth["two_runs"] & truth["scanned"] & truth["in_tables"]].index
    found = {reason: set(zip(rows["participant_id"], rows["session_id"], strict=True))
             for reason, rows in dropped.groupby("reason")}  # fmt: skip
    never = set(truth.index[~truth["scanned"].groupby(level=0).transform("any")].get_level_values(0))
    assert found == {
        "in the tables, but there is no scan of this session": {key for key in missed if key[0] not in never},
        "no row in the table of people": set(unlisted),
        "not the first scan of its session (data.options.one_run)": set(twice),
    }
    assert reader_of(cohort, "head").without_scan() == sorted(never)
    assert len(reader_of(cohort, "head", one_run=False).table().table) == len(
        reader_of(cohort, "head").table().table
    ) + (len(twice))


def test_people_without_images_are_the_longitudinal_table(cohort):
    table, dropped = reader_of(cohort, "head").people()
    truth = truth_of(cohort)
    check_truth(by_session(table), truth[truth["in_tables"]])
    assert len(dropped) == 0


def test_waves_in_columns_give_the_table_that_sessions_tsv_gives(cohort, tmp_path):
    wide = write_bids(tmp_path / "wide", wide=True, **SMALL)
    options = {"sessions": wide_sessions(2)}
    pd.testing.assert_frame_equal(
        reader_of(wide, "head", **options).table().table, reader_of(cohort, "head").table().table
    )
    tables = [reader.people().table.drop(columns="path") for reader in
              (reader_of(wide, "head", **options), reader_of(cohort, "head"))]  # fmt: skip
    pd.testing.assert_frame_equal(*tables)
    assert not list(wide.rglob("*_sessions.tsv"))


def test_images_are_what_the_simulator_made_under_the_contract_of_other_cohorts(cohort):
    simulator = BrainSimulator(8.0, seed=3)
    someone = scans(truth_of(cohort).reset_index())[2]
    for modality, expected in (("vbm", simulator.grey_matter(someone)), ("quasiraw", simulator.t1(someone))):
        reader = reader_of(cohort, modality)
        np.testing.assert_allclose(reader.read(path_of(someone, modality))[0], expected, rtol=1e-6)
        contract = prepared_contract(modality, simulator.shape, simulator.affine, "simulator")
        assert contract.differences(reader.contract()) == []
    native = reader_of(cohort, "brain").read(path_of(someone, "brain"))[0]
    assert native.shape == reader_of(cohort, "brain").contract().shape[1:]
    assert native.max() > 1.0


def test_sidecars_name_the_scanner(cohort):
    table = reader_of(cohort, "head", sidecars=True).table().table
    assert table.groupby("site")["manufacturer"].unique().map(list).to_dict() == {
        "Northtown": ["Siemens"], "Southport": ["GE"], "Westbridge": ["Philips"]
    }  # fmt: skip
    assert set(table.loc[table["site"] == "Southport", "field_tesla"]) == {1.5}


def test_a_finished_cohort_is_left_alone_and_an_interrupted_one_completed_to_the_same_bytes(cohort, tmp_path):
    class StopError(Exception):
        pass

    def stop(done, total):
        raise StopError

    with pytest.raises(StopError):
        write_bids(tmp_path / "again", modalities=tuple(MODALITIES), on_progress=stop, **SMALL)
    assert not (tmp_path / "again" / "participants.tsv").exists()
    again = write_bids(tmp_path / "again", modalities=tuple(MODALITIES), **SMALL)
    contents = [
        {f.relative_to(root): f.read_bytes() for f in root.rglob("*") if f.is_file()} for root in (cohort, again)
    ]
    assert contents[0] == contents[1]
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    write_bids(again, modalities=tuple(MODALITIES), **SMALL)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before
    with pytest.raises(DataError, match="visits: asked 3, found 2"):
        write_bids(again, modalities=tuple(MODALITIES), visits=3, **SMALL)


@pytest.mark.parametrize(
    ("wrong", "word"), [({"modalities": ("heads",)}, "did you mean 'head'"), ({"subjects": 3}, "expected 8 or more")]
)
def test_impossible_requests_leave_nothing_behind(tmp_path, wrong, word):
    with pytest.raises(ConfigError, match=word):
        write_bids(tmp_path / "none", **SMALL | wrong)
    assert not (tmp_path / "none").exists()
