"""Rules of data.exclude: what they match, what they refuse, and that nothing is left out without its reason."""

from __future__ import annotations

import operator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.exclusion import Rule, apply_rules, exclude, parse_rule, remarks, rule_of
from brainage.data.table import KEY, finish_table
from brainage.errors import ConfigError

SIGNS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@pytest.fixture
def table():
    rows = pd.DataFrame({
        "cohort": "a", "participant_id": ["007", "2", "3", "4", "5"], "site": ["X", "Y", None, "B 2", "X"],
        "age_years": [20.0, 30, 40, 50, 60], "qc_pass": [1.0, 0.0, np.nan, 1.0, 0.0], "path": list("vwxyz"),
        "split": ["train", "train", "test_internal", "test_internal", "train"],
    })  # fmt: skip
    return finish_table(rows, source="test").table


def matched(table, text):
    return apply_rules(table, [parse_rule(text)]).notna().tolist()


@pytest.mark.parametrize(("text", "expected"), [
    ("qc_pass == 0", [False, True, False, False, True]),
    ("qc_pass==0.0", [False, True, False, False, True]),
    ("qc_pass != 1", [False, True, False, False, True]),
    ("age_years < 40", [True, True, False, False, False]),
    ("age_years <= 40", [True, True, True, False, False]),
    ("age_years >= 4e1", [False, False, True, True, True]),
    ("site == 'X'", [True, False, False, False, True]),
    ("site != X", [False, True, False, True, False]),
    ("site in [X, 'B 2']", [True, False, False, True, True]),
    ('site in ("Y")', [False, True, False, False, False]),
    ("age_years in [20, 60.0]", [True, False, False, False, True]),
    ("participant_id == 007", [True, False, False, False, False]),
    ("participant_id == 7", [False] * 5),
])  # fmt: skip
def test_a_rule_matches_exactly_the_scans_it_describes_and_no_missing_value(table, text, expected):
    assert matched(table, text) == expected


@pytest.mark.parametrize("text", [
    "", "qc_pass", "qc_pass 0", "qc_pass = 0", "== 0", "qc_pass == ", "qc_pass == 0 0", "site == Guys Hospital",
    "site in", "site in X", "site in []", "site in [X", "site in [X,]", "site in [X, Y] and qc_pass == 0",
    "site == [X]", "qc_pass == nan", "qc_pass == NA", "site == ''", "site == 'X", "qc_pass == 0 or qc_pass == 1",
    "__import__('os').system('true') == 0", "qc_pass < 0 < 1", "1 == 1", None,
])  # fmt: skip
def test_what_is_no_rule_is_refused_with_what_was_expected(text):
    with pytest.raises(ConfigError, match=r"data\.exclude"):
        parse_rule(text)


def test_an_unknown_column_is_refused_with_the_nearest_one(table):
    with pytest.raises(ConfigError, match=r"no column 'qc_pas'.*did you mean 'qc_pass'"):
        matched(table, "qc_pas == 0")


def test_words_are_not_compared_with_numbers_and_text_has_no_order(table):
    with pytest.raises(ConfigError, match="age_years holds numbers, found 'old'"):
        matched(table, "age_years == old")
    with pytest.raises(ConfigError, match="holds numbers, found '1_0'"):
        matched(table, "age_years == 1_0")
    with pytest.raises(ConfigError, match="site holds text, which has no <"):
        matched(table, "site < X")


def test_the_reason_names_every_rule_that_matched_with_its_value(table):
    reasons = apply_rules(table, [parse_rule("qc_pass == 0"), parse_rule("site == 'X'")])
    assert reasons[4] == "excluded by data.exclude: qc_pass == 0 (qc_pass 0); site == X (site X)"
    assert reasons[0] == "excluded by data.exclude: site == X (site X)"
    assert reasons.isna().tolist() == [False, False, True, True, False]


