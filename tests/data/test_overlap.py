"""One person in two cohorts: rules of ids on hand-made tables, samples of simulated people whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from brainage.data import duplicates
from brainage.data.overlap import (
    PAIR_COLUMNS,
    add_groups,
    held_studies,
    pairs_by_id,
    plain_id,
    refuse_split_people,
    repeats,
    same_people,
)
from brainage.data.table import finish_table
from brainage.errors import LeakageError
from brainage.imaging.simulate import BrainSimulator
from brainage.imaging.simulated_people import plan_sites, scans, simulate_people

MM = 8.0


def table(*people, **columns) -> pd.DataFrame:
    """cohort, id, sex, age of each."""
    frame = pd.DataFrame(people, columns=["cohort", "participant_id", "sex", "age_years"])
    frame = frame.assign(path=[str(number) for number in range(len(frame))], **columns)
    return finish_table(frame, source="hand").table


def found(table: pd.DataFrame, **readers: str) -> dict[tuple[str, str], tuple[str, str]]:
    pairs = pairs_by_id(table, readers)
    assert list(pairs.columns) == PAIR_COLUMNS
    ours, theirs = pairs["participant_id"], pairs["other_participant_id"]
    return {pair: tuple(v) for pair, *v in zip(zip(ours, theirs), pairs["rule"], pairs["verdict"], strict=True)}  # noqa: B905


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("027_S_0074", "ADNI027S0074"), ("sub-ADNI027S0074", "ADNI027S0074"), ("027s0074", "ADNI027S0074"),
        ("027_S_10745", "ADNI027S10745"), ("ADNI027S0074_bl", "ADNI027S0074"),
        ("IXI012-HH-1211", "IXI012"), ("sub-IXI12", "IXI012"), ("ixi012", "IXI012"), ("IXI1234", "IXI1234"),
        ("OAS30001_MR_d0129", "OAS30001"), ("sub-OAS30001", "OAS30001"), ("sub-007", "7"), ("000", "0"),
        ("A-01", "A01"), ("S0074", "S0074"),
    ],
)  # fmt: skip
def test_an_id_is_known_in_every_spelling(written, plain):
    assert plain_id(written)[0] == plain
    assert plain_id(written)[1] == plain.startswith(("ADNI", "IXI0", "OAS3"))


def test_equal_ids_in_one_name_space_are_one_person():
    people = table(
        ("adni", "027_S_0074", "M", 70), ("adni", "027_S_0075", "M", 70), ("mine", "ADNI027S0074", "M", 75),
        ("mine", "ADNI028S0074", "M", 70),
    )  # fmt: skip
    assert found(people, adni="adni", mine="bids") == {("027_S_0074", "ADNI027S0074"): ("id", "same")}
    pair = pairs_by_id(people, {"adni": "adni", "mine": "bids"}).iloc[0]
    assert (pair["sexes"], pair["age_gap_years"]) == ("equal", 5)


def test_known_ids_of_people_whose_sexes_differ_are_only_possible_unless_a_table_says_that_they_are_one():
    rows = (("adni", "027_S_0074", "M", 70), ("mine", "ADNI027S0074", "F", 75))
    pair = ("027_S_0074", "ADNI027S0074")
    people = table(*rows)
    assert found(people, adni="adni", mine="bids") == {pair: ("id", "possible")}
    assert pairs_by_id(people, {"adni": "adni", "mine": "bids"}).iloc[0]["sexes"] == "differ"
    told = table(*rows, person_elsewhere=[None, "adni/027_S_0074"])
    assert found(told, adni="adni", mine="bids") == {pair: ("elsewhere", "same")}
    unknown = table(("adni", "027_S_0074", None, 70), ("mine", "ADNI027S0074", "F", 75))
    assert found(unknown, adni="adni", mine="bids") == {pair: ("id", "same")}


def test_ids_of_five_digits_are_not_cut_to_those_of_four():
    people = table(("adni", "027_S_1074", "M", 70), ("mine", "ADNI027S10745", "M", 70))
    assert found(people, adni="adni", mine="bids") == {}


def test_two_downloads_of_a_cohort_that_numbers_everybody_share_their_people():
    people = table(("one", "17", "M", 30), ("one", "18", "M", 30), ("two", "017", "M", 30), ("two", "19", "M", 30))
    assert found(people, one="openbhb", two="openbhb") == {("17", "017"): ("id", "same")}


def test_a_number_that_two_data_sets_both_have_is_possible_only_where_sex_and_age_agree():
    people = table(
        ("one", "01", "M", 30), ("two", "1", "M", 30.5),
        ("one", "02", "M", 30), ("two", "2", "M", 40),
        ("one", "03", "M", 30), ("two", "3", "F", 30),
        ("one", "04", None, 30), ("two", "4", None, 30),
    )  # fmt: skip
    assert found(people, one="bids", two="bids") == {("01", "1"): ("equal id", "possible")}
    assert found(people, one="ukb", two="ukb") == {("01", "1"): ("equal id", "possible")}


def test_a_long_number_is_not_had_twice_by_chance():
    people = table(("one", "100059911692", "M", 30), ("two", "sub-100059911692", "M", 30.2))
    assert found(people, one="openbhb", two="bids") == {
        ("100059911692", "sub-100059911692"): ("equal id", "same"),
    }


def test_a_table_that_names_the_person_elsewhere_is_believed():
    people = table(
        ("one", "a", "M", 30), ("one", "b", "M", 50), ("one", "c", "M", 50),
        ("two", "x", "F", 60), ("two", "y", "M", 50), ("two", "IXI007", "M", 20), ("two", "z", "M", 20),
        person_elsewhere=["two/x", "somebody/9; k/1", "IXI007", None, "one/none;k/01", None, "c"],
    )  # fmt: skip
    assert found(people, one="bids", two="bids") == {
        ("a", "x"): ("elsewhere", "same"), ("b", "y"): ("elsewhere", "same"), ("c", "IXI007"): ("elsewhere", "same"),
    }  # fmt: skip


def test_a_study_inside_another_cohort_is_told():
    people = table(
        ("openbhb", "1", "M", 30), ("openbhb", "2", "M", 30), ("openbhb", "3", "M", 30), ("ixi", "IXI001", "M", 30),
        study=["IXI", "ixi", "GSP", None],
    )  # fmt: skip
    said = held_studies(people, {"openbhb": "openbhb", "ixi": "ixi"})
    assert len(said) == 2
    assert said[0].startswith("openbhb holds the study IXI (1 people), which is ixi: ids cannot be compared")
    assert not held_studies(people.drop(columns="study"), {"openbhb": "openbhb", "ixi": "ixi"})


def chain() -> pd.DataFrame:
    """a/1 = b/1, b/1 = c/1, b/2 = c/2, and a pair that is only possible."""
    rows = [("a", "1", "b", "1", "same"), ("b", "1", "c", "1", "same"), ("b", "2", "c", "2", "same")]
    rows += [("a", "9", "b", "9", "possible")]
    names = ["cohort", "participant_id", "other_cohort", "other_participant_id", "verdict"]
    return pd.DataFrame(rows, columns=names, dtype="string")


def test_people_who_are_one_through_others_are_one_and_the_first_cohort_keeps_them():
    groups = same_people(chain())
    assert groups.groupby("group")["cohort"].apply(sorted).tolist() == [["a", "b", "c"], ["b", "c"]]
    dropped = repeats(groups, ["a", "b", "c"])
    assert [tuple(row) for row in dropped.to_numpy()] == [
        ("b", "1", "same person as a/1"), ("c", "1", "same person as a/1"), ("c", "2", "same person as b/2"),
    ]  # fmt: skip
    assert repeats(groups, ["c", "b", "a"])["reason"].tolist()[0] == "same person as c/1"
    assert same_people(chain().iloc[:0]).empty


def test_one_person_in_two_splits_is_refused_with_both_names():
    groups = same_people(chain())
    people = [("a", "1"), ("b", "1"), ("c", "1"), ("b", "2"), ("c", "2")]
    split = pd.DataFrame(people, columns=["cohort", "participant_id"]).assign(split="train")
    refuse_split_people(groups, split)
    split.loc[2, "split"] = "test_internal"
    with pytest.raises(
        LeakageError, match=r"1 people are in two splits .* a/1 \(train\) = b/1 .* = c/1 \(test_internal"
    ):
        refuse_split_people(groups, split)


def test_everybody_a_person_is_one_with_is_named_beside_the_person():
    people = table(("a", "1", "M", 30), ("a", "5", "M", 30), person_elsewhere=["x/1", None])
    named = add_groups(people, same_people(chain()))["person_elsewhere"]
    assert set(named[0].split(";")) == {"x/1", "b/1", "c/1"}
    assert named.isna()[1]


def test_the_threshold_is_passed_by_chance_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    for directions in (10, 40):
        units = rng.standard_normal((1500, directions))
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        cosines = (units[:750] @ units[750:].T).ravel()
        above = np.mean(cosines > duplicates.least_similarity(directions, 100, 1.0))  # 1 of 100 pairs
        if directions == 10:
            assert above == pytest.approx(0.01, rel=0.1)
    assert duplicates.least_similarity(1, 10, 1e-6) == 1


def test_rows_are_found_as_by_comparing_all():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2500, 3)), rng.standard_normal((2100, 3))  # more than a block of both
    found = duplicates.similar_rows(a, b, 9.0)
    rows, others = np.nonzero(a @ b.T >= 9.0)
    assert len(rows) > 10
    assert set(zip(found["row"], found["other_row"], strict=True)) == set(zip(rows, others, strict=True))
    np.testing.assert_allclose(found["similarity"], (a[found["row"]] * b[found["other_row"]]).sum(1))


def signature(volume: np.ndarray) -> np.ndarray:
    return duplicates.volume_signature(volume[None].astype(np.float16), (MM,) * 3)


def exported_again(volume: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Other gain and contrast, 0.2 mm and 0.2 degrees elsewhere."""
    turned = ndimage.rotate(volume, draw.normal(0, 0.2), axes=(0, 1), reshape=False, order=1)
    moved = ndimage.shift(turned, draw.normal(0, 0.2 / MM, 3), order=1)
    return 1.9 * np.maximum(moved, 0) ** np.exp(draw.normal(0, 0.03))


