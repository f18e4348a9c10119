"""What a store costs in memory: one file cache for all processes, and few samples at a time while it is built."""

import os
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brainage.data.store import prepare_store
from brainage.imaging.contract import InputContract
from tests.data.odd_cohort import REPOSITORY, people

BIG = InputContract("gm", "volume", (1, 64, 128, 128), spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), axes="RAS")
READER = """
import sys
from pathlib import Path
from brainage.data.array_store import ArrayStore

def held_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])

store = ArrayStore.open(sys.argv[1])
store.read([0])
for line in sys.stdin:
    if line == "preload\\n":
        store.preload()
    print(held_bytes(), flush=True)
"""


def read_constant(path: str) -> np.ndarray:
    return np.full(BIG.shape, int(path), np.float32)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell shared memory")
def test_three_processes_that_hold_a_store_hold_its_bytes_once(tmp_path):
    store = prepare_store(people(32), BIG, read_constant, tmp_path / "store", workers=1)
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, str(tmp_path / "reader.py"), str(store.path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    try:
        sums = {}
        for word in ("open", "open", "preload", "after"):  # everybody has preloaded when the last word is asked
            answers = [ask(reader, word) for reader in readers]
            sums[word] = sum(answers)
        grown = sums["after"] - sums["open"]
        assert 0.8 * store.nbytes < grown < 1.3 * store.nbytes, f"{grown / store.nbytes:.2f} copies"
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def ask(reader: subprocess.Popen, word: str) -> int:
    assert reader.stdin
    assert reader.stdout
    reader.stdin.write(word + "\n")
    reader.stdin.flush()
    return int(reader.stdout.readline())


def test_preloading_works_where_the_kernel_cannot_populate(tmp_path, monkeypatch):
    monkeypatch.setattr("brainage.data.array_store._POPULATE_READ", 12345)  # refused as an unknown advice
    store = prepare_store(people(3), BIG, read_constant, tmp_path / "store", workers=1)
    store.preload()
    assert store.read([1])[0, 0, 0, 0, 0] == 99


@dataclass
class Counting:
    """Writes at each read how many samples are alive anywhere; a sample is counted until its memory is freed."""

    folder: Path

    def read(self, path: str) -> np.ndarray:
        mark = self.folder / f"alive-{path}"
        mark.touch()
        sample = np.full(BIG.shape, int(path), np.float32)
        weakref.finalize(sample, mark.unlink)
        with open(self.folder / "counts", "a") as counts:
            counts.write(f"{len(list(self.folder.glob('alive-*')))}\n")
        return sample


def test_no_more_than_two_samples_a_worker_are_alive(tmp_path):
    cohort = Counting(tmp_path)
    prepare_store(people(16), BIG, cohort.read, tmp_path / "store", workers=2)
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 16
    assert 1 <= max(counts) <= 2 * 2
