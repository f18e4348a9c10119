"""Folds and held-out cohorts: everybody is tested once, nobody is split, sites and cohorts stay whole."""

from __future__ import annotations

import functools

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from brainage.data.drawing import deal_groups
from brainage.data.folds import write_folds as write_frames
from brainage.data.splits import apply_split, carve_val, draw_split, read_split, refuse_leakage, split_hash
from brainage.data.table import PERSON, finish_table, read_tsv
from brainage.errors import ConfigError, DataError
from tests.data.people_tables import drawn, firsts, random_table

TESTS = ("test_internal", "test_external")


def fold_of(table: pd.DataFrame, fold: int, folds: int = 4, **more) -> pd.DataFrame:
    keys = {"external_sites": [], "internal_fraction": 0.2, "seed": 0} | more
    return draw_split(table, folds=folds, fold=fold, **keys)


def all_folds(table: pd.DataFrame, folds: int, **more) -> list[pd.DataFrame]:
    return [fold_of(table, fold, folds, **more) for fold in range(folds)]


def times_tested(splits: list[pd.DataFrame], *names: str) -> set[int]:
    tested = pd.concat([split[split["split"].isin(names)] for split in splits])
    return set(pd.concat([tested, splits[0]]).groupby(PERSON).size() - 1)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3), st.sampled_from([[], ["age"], ["age", "sex", "site"]]))
def test_folds_by_person_test_everybody_once_and_split_nobody(seed, folds, stratify):
    table = random_table(seed, people=100, movers=0.4)
    splits = all_folds(table, folds, seed=seed, stratify=stratify)
    assert times_tested(splits, *TESTS) == {1}
    for split in splits:
        applied = apply_split(table, split)
        refuse_leakage(applied)
        sites = {name: set(applied.loc[applied["split"] == name, "site"].dropna()) for name in ("train", TESTS[0])}
        assert sites[TESTS[0]] <= sites["train"]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_stratified_folds_are_alike_in_size_sex_and_site_within_one_person(seed, folds):
    table = random_table(seed, people=130)
    first = firsts(table)
    for split in all_folds(table, folds, stratify=["age", "sex", "site"]):
        chosen = pd.Series(drawn(table, split, *TESTS))
        for groups in (pd.Series("", index=first.index), first["sex"], first["site"]):
            of = chosen.groupby(groups.to_numpy())
            assert (of.sum() - of.size() / folds).abs().max() < 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3), st.sampled_from([0.0, 0.02, 0.1]), st.sampled_from([0.0, 0.2]))
def test_folds_by_site_hold_whole_sites_out_once_and_train_never_sees_them(seed, folds, movers, internal):
    table = random_table(seed, people=100, sites=8, movers=movers)
    dealt, groups = deal_groups(table, "site", folds, seed=0)
    if groups < folds:  # people who moved joined too many sites
        with pytest.raises(DataError, match=f"found {groups} sites .those that share people count as one"):
            fold_of(table, 0, folds, folds_by="site")
        return
    assume(dealt["fold"].value_counts().min() > 8)  # or an internal test might take all who are left
    splits = all_folds(table, folds, folds_by="site", internal_fraction=internal)
    assert times_tested(splits, "test_external") == {1}
    held_out: list[str] = []
    for split in splits:
        applied = apply_split(table, split)
        refuse_leakage(applied)
        outside = applied["split"] == "test_external"
        sites = set(applied.loc[outside, "site"].dropna())
        assert not sites & set(applied.loc[~outside, "site"].dropna())
        of = {name: set(applied.loc[applied["split"] == name, "site"].dropna()) for name in ("train", "test_internal")}
        assert of["test_internal"] <= of["train"]
        held_out += sites
    assert sorted(held_out) == sorted(set(table["site"].dropna()))


def sites_of(**sizes: int) -> pd.DataFrame:
    names = [name for name, size in sizes.items() for _ in range(size)]
    raw = {"cohort": "a", "participant_id": [f"p{i:02d}" for i in range(len(names))], "site": names, "age_years": 30.0}
    return finish_table(pd.DataFrame(raw).assign(path=raw["participant_id"]), source="test").table


