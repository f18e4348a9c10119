"""What an experiment may say about a BIDS dataset: `data.options` of `cohort: bids`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from brainage.errors import ConfigError
from data_modules.sheets import plain

AUTO = "auto"
CODES = {"sex_codes": ("F", "M", "NA"), "diagnosis_codes": ("CN", "MCI", "AD", "other", "NA")}
TAKEN = (  # columns that no table of the dataset may fill
    "cohort", "run", "split", "path", "label", "joined", "source", "reason", "scan_reason", "age_reason", "person_age",
    "person_age_reason", "one_diagnosis",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Defaults read a dataset whose names follow BIDS; every key is for one that does not."""

    # `cohort` of the table, part of who a person is; "": Name of dataset_description.json in plain letters, else the
    # name of the folder
    cohort_name: str = ""

    # Which files: "auto" is what the modality usually has (see `bids_images.FORMS`), "" must be absent, "*" any,
    # "MNI152*" a beginning, "a|b" one of several
    suffix: str = AUTO
    space: str = AUTO
    desc: str = AUTO
    pipeline: str = AUTO  # folder below derivatives/; "": the raw data
    entities: dict[str, str] = field(default_factory=dict)  # others by their names in files: {acq: mprage, res: "1"}
    one_run: bool = True  # one scan a session (the first run), the others are listed; false keeps every run
    template_file: str = ""  # NIfTI whose grid .npy maps lie on; "": the grid that OpenBHB publishes

    # Tables
    participants_file: str = "participants.tsv"  # absolute, or from the root: ../../participants.tsv
    columns: dict[str, str] = field(default_factory=dict)  # ours -> theirs: {age_years: AgeMRI, site: hospital}
    # wide tables: {wave1: {age_years: AgeMRI_W1, mmse: MMSE_W1}, wave2: {...}}; a wave is the session of that name
    sessions: dict[str, dict[str, str]] = field(default_factory=dict)
    sex_codes: dict[str, str] = field(default_factory=dict)  # {"1": M, "2": F}; F, M or NA
    diagnosis_codes: dict[str, str] = field(default_factory=dict)  # {Healthy: CN}; CN, MCI, AD, other or NA
    # "": Units of participants.json, else the unit in its Description, else years
    age_unit: Literal["", "years", "months", "weeks", "days"] = ""
    # several sessions, but one age in participants.tsv and no acq_time: "": all are listed as of unknown age, "first":
    # it is that of the first session and the others are listed, "all": it is given to all (ages of later ones too low)
    one_age: Literal["", "first", "all"] = ""
    # several sessions, but one diagnosis in participants.tsv: "first": that of the first session alone (who had MCI may
    # have AD later), "all": it is given to all
    one_diagnosis: Literal["first", "all"] = "first"
    same_age_years: float = 1.0  # participants.tsv and sessions.tsv may differ by so much before a person is listed
    sidecars: bool = False  # site (if no table has one), manufacturer, field_tesla from each image's .json: slower

    # Modality roi: one row a scan
    table_file: str = ""  # from the root: derivatives/dlmuse.csv
    table_id: str = ""  # column of people, or of sub-01_ses-1; "": by its name, else the first column
    table_session: str = ""  # column of sessions; "": by its name, else none
    features: list[str] = field(default_factory=list)  # columns or regular expressions; []: every column of numbers


def check_options(options: Options) -> None:
    """Raise ConfigError on a code or column that has no meaning here."""
    for key, allowed in CODES.items():
        for word, code in getattr(options, key).items():
            if code not in allowed:
                raise ConfigError(f"data.options.{key}.{word}={code!r}: expected one of {', '.join(allowed)}")
    for key, mapping in {"columns": options.columns, **options.sessions}.items():
        for ours in mapping:
            if ours in TAKEN or plain(ours) != ours or (key != "columns" and ours in ("participant_id", "session_id")):
                place = key if key == "columns" else f"sessions.{key}"
                raise ConfigError(f"data.options.{place}.{ours}: no column that a table may fill")
    if options.same_age_years < 0:
        raise ConfigError(f"data.options.same_age_years={options.same_age_years}: expected years, 0 or more")
