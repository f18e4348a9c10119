"""Nobody whom an encoder was trained on is scored, whichever way one comes: unless asked for by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from brainage.config import EvaluateConfig, apply_overrides, run_folder
from brainage.data.folds import write_folds
from brainage.data.splits import (
    apply_split,
    carve_val,
    draw_split,
    read_split,
    refuse_seen,
    seen_people,
    was_seen,
)
from brainage.data.table import PERSON, person_keys
from brainage.downstream.age import evaluate_age
from brainage.downstream.embed import embed
from brainage.downstream.evaluate import evaluate
from brainage.downstream.features import Features, read_embeddings, write_embeddings
from brainage.downstream.site import evaluate_site
from brainage.errors import CheckpointError, ConfigError, LeakageError
from brainage.evaluation_stages import run_experiment
from brainage.pretraining.checkpoint import PAYLOAD, checkpoints, load_checkpoint, load_module
from brainage.pretraining.run import pretrain
from data_modules.cohort import CohortDataModule
from tests.scans import VectorCohort, small_experiment

SALT = "pepper"
ASKED = "evaluate.allow_seen=true"


class FoldScans(CohortDataModule):
    """The vector cohort under the split of a file."""

    def __init__(self, experiment, split: Path, store: Path) -> None:
        config = dataclasses.replace(
            experiment.data, root=str(store.parent), store=str(store), split=str(split), prepare_workers=1
        )
        super().__init__(config, reader=VectorCohort(config.root, "vbm"), seed=experiment.seed)


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory):
    """(experiment, scans of fold 0, scans of fold 1, run folder of fold 0); to be read only."""
    base = tmp_path_factory.mktemp("folds")
    table = VectorCohort(str(base), "vbm").table().table
    fold = functools.partial(draw_split, table, external_sites=[], internal_fraction=0.2, seed=0, folds=2)
    splits = [
        carve_val(fold(fold=k, stratify=["age", "site"]), fraction=0.1, seed=0, table=table, stratify=["age", "site"])
        for k in range(2)
    ]
    index = write_folds(table, base / "splits", splits)
    overrides = ["data.external_sites=[]", "evaluate.losses=[]", "evaluate.baselines=[]"]
    experiment = small_experiment(base / "runs", *overrides, f"data.split={base / 'splits' / index['file'][0]}")
    scans = [FoldScans(experiment, base / "splits" / name, base / "store") for name in index["file"]]
    return experiment, *scans, pretrain(experiment, scans[0]).folder


@pytest.fixture
def copied(two_folds, tmp_path):
    experiment, first, second, folder = two_folds
    shutil.copytree(folder, tmp_path / folder.name)
    return dataclasses.replace(experiment, runs=str(tmp_path)), first, second, tmp_path / folder.name


def scored(data) -> pd.DataFrame:
    return data.table[data.table["split"].isin(["test_internal", "test_external"])]


def trained(data) -> pd.DataFrame:
    return data.table[data.table["split"] == "train"]


def test_the_folds_are_the_trap_they_should_be(two_folds):
    _, first, second, folder = two_folds
    seen = set(person_keys(trained(first)))
    assert len(seen & set(person_keys(scored(second)))) == len(seen) > 10  # the other fold's test is this one's train
    assert not seen & set(person_keys(scored(first)))
    payload = load_module(checkpoints(folder)[0])[1]
    assert sorted(seen_people(trained(first), payload.salt)) == payload.seen
    assert payload.split_hash == first.split_hash != second.split_hash


def test_the_fold_a_run_was_trained_on_is_scored(copied):
    experiment, first, _, folder = copied
    results = evaluate(experiment, first, folder)
    assert np.isfinite(results.loc[results["metric"] == "mae_years", "estimate"]).any()


def test_another_folds_scans_are_refused_for_their_split(copied):
    experiment, _, second, folder = copied
    for overrides in ([], [ASKED]):
        with pytest.raises(CheckpointError, match="people or splits changed"):
            evaluate(apply_overrides(experiment, overrides), second, folder)
    assert not (folder / "results.csv").exists()


def pass_for(data, folder: Path) -> None:
    """Make a run folder say that it was trained on this split: what is left is who the checkpoint says it saw."""
    marker = folder / "finished.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"split_hash": data.split_hash}))
    for path in checkpoints(folder):
        checkpoint = load_checkpoint(path)
        checkpoint[PAYLOAD]["split_hash"] = data.split_hash
        torch.save(checkpoint, path)


def test_another_folds_checkpoint_passed_off_as_this_ones_is_refused_for_its_people(copied):
    experiment, first, second, folder = copied
    pass_for(second, folder)
    people = person_keys(scored(second)).nunique()
    known = person_keys(trained(first)).nunique()
    with pytest.raises(LeakageError, match=rf"exp-seed0 .*: {known} of {people} people were trained on"):
        evaluate(experiment, second, folder)
    assert not (folder / "results.csv").exists()
    assert not (folder / "embeddings").exists()
    evaluate(apply_overrides(experiment, [ASKED]), second, folder)
    assert (folder / "results.csv").exists()


def test_embeddings_kept_from_an_allowed_evaluation_are_refused_in_the_next(copied):
    experiment, _, second, folder = copied
    pass_for(second, folder)
    evaluate(apply_overrides(experiment, [ASKED]), second, folder)
    (folder / "results.csv").unlink()
    with pytest.raises(LeakageError, match="people were trained on"):
        evaluate(experiment, second, folder)
    kept = read_embeddings(folder / "embeddings" / "exp-seed0.parquet")
    with pytest.raises(LeakageError, match=r"exp .*: .* people were trained on"):
        probes(kept.features("trunk", "exp", 0), second.table)


def probes(features: Features, table: pd.DataFrame, **config) -> None:
    options = {"cohort": "vectors", "config": EvaluateConfig(bootstrap=20, **config), "seed": 0}
    evaluate_age(features, table, **options)
    evaluate_site(features, table, limited=True, **options)


def test_a_file_of_embeddings_is_not_scored_on_people_its_network_was_trained_on(two_folds, tmp_path):
    _, first, second, folder = two_folds
    module, payload = load_module(checkpoints(folder)[0])
    found = embed(module, second, np.arange(len(second.table)))
    seen = was_seen(second.table, payload.seen, payload.salt)
    write_embeddings(tmp_path / "x.parquet", found.keys, found.trunk, found.head, seen=seen)
    written = read_embeddings(tmp_path / "x.parquet")
    assert set(person_keys(written.keys[written.seen])) == set(person_keys(trained(first)))
    for part in ("trunk", "head"):
        features = written.features(part, "exp", 0)
        probes(features, first.table)  # its own fold
        with pytest.raises(LeakageError, match=r"exp \(seed 0\): \d+ of \d+ people were trained on"):
            probes(features, second.table)
        with pytest.raises(LeakageError, match=r"exp \(seed 0\): \d+ of \d+ people were trained on"):
            evaluate_site(features, second.table, cohort="vectors", config=EvaluateConfig(), seed=0)
        probes(features, second.table, allow_seen=True)


def test_another_split_file_with_the_same_people_is_refused(two_folds, tmp_path):
    """A split of one's own, in which a single person moved from train to a test."""
    _, first, _, folder = two_folds
    module, payload = load_module(checkpoints(folder)[0])
    found = embed(module, first, np.arange(len(first.table)))
    seen = was_seen(first.table, payload.seen, payload.salt).to_numpy()
    features = Features("exp", 0, found.keys, found.trunk, "trunk", seen)
    split = read_split(first.config.split)
    who = split.index[split["split"] == "train"][3]
    split.loc[who, "split"] = "test_external"
    table = apply_split(first.table, split)
    with pytest.raises(LeakageError, match=rf": 1 of {len(scored(first)) + 1} people"):
        probes(features, table)
    other_scan = table[PERSON].eq(split.loc[who, PERSON]).all(axis=1)
    visit = table.assign(session_id=table["session_id"].mask(other_scan, "another visit"))
    known = was_seen(visit, payload.seen, payload.salt)
    assert known[other_scan].all()  # a person is known by whatever scan


