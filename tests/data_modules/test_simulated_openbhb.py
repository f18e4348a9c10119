"""The written layout, as somebody who knows only the published description would check it."""

import errno
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from brainage.imaging.simulate import BrainSimulator
from brainage.imaging.simulated_people import scans
from data_modules.openbhb import OpenBHB
from data_modules.simulated.openbhb import MODALITIES, write_openbhb
from data_modules.simulated.openbhb_challenge import write_openbhb_challenge
from data_modules.simulated.writing import worker_count

SMALL = {"subjects": 40, "seed": 3, "spacing_mm": 8.0}
FILES = {
    "vbm": "preproc-cat12vbm_desc-gm_T1w.npy",
    "quasiraw": "preproc-quasiraw_T1w.npy",
    "vbm_roi": "preproc-cat12vbm_desc-gm_ROI.npy",
    "desikan": "preproc-freesurfer_desc-desikan_ROI.npy",
    "destrieux": "preproc-freesurfer_desc-destrieux_ROI.npy",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_openbhb(tmp_path_factory.mktemp("openbhb") / "all", modalities=tuple(MODALITIES), **SMALL)


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    return write_openbhb_challenge(tmp_path_factory.mktemp("openbhb") / "flat", **SMALL)


def read(path):
    return pd.read_csv(path, sep="\t")


def truth_of(root):
    return pd.read_csv(
        root / "simulation" / "truth.tsv", sep="\t", dtype={"participant_id": str, "session_id": str, "site": str}
    )


def file_of(root, row, modality):
    side = "train" if row.split == "train" else "val"
    who = f"sub-{row.participant_id}"
    return root / side / "derivatives" / who / "ses-1" / f"{who}_{FILES[modality]}"


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.npy"))}


def test_tables_have_the_published_columns_and_vocabulary(cohort):
    people, quality = read(cohort / "participants.tsv"), read(cohort / "qc.tsv")
    assert set(people) == {
        "participant_id", "study", "sex", "age", "site", "diagnosis", "tiv", "csfv", "gmv", "wmv",
        "magnetic_field_strength", "acquisition_setting", "siteXacq", "split",
    }  # fmt: skip
    assert set(quality) == {"participant_id", "reconall-euler", "cat12vbm-ncr", "cat12vbm-iqr", "quasiraw-corr"}
    assert len(people) == len(quality) == 40
    assert people["participant_id"].dtype.kind == "i"
    assert people["participant_id"].is_unique
    assert set(people["sex"]) == {"male", "female"}
    assert set(people["diagnosis"]) == {"control"}
    assert people["tiv"].between(1000, 2200).all()
    assert np.allclose(people["tiv"], people[["csfv", "gmv", "wmv"]].sum(axis=1), atol=0.01)


def test_external_sites_are_unseen_and_internal_ones_are_seen_in_train(cohort):
    people = read(cohort / "participants.tsv")
    sites = people.groupby("split")["siteXacq"].agg(set)
    assert sites["internal_test"] <= sites["train"]
    assert not sites["external_test"] & sites["train"]
    assert people.loc[people["split"] == "train", "siteXacq"].value_counts().min() >= 8
    assert people["split"].value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize("modality", FILES)
def test_every_person_has_an_array_of_the_published_kind(cohort, modality):
    shape = {"vbm_roi": (1, 1, 284), "desikan": (1, 7, 68), "destrieux": (1, 7, 148)}.get(modality)
    for row in read(cohort / "participants.tsv").itertuples():
        array = np.load(file_of(cohort, row, modality))
        assert array.shape == (shape or (1, 1, 23, 28, 23))
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_arrays_are_las_as_the_templates_say_and_put_the_right_frontal_excess_at_positive_x(cohort):
    template = nib.load(cohort / "resource" / "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz")
    brain = nib.load(cohort / "resource" / "quasiraw_space-MNI152_desc-brain_T1w.nii.gz")
    assert nib.aff2axcodes(template.affine) == nib.aff2axcodes(brain.affine) == ("L", "A", "S")
    assert template.shape == brain.shape == (23, 28, 23)
    x, y, _ = np.moveaxis(
        nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1)), -1, 0
    )
    for row in read(cohort / "participants.tsv").head(10).itertuples():
        grey = np.load(file_of(cohort, row, "vbm"))[0, 0]
        frontal = grey[(y > 25) & (x > 12)].sum() / grey[(y > 25) & (x < -12)].sum()
        occipital = grey[(y < -80) & (x > 12)].sum() / grey[(y < -80) & (x < -12)].sum()
        assert frontal > 1.05 * occipital


def test_the_reader_returns_what_the_simulator_made_in_ras(cohort):
    reader, simulator = OpenBHB(cohort, "vbm"), BrainSimulator(8.0, seed=3)
    np.testing.assert_allclose(reader.contract().affine, simulator.affine)
    paths = reader.table().table.set_index("participant_id")["path"]
    for who in scans(truth_of(cohort))[:5]:
        np.testing.assert_array_equal(reader.read(paths[who.participant_id])[0], simulator.grey_matter(who))


