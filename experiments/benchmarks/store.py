"""What the array store costs: batches, decoding, preparation, opening, masks, shards, memory.

    python experiments/benchmarks/store.py [--only NAME ...] [--volumes 128] [--scans 20000] [--repeat 15]

Writes its own data (about 2 GB, simulated grey matter on the published 1.5 mm grid) into a temporary folder and prints
one markdown table. What is compared is measured in turns, so that another job on the machine disturbs both alike; a
figure is the median of the repeats with their range. Repeated figures are CPU seconds: what they read is in memory, and
on one thread that is the wall time of a machine without other jobs. `wall` says where it is by the clock.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from brainage.data.array_store import ArrayStore
from brainage.data.masking import Mask
from brainage.data.store import prepare_store
from brainage.data.table import finish_table
from brainage.imaging.contract import InputContract
from brainage.imaging.simulate import BrainSimulator, Scan
from brainage.runtime import allowed_cores
from data_modules.batches import DeviceSide, ScanBatches

VBM = InputContract(
    "cat12vbm_gm", "volume", (1, 121, 145, 121), space="MNI152", spacing_mm=(1.5, 1.5, 1.5),
    origin_mm=(-90.0, -126.0, -72.0), axes="RAS",
)  # fmt: skip
SMALL = InputContract("tiny", "volume", (1, 4, 4, 4), spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), axes="RAS")
BATCH = 64
DISTINCT = 12  # volumes that are simulated; more scans repeat them


@dataclass
class Bench:
    """Where the data lie, how much of it there is, and the rows of the table."""

    folder: Path
    volumes: int
    scans: int
    repeat: int
    rows: list[tuple[str, str, str, str]]

    def add(self, what: str, found: str, goal: str = "", n: str = "") -> None:
        self.rows.append((what, found, goal, n))
        print(f"  {what}: {found} {goal and f'(goal {goal})'}", file=sys.stderr, flush=True)

    def table(self, n: int) -> pd.DataFrame:
        """As of a cohort: five sites, a few extra columns."""
        number = np.arange(n)
        raw = pd.DataFrame(
            {
                "cohort": "bench",
                "participant_id": [f"sub-{i:06d}" for i in number],
                "session_id": "1",
                "site": [f"site{i % 70:02d}" for i in number],
                "study": [f"study{i % 10}" for i in number],
                "sex": np.where(number % 2, "F", "M"),
                "diagnosis": "CN",
                "age_years": 20 + number % 60,
                "path": [f"{i % DISTINCT:03d}.nii.gz" for i in number],
            }
        )
        for name in ("tiv_ml", "gm_ml", "wm_ml", "csf_ml", "qc_iqr", "qc_ncr", "qc_euler", "qc_corr"):
            raw[name] = np.random.default_rng(len(name)).normal(1000, 100, n)
        return finish_table(raw, source="benchmark").table


class Reads:
    """Readers of the benchmark, by nibabel as every cohort that keeps NIfTI files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, path: str) -> np.ndarray:
        return np.asarray(nib.load(self.folder / path).get_fdata(dtype=np.float32))[None]


class TimedReads(Reads):
    """Notes, for its process, the time on a core and the time that it waited for one while others had them."""

    def __call__(self, path: str) -> np.ndarray:
        sample = super().__call__(path)
        if (times := Path("/proc/self/schedstat")).exists():
            (self.folder / f"core-{os.getpid()}").write_text(times.read_text())
        return sample

    def waited_s(self) -> float:
        return sum(int(file.read_text().split()[1]) for file in self.folder.glob("core-*")) / 1e9


def tiny(path: str) -> np.ndarray:
    return np.full(SMALL.shape, int(path[:3]), np.float32)