def test_sites_are_dealt_the_largest_first_each_to_the_fold_that_has_fewest():
    table = sites_of(a=3, b=3, c=3, d=4, e=5)
    sizes = [(split["split"] == "test_external").sum() for split in all_folds(table, 2, folds_by="site")]
    assert sorted(sizes) == [8, 10]  # 5 + 3 and 4 + 3 + 3; from the smallest it would be 7 and 11


def test_a_person_alone_at_a_site_stays_in_train_until_that_sites_fold():
    table = sites_of(big=20, other=20, alone=1)
    for seed in range(4):
        splits = all_folds(table, 3, folds_by="site", internal_fraction=0.5, seed=seed)
        assert sorted(split.set_index("participant_id")["split"]["p40"] for split in splits) == [
            *("test_external", "train", "train")
        ]
        by_person = fold_of(table, 0, 0, internal_fraction=0.5, seed=seed)  # a single split: an unseen site is external
        assert by_person.set_index("participant_id")["split"]["p40"] in ("train", "test_external")


def test_sites_that_share_a_person_are_held_out_together():
    table = random_table(0, people=60, sites=4, movers=0.0)
    assert table["site"].nunique() == 4
    joined = table["site"].dropna().unique()[:2]
    both = table[table["site"] == joined[0]].iloc[:1].assign(site=joined[1], session_id="2", path="moved")
    moved = pd.concat([table, both], ignore_index=True)
    for split in all_folds(moved, 3, folds_by="site"):
        of_site = apply_split(moved, split).query("split == 'test_external'")["site"].unique()
        assert len(set(joined) & set(of_site)) in (0, 2)
    with pytest.raises(DataError, match=r"data\.folds=5 by site: found 4 sites"):  # the unknown site is one too
        fold_of(moved, 0, 5, folds_by="site")


def test_folds_by_cohort_hold_each_cohort_out_once():
    table = random_table(4, people=200, cohorts=3)
    splits = all_folds(table, 3, folds_by="cohort")
    assert times_tested(splits, "test_external") == {1}
    outside = [set(split.loc[split["split"] == "test_external", "cohort"]) for split in splits]
    assert sorted(map(sorted, outside)) == [["c0"], ["c1"], ["c2"]]
    with pytest.raises(DataError, match=r"data\.folds=4 by cohort: found 3 cohorts.*data\.folds=3 or fewer"):
        fold_of(table, 0, 4, folds_by="cohort")


def test_an_internal_test_is_drawn_from_the_sites_that_a_fold_trains_on():
    table = random_table(6, people=300, sites=8, movers=0.0)
    for split in all_folds(table, 3, folds_by="site", internal_fraction=0.25):
        counts = split["split"].value_counts()
        assert 0.15 < counts["test_internal"] / (counts["test_internal"] + counts["train"]) < 0.35


def test_adding_people_moves_nobody_to_another_fold():
    table = random_table(8, people=150, movers=0.0).assign(site="one")
    few = table[table["participant_id"] < "p0100"]
    for fold in range(4):
        of_few, of_all = fold_of(few, fold), fold_of(table, fold)
        assert of_few.equals(of_all[of_all["participant_id"] < "p0100"].reset_index(drop=True))


def test_named_sites_stay_external_in_every_fold_by_person():
    table = random_table(8, people=200)
    site = table["site"].value_counts().index[0]
    held_out = firsts(table)[PERSON][firsts(table)["site"] == site]
    splits = all_folds(table, 3, external_sites=[site], stratify=["age"])
    for split in splits:
        of = split.set_index(PERSON)["split"]
        assert (of.loc[pd.MultiIndex.from_frame(held_out)] == "test_external").all()
    assert times_tested(splits, *TESTS) == {1, 3}