def test_neither_processes_nor_an_interruption_change_a_byte(cohort, tmp_path):
    class InterruptionError(Exception):
        pass

    def interrupt(done, total):
        assert total == 40
        if done >= 16:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        write_openbhb(tmp_path / "again", modalities=tuple(MODALITIES), workers=1, on_progress=interrupt, **SMALL)
    partly = contents(tmp_path / "again")
    assert 0 < len(partly) < 200
    assert not (tmp_path / "again" / "participants.tsv").exists()
    again = write_openbhb(tmp_path / "again", modalities=tuple(MODALITIES), workers=2, **SMALL)
    assert contents(again) == contents(cohort)
    for name in ("participants.tsv", "qc.tsv", "simulation/truth.tsv"):
        assert (again / name).read_bytes() == (cohort / name).read_bytes()
    assert not list(again.rglob(".*"))  # no temporary file is left


def test_a_finished_cohort_is_left_alone_and_another_is_refused(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    calls = []
    write_openbhb(cohort, modalities=tuple(MODALITIES), on_progress=lambda *counts: calls.append(counts), **SMALL)
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before
    with pytest.raises(DataError, match="seed: asked 4, found 3"):
        write_openbhb(cohort, modalities=tuple(MODALITIES), **SMALL | {"seed": 4})


def test_a_folder_with_other_content_is_never_written_into(tmp_path):
    (tmp_path / "participants.tsv").write_text("somebody's real data")
    with pytest.raises(DataError, match="holds no simulated cohort"):
        write_openbhb(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["participants.tsv"]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_openbhb(tmp_path / "file" / "cohort", **SMALL)


def test_a_full_disk_stops_with_one_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(file, array):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_openbhb(tmp_path / "cohort", **SMALL)
    assert not list(tmp_path.rglob("*.npy"))


def test_impossible_requests_leave_nothing_behind(tmp_path):
    for wrong, word in (
        ({"modalities": ("vmb",)}, "did you mean 'vbm'"),
        ({"subjects": 5}, "subjects=5"),
        ({"spacing_mm": 50.0}, "spacing_mm=50"),
    ):
        with pytest.raises(ConfigError, match=word):
            write_openbhb(tmp_path / "none", **SMALL | wrong)
    assert not (tmp_path / "none").exists()


def test_truth_is_kept_apart(cohort):
    truth = truth_of(cohort)
    assert {"acceleration_years", "biological_age_years", "disease_severity"} <= set(truth)
    assert truth["acceleration_years"].std() == pytest.approx(3.0, rel=0.4)
    assert json.loads((cohort / "simulation" / "parameters.json").read_text())["finished"] is True
    assert "No reader" in (cohort / "simulation" / "README.txt").read_text()
    table = OpenBHB(cohort, "vbm").table().table
    assert not {"acceleration_years", "biological_age_years", "disease_severity"} & set(table)


def test_the_flat_form_holds_the_same_people_inside_the_masks(cohort, challenge):
    masks = {
        "vbm": nib.load(challenge / "resource" / "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz").get_fdata() > 0.05,
        "quasiraw": nib.load(challenge / "resource" / "quasiraw_space-MNI152_desc-brain_T1w.nii.gz").get_fdata() > 0,
    }
    sizes = [masks["vbm"].sum(), masks["quasiraw"].sum(), 8 * 163842, 284, 476, 1036]
    starts = dict(
        zip(("vbm", "quasiraw", "xhemi", "vbm_roi", "desikan", "destrieux"), np.cumsum([0, *sizes]), strict=False)
    )
    people, truth = read(cohort / "participants.tsv"), truth_of(challenge)
    for split in ("train", "internal_test", "external_test"):
        rows, table = np.load(challenge / f"{split}.npy", mmap_mode="r"), read(challenge / f"{split}.tsv")
        assert list(table) == ["age", "site", "split"]
        assert rows.shape == (len(table), sum(sizes))
        assert set(table["split"]) == {split}
        order = truth.loc[truth["split"] == split, "participant_id"].astype("int64").tolist()
        expected = people.set_index("participant_id").loc[order]
        np.testing.assert_allclose(table["age"], expected["age"])
        np.testing.assert_array_equal(table["site"], expected["siteXacq"])
        row = people.set_index("participant_id", drop=False).loc[order[-1]]
        for modality in FILES:
            array = np.load(file_of(cohort, row, modality))
            values = array[0, 0][masks[modality]] if modality in masks else array.ravel()
            block = rows[-1, starts[modality] : starts[modality] + len(values)]
            np.testing.assert_array_equal(block, values)


def test_a_long_job_gets_the_cores_that_this_process_may_use_and_not_those_of_the_machine(monkeypatch):
    monkeypatch.setattr("data_modules.simulated.writing.allowed_cores", lambda: 3)
    assert worker_count(0, 1, (8, 8, 8)) == 1
    assert worker_count(0, 1000, (100, 100, 100)) == 3
    assert worker_count(5, 1, (8, 8, 8)) == 5
