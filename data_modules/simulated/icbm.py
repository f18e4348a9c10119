"""Writes a simulated ICBM as its archive gives it: the image-search CSV and ICBM/<subject>/<series>/<date>/<I id>/.

Healthy adults of 18 to 85 at three centres, some scanned twice. As in the real one there are sessions with two T1s,
rows of other series, rows without an image and an image without a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import VERSION, BrainSimulator, grid, stream
from brainage.imaging.simulated_people import Site, simulate_people
from data_modules.simulated.loni_tree import ENDINGS, archive_stem, write_natives
from data_modules.simulated.writing import claim_folder, finish_folder, map_people, worker_count, write_text

CENTRES = {"MNI": 42.0, "UCLA": 35.0, "UTHSCSA": 50.0}  # letters of the subjects -> mean age in years


def write_icbm(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("head",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; promises of `write_openbhb`.

    `modalities`: head, brain; a simulated head is a brain, since there is no skull to simulate. truth.tsv has one row a
    planted image: `fate` is table, or why the image has to be left out.
    """
    out = Path(out)
    kinds = tuple(modalities)
    for name in kinds:
        if name not in ENDINGS:
            raise ConfigError(f"modality {name!r}: unknown{nearest(name, list(ENDINGS))}")
    if subjects < len(CENTRES):
        raise ConfigError(f"subjects={subjects}: expected {len(CENTRES)} or more (one a centre)")
    grid(spacing_mm)
    images = _plan(subjects, seed)
    parameters = {"layout": "icbm", "version": VERSION, "subjects": subjects, "seed": seed, "spacing_mm": spacing_mm,
                  "site_effect": site_effect, "modalities": list(kinds)}  # fmt: skip
    if claim_folder(out, parameters):
        return out
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    written = images[images["has_file"]]
    scans = written.assign(session_id=written["session_id"] + written["scan"], split=written["path"])
    processes = worker_count(workers, len(scans) * len(kinds), brains.shape)
    map_people(brains, partial(write_natives, out, kinds), scans, processes, on_progress)
    write_text(out / "ICBM_search.csv", search_table(images).to_csv(index=False))
    finish_folder(out, parameters, images)
    return out


def search_table(images: pd.DataFrame) -> pd.DataFrame:
    """The image-search CSV, with rows of series that are no T1."""
    rows = images[images["in_search"]]
    table = pd.DataFrame(
        {
            "Image Data ID": "I" + rows["image_id"], "Subject": rows["participant_id"], "Group": "Normal",
            "Sex": rows["sex"], "Age": rows["age_years"], "Visit": 1, "Modality": "MRI",
            "Description": rows["description"], "Type": "Original",
            "Acq Date": [f"{date.month}/{date.day}/{date.year}" for date in rows["scan_date"]], "Format": "NiFTI",
        }
    )  # fmt: skip
    other = table.head(3).assign(Description="BOLD_MOSAIC_64_resting_st.")
    return pd.concat([table, other.assign(**{"Image Data ID": [f"I{n}" for n in range(1, len(other) + 1)]})])


def _plan(subjects: int, seed: int) -> pd.DataFrame:
    """One row a planted image."""
    counts = [len(range(centre, subjects, len(CENTRES))) for centre in range(len(CENTRES))]
    sites = [Site(name, count, mean, 14.0) for (name, mean), count in zip(CENTRES.items(), counts, strict=True)]
    images = []
    for number, person in enumerate(simulate_people(sites, seed=seed).to_dict("records")):
        person["participant_id"] = f"{person['site']}_{number + 101:04d}"
        draw = stream(seed, "icbm", number)
        age = min(max(person["age_years"], 18.0), 84.0)
        start = pd.Timestamp("1998-03-01") + pd.Timedelta(days=int(draw.integers(0, 3000)))
        for visit in range(2 if number % 5 == 3 else 1):
            date = start + pd.Timedelta(days=visit * int(draw.integers(300, 700)))
            years = (date - start).days / 365.25
            lost = number % 11 == 7
            facts = person | {"session_id": f"{date:%Y%m%d}", "scan_date": date, "visit_years": years,
                              "age_years": round(age + years, 2), "run": "", "in_search": True,
                              "biological_age_years": age + years + person["acceleration_years"]}  # fmt: skip
            identity = str(50000 + 20 * number + 2 * visit)
            images.append(facts | {"image_id": identity, "description": "T1", "scan": "", "has_file": not lost,
                                   "fate": "no file" if lost else "table"})  # fmt: skip
            if number % 4 == 1:
                images.append(facts | {"image_id": str(int(identity) + 1), "description": "T1 repeat", "scan": "b",
                                       "has_file": True, "fate": "table" if lost else "repeat"})  # fmt: skip
    images.append(images[0] | {"participant_id": "MNI_0001", "image_id": "99000", "in_search": False, "scan": "",
                               "has_file": True, "description": "T1", "fate": "nobody"})  # fmt: skip
    table = pd.DataFrame(images)
    rows = table[["participant_id", "description", "scan_date", "image_id"]].itertuples(index=False)
    return table.assign(path=[archive_stem("ICBM", *row) for row in rows])