def test_an_external_cohort_is_held_out_whole():
    table = random_table(8, people=200, cohorts=2)
    options = {"external_sites": [], "internal_fraction": 0.2, "seed": 0}
    split = draw_split(table, external_cohorts=["c1"], **options)
    assert set(split.loc[split["cohort"] == "c1", "split"]) == {"test_external"}
    alone = draw_split(table[table["cohort"] == "c0"], **options)
    assert split[split["cohort"] == "c0"].reset_index(drop=True).equals(alone)
    with pytest.raises(
        DataError, match=r"external cohort 'c3': no scan of this cohort.*c0, c1.*data\.external_cohorts"
    ):
        draw_split(table, external_cohorts=["c3"], **options)
    with pytest.raises(DataError, match="0 of 200 people are left for train"):
        draw_split(table, external_cohorts=["c0", "c1"], **options)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 1}, r"data\.folds=1: expected 2 or more"),
        ({"folds": -2}, r"data\.folds=-2"),
        ({"fold": 1}, r"data\.fold=1 .*without effect"),
        ({"folds_by": "site"}, r"data\.folds_by=site: without effect"),
        ({"folds": 3, "fold": 3}, r"data\.fold=3: expected 0 to 2"),
        ({"folds": 3, "fold": -1}, r"data\.fold=-1: expected 0 to 2"),
        ({"folds": 3, "folds_by": "sites"}, r"data\.folds_by=sites: unknown.*'site'"),
        ({"folds": 3, "folds_by": "site", "external_sites": ["c0:s1"]}, "both say who is test_external"),
        ({"folds": 3, "folds_by": "cohort", "external_cohorts": ["c0"]}, "both say who is test_external"),
        ({"folds": 3, "internal_fraction": 0.3}, r"data\.internal_fraction=0\.3: without effect"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_in_one_line(keys, message):
    options = {"external_sites": [], "internal_fraction": 0.2, "seed": 0} | keys
    with pytest.raises(ConfigError, match=message) as refused:
        draw_split(random_table(0, people=30), **options)
    assert "\n" not in str(refused.value)


def test_a_fold_that_nobody_is_in_is_refused():
    table = random_table(0, people=6)
    with pytest.raises(DataError, match=r"data\.folds=40: nobody of 6 people is in fold 0"):
        fold_of(table, 0, 40)
    for stratify in ([], ["age"]):
        with pytest.raises(DataError, match="nobody of 0 people is in fold 0"):
            fold_of(table, 0, 3, external_cohorts=["c0"], stratify=stratify)


def write_folds(table: pd.DataFrame, out, *, folds: int, seed: int, stratify: tuple | list = ()) -> pd.DataFrame:
    drawn_folds = [fold_of(table, fold, folds, seed=seed, stratify=stratify) for fold in range(folds)]
    carve = functools.partial(carve_val, fraction=0.1, seed=seed, table=table, stratify=stratify)
    return write_frames(table, out, [carve(fold) for fold in drawn_folds])


def test_written_folds_are_the_drawn_ones_and_the_index_describes_them(tmp_path):
    table = random_table(3, people=60, movers=0.3)
    index = write_folds(table, tmp_path / "folds", folds=3, seed=5, stratify=["age", "sex"])
    assert read_tsv(tmp_path / "folds" / "folds.tsv").astype(str).equals(index.astype(str).astype("string").astype(str))
    first = firsts(table)
    for row in index.itertuples():
        split = read_split(tmp_path / "folds" / row.file)
        drawn_here = fold_of(table, row.fold, 3, seed=5, stratify=["age", "sex"])
        assert split.equals(carve_val(drawn_here, fraction=0.1, seed=5, table=table, stratify=["age", "sex"]))
        assert split_hash(split) == row.split_hash
        assert {name: getattr(row, name) for name in ("train", "val", *TESTS)} == {
            name: int((split["split"] == name).sum()) for name in ("train", "val", *TESTS)
        }
        tested = drawn(table, split, *TESTS)
        assert row.test_age_years == pytest.approx(first["age_years"][tested].mean(), abs=0.005)
        assert row.train_age_years == pytest.approx(first["age_years"][drawn(table, split, "train")].mean(), abs=0.005)
    assert index["split_hash"].nunique() == 3


def test_folds_are_not_written_over_others(tmp_path):
    table = random_table(3, people=40)
    index = write_folds(table, tmp_path, folds=3, seed=0)
    pd.testing.assert_frame_equal(write_folds(table, tmp_path, folds=3, seed=0), index)
    (tmp_path / "folds.tsv").unlink()
    (tmp_path / "fold_1.tsv").unlink()  # killed before it was done
    pd.testing.assert_frame_equal(write_folds(table, tmp_path, folds=3, seed=0), index)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other in ({"folds": 3, "seed": 1}, {"folds": 2, "seed": 0}):
        with pytest.raises(ConfigError, match=r"fold_\d\.tsv: of other folds"):
            write_folds(table, tmp_path, **other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match=r"data\.folds=0: expected 2 or more"):
        write_folds(table, tmp_path / "none", folds=0, seed=0)
