"""Seconds and memory of a UK-Biobank-sized table: 50,000 zips, a table of 50,000 rows x 500 columns -> canonical table.

    python experiments/benchmarks/ukb_table.py [--people 50000] [--columns 500] [--style 31-0.0] [--folder DIR]

Goal: below 10 s and 1.5 GB on 2 cores. Zips hold empty members under the names of a real one; nothing is unpacked. A
first call in the same process pays for imports of pandas and numpy, which is not counted; files are in the page cache.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from data_modules.simulated.ukb import CENTRES, STYLES
from data_modules.ukb import MEMBERS, UKBiobank

FOLDERS = {"T1_fast": 12, "T1_first": 45, "T1_sienax": 20, "T1_vbm": 8, "transforms": 8}  # files of a real zip, about


def write_cohort(root: Path, people: int, columns: int, style: str) -> None:
    """One zip a person in a hundred folders, and a table of `columns` columns."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder, files in FOLDERS.items():
            for number in range(files):
                archive.writestr(f"T1/{folder}/T1_some_result_{number:03d}.nii.gz", b"")
        for member in MEMBERS.values():
            archive.writestr(member, b"")
    eids = np.arange(1_000_000, 1_000_000 + people)
    for eid in eids:
        place = root / "bulk" / str(eid % 100)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{eid}_20252_2_0.zip").write_bytes(buffer.getvalue())
    write_table(root, eids, columns, style)


def write_table(root: Path, eids: np.ndarray, columns: int, style: str) -> None:
    column, eid, separator, ending = STYLES[style]
    draw = np.random.default_rng(0)
    n = len(eids)
    year, month = draw.integers(1940, 1971, n), draw.integers(1, 13, n)
    days = draw.integers(0, 2800, n)
    dates = (pd.Timestamp("2014-06-15") + pd.to_timedelta(days, unit="D")).strftime("%Y-%m-%d").to_numpy(object)
    age = (2014 + 5.5 / 12 + days / 365.25 - year - (month - 1) / 12).astype(int)
    known = {
        31: draw.integers(0, 2, n), 34: year, 52: month, 21003: age, 53: dates,
        54: draw.choice([int(code) for code in CENTRES], n), 26521: draw.integers(1_200_000, 1_900_000, n),
    }  # fmt: skip
    table = {eid: pa.array(eids)}
    for field, values in known.items():
        once = field in (31, 34, 52)
        name = column.format(field=field, instance=0 if once else 2, _i="" if once else "_i2")
        table[name] = pa.array(values)
    for number in range(columns - len(table)):
        table[column.format(field=30000 + number, instance=2, _i="_i2")] = pa.array(draw.normal(size=n).round(3))
    options = pa_csv.WriteOptions(delimiter=separator, quoting_style="none")
    pa_csv.write_csv(pa.table(table), root / f"ukb12345.{ending}", options)


def _measure(root: Path, results: multiprocessing.SimpleQueue) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    table = UKBiobank(root, "brain_mni").table().table
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    results.put((len(table), seconds, cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before))


def measure(root: Path) -> tuple[int, float, float, int, int]:
    """Rows, seconds, CPU seconds, peak memory and memory before in KiB, of `table()` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_measure, args=(root, results))
    process.start()
    process.join()
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--style", choices=list(STYLES), default="31-0.0")
    parser.add_argument("--folder", type=Path, help="keep the files here (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        if not (root / "bulk").is_dir():
            write_cohort(root, args.people, args.columns, args.style)
        size = sum(file.stat().st_size for file in root.glob("ukb12345.*"))
        rows, seconds, cpu_s, peak, before = measure(root)
        print(f"{rows} zips, table of {args.columns} columns ({size / 1e6:.0f} MB, {args.style})")
        print(f"canonical table in {seconds:.1f} s, {cpu_s:.1f} s of one core (goal: 10 s)")
        print(f"peak memory {peak / 2**20:.2f} GiB of which {before / 2**20:.2f} GiB imports (goal: 1.5 GB)")


if __name__ == "__main__":
    main()
