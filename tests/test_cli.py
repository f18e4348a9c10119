"""The command line: one clear line for every bad input, plans that write nothing, verbs that keep nothing."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from brainage import cli
from brainage.config import run_folder
from brainage.data.store import ArrayStore
from brainage.data.table import read_tsv
from brainage.pretraining.run import pretrain
from data_modules.cohort import CohortDataModule
from tests.data_modules.small_ixi import write_images, write_sheet
from tests.scans import VectorCohort, small_experiment

GREY = "preproc-cat12vbm_desc-gm_T1w.npy"
HERE = ("data.prepare_workers=1", "data.store=store")
SMALL = """
base: openbhb_exp
data: {modality: vbm_roi, batch_size: 8, workers: 0, intensity: standardise, prepare_workers: 1, store: store}
augment: {flip_p: 0, affine_p: 0, blur_p: 0, noise_p: 1}
encoder: {name: mlp, hidden: [16], head_dim: 8}
trainer: {epochs: 2, precision: fp32, accelerator: cpu, threads: 1, progress: false}
tracking: {enabled: false}
"""
COMMANDS = typer.main.get_command(cli.app).commands
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cohort(simulated, tmp_path):
    """A copy of the simulated cohort that may be damaged: 36 people, grey matter maps and their regions."""
    unread = shutil.ignore_patterns("*quasiraw_T1w.npy", "*freesurfer*.npy", "simulation")
    return Path(shutil.copytree(simulated, tmp_path / "openbhb", ignore=unread))


@pytest.fixture
def small(cohort, tmp_path):
    """An experiment on the cohort: an MLP on 284 regional volumes."""
    (tmp_path / "small.yaml").write_text(SMALL + f"runs: {tmp_path / 'runs'}\n", encoding="utf-8")
    return "small.yaml", "--data", str(cohort)


def maps(cohort: Path) -> list[Path]:
    return sorted(cohort.rglob(f"*{GREY}"))


def person_of(file: Path) -> str:
    return file.name.split("_")[0].removeprefix("sub-")


def edit_sheet(cohort: Path, edit) -> pd.DataFrame:
    sheet = pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str)
    sheet = edit(sheet)
    sheet.to_csv(cohort / "participants.tsv", sep="\t", index=False)
    return sheet


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder with its time stamp."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def options(name: str) -> set[str]:
    return {word for parameter in COMMANDS[name].params for word in parameter.opts}


def splits_of(out: str) -> dict[str, int]:
    """Split -> scans, as the plan prints them."""
    lines = [line.split(":", 1) for line in out.splitlines() if " scans of " in line]
    return {name.strip(): int(words.split()[0]) for name, words in lines}


# --- the commands themselves


def test_help_and_the_list_of_experiments_do_not_wait_for_torch():
    script = (
        "import sys; from brainage import cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "slow = {'torch', 'lightning', 'mlflow', 'matplotlib', 'nilearn', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    for words in (["--help"], ["pretrain", "--help"], ["experiments"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_every_command_and_every_option_says_what_it_is_for(command):
    overview = command("--help").out
    for name, one in COMMANDS.items():
        if one.hidden:  # of the processes that brainage starts itself
            continue
        assert one.help
        assert f" {name} " in overview
        for parameter in one.params:
            assert parameter.help, f"brainage {name}: {parameter.name} has no help"
        assert "Usage: " in command(name, "--help").out


@pytest.mark.parametrize("name", ["simulate", "prepare", "pretrain", "evaluate", "embed", "demo"])
def test_every_long_command_can_be_planned_first(name):
    assert "--dry-run" in options(name)


@pytest.mark.parametrize("name", ["prepare", "pretrain", "embed", "demo"])
def test_commands_that_read_whole_cohorts_can_be_limited(name):
    assert "--limit" in options(name)


def test_the_shipped_experiments_are_listed_with_what_they_do(command):
    done = command("experiments")
    assert done.code == 0
    assert "openbhb_exp " in done.out
    assert "L^exp on OpenBHB grey matter" in done.out


def test_a_defect_of_brainage_keeps_its_traceback(command, monkeypatch):
    monkeypatch.setattr("brainage.config.shipped_experiments", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["brainage", "experiments"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some and run the same command again"), (errno.EACCES, "runs=DIR")]
)
def test_a_disk_that_is_full_or_closed_anywhere_is_one_line(command, monkeypatch, number, remedy):
    def full():
        raise OSError(number, os.strerror(number), "/somewhere/metrics.jsonl")

    monkeypatch.setattr("brainage.config.shipped_experiments", full)
    line = command("experiments").refusal()
    assert "/somewhere/metrics.jsonl" in line
    assert os.strerror(number) in line
    assert remedy in line


def test_doctor_fails_only_when_something_stands_in_the_way(command, monkeypatch):
    from brainage import doctor

    assert command("doctor").code == 0
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Finding("disk", "fail", "full", "free some")])
    failed = command("doctor")
    assert failed.code == 1
    assert "fail  disk: full -> free some" in failed.out


# --- bad input: keys and folders


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pretrain", "openbhb_ex"), "did you mean 'openbhb_exp'"),
        (("pretrain", "openbhb_exp", "loss.sigma_yeras=4"), "did you mean 'loss.sigma_years'"),
        (("pretrain", "openbhb_exp", "loss.name=expp"), "did you mean 'exp'"),
        (("pretrain", "openbhb_exp", "data.batch_size=many"), "data.batch_size"),
        (("pretrain", "openbhb_exp"), "data.root=DIR (DATA=DIR)"),
        (("prepare", "openbhb_exp", "--data", "nowhere"), "folder 'nowhere' not found"),
        (("prepare", "openbhb_exp", "--data", "007"), "folder '007' not found"),  # not YAML's number seven
        (("prepare", "openbhb_exp", "data.cohort=openbbh"), "did you mean 'openbhb'"),
        (("prepare", "ixi_volumes_smoke", "data.modality=brian"), "did you mean 'brain'"),
        (("evaluate", "nowhere"), "nowhere: no such folder"),
        (("embed", "nowhere", "--out", "x.parquet"), "nowhere: no such folder"),
        (("report", "nowhere"), "nowhere"),
        (("sync", "nowhere"), "nowhere"),
        (("simulate", "--out", "x", "--layout", "openbhd"), "did you mean 'openbhb'"),
        (("simulate", "--out", "x", "--modalities", "vmb"), "did you mean 'vbm'"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_what_does_not_exist_is_named_with_the_nearest_that_does_and_nothing_is_written(command, tmp_path, words, said):
    assert said in command(*words).refusal()
    assert not list(tmp_path.iterdir())


def test_a_typo_in_a_file_names_the_file(command, small, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL + "loss: {nmae: exp}\n", encoding="utf-8")
    assert "small.yaml: unknown key 'loss.nmae'; did you mean 'loss.name'" in command("pretrain", *small).refusal()


def test_a_refusal_in_a_process_of_its_own_has_no_traceback_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "brainage.cli", "pretrain", "openbhb_exp", "loss.nmae=exp"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: override 'loss.nmae=exp': unknown key 'loss.nmae'; did you mean 'loss.name'?\n"


# --- bad input: tables


def test_a_missing_column_is_named_with_the_file_and_the_nearest_column(command, cohort):
    edit_sheet(cohort, lambda sheet: sheet.rename(columns={"age": "aeg"}))
    line = command("prepare", "openbhb_exp", "--data", cohort).refusal()
    assert "participants.tsv: column 'age' missing" in line
    assert "did you mean 'aeg'" in line


def test_impossible_ages_and_repeated_rows_are_left_out_visibly_and_listed(command, cohort, tmp_path):
    def spoil(sheet):
        sheet.loc[[0, 1, 2], "age"] = ["NaN", "-4", "999"]
        return pd.concat([sheet, sheet.iloc[[5]]])

    sheet = edit_sheet(cohort, spoil)
    spoilt = set(sheet["participant_id"].iloc[:3])
    done = command("prepare", "openbhb_exp", "--data", cohort, *HERE)
    assert done.code == 0
    assert sum(splits_of(done.out).values()) == 33
    assert "dropped: 4" in done.out
    (line,) = done.warnings()
    assert "4 scans left out (0 damaged, 0 by data.exclude, 4 " in line
    store, listed = ArrayStore.open(tmp_path / "store"), read_tsv(tmp_path / "store" / "dropped.tsv")
    assert len(store) == 33
    assert not spoilt & set(store.table["participant_id"])
    reasons = listed.set_index("participant_id")["reason"]
    assert set(reasons.index) == spoilt | {sheet["participant_id"].iloc[5]}
    assert sorted(reasons[list(spoilt)]) == [
        "age_years -4 is outside 0 to 120 years", "age_years 999 is outside 0 to 120 years", "age_years missing",
    ]  # fmt: skip
    assert reasons[sheet["participant_id"].iloc[5]].startswith("exact duplicate of scan openbhb/")


def test_two_rows_of_one_scan_that_differ_are_refused_with_their_values(command, cohort, tmp_path):
    def clash(sheet):
        return pd.concat([sheet, sheet.iloc[[0]].assign(age="33.3")])

    person = edit_sheet(cohort, clash)["participant_id"].iloc[0]
    line = command("prepare", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert f"scan openbhb/{person}/1/ has 2 rows that differ in age_years" in line
    assert not (tmp_path / "store").exists()


def test_a_person_in_two_published_splits_is_refused_by_name(command, cohort, tmp_path):
    def leak(sheet):
        trained = sheet[sheet["split"] == "train"].iloc[[0]]
        return pd.concat([trained.assign(split="internal_test"), sheet])

    person = edit_sheet(cohort, leak)["participant_id"].iloc[0]
    line = command("pretrain", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert person in line
    assert not (tmp_path / "store").exists()


def test_a_person_in_two_splits_of_a_split_file_is_refused_by_file_and_name(command, small, cohort, tmp_path):
    people = read_tsv(cohort / "participants.tsv")["participant_id"]
    split = pd.DataFrame({"cohort": "openbhb", "participant_id": people, "split": "train"})
    split = pd.concat([split, split.iloc[[3]].assign(split="test_internal")])
    split.to_csv(tmp_path / "mine.tsv", sep="\t", index=False)
    line = command("pretrain", *small, "data.split=mine.tsv").refusal()
    assert f"mine.tsv: person openbhb/{people[3]} is in test_internal and train" in line
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "runs").exists()


def test_a_split_file_that_forgets_people_is_refused_instead_of_losing_them(command, small, cohort, tmp_path):
    people = read_tsv(cohort / "participants.tsv")["participant_id"]
    split = pd.DataFrame({"cohort": "openbhb", "participant_id": people, "split": "train"})
    split.iloc[:-2].to_csv(tmp_path / "mine.tsv", sep="\t", index=False)
    assert "2 people of the table are not in the split" in command("prepare", *small, "data.split=mine.tsv").refusal()


# --- bad input: arrays


def test_truncated_and_misshapen_arrays_are_left_out_visibly_and_listed(command, cohort, tmp_path):
    torn, misshapen, gone, *_ = files = maps(cohort)
    torn.write_bytes(torn.read_bytes()[:-100])
    np.save(misshapen, np.load(misshapen)[..., :-1])
    gone.unlink()
    done = command("prepare", "openbhb_exp", "--data", cohort, *HERE)
    assert done.code == 0
    (line,) = done.warnings()
    assert "3 scans left out (2 damaged, 0 by data.exclude, 1 " in line
    assert "dropped.tsv" in line
    assert f"{person_of(torn)}: damaged: {torn}" in line or f"{person_of(misshapen)}: damaged: {misshapen}" in line
    listed = read_tsv(tmp_path / "store" / "dropped.tsv").set_index("participant_id")["reason"]
    assert set(listed.index) == {person_of(torn), person_of(misshapen), person_of(gone)}
    assert str(torn) in listed[person_of(torn)]
    assert "found (1, 1, 23, 28, 22)" in listed[person_of(misshapen)]
    assert listed[person_of(gone)] == "file not found"
    assert len(ArrayStore.open(tmp_path / "store")) == len(files) - 3
    again = command("prepare", "openbhb_exp", "--data", cohort, *HERE)
    assert again.warnings() == done.warnings()  # also when the store is only opened


def test_a_cohort_of_which_nothing_can_be_read_is_refused_and_leaves_no_store(command, cohort, tmp_path):
    for file in maps(cohort):
        file.write_bytes(b"\x93NUMPY")
    line = command("prepare", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert "none of 36 scans could be read; first openbhb/" in line
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.building").exists()


def test_a_truncated_nifti_is_left_out_visibly_and_listed(command, tmp_path):
    root = write_sheet(write_images(tmp_path / "ixi"))
    torn = next(root.glob("IXI015-*.nii.gz"))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    done = command("prepare", "ixi_volumes_smoke", "--data", root, *HERE, "data.spacing_mm=12")
    assert done.code == 0, done.err
    (line,) = done.warnings()
    assert "1 scans left out (1 damaged, 0 by data.exclude, 0 " in line
    assert "IXI015" in line
    assert torn.name in line
    assert len(ArrayStore.open(tmp_path / "store")) == 3


# --- bad input: disks, locks, servers


def test_a_disk_too_small_for_the_store_is_refused_before_anything_is_read(command, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("brainage.data.store.shutil.disk_usage", lambda place: Usage(10, 10, 1000))
    line = command("prepare", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert "36 samples" in line
    assert "name another disk with data.store=DIR" in line
    assert not (tmp_path / "store").exists()


def test_a_disk_that_runs_full_while_preparing_is_refused_and_the_rerun_goes_on(command, cohort, tmp_path, monkeypatch):
    written = os.pwrite
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", full)
        line = command("prepare", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert "no space left" in line
    assert "what is done is kept" in line
    assert not (tmp_path / "store").exists()
    assert command("prepare", "openbhb_exp", "--data", cohort, *HERE).code == 0
    store = ArrayStore.open(tmp_path / "store")
    assert len(store) == 36
    assert store.verify() == []


def test_a_second_process_preparing_the_same_store_is_refused_with_the_number_of_the_first(command, cohort, tmp_path):
    with open(tmp_path / "store.lock", "w", encoding="utf-8") as lock:
        lock.write("4711 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = command("prepare", "openbhb_exp", "--data", cohort, *HERE).refusal()
    assert "process 4711 on elsewhere is preparing it; wait" in line
    assert not (tmp_path / "store").exists()


def test_a_server_that_is_away_costs_one_warning_and_no_training(command, small, tmp_path):
    words = ("tracking.enabled=true", "tracking.uri=http://127.0.0.1:9")
    done = command("pretrain", *small, *words)
    assert done.code == 0, done.err
    (line,) = done.warnings()
    assert "MLflow at http://127.0.0.1:9 cannot be used now" in line
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "finished.json").is_file()
    assert f"`brainage sync {run}` delivers it later" in done.err.replace("\n", "")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("encoder.name=resnet18", "resnet18"),
        ("augment.flip_p=0.5", "set augment.flip_p=0"),
        ("trainer.devices=9", "a batch of 8 scans for 9 devices"),
        ("trainer.precision=fp16", "fp16"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_hours_of_preparation(command, small, tmp_path, word, said):
    assert said in command("pretrain", *small, word).refusal()
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "runs").exists()


# --- plans, limits, quick verbs


def test_plans_write_nothing_and_show_people_batches_disk_memory_and_time(command, small, cohort, tmp_path):
    before = tree(tmp_path)
    for words in (
        ("simulate", "--out", tmp_path / "new", "--dry-run"),
        ("demo", "--dry-run"),
        ("prepare", *small, "--dry-run"),
    ):
        assert command(*words).code == 0
        assert tree(tmp_path) == before
    plan = command("pretrain", *small, "--dry-run")
    assert plan.code == 0
    assert tree(tmp_path) == before
    assert sum(splits_of(plan.out).values()) == 36
    for fact in (
        "people",
        "GiB, to be prepared",
        "an epoch of 16 samples",
        "GiB to train",
        "time: about",
        "runs/small-",
    ):
        assert fact in plan.out


def test_a_finished_run_is_planned_embedded_and_found_again_but_never_retrained_by_evaluate(command, small, tmp_path):
    assert command("pretrain", *small).code == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = tree(tmp_path)
    for words in (("evaluate", run, "--dry-run"), ("embed", run, "--out", "e.parquet", "--dry-run")):
        assert command(*words).code == 0
        assert tree(tmp_path) == before
    line = command("evaluate", run, "loss.sigma_years=7").refusal()
    assert "loss.sigma_years=7.0" in line
    assert "pretrain another run instead" in line
    line = command("embed", run, "--out", "e.parquet", "data.modality=vbm").refusal()
    assert "modality: expected 'cat12vbm_roi', found 'cat12vbm_gm'" in line
    assert tree(tmp_path) == before
    assert "finished before, nothing to train" in command("pretrain", *small).out
    done = command("embed", run, "--out", "e.parquet", "--limit", "2", "data.store=few")
    assert done.code == 0, done.err
    assert len(pd.read_parquet("e.parquet")) == 2 * len(splits_of(done.out))


def test_a_limit_keeps_the_first_scans_of_every_split(command, small, tmp_path):
    done = command("prepare", *small, "--limit", "3")
    splits = splits_of(done.out)
    assert splits["train"] == splits["test_internal"] == splits["test_external"] == 3
    assert len(ArrayStore.open(tmp_path / "store")) == sum(splits.values())


def test_fast_dev_run_goes_through_and_keeps_nothing_but_the_store(command, small, tmp_path):
    done = command("pretrain", *small, "trainer.fast_dev_run=true")
    assert done.code == 0, done.err
    assert "nothing was kept" in done.out
    assert not (tmp_path / "runs").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"openbhb", "small.yaml", "store", "store.lock"}


def test_overfit_batches_reaches_a_low_loss_in_a_run_folder_of_its_own(tmp_path):
    words = (
        "trainer.overfit_batches=1", "trainer.epochs=200", "loss.name=l1", "augment.noise_p=0", "augment.views=1",
        "optim.lr=0.01", "optim.schedule=constant", "checkpoint.every_steps=1000", "health.every_steps=50",
    )  # fmt: skip
    experiment = small_experiment(tmp_path / "runs", *words)
    config = dataclasses.replace(experiment.data, root=str(tmp_path), store=str(tmp_path / "store"), prepare_workers=1)
    batches = experiment.trainer.overfit_batches
    data = CohortDataModule(config, reader=VectorCohort(tmp_path, "vbm"), overfit_batches=batches)
    run = pretrain(experiment, data)
    lines = [json.loads(line)["metrics"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 200  # one batch an epoch
    assert losses[-1] < 0.2 * losses[0]
    assert run.folder.name != run_folder(small_experiment(tmp_path / "runs", *words[1:])).name