def write_volumes(bench: Bench) -> None:
    simulator = BrainSimulator(1.5, 0)
    for number in range(DISTINCT):
        scan = Scan(f"sub-{number:03d}", "1", f"site{number % 5}", "F", 40.0 + number)
        grey = simulator.grey_matter(scan)
        nib.save(nib.Nifti1Image(grey, simulator.affine), bench.folder / f"{number:03d}.nii.gz")
    smooth = gaussian_filter(grey, 6.0 / 2.355 / 1.5)  # as maps are often kept: hardly a voxel is exactly 0
    nib.save(nib.Nifti1Image(smooth, simulator.affine), bench.folder / "smooth.nii.gz")


def grey_mask() -> Mask:
    """Of the same kind and nearly the same size as the published one."""
    return Mask("grey matter template", 0.05, BrainSimulator(1.5, 0).templates.grey > 0.05)


def in_turns(repeat: int, **tasks: Callable[[], object]) -> dict[str, np.ndarray]:
    """CPU seconds of each task at each repeat, after one turn that is not counted; `<name>_wall`: by the clock."""
    seconds: dict[str, list[float]] = {name + kind: [] for name in tasks for kind in ("", "_wall")}
    for turn in range(repeat + 1):
        for name, task in tasks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            if turn:
                seconds[name].append(time.process_time() - cpu)
                seconds[name + "_wall"].append(time.perf_counter() - wall)
    return {name: np.array(values) for name, values in seconds.items()}


def ms(seconds: np.ndarray, per: int = 1) -> str:
    low, middle, high = 1e3 * np.quantile(seconds, (0, 0.5, 1)) / per
    return f"{middle:.3g} ms ({low:.3g} to {high:.3g})"


def bench_prepare(bench: Bench) -> None:
    """Time and cores of `prepare` from .nii.gz; also makes the stores of the next parts."""
    workers, table = allowed_cores(), bench.table(bench.volumes)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, own = time.perf_counter(), time.process_time()
    reads = TimedReads(bench.folder)
    prepare_store(table, VBM, reads, bench.folder / "store", workers=workers)
    wall, own = time.perf_counter() - start, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    n = f"{bench.volumes} volumes"
    bench.add("prepare .nii.gz: CPU time of workers / (wall x workers)", f"{cpu / wall / workers:.0%}", "> 85 %", n)
    busy = (cpu + reads.waited_s()) / wall / workers
    bench.add("the same with time that other jobs had their cores", f"{busy:.0%}", "> 85 %", n)
    rate = f"{1e3 * wall / bench.volumes:.0f} ms a volume, {workers} workers"
    bench.add("prepare .nii.gz: wall", f"{rate}; parent {own / wall:.0%} of a core", n=n)


def bench_masked(bench: Bench) -> None:
    mask, table = grey_mask(), bench.table(bench.volumes)
    start = time.perf_counter()
    store = prepare_store(table, VBM, Reads(bench.folder), bench.folder / "masked", mask=mask)
    wall = time.perf_counter() - start
    n = f"{bench.volumes} volumes"
    whole = ArrayStore.open(bench.folder / "store")
    share = f"{store.nbytes / whole.nbytes:.1%} of the bytes, {mask.voxels} of {mask.inside.size} voxels"
    bench.add("in-mask store", f"{share}; prepared in {1e3 * wall / bench.volumes:.0f} ms a volume", n=n)
    sets = {name: ScanBatches(one, one.table, np.arange(len(one)), reuse=1) for name, one in
            (("whole", whole), ("masked", store))}  # fmt: skip
    side, places = DeviceSide(store), np.random.default_rng(0).permutation(len(store))[:BATCH].tolist()
    batch = dict(sets["masked"].__getitems__(places))
    took = in_turns(
        bench.repeat,
        whole=lambda: sets["whole"].__getitems__(places),
        masked=lambda: sets["masked"].__getitems__(places),
        unmask=lambda: side(dict(batch)),
    )
    n = f"batch of {BATCH}, {bench.repeat} repeats"
    ratio = np.median(took["whole"]) / np.median(took["masked"])
    bench.add("loader, in-mask rows", f"{ms(took['masked'])}, {ratio:.1f}x faster than whole volumes", n=n)
    bench.add("unmask on the CPU (a GPU does it on a GPU)", f"{ms(took['unmask'], BATCH)} a volume", n=n)
    if torch.cuda.is_available():
        batch = {name: values.cuda() for name, values in batch.items()}
        on_gpu = in_turns(bench.repeat, unmask=lambda: (side(dict(batch)), torch.cuda.synchronize()))
        bench.add("unmask on the GPU", f"{ms(on_gpu['unmask'])} a batch", n=n)