@pytest.mark.parametrize("override", ["data.split=other.tsv", "data.split_seed=1", "data.external_sites=[site1]"])
def test_the_command_line_keeps_the_split_of_a_run(two_folds, override):
    experiment, *_, folder = two_folds
    assert run_folder(experiment) == folder
    with pytest.raises(ConfigError, match="pretrain another run instead"):
        run_experiment(folder, [override])
    assert run_experiment(folder, [ASKED]).evaluate.allow_seen


def people(cohort: str, *ids: str, **columns) -> pd.DataFrame:
    return pd.DataFrame({"cohort": cohort, "participant_id": list(ids), **columns}).astype("string")


def test_a_person_is_known_by_each_name_in_another_cohort():
    openbhb = people("openbhb", "17", "18", "19", person_elsewhere=["ixi/IXI002;gsp/S1", None, ""])
    seen = seen_people(openbhb, SALT)
    assert len(seen) == 5
    ixi = people("ixi", "IXI002", "IXI003")
    assert was_seen(ixi, seen, SALT).tolist() == [True, False]
    gsp = people("gsp", "S1", "S1", "S2", session_id=["1", "2", "1"])
    with pytest.raises(LeakageError, match="report: 1 of 2 people"):
        refuse_seen(gsp, seen, SALT, allow=False, context="report")
    renamed = people("mine", "A", "B", person_elsewhere=["x/9; openbhb/18", None])
    assert was_seen(renamed, seen, SALT).tolist() == [True, False]
    assert not was_seen(people("mixed", "17", "IXI002"), seen, SALT).any()  # an id alone is no person
    refuse_seen(renamed, seen, SALT, allow=True, context="report")
