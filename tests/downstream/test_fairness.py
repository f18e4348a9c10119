"""Fairness: errors of parts by hand, a planted difference that is found, and equal parts that are called equal."""

import numpy as np
import pandas as pd
import pytest

from brainage.config import EvaluateConfig
from brainage.downstream.fairness import evaluate_fairness
from brainage.downstream.predictions import predictions_frame
from brainage.downstream.results import parts_of

from .cohort import make_table

CONFIG = EvaluateConfig(bootstrap=100, site_permutations=100)


def predicted(table, extra=0.0, seed=0, model_seed=0):
    """Predictions that miss by 4 years, in women by `extra` more."""
    scored = table[table["split"].isin(["test_internal", "test_external"])]
    rng = np.random.default_rng(seed)
    sd = 4 + extra * (scored["sex"] == "F").fillna(False).to_numpy(dtype=float)
    years = scored["age_years"] + rng.normal(0, 1, len(scored)) * sd
    return predictions_frame(scored, years.to_numpy(), model="exp", seed=model_seed)


def fairness(frame, config=CONFIG):
    results = evaluate_fairness(frame, cohort="demo", config=config, seed=1).results
    assert set(results["task"]) <= {"fairness"}
    return {
        (row["split"], row["metric"], "".join(map("=".join, parts_of(row["note"]).items()))): row
        for _, row in results.iterrows()
    }


def test_errors_of_every_part_and_their_gap_are_what_pandas_gives():
    frame = predicted(make_table(10, 0, 60, 20, scans=2))
    found = fairness(frame)
    frame = frame[frame["split"] == "test_internal"]
    errors = frame["predicted_age_years"] - frame["age_years"]
    parts = {"sex": frame["sex"], "site": frame["site"]}
    for kind, names in parts.items():
        mae, bias = errors.abs().groupby(names).mean(), errors.groupby(names).mean()
        for name in mae.index:
            assert found["test_internal", "mae_years", f"{kind}={name}"]["estimate"] == pytest.approx(mae[name])
            assert found["test_internal", "bias_years", f"{kind}={name}"]["estimate"] == pytest.approx(bias[name])
        gap = found["test_internal", "mae_gap_years", f"term={kind}"]
        assert gap["estimate"] == pytest.approx(mae.max() - mae.min())
        assert gap["low"] <= gap["estimate"] <= gap["high"]
        assert gap["n"] == 60
    decade = found["test_internal", "mae_years", "band=30-39"]
    thirties = frame["age_years"].between(30, 40, inclusive="left")
    assert decade["estimate"] == pytest.approx(errors[thirties].abs().mean())
    assert decade["n"] == frame.loc[thirties, "participant_id"].nunique()


def test_a_planted_difference_between_the_sexes_is_found_and_none_between_the_sites():
    found = fairness(predicted(make_table(10, 0, 300, 20), extra=4.0))
    assert found["test_internal", "p", "term=sex"]["estimate"] == pytest.approx(1 / 101)
    assert found["test_internal", "p", "term=site"]["estimate"] > 0.05
    chance, gap = (found["test_internal", name, "term=sex"] for name in ("chance_mae_gap_years", "mae_gap_years"))
    assert 0 < chance["estimate"] < chance["high"] < gap["estimate"]
    assert gap["note"].split("; ")[2].startswith("F ")


def test_the_gap_that_chance_gives_is_that_of_drawing_the_parts_at_random():
    frame = predicted(make_table(10, 0, 90, 0))
    found = fairness(frame, EvaluateConfig(bootstrap=2, site_permutations=1000))
    errors = (frame["predicted_age_years"] - frame["age_years"]).abs().to_numpy()
    rng, gaps = np.random.default_rng(8), []
    for _ in range(1000):
        means = [part.mean() for part in np.split(rng.permutation(errors), 3)]  # three sites of 30
        gaps.append(max(means) - min(means))
    chance = found["test_internal", "chance_mae_gap_years", "term=site"]
    assert chance["estimate"] == pytest.approx(np.mean(gaps), rel=0.1)
    assert [chance["low"], chance["high"]] == pytest.approx(np.percentile(gaps, [2.5, 97.5]), rel=0.25)
    observed = found["test_internal", "mae_gap_years", "term=site"]["estimate"]
    p = found["test_internal", "p", "term=site"]["estimate"]
    assert p == pytest.approx(np.mean(np.array(gaps) >= observed), abs=0.07)


def test_parts_of_a_handful_and_splits_of_one_part_are_not_shown():
    table = make_table(10, 0, 60, 20)
    table["sex"] = pd.array(["F"] * len(table), dtype="string")
    few = table.index[table["split"] == "test_internal"][:3]
    table.loc[few, "site"] = pd.NA
    found = fairness(predicted(table))
    assert found["test_internal", "mae_years", "site=unknown"]["note"] == "site=unknown; not shown: fewer than 5 people"
    assert "1 smaller parts left out" in found["test_internal", "mae_gap_years", "term=site"]["note"]
    for kind, split in (("sex", "test_internal"), ("site", "test_external")):
        row = found[split, "mae_gap_years", f"term={kind}"]
        assert np.isnan(row["estimate"])
        assert "1 parts have 5 people or more" in row["note"]


def test_of_several_seeds_the_mean_is_taken_and_no_prediction_is_said():
    table = make_table(10, 0, 60, 20)
    frames = [predicted(table, seed=s, model_seed=s) for s in (0, 1)]
    single = [fairness(frame)["test_internal", "mae_years", "sex=F"]["estimate"] for frame in frames]
    both = fairness(pd.concat(frames))
    assert both["test_internal", "mae_years", "sex=F"]["estimate"] == pytest.approx(np.mean(single))
    sexes = [both["test_internal", "mae_years", f"sex={sex}"]["estimate"] for sex in "FM"]
    assert both["test_internal", "mae_gap_years", "term=sex"]["estimate"] == pytest.approx(abs(np.diff(sexes))[0])
    empty = evaluate_fairness(frames[0][:0], cohort="demo", config=CONFIG, seed=1, model="exp").results
    assert "no prediction in either test" in empty.iloc[0]["note"]
