"""Quality control: measures against their definition, planted faults found, clean scans left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from brainage.data.store import prepare_store
from brainage.data.table import KEY, finish_table, write_table
from brainage.imaging.contract import InputContract
from brainage.imaging.quality import (
    COLUMNS,
    QUALITY,
    assess_store,
    quality_key,
    read_quality,
    unjudged,
    write_quality,
)
from brainage.imaging.quality_limits import PUBLISHED, computed_limits
from brainage.imaging.quality_measures import (
    bright_value,
    measure_volume,
    reference_of,
    template_mask,
)
from brainage.statistics.robust import huber_fit, limits, natural_spline, z_given
from tests.imaging.planted import FAULTS, planted_store

EXPECTED = {  # planted fault -> flag that must name it
    "half": "asymmetry", "scale": "level", "noise": "outside", "upside_down": "mean_corr", "mirrored": "mirrored",
    "empty": "empty", "displaced": "mean_corr", "older": "age", "duplicate": "duplicate",
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("planted"), people=150, seed=1)


@pytest.fixture(scope="module")
def assessed(planted):
    return assess_store(planted.store)


def test_every_planted_fault_is_flagged_by_its_name(planted, assessed):
    for row, fault in planted.faults.items():
        assert EXPECTED[fault] in (assessed["qc_flags"].fillna("")[row]).split(", "), (fault, assessed.iloc[row])
    assert assessed["qc_flag_count"].equals(
        assessed["qc_flags"].map(lambda text: len(text.split(",")) if isinstance(text, str) else 0.0).astype("float64")
    )


def test_at_most_one_clean_scan_in_a_hundred_is_flagged(planted, assessed):
    assert assessed.loc[planted.clean, "qc_flags"].notna().mean() <= 0.01


@pytest.mark.slow
def test_over_many_cohorts_gross_faults_are_always_found_and_subtle_ones_mostly(tmp_path):
    """10 cohorts of 200: found 10 of 10 of each gross fault, 39 of 40 mirrored, 53 of 60 ages; 5 of 1822 clean."""
    found, planted_count, flagged, clean = Counter(), Counter(), 0, 0
    for seed in range(10, 20):
        faults = (*FAULTS, *("older",) * 4, *("mirrored",) * 3)
        planted = planted_store(tmp_path / str(seed), people=200, seed=seed, faults=faults)
        flags = assess_store(planted.store)["qc_flags"].fillna("")
        planted_count.update(planted.faults.values())
        found.update(fault for row, fault in planted.faults.items() if EXPECTED[fault] in flags[row].split(", "))
        flagged, clean = flagged + (flags[planted.clean] != "").sum(), clean + len(planted.clean)
    share = {fault: found[fault] / planted_count[fault] for fault in planted_count}
    assert share.pop("mirrored") >= 0.9
    assert share.pop("older") >= 0.8
    assert set(share.values()) == {1.0}
    assert flagged / clean <= 0.01


def test_a_cohort_without_a_template_is_compared_with_its_own_majority_mask(tmp_path):
    faults = ("half", "noise", "upside_down", "empty")
    planted = planted_store(tmp_path, people=80, seed=3, spacing_mm=8.0, faults=faults, space="native_centred")
    found = assess_store(planted.store)
    assert {EXPECTED[fault] in str(found["qc_flags"][row]) for row, fault in planted.faults.items()} == {True}
    signal = np.array([
        volume > 0.05 * bright_value(volume.reshape(-1))
        for volume in planted.store.read(np.arange(80)).astype(np.float32)
        if volume.any()
    ])  # fmt: skip
    majority = signal.mean(0) > 0.5
    row = planted.clean[0]
    volume = planted.store.read([row])[0].astype(np.float32)
    own = volume > 0.05 * bright_value(volume.reshape(-1))
    assert found["qc_coverage"][row] == pytest.approx(own[majority].mean())
    assert found["qc_outside"][row] == pytest.approx(1 - volume[own & majority].sum() / volume[own].sum(), abs=1e-6)


def test_mean_correlation_is_the_correlation_with_the_mean_of_the_others(planted, assessed):
    inside = template_mask(planted.store.contract)
    volumes = planted.store.read(np.arange(len(planted.store.table))).reshape(150, -1)[:, inside].astype(np.float64)
    bright = np.array(
        [bright_value(volume.reshape(-1)) for volume in planted.store.read(np.arange(150)).astype(np.float32)]
    )
    scaled = np.divide(volumes, bright[:, None], out=np.zeros_like(volumes), where=bright[:, None] > 0)
    for row in (*planted.clean[:5], *planted.rows("noise"), *planted.rows("upside_down")):
        others = np.delete(scaled, row, 0).mean(0)
        assert assessed["qc_mean_corr"][row] == pytest.approx(np.corrcoef(scaled[row], others)[0, 1], abs=1e-5)


def test_the_measures_of_a_block_in_a_box_are_those_counted_by_hand():
    contract = InputContract(
        "brain", "volume", (1, 8, 4, 4), space="native_centred", spacing_mm=(12.0,) * 3, origin_mm=(-42.0, 0.0, 0.0),
        axes="RAS",
    )  # fmt: skip
    mask = np.zeros((8, 4, 4), bool)
    mask[2:6] = True  # two cells on each side of the midline
    volume = np.zeros((8, 4, 4), np.float32)
    volume[3:7] = 1.0  # 16 voxels left of the midline in the mask, 32 right, 16 outside
    measured, scaled = measure_volume(volume.reshape(-1), reference_of(mask.reshape(-1), contract), 1.0)
    assert measured["qc_coverage"] == pytest.approx(48 / 64)
    assert measured["qc_outside"] == pytest.approx(16 / 64)
    assert measured["qc_level"] == pytest.approx(48 / 64)
    assert measured["qc_asymmetry"] == pytest.approx((32 - 16) / 48)
    assert measured["qc_spread"] == 0.0
    assert scaled.sum() == 48


def test_every_cell_has_its_mirror_image_at_the_opposite_side(planted):
    contract = planted.store.contract
    reference = reference_of(np.ones(int(np.prod(contract.shape)), bool), contract)
    x = np.unravel_index(reference.inside, contract.shape[1:])[0] * contract.spacing_mm[0] + contract.origin_mm[0]
    pooled = reference.pool(x.astype(np.float32))
    assert len(reference.right) > 100
    np.testing.assert_allclose(pooled[reference.right], -pooled[reference.left], atol=1e-4)
    assert (pooled[reference.right] > 0).all()


def test_cohorts_of_a_joined_store_are_judged_one_by_one(planted, assessed):
    class Twice:
        def __init__(self, store):
            self.path, self.contract, self.checksum, self._store = store.path, store.contract, store.checksum, store
            other = store.table.assign(cohort=pd.array(["other"] * len(store.table), dtype="string"))
            self.table = pd.concat([store.table, other], ignore_index=True).iloc[::-1].reset_index(drop=True)

        def read(self, indices, out=None):
            n = len(self._store.table)
            return self._store.read([(2 * n - 1 - int(index)) % n for index in indices], out=out)

    found = assess_store(Twice(planted.store))
    for cohort in ("simulated", "other"):
        part = found[found["cohort"] == cohort].iloc[::-1].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[list(COLUMNS)], assessed[list(COLUMNS)], rtol=1e-4, atol=1e-4)


def test_quality_is_kept_and_read_until_samples_or_ages_change(planted, assessed, tmp_path, monkeypatch):
    store = planted.store
    assert read_quality(store) is None
    calls = []
    first = write_quality(store, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (300, 300)
    again = write_quality(store, on_progress=lambda done, total: pytest.fail("computed twice"))
    pd.testing.assert_frame_equal(first, assessed)
    pd.testing.assert_frame_equal(again, assessed)
    key = quality_key(store)
    monkeypatch.setitem(store.record, "checksum", "0" * 32)
    assert read_quality(store) is None
    monkeypatch.undo()
    monkeypatch.setattr(store, "table", store.table.assign(age_years=store.table["age_years"] + 1))
    assert quality_key(store) != key
    assert read_quality(store) is None
    monkeypatch.undo()
    write_table(first.iloc[:3].assign(quality_of=key), store.path / QUALITY)  # torn, or of fewer scans
    assert read_quality(store) is None


def test_vectors_are_judged_as_far_as_they_can_be(tmp_path):
    draw = np.random.default_rng(0)
    ages = draw.uniform(20, 80, 120)
    vectors = 2.5 - 0.006 * ages[:, None] * draw.uniform(0.5, 1.5, 30) + draw.normal(0, 0.08, (120, 30))
    vectors[5] = 0.0
    vectors[6] *= 2.0
    ages[7] = 20 if ages[7] > 50 else 80
    rows = pd.DataFrame({
        "cohort": "t", "participant_id": [f"{row:03d}" for row in range(120)], "age_years": ages, "sex": "F",
        "path": [str(row) for row in range(120)],
    })  # fmt: skip
    contract = InputContract("thickness", "vector", (30,))
    table = finish_table(rows, source="t").table
    store = prepare_store(table, contract, lambda path: vectors[int(path)].astype("f4"), tmp_path / "s", workers=1)
    found = assess_store(store)
    assert found["qc_flags"][5] == "empty"
    assert "level" in found["qc_flags"][6]
    assert "age" in found["qc_flags"][7]
    assert found["qc_flags"].drop([5, 6, 7]).notna().sum() <= 1
    assert found[["qc_outside", "qc_asymmetry", "qc_mean_corr"]].isna().all().all()


def test_few_scans_get_measures_and_no_robust_flag(tmp_path):
    planted = planted_store(tmp_path, people=24, seed=2, spacing_mm=8.0, faults=("empty",))
    few = planted.store.table.iloc[:10].reset_index(drop=True)
    planted.store.table = few
    found = assess_store(planted.store)
    empty = planted.rows("empty")[0] < 10
    assert found["qc_flags"].notna().sum() == int(empty)
    assert found["qc_age_z"].isna().all()
    assert list(found.columns) == [*KEY, *COLUMNS]


def test_a_constant_scan_is_empty_and_moves_no_limit(assessed, planted):
    before = {limit.column: (limit.low, limit.high) for limit in computed_limits(assessed)}
    more = pd.concat([assessed, assessed.iloc[planted.rows("empty") * 40]], ignore_index=True)
    assert {limit.column: (limit.low, limit.high) for limit in computed_limits(more)} == before


def test_published_limits_are_those_that_openbhb_applies(tmp_path):
    from data_modules.openbhb_layout import QUALITY as COLUMNS_OF_OPENBHB
    from data_modules.openbhb_layout import quality_rows

    assert set(COLUMNS_OF_OPENBHB.values()) == {limit.column for limit in PUBLISHED}
    fine = {"cat12vbm-iqr": 2, "cat12vbm-ncr": 2, "reconall-euler": -50, "quasiraw-corr": 0.8}
    edge = {"cat12vbm-iqr": 4, "cat12vbm-ncr": 4, "reconall-euler": -217, "quasiraw-corr": 0.5}
    rows = [fine, *({**fine, name: value} for name, value in edge.items())]
    sheet = pd.DataFrame(rows).assign(participant_id=range(len(rows)))
    sheet.to_csv(tmp_path / "qc.tsv", sep="\t", index=False)
    assert quality_rows(tmp_path / "qc.tsv")["qc_pass"].tolist() == [1, 0, 0, 0, 0]  # good is better than the edge


def test_robust_limits_of_a_normal_sample_are_its_standard_deviations():
    values = np.random.default_rng(0).normal(10, 2, 20_000)
    low, high = limits(values, k=3)
    assert low == pytest.approx(4, abs=0.15)
    assert high == pytest.approx(16, abs=0.15)
    assert limits(np.array([np.nan]), k=3) == (-np.inf, np.inf)
    assert limits(np.ones(50), k=2, least_scale=0.5) == (0.0, 2.0)


def test_the_natural_spline_is_straight_beyond_its_knots_and_bends_between():
    basis = natural_spline(np.array([-3.0, -2, -1, 10, 11, 12]), np.array([0.0, 3, 6, 9]))
    assert basis.shape == (6, 4)
    for part in (basis[:3], basis[3:]):
        np.testing.assert_allclose(part[2] - part[1], part[1] - part[0], atol=1e-9)
    inner = natural_spline(np.array([2.0, 3, 4]), np.array([0.0, 3, 6, 9]))
    assert np.abs((inner[2] - inner[1]) - (inner[1] - inner[0])).max() > 1e-3


def test_a_huber_fit_is_not_moved_by_a_tenth_of_wrong_values():
    draw = np.random.default_rng(1)
    x = draw.uniform(0, 1, 500)
    y = 2 + 3 * x + draw.normal(0, 0.1, 500)
    y[:50] += 20
    fitted, leverage, scale = huber_fit(np.column_stack([np.ones(500), x]), y, np.ones(500, bool))
    assert np.abs(fitted - (2 + 3 * x)).max() < 0.06
    assert scale == pytest.approx(0.1, rel=0.25)
    assert leverage.sum() == pytest.approx(2, rel=1e-6)


def test_scores_given_age_and_sex_are_standard_and_take_both_out():
    draw = np.random.default_rng(2)
    age, male = draw.uniform(20, 80, 2000), draw.integers(0, 2, 2000).astype(float)
    values = 0.002 * (age - 50) ** 2 + male + draw.normal(0, 0.3, 2000)
    z = z_given(values, age, male, np.ones(2000, bool))
    assert z.std() == pytest.approx(1, abs=0.06)
    assert abs(np.corrcoef(z, male)[0, 1]) < 0.05
    assert abs(z[age > 70].mean()) < 0.15


def test_a_cohort_too_small_to_judge_says_so(assessed):
    assert unjudged(assessed) == []
    few = pd.concat([assessed.assign(cohort="big"), assessed.iloc[:5].assign(cohort="small")])
    (line,) = unjudged(few)
    assert line.startswith("small: 5 scans are too few for limits of their own (20 or more)")
    (line,) = unjudged(assessed.assign(qc_age_z=np.nan))
    assert "no age can be called implausible" in line
