import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from brainage.data.splits import (
    age_histogram,
    apply_split,
    carve_val,
    draw_split,
    read_split,
    refuse_leakage,
    refuse_seen,
    seen_people,
    split_hash,
    write_split,
)
from brainage.data.table import PERSON, finish_table
from brainage.errors import ConfigError, DataError, LeakageError

SALT = "pepper"


def people(n: int, scans: int = 1, cohort: str = "simulated") -> pd.DataFrame:
    rows = [
        (cohort, f"p{i:04d}", str(s), f"site{i % 5}", 20.0 + i % 50, f"{i}-{s}") for i in range(n) for s in range(scans)
    ]
    raw = pd.DataFrame(rows, columns=["cohort", "participant_id", "session_id", "site", "age_years", "path"])
    return finish_table(raw, source="test").table


def draw(table: pd.DataFrame, seed: int = 0, fraction: float = 0.2) -> pd.DataFrame:
    return draw_split(table, external_sites=["site4"], internal_fraction=fraction, seed=seed)


def as_dict(split: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(row.cohort, row.participant_id): row.split for row in split.itertuples()}


def test_people_of_an_external_site_are_external_and_nobody_else_is():
    table = people(200, scans=2)
    applied = apply_split(table, draw(table))
    assert ((applied["split"] == "test_external") == (applied["site"] == "site4")).all()


def test_somebody_scanned_at_an_external_and_another_site_is_external_with_every_scan():
    table = people(10, scans=2)
    table.loc[table.index[0], "site"] = "site4"  # p0000's other scan stays at site0
    split = as_dict(draw(table))
    assert split["simulated", "p0000"] == "test_external"


def test_a_site_of_which_nobody_is_left_in_train_is_external():
    table = people(300)
    in_test = next(row.participant_id for row in draw(table).itertuples() if row.split == "test_internal")
    in_train = next(row.participant_id for row in draw(table).itertuples() if row.split == "train")
    for alone, expected in ((in_test, "test_external"), (in_train, "train")):
        lonely = table.assign(site=table["site"].mask(table["participant_id"] == alone, "a site of one"))
        assert as_dict(draw(lonely)) == as_dict(draw(table)) | {("simulated", alone): expected}
    unknown = table.assign(site=table["site"].mask(table["participant_id"] == in_test, pd.NA))
    assert as_dict(draw(unknown)) == as_dict(draw(table))  # no site is not another site


def test_adding_and_removing_people_never_moves_the_others():
    few = carve_val(draw(people(300)), fraction=0.1, seed=3)
    many_people = pd.concat([people(900), people(100, cohort="other")], ignore_index=True)
    many = carve_val(draw(many_people.sample(frac=1, random_state=0)), fraction=0.1, seed=3)
    assert as_dict(few).items() <= as_dict(many).items()


