"""The door of every cohort: its modality, its folder, and the options that only it knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from brainage.config import DataConfig
from brainage.errors import ConfigError
from data_modules.cohort import open_reader
from data_modules.openbhb import OpenBHB
from tests.data_modules.visits import Visits


@dataclass(frozen=True)
class Windows:
    months: int = 36
    columns: dict[str, str] = field(default_factory=dict)


class Optional(Visits):
    Options = Windows


def test_options_have_the_defaults_and_types_of_their_schema(tmp_path):
    assert Optional(tmp_path, "vbm").options == Windows()
    given = Optional(tmp_path, "vbm", options={"months": "24", "columns": {"age_years": "AGE"}}).options
    assert given == Windows(24, {"age_years": "AGE"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"month": 24}, r"data\.options\.month: unknown for cohort visits; did you mean 'months'"),
        ({"months": "many"}, r"data\.options\.months: Value 'many' of type 'str' could not be converted to Integer"),
    ],
)
def test_an_option_that_no_reader_knows_or_of_another_type_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        Optional(tmp_path, "vbm", options=options)


def test_a_cohort_without_options_says_so_and_the_configuration_reaches_the_reader(simulated):
    assert isinstance(open_reader(DataConfig(root=str(simulated))), OpenBHB)
    with pytest.raises(ConfigError, match=r"data\.options\.months: unknown for cohort openbhb; this cohort has none"):
        open_reader(DataConfig(root=str(simulated), options={"months": 3}))
