"""ADNI's visits: one row each, with the age and the diagnosis of that visit, and why a visit cannot be used."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_modules.adni_tables import OF_PERSON, OF_VISIT, diagnosis_of, read_tables, visit_month
from data_modules.sheets import numbers

DISPUTED_VISIT, DISPUTED_PERSON = ("diagnosis", "years"), ("baseline_age", "sex")  # must agree within a visit, a person
OF_SCANNED = ("baseline_age", "baseline_date", "sex", "site", "apoe4", "education_years", "person_reason")


def read_visits(root: Path) -> pd.DataFrame:
    """One row a clinical visit of every person, with `reason` where a scan of that visit cannot be used.

    Columns: participant_id, session_id (bl, m06, ...), exam_date, months (planned), age_years, visit_years, sex, site,
    diagnosis, diagnosis_detail, image_id, mmse, cdr, cdr_sum, apoe4, education_years, field_tesla, baseline_age,
    baseline_date, reason, person_reason (that of all the person's scans). Sorted by person and time.

    visit_years are the first there is of: Years_bl; the days from the date of the baseline to that of the visit; Month;
    the month of the visit code. age_years are the age at baseline plus visit_years.
    """
    visits, reasons = _one_row_each(read_tables(root))
    visits = visits[visits["visit"].notna() | visits["exam_date"].notna()]
    return _canonical(visits, reasons).sort_values(
        ["participant_id", "visit_years", "session_id"], ignore_index=True, kind="stable"
    )


def join_visits(scans: pd.DataFrame, visits: pd.DataFrame, window_days: float) -> pd.DataFrame:
    """`scans` with the facts of their clinical visit, `named` (the visit names the image), days_to_clinical, and
    `reason` where a scan cannot be used.

    Scans have participant_id, image_id, date and code (of the visit, where they say one). In this order: the visit that
    names the image; the person's nearest visit within `window_days` (the earlier of two equally near); where scan or
    visit has no date, the visit of that code. Otherwise session_id is the date of the scan, its age and visit_years
    follow from the date of the baseline, and it has no diagnosis.
    """
    has_baseline = visits["participant_id"].isin(visits.loc[visits["session_id"] == "bl", "participant_id"])
    known = visits[~(has_baseline & (visits["session_id"] == "sc"))]  # the images of screening are the baseline's
    scans = scans.reset_index(drop=True)
    named = scans["image_id"].map(_first_of(known, known["image_id"]))
    stranger = named.notna() & (named.map(known["participant_id"]) != scans["participant_id"])
    at = named.fillna(_nearest(scans, known, window_days)).fillna(_same_code(scans, known))
    facts = known.drop(columns=["participant_id", "image_id"]).reindex(at).set_axis(scans.index)
    whose = (
        known.groupby("participant_id")[[*OF_SCANNED]].first().reindex(scans["participant_id"]).set_axis(scans.index)
    )
    alone = at.isna()
    since = (scans["date"] - whose["baseline_date"]).dt.days / 365.25
    facts.loc[alone, [*OF_SCANNED]] = whose.loc[alone]
    facts.loc[alone, "visit_years"] = since[alone]
    facts.loc[alone, "age_years"] = (whose["baseline_age"] + since)[alone]
    facts.loc[alone, "session_id"] = scans["date"].dt.strftime("%Y%m%d")[alone]
    facts["days_to_clinical"] = (scans["date"] - facts["exam_date"]).dt.days.abs()
    reason = facts["reason"].fillna(whose["person_reason"])
    reason = reason.fillna(_not_placed(scans, facts["visit_years"], alone))
    reason = reason.mask(stranger, "image I" + scans["image_id"] + " is another person's in the clinical tables")
    reason = reason.mask(~scans["participant_id"].isin(known["participant_id"]), "person is not in the clinical tables")
    facts = facts.assign(reason=reason, named=named.notna()).drop(columns=[*set(facts) & set(scans)])
    return pd.concat([scans, facts], axis=1)


def _first_of(known: pd.DataFrame, key: pd.Series) -> pd.Series:
    """Row of `known` by key, the first where several share one."""
    key = key.dropna()
    key = key[~key.duplicated()]
    return pd.Series(key.index, index=key.to_numpy(), dtype="float64")


def _nearest(scans: pd.DataFrame, known: pd.DataFrame, window_days: float) -> pd.Series:
    dated = known[["participant_id", "exam_date"]].rename_axis("visit").reset_index()
    pairs = scans[["participant_id", "date"]].rename_axis("scan").reset_index().merge(dated, on="participant_id")
    pairs["apart"] = (pairs["date"] - pairs["exam_date"]).dt.days.abs()
    pairs = pairs[pairs["apart"] <= window_days].sort_values(["scan", "apart", "exam_date", "visit"])
    return scans.index.to_series().map(pairs.drop_duplicates("scan").set_index("scan")["visit"]).astype("float64")


def _same_code(scans: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    rows = _first_of(known, known["participant_id"] + "/" + known["session_id"])
    screened = scans["code"].eq("sc").fillna(False).astype(bool)  # mask takes a missing code for a true one
    code = scans["code"].mask(screened, "bl")
    at = (scans["participant_id"] + "/" + code).map(rows).astype("float64")
    apart = scans["date"].notna() & at.map(known["exam_date"]).notna()
    return at.mask(apart)  # both are dated and further apart than the window


def _not_placed(scans: pd.DataFrame, since: pd.Series, alone: pd.Series) -> pd.Series:
    """Why a scan without a clinical visit has no place in the person's time, NA where it has one."""
    reason = pd.Series(pd.NA, index=scans.index, dtype="string")
    label = "'" + scans["code"].fillna("") + "'"
    reason = reason.mask(alone & scans["date"].isna(), "no clinical visit " + label + " of this person, and no date")
    early = "scan of " + scans["date"].dt.strftime("%Y-%m-%d") + " is " + (-since).round(2).astype("string")
    return reason.mask(alone & (since < 0), early + " years before the baseline")


def _one_row_each(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a visit with the facts of its person, and (person, visit or NA, reason) of what disagrees."""
    rows = rows.sort_values(list(rows.columns), ignore_index=True)  # so that the order of the file decides nothing
    rows["visit"] = rows["visit"].fillna(rows["exam_date"].dt.strftime("%Y%m%d").astype("string"))
    people = rows.groupby("person")[["age_reason", *OF_PERSON]].first()
    dated = rows[rows["visit"].notna()]
    visits = dated.groupby(["person", "visit"], as_index=False)[[*OF_VISIT]].first()
    told = rows.assign(diagnosis=diagnosis_of(rows["diagnosis"]))
    reasons = [
        _disagreement(told[told["visit"].notna()], ["person", "visit"], DISPUTED_VISIT),
        _disagreement(told, ["person"], DISPUTED_PERSON),
        _wrong_rid(rows),
    ]
    ranged = people[people["age_reason"].notna() & people["baseline_age"].isna()]
    reasons.append(ranged["age_reason"].rename("reason").reset_index())
    return visits.merge(people.reset_index(), on="person", how="left"), pd.concat(reasons, ignore_index=True)


def _disagreement(rows: pd.DataFrame, by: list[str], names: tuple[str, ...]) -> pd.DataFrame:
    """Groups whose rows hold different values, with what they are."""
    differs = rows.groupby(by)[[*names]].nunique() > 1
    left_out = []
    for key in differs.index[differs.any(axis=1)]:
        group = rows[(rows[by] == (list(key) if isinstance(key, tuple) else [key])).all(axis=1)]
        found = [f"{name} {' and '.join(map(str, group[name].dropna().unique()))}" for name in names
                 if group[name].nunique() > 1]  # fmt: skip
        what = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        which = f"visit {what['visit']}" if "visit" in what else f"person {what['person']}"
        left_out.append(what | {"reason": f"rows of {which} in the clinical tables disagree: {'; '.join(found)}"})
    return pd.DataFrame(left_out, columns=["person", "visit", "reason"], dtype="string")


def _wrong_rid(rows: pd.DataFrame) -> pd.DataFrame:
    """RID is the last four (or five) digits of PTID."""
    digits = numbers(rows["person"].str.extract(r"_S_(\d+)$", expand=False))
    rid = numbers(rows["rid"])
    wrong = rows[rid.notna() & digits.notna() & (rid != digits)].drop_duplicates("person")
    reason = "RID " + wrong["rid"].astype("string") + " is not that of PTID " + wrong["person"]
    return pd.DataFrame({"person": wrong["person"], "reason": reason}, dtype="string")


def _canonical(visits: pd.DataFrame, reasons: pd.DataFrame) -> pd.DataFrame:
    code_month = visits["visit"].map(visit_month).astype("float64")
    months = visits["months"].fillna(code_month)
    start = visits["baseline_date"]
    for code in ("bl", "sc"):  # screening stands for a baseline that is not in the table
        start = start.fillna(
            visits["exam_date"].where(visits["visit"] == code).groupby(visits["person"]).transform("min")
        )
    passed = (visits["exam_date"] - start).dt.days / 365.25
    since = visits["years"].fillna(passed).fillna(months / 12)
    named = diagnosis_of(visits["diagnosis"])
    at_entry = diagnosis_of(visits["baseline_diagnosis"])
    entry = (visits["visit"] == "bl") & (
        named.isna() | (named == at_entry).fillna(False)
    )  # DX_bl speaks of the baseline alone
    detail = visits["diagnosis"].where(~entry, visits["baseline_diagnosis"].fillna(visits["diagnosis"]))
    site = visits["site"].str.removesuffix(".0").str.zfill(3)
    table = pd.DataFrame(
        {
            "participant_id": visits["person"],
            "session_id": visits["visit"],
            "exam_date": visits["exam_date"],
            "months": months,
            "baseline_age": visits["baseline_age"],
            "baseline_date": start,
            "visit_years": since,
            "age_years": visits["baseline_age"] + since,
            "sex": visits["sex"],
            "site": site.fillna(visits["person"].str.slice(0, 3)),
            "diagnosis": named.where(~entry, named.fillna(at_entry)),
            "diagnosis_detail": detail.astype("string"),
            "image_id": visits["image_id"],
            "apoe4": _apoe4(visits),
            "field_tesla": visits["field"],
        }
    )
    for name in ("mmse", "cdr", "cdr_sum", "education_years"):
        table[name] = visits[name]
    told = reasons.reindex(columns=["person", "visit", "reason"])
    by_person = told[told["visit"].isna()].drop_duplicates("person").set_index("person")["reason"]
    table["person_reason"] = table["participant_id"].map(by_person).astype("string")
    return table.assign(reason=_reasons(table, told))


def _apoe4(visits: pd.DataFrame) -> pd.Series:
    """Number of e4 alleles: as written, else counted in a genotype like 3/4, else in two columns of alleles."""
    genotype = visits["genotype"].str.count("4").astype("float64")
    alleles = [numbers(visits[name]) for name in ("allele_1", "allele_2")]
    counted = sum((allele == 4).astype("float64").where(allele.notna()) for allele in alleles)
    return visits["apoe4"].fillna(genotype).fillna(counted)


def _reasons(table: pd.DataFrame, told: pd.DataFrame) -> pd.Series:
    """Why scans of a visit cannot be used: what the tables contradict, else a visit before the baseline."""
    by_visit = told[told["visit"].notna()].drop_duplicates(["person", "visit"])
    key = by_visit["person"] + "/" + by_visit["visit"]
    reason = (table["participant_id"] + "/" + table["session_id"]).map(dict(zip(key, by_visit["reason"], strict=True)))
    reason = reason.astype("string").fillna(table["person_reason"])
    early = table["visit_years"] < 0
    years_early = (-table["visit_years"]).round(2).astype("string")
    before = "visit " + table["session_id"] + " is " + years_early + " years before the baseline"
    return reason.fillna(before.where(early.fillna(False)).astype("string"))
