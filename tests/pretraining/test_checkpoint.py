"""A checkpoint is whole or absent, holds plain types, and says what it may be used for."""

from __future__ import annotations

import dataclasses
import errno
import shutil

import pytest
import torch

from brainage.config import training_values
from brainage.data.source import data_digest
from brainage.data.splits import age_histogram, seen_people
from brainage.data.table import person_keys
from brainage.errors import CheckpointError
from brainage.pretraining.checkpoint import (
    PAYLOAD,
    AtomicCheckpointIO,
    Payload,
    checkpoints,
    last_good,
    load_checkpoint,
    load_module,
    refuse_other_training,
)
from brainage.pretraining.folder import refuse_other_data
from tests.scans import SimulatedScans, small_experiment


@pytest.fixture
def written(finished, tmp_path):
    """A copy of the finished run's checkpoint that a test may damage."""
    return shutil.copy(finished[2].checkpoint, tmp_path / "step_00000012.ckpt")


def types_within(value) -> set[type]:
    if isinstance(value, dict):
        return {type(value)}.union(*(types_within(key) | types_within(item) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return {type(value)}.union(*map(types_within, value))
    return {type(value)}


def test_it_loads_without_running_code_and_holds_plain_types_only(finished):
    checkpoint = torch.load(finished[2].checkpoint, weights_only=True)
    checkpoint.pop("state_dict"), checkpoint.pop("optimizer_states")
    assert types_within(checkpoint) <= {dict, list, tuple, str, int, float, bool, type(None)}


def test_it_says_what_it_was_trained_on(finished):
    experiment, data, run = finished
    payload = Payload.from_dict(load_checkpoint(run.checkpoint)[PAYLOAD], run.checkpoint)
    train = data.table[data.table["split"] == "train"]
    assert payload.experiment == experiment
    assert payload.contract == data.contract
    assert payload.split_hash == data.split_hash
    assert payload.step == 12
    assert payload.seen == seen_people(train, payload.salt)
    assert len(payload.seen) == person_keys(train).nunique()
    assert payload.ages == age_histogram(train)
    assert payload.mlflow_run_id == ""  # tracking is off


def test_it_names_nobody(finished):
    _, data, run = finished
    text = run.checkpoint.read_bytes()
    assert b"test_external" not in text  # no rows of any split
    assert not [who for who in data.table["participant_id"] if who.encode() in text]


def test_the_module_comes_back_in_evaluation_mode_with_its_weights(finished):
    module, payload = load_module(finished[2].checkpoint)
    assert not module.training
    assert payload.step == 12
    state = load_checkpoint(finished[2].checkpoint)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_another_schema_is_refused(written):
    checkpoint = load_checkpoint(written)
    checkpoint[PAYLOAD]["schema_version"] = 2
    torch.save(checkpoint, written)
    with pytest.raises(CheckpointError, match="checkpoint schema 2, expected 1"):
        load_module(written)


@pytest.mark.parametrize("where", ["end", "middle", "empty"])
def test_a_torn_file_is_refused(written, where):
    data = bytearray(written.read_bytes())
    if where == "middle":
        data[len(data) // 2] ^= 0xFF  # one byte of the weights: only a check sum sees it
    written.write_bytes({"end": data[:-200], "middle": data, "empty": b""}[where])
    with pytest.raises(CheckpointError, match=r"step_00000012\.ckpt"):
        load_checkpoint(written)


def test_an_absent_file_and_somebody_elses_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not written by brainage"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_a_full_disk_leaves_the_old_file_and_no_half_one(written, monkeypatch):
    before = written.read_bytes()

    def full(checkpoint, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({}, written)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_another_configuration_is_refused_with_every_key_that_differs(finished):
    experiment, _, run = finished
    payload = Payload.from_dict(load_checkpoint(run.checkpoint)[PAYLOAD], run.checkpoint)
    refuse_other_training(run.checkpoint, payload, experiment)
    other = small_experiment("elsewhere", "optim.lr=0.5", "loss.name=yaware", "tracking.uri=sqlite:///x.db")
    with pytest.raises(CheckpointError) as refused:
        refuse_other_training(run.checkpoint, payload, other)
    assert "optim.lr (0.001, now 0.5)" in str(refused.value)
    assert "loss.name ('exp', now 'yaware')" in str(refused.value)
    named = [key for key in training_values(other) if f" {key} (" in str(refused.value)]
    assert named == ["loss.name", "optim.lr"]


def test_another_split_is_refused(finished):
    _, data, run = finished
    with pytest.raises(CheckpointError, match=r"trained on split 0000, the cohort's is "):
        refuse_other_data(run.checkpoint, data, "0000", data_digest(data))


def test_other_samples_or_ages_are_refused(finished):
    _, data, run = finished
    payload = Payload.from_dict(load_checkpoint(run.checkpoint)[PAYLOAD], run.checkpoint)
    refuse_other_data(run.checkpoint, data, payload.split_hash, payload.data_digest)
    older = SimulatedScans()
    older.table["age_years"] += 1.0
    for found in ("0" * 16, data_digest(older)):
        with pytest.raises(CheckpointError, match="trained on other samples or ages"):
            refuse_other_data(run.checkpoint, data, data.split_hash, found)


def test_a_payload_survives_its_plain_form(finished):
    payload = Payload.from_dict(load_checkpoint(finished[2].checkpoint)[PAYLOAD], finished[2].checkpoint)
    changed = dataclasses.replace(payload, step=7, mlflow_run_id="abc")
    assert Payload.from_dict(changed.to_dict(), finished[2].checkpoint) == changed


def test_the_newest_whole_checkpoint_is_found(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[2].folder, folder)
    newest, older = checkpoints(folder)
    assert last_good(folder) == (newest, {})
    newest.write_bytes(b"torn")
    path, torn = last_good(folder)
    assert path == older
    assert list(torn) == [newest]
    assert newest.name in torn[newest]
    older.unlink()
    assert last_good(folder)[0] is None