def bench_batch(bench: Bench) -> None:
    """A batch from the store into a reused buffer beside one memcpy of as many bytes, and a volume by nibabel."""
    store = ArrayStore.open(bench.folder / "store")
    store.preload()
    dataset = ScanBatches(store, store.table, np.arange(len(store)), reuse=1)
    random = np.random.default_rng(0)
    source = store.read(random.permutation(len(store))[:BATCH])
    target = np.empty_like(source)
    took = in_turns(
        bench.repeat,
        store=lambda: dataset.__getitems__(random.permutation(len(store))[:BATCH].tolist()),
        memcpy=lambda: np.copyto(target, source),
    )
    n = f"batch of {BATCH} ({source.nbytes / 2**20:.0f} MiB), {bench.repeat} repeats"
    ratio = np.median(took["store"] / took["memcpy"])
    bench.add("batch from the store / memcpy", f"{ratio:.2f}x", "< 1.5x", n)
    ratio = np.median(took["store_wall"] / took["memcpy_wall"])
    bench.add("the same, wall", f"{ratio:.2f}x", "< 1.5x", n)
    bench.add("batch from the store", ms(took["store"]), n=n)
    bench.add("memcpy of the same bytes", ms(took["memcpy"]), n=n)
    bench_one_volume(bench, store)


def bench_one_volume(bench: Bench, store: ArrayStore) -> None:
    reads, random = Reads(bench.folder), np.random.default_rng(1)
    masked = prepare_store(store.table.head(BATCH), VBM, reads, bench.folder / "few", mask=grey_mask())
    out, row = np.empty((1, *VBM.shape), np.float16), np.empty((1, masked.stored.shape[1]), np.float16)
    one = in_turns(
        bench.repeat,
        grey=lambda: reads(f"{random.integers(DISTINCT):03d}.nii.gz"),
        smooth=lambda: reads("smooth.nii.gz"),
        store=lambda: [store.read([random.integers(len(store))], out) for _ in range(20)],
        rows=lambda: [masked.read_stored([random.integers(len(masked))], row) for _ in range(20)],
    )
    for name in ("store", "rows"):
        one[name] /= 20
    n = f"{bench.repeat} repeats"
    for name, kind in (("grey", "grey matter, 3 of 4 voxels 0"), ("smooth", "the same smoothed by 6 mm")):
        bench.add(f"one volume by nibabel, float32, .nii.gz of {kind}", ms(one[name]), n=n)
        for how, words in (("store", "whole volume"), ("rows", "in-mask row")):
            ratio = np.median(one[name]) / np.median(one[how])
            bench.add(f"... / {words} from the store", f"{ratio:.0f}x", "> 100x", n)
    bench.add("one whole volume from the store", ms(one["store"]), n=n)
    bench.add("one in-mask row from the store", ms(one["rows"]), n=n)


