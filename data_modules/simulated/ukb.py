"""Writes a simulated cohort in the layout of UK Biobank's T1 bulk download (field 20252), with known truth apart.

    bulk/[more/]<eid>_20252_{2,3}_0.zip   members T1/T1_brain_to_MNI.nii.gz, T1/T1_brain.nii.gz, T1/T1.nii.gz, ...
    ukb12345.csv (or .tab)                one row a person, in one of the export styles
    w12345_20250101.csv                   people who withdrew: one eid a line
    simulation/                           parameters.json and truth.tsv, which no reader opens

There is no simulator of skulls, so T1.nii.gz is a skull-stripped brain too. Nothing is warped: T1_brain_to_MNI lies on
the template's grid because simulated brains do, on LAS axes like FSL's template. Oddities as in the real one: people of
the table who were never scanned, or whose zip is not there; zips of people who withdrew, without a row, or without
T1_brain_to_MNI; a share of people with a second visit.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import VERSION, BrainSimulator, Scan, grid, stream
from brainage.imaging.simulated_people import Site, simulate_people
from data_modules.simulated.writing import (
    atomic_file,
    claim_folder,
    finish_folder,
    map_people,
    worker_count,
    write_text,
)

MEMBERS = {"brain_mni": "T1/T1_brain_to_MNI.nii.gz", "brain": "T1/T1_brain.nii.gz", "head": "T1/T1.nii.gz"}
STYLES = {  # as field 31 looks in it -> (a column, eid, separator, ending)
    "31-0.0": ("{field}-{instance}.0", "eid", ",", "csv"),
    "f.31.0.0": ("f.{field}.{instance}.0", "f.eid", "\t", "tab"),
    "x31_0_0": ("x{field}_{instance}_0", "xeid", ",", "csv"),
    "p31": ("p{field}{_i}", "eid", ",", "csv"),
    "participant.p31": ("participant.p{field}{_i}", "participant.eid", ",", "csv"),
}
CENTRES = {"11025": ("Cheadle", 0.5), "11026": ("Reading", 0.25), "11027": ("Newcastle", 0.17), "11028": ("Bristol", 0)}
AGES_YEARS = (45.0, 82.0)
GAP_YEARS = 2.25
FIRST_VISIT, DAYS_A_YEAR = pd.Timestamp("2014-06-01"), 365.25
MONTHS = pd.Series(pd.date_range("2001-01-01", periods=12, freq="MS")).dt.month_name().tolist()
APPLICATION = "12345"


def write_ukb(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("brain_mni",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    style: str = "31-0.0",
    words: bool = False,
    columns: int = 0,
    repeat_share: float = 0.25,
    odd_share: float = 0.06,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; a finished cohort of equal parameters is left as it is.

    `style` is a key of STYLES, `words` writes "Female" and "Cheadle (imaging)" for the codes, `columns` adds columns of
    random numbers, `repeat_share` of the people have a second visit (instance 3), and `odd_share` of them (one at
    least) each withdrew, have no zip, no row, or zips without T1_brain_to_MNI. See `write_openbhb` for the promises.
    truth.tsv has one row a visit: the columns of `simulate_people`, `fate` (scan, withdrawn, no zip, no row, no MNI)
    and what the table tells: birth_year, birth_month, visit_date, tiv_ml.
    """
    out = Path(out)
    _refuse_unknown(modalities, style)
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "ukb", "version": VERSION, "subjects": subjects, "seed": seed, "spacing_mm": spacing_mm,
        "modalities": sorted(modalities), "site_effect": site_effect, "style": style, "words": words,
        "columns": columns, "repeat_share": repeat_share, "odd_share": odd_share,
    }  # fmt: skip
    visits = simulate_visits(subjects, seed=seed, repeat_share=repeat_share, odd_share=odd_share)
    if claim_folder(out, parameters):
        return out
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    visits["tiv_ml"] = [round(brains.tiv_ml(_scan(row)), 1) for row in visits.itertuples()]
    zips = visits[visits["fate"] != "no zip"]
    lacking = frozenset(zips.loc[zips["fate"] == "no MNI", "participant_id"])
    processes = worker_count(workers, len(zips) * len(modalities), brains.shape)
    write = partial(_write_zips, out / "bulk", tuple(modalities), lacking)
    map_people(brains, write, zips.assign(split=""), processes, on_progress)
    table = people_table(visits, seed=seed, style=style, words=words, columns=columns)
    separator, ending = STYLES[style][2:]
    write_text(out / f"ukb{APPLICATION}.{ending}", table.to_csv(sep=separator, index=False))
    withdrawn = sorted(set(visits.loc[visits["fate"] == "withdrawn", "participant_id"]))
    write_text(out / f"w{APPLICATION}_20250101.csv", "".join(f"{person}\n" for person in withdrawn))
    finish_folder(out, parameters, visits)
    return out