def test_shares_are_within_four_standard_errors():
    table = people(5000)
    split = draw(table, fraction=0.2)
    eligible = split[split["split"] != "test_external"]
    assert len(eligible) == 4000
    assert abs((eligible["split"] == "test_internal").mean() - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5
    train = (split["split"] == "train").sum()
    carved = carve_val(split, fraction=0.1, seed=0)
    assert abs((carved["split"] == "val").sum() / train - 0.1) < 4 * (0.1 * 0.9 / train) ** 0.5


def test_val_is_carved_out_of_train_only():
    split = draw(people(500))
    carved = carve_val(split, fraction=0.5, seed=1)
    moved = split["split"] != carved["split"]
    assert moved.any()
    assert set(split.loc[moved, "split"]) == {"train"}
    assert set(carved.loc[moved, "split"]) == {"val"}


def test_val_and_the_internal_test_are_drawn_independently_with_one_seed():
    table = people(4000)
    train = draw(table, fraction=0.5)
    val = carve_val(train, fraction=0.5, seed=0)
    share = (val["split"] == "val").sum() / (train["split"] == "train").sum()
    assert 0.45 < share < 0.55  # one hash for both would take none, or all


def test_the_draw_is_the_same_in_another_process_and_differs_by_seed():
    table = people(60)
    code = (
        "import sys; sys.path.insert(0, 'tests/data/..')\n"
        "from tests.data.test_splits import draw, people\n"
        "from brainage.data.splits import split_hash\n"
        "print(split_hash(draw(people(60))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == split_hash(draw(table))
    assert split_hash(draw(table, seed=1)) != other


def test_the_draw_of_a_seed_is_pinned_for_good():
    split = carve_val(draw(people(12)), fraction=0.3, seed=0)
    train, val, internal, external = "train", "val", "test_internal", "test_external"
    assert split["split"].tolist() == [
        *(train, internal, train, train, external, train),
        *(internal, internal, train, external, val, val),
    ]


def test_holding_out_every_site_is_refused():
    with pytest.raises(DataError, match="0 of 10 people are left for train"):
        draw_split(people(10), external_sites=[f"site{i}" for i in range(5)], internal_fraction=0.2, seed=0)


def test_fractions_of_zero_leave_nobody_behind():
    table = people(50)
    split = carve_val(draw(table, fraction=0.0), fraction=0.0, seed=0)
    assert set(split["split"]) == {"train", "test_external"}


def test_a_val_of_everybody_is_refused():
    split = draw_split(people(1), external_sites=[], internal_fraction=0.0, seed=0)
    with pytest.raises(DataError, match="val would be all 1 people of train"):
        carve_val(split, fraction=0.999, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ConfigError, match="val_fraction"):
        carve_val(draw(people(10)), fraction=share, seed=0)


def test_an_unknown_external_site_is_refused_with_the_nearest_one():
    with pytest.raises(DataError, match=r"'sitee4'.*did you mean 'site4'"):
        draw_split(people(10), external_sites=["sitee4"], internal_fraction=0.2, seed=0)


def test_a_person_absent_from_the_split_is_refused_with_the_number():
    table = people(10, scans=2)
    split = draw(table).iloc[:7]
    with pytest.raises(DataError, match=r"3 people.*first simulated/p0007"):
        apply_split(table, split)


def test_a_subject_in_two_splits_is_refused_and_named():
    table = people(10, scans=2)
    split = draw(table)
    other = "val" if split["split"].iloc[2] == "train" else "train"
    leaking = pd.concat([split, split.iloc[[2]].assign(split=other)])
    for door in (lambda: apply_split(table, leaking), lambda: split_hash(leaking), lambda: refuse_leakage(leaking)):
        with pytest.raises(LeakageError, match="simulated/p0002"):
            door()
    applied = apply_split(table, split)
    refuse_leakage(applied)
    applied.loc[applied.index[5], "split"] = other
    with pytest.raises(LeakageError, match="simulated/p0002"):
        refuse_leakage(applied)


def test_the_same_id_in_two_cohorts_is_two_people():
    table = pd.concat([people(3, cohort="a"), people(3, cohort="b")], ignore_index=True)
    table["split"] = pd.Series(["train"] * 3 + ["test_internal"] * 3, dtype="string")
    refuse_leakage(table)
    assert not set(seen_people(table[:3], SALT)) & set(seen_people(table[3:], SALT))


def test_the_hash_depends_on_who_is_where_and_not_on_row_order():
    split = draw(people(40))
    assert split_hash(split) == split_hash(split.sample(frac=1, random_state=1))
    assert len(split_hash(split)) == 16
    moved = split.copy()
    moved.loc[0, "split"] = "val"
    assert split_hash(moved) != split_hash(split)


def test_a_split_survives_its_file(tmp_path):
    split = draw(people(30))
    write_split(split.sample(frac=1, random_state=2), tmp_path / "split.tsv")
    pd.testing.assert_frame_equal(read_split(tmp_path / "split.tsv"), split)


def test_a_split_file_with_a_wrong_name_or_without_a_column_is_refused_with_its_path(tmp_path):
    path = tmp_path / "split.tsv"
    path.write_text("cohort\tparticipant_id\tsplit\na\t1\tinternal\n")
    with pytest.raises(DataError, match=r"split\.tsv: person a/1: split 'internal'.*test_internal"):
        read_split(path)
    path.write_text("cohort\tparticipant\tsplit\na\t1\ttrain\n")
    with pytest.raises(DataError, match=r"split\.tsv: column 'participant_id' missing"):
        read_split(path)


def test_people_seen_in_training_are_refused_by_count_unless_allowed():
    table = people(20, scans=3)
    trained = table[table["participant_id"] < "p0012"]
    tested = table[table["participant_id"] >= "p0009"]
    seen = seen_people(trained, SALT)
    with pytest.raises(LeakageError, match=r"report: 3 of 11 people .*evaluate\.allow_seen=true"):
        refuse_seen(tested, seen, SALT, allow=False, context="report")
    refuse_seen(tested, seen, SALT, allow=True, context="report")
    refuse_seen(table[table["participant_id"] >= "p0012"], seen, SALT, allow=False, context="report")


def test_hashes_of_seen_people_are_sorted_plain_text_without_ids_and_depend_on_the_salt():
    table = people(20, scans=2)
    seen = seen_people(table, SALT)
    assert len(seen) == 20
    assert seen == sorted(seen)
    assert all(type(value) is str and len(value) == 16 for value in seen)
    assert not set(seen) & set(seen_people(table, "salt"))


def test_the_age_histogram_counts_people_not_scans():
    table = people(100, scans=2)
    counts = age_histogram(table)
    first = table.drop_duplicates(PERSON)["age_years"]
    assert sum(counts.values()) == 100
    assert counts == {f"{d}-{d + 9}": int(((first >= d) & (first < d + 10)).sum()) for d in range(20, 70, 10)}
    assert all(type(value) is int for value in counts.values())


@pytest.mark.parametrize("seed", range(40))
def test_the_internal_test_has_sites_of_train_only_and_train_is_as_drawn(seed):
    """Random cohorts of sites of one to three people, some people scanned at two sites or at an unknown one."""
    rng = np.random.default_rng(seed)
    table = people(int(rng.integers(20, 60)), scans=2)
    table["site"] = pd.array([f"s{number}" for number in rng.integers(0, len(table) // 3, len(table))], dtype="string")
    at_one = rng.random(len(table) // 2) < 0.8
    table["site"] = table["site"].where(~np.repeat(at_one, 2), np.repeat(table["site"].to_numpy()[::2], 2))
    table.loc[rng.random(len(table)) < 0.1, "site"] = pd.NA
    external = table["site"].dropna().unique()[:1].tolist()
    fraction = float(rng.uniform(0.1, 0.7))
    split = draw_split(table, external_sites=external, internal_fraction=fraction, seed=seed)
    applied = apply_split(table, split)
    sites = {name: set(applied.loc[applied["split"] == name, "site"].dropna()) for name in set(applied["split"])}
    assert sites.get("test_internal", set()) <= sites["train"]
    assert not sites["train"] & set(external)
    # who is in train follows from the hash alone, whatever the sites: nobody moves in or out when others come or go
    alone = draw_split(table.assign(site="one"), external_sites=[], internal_fraction=fraction, seed=seed)
    held_out = set(table.loc[table["site"].isin(external), "participant_id"])
    drawn = set(alone.loc[alone["split"] == "train", "participant_id"]) - held_out
    assert set(split.loc[split["split"] == "train", "participant_id"]) == drawn