def bench_open(bench: Bench) -> None:
    start = time.perf_counter()
    prepare_store(bench.table(bench.scans), SMALL, tiny, bench.folder / "many", workers=1)
    n = f"{bench.scans} scans, {bench.repeat} repeats"
    bench.add("build of many small samples", f"{1e6 * (time.perf_counter() - start) / bench.scans:.0f} us a scan", n=n)
    took = in_turns(bench.repeat, opened=lambda: ArrayStore.open(bench.folder / "many"))
    bench.add("store opens, wall", ms(took["opened_wall"]), "< 1000 ms", n)
    table = ArrayStore.open(bench.folder / "many").table
    megabytes = table.memory_usage(deep=True).sum() / 1e6
    bench.add("its table in memory", f"{megabytes:.0f} MB, {table.shape[1]} columns", "< 100 MB", n)
    code = (
        "import sys; from pathlib import Path; from brainage.data.array_store import ArrayStore\n"
        "held = lambda: int(Path('/proc/self/status').read_text().split('VmRSS:')[1].split()[0]) / 1024\n"
        "before = held(); store = ArrayStore.open(sys.argv[1]); print(held() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code, str(bench.folder / "many")], stdout=subprocess.PIPE, check=True)
    bench.add(
        "a process that opens it grows by",
        f"+{float(grown.stdout):.0f} MiB",
        n=n,
    )


def bench_shards(bench: Bench) -> None:
    """Four shards one after the other, then the merge."""
    table, n = bench.table(bench.volumes), f"{bench.volumes} volumes in 4 shards"
    options = {"read": Reads(bench.folder), "out": bench.folder / "sharded"}
    for i in range(1, 5):
        prepare_store(table, VBM, shard=(i, 4), **options)
    start = time.perf_counter()
    store = prepare_store(table, VBM, **options)
    wall = time.perf_counter() - start
    same = all(
        (store.path / file.name).read_bytes() == file.read_bytes() for file in (bench.folder / "store").iterdir()
    )
    bench.add("merge of shards", f"{store.nbytes / wall / 2**30:.2f} GiB/s, digests compared", n=n)
    bench.add("merged store equals the one built in one go", "yes, byte for byte" if same else "NO", "yes", n)


HOLD = """
import sys, numpy as np
from brainage.data.array_store import ArrayStore
from pathlib import Path
pss = lambda: int(Path('/proc/self/smaps_rollup').read_text().split('Pss:')[1].split()[0])
store = ArrayStore.open(sys.argv[1])
for line in sys.stdin:
    store.preload() if line.startswith('preload') else None
    print(pss(), flush=True)
"""


def bench_memory(bench: Bench) -> None:
    """`data.resident=host` in three processes: proportional set size, which counts a shared page once."""
    path = bench.folder / "store"
    command = [sys.executable, "-c", HOLD, str(path)]
    held = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(3)
    ]
    sums = []
    for word in ("open", "open", "preload", "after"):
        answers = []
        for process in held:
            assert process.stdin
            assert process.stdout
            process.stdin.write(word + "\n")
            answers.append(int(process.stdout.readline()) * 1024)
        sums.append(sum(answers))
    for process in held:
        process.communicate()
    copies = (sums[3] - sums[1]) / ArrayStore.open(path).nbytes
    bench.add("resident: host in 3 processes", f"{copies:.2f} copies in memory", "1", f"{bench.volumes} volumes")


PARTS: dict[str, Callable[[Bench], None]] = {
    "prepare": bench_prepare,
    "batch": bench_batch,
    "masked": bench_masked,
    "shards": bench_shards,
    "memory": bench_memory,
    "open": bench_open,
}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}"
    versions += f", torch {torch.__version__}, nibabel {nib.__version__}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{name}, {allowed_cores()} cores, {gpu}; Linux {platform.release()}; {versions}; load {load} at the start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--volumes", type=int, default=128)
    parser.add_argument("--scans", type=int, default=20000)
    parser.add_argument("--repeat", type=int, default=15)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if given.volumes < BATCH:
        parser.error(f"--volumes {given.volumes}: expected {BATCH} or more, a batch")
    print(machine(), "\n\n| what | found | goal | n |\n|---|---|---|---|", sep="", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.volumes, given.scans, given.repeat, [])
        write_volumes(bench)
        for name, part in PARTS.items():  # `prepare` makes the store that the others read
            if name in given.only or (name == "prepare" and set(given.only) - {"open"}):
                part(bench)
    for row in bench.rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