def simulate_visits(subjects: int, *, seed: int, repeat_share: float, odd_share: float) -> pd.DataFrame:
    """One row an imaging visit, sorted by person: the truth but for tiv_ml; see `write_ukb`."""
    odd = max(round(odd_share * subjects), 1)
    if subjects < 8 * odd or not 0 <= repeat_share <= 1:
        raise ConfigError(
            f"subjects={subjects}, odd_share={odd_share}, repeat_share={repeat_share}: expected 8 people or more, at "
            "most an eighth of them odd in each way, and a share of repeats from 0 to 1"
        )
    counts = [max(round(share * subjects), 1) for _, share in CENTRES.values()]
    counts[-1] = max(subjects - sum(counts[:-1]), 0)
    sites = [Site(name, n, 63.5, 7.5) for (name, _), n in zip(CENTRES.values(), counts, strict=True) if n]
    people = simulate_people(sites, seed=seed, visits=2, visit_gap_years=GAP_YEARS)
    draw = stream(seed, "ukb")
    eids = draw.choice(np.arange(1_000_001, 6_000_000), len(people) // 2, replace=False)
    repeated = draw.random(len(eids)) < repeat_share
    repeated[0] = repeat_share > 0
    fates = ["withdrawn", "no zip", "no row", "no MNI"]
    fate = draw.permutation([*(fates * odd), *["scan"] * (len(eids) - 4 * odd)])
    first_visit = FIRST_VISIT + pd.to_timedelta(draw.integers(0, 8 * 365, len(eids)), unit="D")
    youngest, oldest = AGES_YEARS[0], AGES_YEARS[1] - GAP_YEARS
    age = (people["age_years"] - people["visit_years"]).clip(youngest, oldest) + people["visit_years"]
    people = people.assign(
        participant_id=np.repeat(eids, 2).astype(str),
        session_id=people["session_id"].map({"1": "2", "2": "3"}),
        age_years=age,
        biological_age_years=age + people["acceleration_years"],
        fate=np.repeat(fate, 2),
    )
    first = people["session_id"] == "2"
    born = first_visit - _days(age[first])
    people["birth_year"], people["birth_month"] = np.repeat(born.year, 2), np.repeat(born.month, 2)
    dates = pd.DatetimeIndex(np.repeat(first_visit, 2)) + _days(people["visit_years"])
    people["visit_date"] = dates.strftime("%Y-%m-%d")
    kept = people[first | np.repeat(repeated, 2)]
    return kept.sort_values(["participant_id", "session_id"], ignore_index=True)


def people_table(visits: pd.DataFrame, *, seed: int, style: str, words: bool, columns: int) -> pd.DataFrame:
    """The table as exported, in a random order: everybody but those without a row, and people never scanned."""
    column, eid = STYLES[style][:2]

    def named(field: int, instance: int, once: bool = False) -> str:
        return column.format(field=field, instance=instance, _i="" if once else f"_i{instance}")

    listed = visits[visits["fate"] != "no row"]
    people = listed[listed["session_id"] == "2"].set_index("participant_id")
    codes = {name: f"{name} (imaging)" if words else code for code, (name, _) in CENTRES.items()}
    table = {
        named(31, 0, once=True): people["sex"].map({"F": "Female", "M": "Male"} if words else {"F": "0", "M": "1"}),
        named(34, 0, once=True): people["birth_year"].astype(str),
        named(52, 0, once=True): people["birth_month"].map(lambda month: MONTHS[month - 1] if words else str(month)),
    }
    for instance in (2, 3):
        rows = listed[listed["session_id"] == str(instance)].set_index("participant_id").reindex(people.index)
        table[named(21003, instance)] = rows["age_years"].map(lambda age: f"{int(age)}", na_action="ignore")
        table[named(53, instance)] = rows["visit_date"]
        table[named(54, instance)] = rows["site"].map(codes)
        table[named(26521, instance)] = (rows["tiv_ml"] * 1000).map("{:.0f}".format, na_action="ignore")
    frame = pd.DataFrame(table, index=people.index)
    draw = stream(seed, "ukb table")
    never = pd.Index([str(6_000_000 + number) for number in range(len(people) // 4 + 1)], name="participant_id")
    frame = pd.concat([frame, frame.sample(len(never), random_state=seed, replace=True).set_axis(never)])
    frame.loc[never, [name for name in frame if name not in list(frame)[:3]]] = np.nan
    extra = draw.normal(size=(len(frame), columns)).round(4)
    names = [named(30000 + 10 * number, 2) for number in range(columns)]
    frame = pd.concat([frame, pd.DataFrame(extra, index=frame.index, columns=names)], axis=1)
    frame = frame.iloc[draw.permutation(len(frame)), draw.permutation(frame.shape[1])]
    return frame.rename_axis(eid).reset_index()


def _refuse_unknown(modalities: Sequence[str], style: str) -> None:
    for modality in modalities:
        if modality not in MEMBERS:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MEMBERS))}")
    if style not in STYLES:
        raise ConfigError(f"style {style!r}: unknown{nearest(style, list(STYLES))}")


def _days(years: pd.Series) -> pd.TimedeltaIndex:
    return pd.to_timedelta((years.to_numpy() * DAYS_A_YEAR).round(), unit="D")


def _write_zips(
    folder: Path, modalities: tuple[str, ...], lacking: frozenset[str], brains: BrainSimulator, task: Sequence
) -> list[None]:
    for scan, _ in task:
        name = f"{scan.participant_id}_20252_{scan.session_id}_0.zip"
        path = folder / name if int(scan.participant_id) % 2 else folder / "more" / name
        if not path.exists():
            _write_zip(path, modalities, scan.participant_id in lacking, brains, scan)
    return [None] * len(task)


def _write_zip(path: Path, modalities: tuple[str, ...], lacks: bool, brains: BrainSimulator, scan: Scan) -> None:
    volume = brains.t1(scan)
    members = {"T1/transforms/T1_to_MNI_linear.mat": b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"}
    for modality in modalities:
        if modality != "brain_mni":
            shift = stream(brains.seed, "ukb place", scan.participant_id, scan.session_id).uniform(-15, 15, 3)
            members[MEMBERS[modality]] = _nifti(volume, brains.affine, "LAS", shift, "scanner")
        elif not lacks:
            members[MEMBERS[modality]] = _nifti(volume, brains.affine, "LAS", np.zeros(3), "mni")
    if "brain" in modalities:
        mask = (volume > 0).astype(np.float32)
        members["T1/T1_brain_mask.nii.gz"] = _nifti(mask, brains.affine, "LAS", shift, "scanner")
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name)  # of no time: equal seeds give equal bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)


def _nifti(volume: np.ndarray, affine: np.ndarray, axes: str, shift_mm: np.ndarray, space: str) -> bytes:
    """Bytes of a .nii.gz: `volume` in RAS stored in `axes` as float32, moved by `shift_mm`."""
    moved = affine.copy()
    moved[:3, 3] += shift_mm
    image = nib.Nifti1Image(volume.astype(np.float32), moved)
    turn = nib.orientations.ornt_transform(nib.io_orientation(moved), nib.orientations.axcodes2ornt(tuple(axes)))
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, code=space)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _scan(row: Any) -> Scan:
    return Scan(*(getattr(row, name) for name in Scan._fields))