def test_rules_together_leave_out_whoever_matches_one_and_none_leaves_out_nobody(table):
    found = exclude(table, ["qc_pass == 0", "age_years < 25"])
    assert found.reasons.isna().tolist() == [False, False, True, True, False]
    assert found.reasons.dropna().str.startswith("excluded by data.exclude: ").all()
    assert exclude(table, []).reasons.isna().all()


def test_computed_quality_is_joined_by_key_and_asked_for_only_where_a_rule_needs_it(table):
    quality = table[KEY].assign(qc_mean_corr=[0.9, 0.2, 0.9, 0.4, 0.9]).iloc[::-1].reset_index(drop=True)
    found = exclude(table, ["qc_mean_corr < 0.5"], lambda: quality)
    assert found.reasons.isna().tolist() == [True, False, True, False, True]
    exclude(table, ["qc_pass == 0"], lambda: pytest.fail("not needed"))
    with pytest.raises(ConfigError, match="did you mean 'qc_mean_corr'"):
        exclude(table, ["qc_meancorr < 0.5"], lambda: quality)


def test_a_rule_that_matches_nobody_or_more_than_half_is_remarked(table):
    lines = remarks(table, [parse_rule(text) for text in ("site == x", "age_years > 25", "qc_pass == 0")])
    assert len(lines) == 2
    assert lines[0].startswith("data.exclude: site == x matches none of 5 scans")
    assert lines[1] == "data.exclude: age_years > 25 matches 4 of 5 scans, more than half: is it what you meant?"
    assert exclude(table, ["site == Gys"]).remarks == ["data.exclude: site == Gys matches none of 5 scans"]
    near = table.assign(site=pd.array(["Guys"] * 5, dtype="string"))
    assert "did you mean 'Guys'" in remarks(near, [parse_rule("site == Guy")])[0]


def test_nobody_is_named_where_a_reason_leaves_the_machine(table):
    rules = ["participant_id == '007'", "age_years < 25", "site in [X, 'B 2']"]
    reason = exclude(table, rules).reasons[0]
    assert "007" in reason
    told = rule_of(reason)
    assert told == ("excluded by data.exclude: a rule about participant_id; age_years < 25; site in [X, 'B 2']")
    assert rule_of("age_years missing") == ""


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
values = words.filter(
    lambda word: not ("'" in word and '"' in word) and word.lower() not in ("na", "nan", "<na>")
)  # no rule can hold both quotes: the grammar has no escapes
columns = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)


@given(column=columns, sign=st.sampled_from([*SIGNS, "in"]), several=st.lists(values, min_size=1, max_size=4))
def test_any_rule_reads_as_it_was_written(column, sign, several):
    rule = Rule(column, sign, tuple(several if sign == "in" else several[:1]))
    assert parse_rule(str(rule)) == rule
    assert parse_rule(f"  {rule}  ") == rule


@given(text=st.text(max_size=40))
@settings(max_examples=200)
def test_any_text_is_a_rule_or_a_config_error(text):
    try:
        rule = parse_rule(text)
    except ConfigError:
        return
    assert rule.values
    assert parse_rule(str(rule)) == rule


@given(
    numbers=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=20),
    sign=st.sampled_from(list(SIGNS)), against=st.floats(-1e6, 1e6),
)  # fmt: skip
def test_numbers_are_compared_as_python_compares_them_and_missing_ones_never_match(numbers, sign, against):
    table = pd.DataFrame({"x": pd.array(numbers, dtype="Float64")}).astype("float64")
    found = matched(table, f"x {sign} {against!r}")
    assert found == [number is not None and SIGNS[sign](number, against) for number in numbers]


@given(texts=st.lists(st.one_of(st.none(), st.sampled_from(["A", "b", "0", "A b", "é"])), max_size=12))
def test_a_rule_and_its_negation_share_the_known_values_between_them(texts):
    table = pd.DataFrame({"s": pd.array(texts, dtype="string")})
    for value in ("A", "A b", "0"):
        equal, other = (np.array(matched(table, f"s {sign} '{value}'"), bool) for sign in ("==", "!="))
        assert not (equal & other).any()
        assert ((equal | other) == table["s"].notna()).all()
