"""The commands around cohorts: layouts written, checked, inspected, split, sharded, mixed, and people who withdraw."""

from __future__ import annotations

import pandas as pd
import pytest

from brainage.config import load_experiment
from brainage.data.array_store import ArrayStore
from brainage.data.splits import read_split, split_hash
from brainage.data.table import read_tsv
from data_modules.cohort import CohortDataModule
from data_modules.simulated import LAYOUTS

SMALL = """
base: openbhb_exp
data: {batch_size: 4, workers: 0, prepare_workers: 1, store: store, intensity: zscore}
encoder: {name: resnet18, width: 0.05}
trainer: {epochs: 1, precision: fp32, accelerator: cpu, threads: 1, progress: false}
tracking: {enabled: false}
"""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A folder with a small cohort of each layout that the tests below read."""
    folder = tmp_path_factory.mktemp("layouts")
    for name in ("adni", "ukb", "oasis3", "ixi"):
        modalities = {} if name == "ukb" else {"modalities": ("brain",)}
        LAYOUTS[name](folder / name, subjects=24, seed=2, spacing_mm=8.0, workers=1, **modalities)
    return folder


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL + f"runs: {tmp_path / 'runs'}\n", encoding="utf-8")
    return "small.yaml"


def brains(layouts, name: str) -> list[str]:
    return [f"data.root={layouts / name}", f"data.cohort={name}", "data.modality=brain", "data.spacing_mm=8"]


def mixed(layouts, *names: str) -> list[str]:
    words = ["data.cohort=mixture"]
    for name in names:
        key = f"data.members.{name}"
        words += [f"{key}.root={layouts / name}", f"{key}.modality=brain", f"{key}.spacing_mm=8"]
    return words


def test_a_layout_takes_what_only_it_knows_and_names_the_nearest_of_what_it_does_not(command, tmp_path):
    words = ("simulate", "--layout", "adni", "--out", tmp_path / "adni", "--subjects", "10", "--spacing-mm", "8")
    assert "did you mean 'form'" in command(*words, "--with", "frm=bids").refusal()
    assert "expected key=value" in command(*words, "--with", "bids").refusal()
    assert "did you mean 'oasis3'" in command("simulate", "--layout", "oasis", "--out", "x").refusal()
    done = command(*words, "--with", "form=bids")
    assert done.code == 0, done
    assert (tmp_path / "adni" / "simulation" / "truth.tsv").is_file()
    assert list((tmp_path / "adni").rglob("derivatives"))


@pytest.mark.parametrize("name", ["adni", "ukb", "oasis3"])
def test_every_cohort_is_planned_prepared_and_sent_through_one_batch(command, layouts, small, name):
    words = [small, *brains(layouts, name)]
    if name == "ukb":
        words = [small, f"data.root={layouts / name}", "data.cohort=ukb", "data.modality=brain_mni"]
    planned = command("pretrain", *words, "--dry-run")
    assert planned.code == 0, planned
    assert "scans of" in planned.out
    done = command("pretrain", *words, "trainer.fast_dev_run=true")
    assert done.code == 0, done
    store = ArrayStore.open("store")
    assert len(store) > 20
    assert store.dropped["reason"].notna().all()


def test_a_mixture_is_checked_member_by_member_and_trained_as_one(command, layouts, small):
    words = [small, *mixed(layouts, "oasis3", "ixi")]
    checked = command("check", *words)
    assert checked.code == 0, checked
    assert [line for line in checked.out.splitlines() if line.endswith(":")] == ["oasis3:", "ixi:"]
    overrides = ["data.store=auto", "data.balance=cohort", "data.stratify=[age]", "trainer.fast_dev_run=true"]
    done = command("pretrain", *words, *overrides)
    assert done.code == 0, done
    assert "oasis3 " in done.out
    assert "overlap: 0 people in more than one cohort" in done.out
    refused = command("pretrain", *words, "data.members.ixi.spacing_mm=9").refusal()
    assert "members oasis3 and ixi are different kinds of input" in refused


def test_the_files_of_split_are_the_folds_that_runs_draw(command, layouts, small, tmp_path):
    words = [small, *brains(layouts, "ixi"), "data.folds=3", "data.stratify=[age]"]
    done = command("split", *words, "--out", "folds")
    assert done.code == 0, done
    index = read_tsv(tmp_path / "folds" / "folds.tsv")
    for fold, file, digest in index[["fold", "file", "split_hash"]].itertuples(index=False):
        experiment = load_experiment(str(tmp_path / small), [*words[1:], f"data.fold={fold}"])
        assert CohortDataModule(experiment.data).split_hash == digest
        assert split_hash(read_split(tmp_path / "folds" / file)) == digest
    assert "of other folds" in command("split", *words, "data.split_seed=1", "--out", "folds").refusal()
    assert command("split", small, *brains(layouts, "ixi"), "--out", "one").code == 0
    assert read_split(tmp_path / "one" / "split.tsv")["split"].nunique() > 1


def test_shards_say_what_is_missing_and_prepare_merges_them(command, layouts, small, tmp_path):
    words = [small, *brains(layouts, "ixi")]
    assert "missing: 1" in command("prepare", *words, "--shard", "2/2").out
    assert "missing: 1/2" in command("prepare", *words).refusal()
    assert "missing: none" in command("prepare", *words, "--shard", "1/2").out
    assert command("prepare", *words).code == 0
    assert command("prepare", *words, "data.store=whole").code == 0
    assert (tmp_path / "store" / "arrays.npy").read_bytes() == (tmp_path / "whole" / "arrays.npy").read_bytes()
    assert "expected i/n with i from 1 to n" in command("prepare", *words, "--shard", "3/2").refusal()


def test_exclusion_is_by_rule_listed_and_a_word_that_fits_nobody_is_said(command, layouts, small, tmp_path):
    words = [small, *brains(layouts, "ixi")]
    rules = ["data.exclude=['age_years > 60','qc_mean_corr < 0.99','site == Gys']"]
    done = command("prepare", *words, *rules)
    assert done.code == 0, done
    assert any("site == Gys matches none" in line for line in done.warnings())
    dropped = read_tsv(tmp_path / "store.kept" / "dropped.tsv")
    ruled = dropped["reason"].str.startswith("excluded by data.exclude: ")
    assert dropped["reason"][ruled].str.contains("age_years > 60").any()
    assert dropped["reason"][ruled].str.contains("qc_mean_corr < 0.99").any()
    assert "did you mean 'age_years'" in command("prepare", *words, "data.exclude=['age_year > 60']").refusal()


def test_a_rule_on_a_column_that_one_member_lacks_leaves_that_member_alone(command, layouts, small, tmp_path):
    words = [small, *mixed(layouts, "oasis3", "ixi"), "data.store=mix", "data.exclude=['diagnosis_detail != x']"]
    done = command("prepare", *words)
    assert done.code == 0, done
    dropped = read_tsv(tmp_path / "mix" / "dropped.tsv")
    ruled = dropped["reason"].str.startswith("excluded by data.exclude: ")
    assert set(dropped["cohort"][ruled]) == {"oasis3"}


def test_inspect_leaves_a_data_sheet_beside_the_store(command, layouts, small, tmp_path):
    done = command("inspect", small, *brains(layouts, "ixi"))
    assert done.code == 0, done
    assert "scans flagged; none is left out but by data.exclude" in done.out
    assert (tmp_path / "store.sheet" / "data_sheet.html").is_file()
    assert (tmp_path / "store" / "quality.parquet").is_file()


def test_people_who_withdraw_leave_the_store_and_the_cohort_opens_it_again(command, layouts, small, tmp_path):
    words = [small, f"data.root={layouts / 'ukb'}", "data.cohort=ukb", "data.modality=brain_mni"]
    assert command("prepare", *words).code == 0
    person = ArrayStore.open("store").table["participant_id"].iloc[0]
    later = tmp_path / "w1_later.csv"
    later.write_text(f"{person}\n", encoding="utf-8")
    known = [str(path) for path in (layouts / "ukb").glob("w*.csv")]
    assert known
    words.append(f"data.options.withdrawn={[*known, str(later)]}")
    refused = command("prepare", *words).refusal()
    assert "who withdrew" in refused
    assert "brainage withdraw" in refused
    done = command("withdraw", later, "--store", "store")
    assert "store rewritten without" in done.out, done
    assert "nothing held any of" in command("withdraw", later, "--store", "store").out
    assert command("prepare", *words).code == 0
    assert person not in set(ArrayStore.open("store").table["participant_id"])
    assert "expected --store DIR or --run DIR" in command("withdraw", later).refusal()


def test_features_of_another_tool_are_judged_and_what_does_not_join_is_named(command, simulated, tmp_path):
    table = pd.read_csv(simulated / "participants.tsv", sep="\t")
    features = table[["participant_id"]].assign(a=table["age"] * 2.0, b=range(len(table)))
    features.to_csv(tmp_path / "tool.csv", index=False)
    words = ["demo", "--data", simulated, "--out", tmp_path / "judged", "evaluate.bootstrap=20"]
    done = command("judge", tmp_path / "tool.csv", *words, "evaluate.site_permutations=5")
    assert done.code == 0, done.err
    results = (tmp_path / "judged" / "results.csv").read_text()
    assert "tool,openbhb,test_external,age,mae_years" in results
    features.assign(participant_id="nobody").to_csv(tmp_path / "other.csv", index=False)
    done = command("judge", tmp_path / "other.csv", *words)
    assert done.code == 2
    assert "nobody" in done.err
