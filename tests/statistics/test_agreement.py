"""Intraclass correlations: against a published table, statsmodels' analysis of variance, and by their coverage."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from brainage.errors import DataError
from brainage.statistics.agreement import agreement

# Six targets by four judges: the example of Shrout and Fleiss 1979.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)


def test_the_example_of_shrout_and_fleiss_comes_out_as_published():
    found = agreement(JUDGES)
    assert found.icc_oneway.estimate == pytest.approx(0.17, abs=0.005)
    assert found.icc_agreement.estimate == pytest.approx(0.29, abs=0.005)
    # Intervals as the R packages irr and psych print them for these data.
    assert found.icc_oneway[1:] == pytest.approx((-0.133, 0.723), abs=0.001)
    assert found.icc_agreement[1:] == pytest.approx((0.019, 0.761), abs=0.001)


def test_mean_squares_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (40, 1)) + rng.normal(0, 1, (40, 2)) + [0.0, 1.0]
    long = pd.DataFrame({"y": values.ravel(), "person": np.repeat(np.arange(40), 2), "time": np.tile([0, 1], 40)})
    squares = anova_lm(smf.ols("y ~ C(person) + C(time)", long).fit())
    rows, columns, error = squares["mean_sq"]
    found = agreement(values)
    assert found.icc_agreement.estimate == pytest.approx((rows - error) / (rows + error + 2 * (columns - error) / 40))
    within = anova_lm(smf.ols("y ~ C(person)", long).fit()).loc["Residual", "mean_sq"]
    assert found.icc_oneway.estimate == pytest.approx((rows - within) / (rows + within))
    assert found.sd_within.estimate == pytest.approx(np.sqrt(within))


def test_equal_repeats_agree_perfectly_and_a_constant_shift_does_not():
    values = np.random.default_rng(0).normal(0, 3, 30)
    assert agreement(np.column_stack([values, values])) == ((1, 1, 1), (1, 1, 1), (0, 0, 0))
    shifted = agreement(np.column_stack([values, values + 3])).icc_agreement
    variance = values.var(ddof=1)
    assert shifted.estimate == pytest.approx(variance / (variance + 9 / 2))
    assert shifted.low < shifted.estimate < shifted.high


@pytest.mark.parametrize("values", [np.ones((5, 2)), np.ones((1, 2)), np.ones(4), np.array([[1, np.nan], [2, 3]])])
def test_what_has_no_agreement_is_refused(values):
    with pytest.raises(DataError, match="agreement"):
        agreement(values)


@pytest.mark.slow
def test_intervals_hold_the_truth_at_their_rate():
    """Between persons 3, within 1.5: true ICC 0.8; 99.9 % binomial bounds of 2,000 draws."""
    held = []
    for seed in range(2000):
        rng = np.random.default_rng([5, seed])
        found = agreement(rng.normal(0, 3, (25, 1)) + rng.normal(0, 1.5, (25, 2)))
        truths = (0.8, 0.8, 1.5)
        held.append([interval.low <= truth <= interval.high for interval, truth in zip(found, truths, strict=True)])
    rates = np.mean(held, axis=0)
    print(f"coverage {rates}")
    assert (rates >= 0.934).all()
    assert (rates <= 0.966).all()