def similarities(n: int, again: int, kind: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Threshold, similarities of `again` re-exported people with themselves, and of all different people."""
    people = scans(simulate_people(plan_sites(n, seed=1), seed=1))
    strangers = scans(simulate_people(plan_sites(max(n // 2, 24), seed=2), seed=2))
    simulator, draw = BrainSimulator(MM, 1), np.random.default_rng(0)
    make = simulator.grey_matter if kind == "grey" else lambda scan: simulator.t1(scan) / 1000
    images = [make(scan) for scan in people]
    ours = np.stack([signature(image) for image in images])
    picked = draw.permutation(n)[:again]
    theirs = [signature(exported_again(images[row], draw)) for row in picked]
    theirs = np.stack([*theirs, *(signature(1.3 * make(scan)) for scan in strangers)])
    looks = []
    for a, b in duplicates.whitenings([ours, theirs], [len(ours), len(theirs)]):
        products = a @ b.T
        least = duplicates.least_similarity(a.shape[1], products.size, duplicates.CHANCE / 2)
        same = products[picked, np.arange(again)].copy()
        products[picked, np.arange(again)] = np.nan
        looks.append((least, same, products[np.isfinite(products)]))
    return looks


@pytest.mark.parametrize("kind", ["grey", "t1"])
def test_brains_that_were_exported_again_are_told_from_all_others(kind):
    looks = similarities(150, 20, kind)
    for least, _, others in looks:
        assert others.max() < least - 0.05
    found = np.any([same > least for least, same, _ in looks], axis=0)
    assert found.mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grey", "t1"])
def test_of_two_million_pairs_of_people_none_is_one(kind):
    looks = similarities(2000, 50, kind)
    for least, _, others in looks:
        assert others.size > 1.9e6
        assert others.max() < least - 0.05
    assert np.mean(np.any([same > least for least, same, _ in looks], axis=0)) >= 0.95
