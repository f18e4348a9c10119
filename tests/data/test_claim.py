"""The claim on a folder where the kernel's locks do not reach: other nodes, disks without locks."""

import errno
import fcntl
import threading
import time

import pytest

from brainage.data import claim
from brainage.data.claim import only_process
from brainage.errors import StoreError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.02)
    monkeypatch.setattr(claim, "PATIENCE_S", 0.3)


@pytest.fixture
def no_locks(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre, mounted without -o flock

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.fixture
def elsewhere(tmp_path):
    """A process of another node that holds tmp_path/store until told to stop."""
    done = threading.Event()

    def hold():
        beat = 0
        while not done.wait(0.02):
            beat += 1
            with open(tmp_path / "store.lock", "r+") as file:
                file.write(f"77 on elsewhere beat {beat:09d}\n")

    (tmp_path / "store.lock").write_text("77 on elsewhere beat 000000000\n")
    thread = threading.Thread(target=hold)
    thread.start()
    yield done
    done.set()
    thread.join()


def test_a_holder_on_another_node_that_lives_is_refused(tmp_path, elsewhere):
    with (
        pytest.raises(StoreError, match=r"process 77 on elsewhere is preparing it; wait"),
        only_process(tmp_path / "store"),
    ):
        pass


def test_one_that_was_killed_there_is_waited_for_and_then_gone(tmp_path):
    (tmp_path / "store.lock").write_text("77 on elsewhere beat 3\n")
    start = time.monotonic()
    with only_process(tmp_path / "store"):
        assert time.monotonic() - start >= 0.3
        assert "77" not in (tmp_path / "store.lock").read_text()
    start = time.monotonic()
    with only_process(tmp_path / "store"):  # freed, not silent
        assert time.monotonic() - start < 0.3


def test_a_holder_says_that_it_lives_until_it_is_done(tmp_path):
    with only_process(tmp_path / "store"):
        seen = set()
        deadline = time.monotonic() + 5
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add((tmp_path / "store.lock").read_text())
            time.sleep(0.01)
    assert len(seen) >= 3
    assert (tmp_path / "store.lock").read_text() == ""


def test_without_any_locks_the_beats_alone_tell(tmp_path, no_locks):
    with only_process(tmp_path / "store"):
        pass
    (tmp_path / "store.lock").write_text("77 on elsewhere beat 3\n")
    with only_process(tmp_path / "store"):
        pass


def test_without_any_locks_a_living_holder_is_refused(tmp_path, no_locks, elsewhere):
    with pytest.raises(StoreError, match="77 on elsewhere"), only_process(tmp_path / "store"):
        pass


def test_of_two_that_start_at_once_without_locks_one_goes_on(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.2)
    threading.Timer(0.1, (tmp_path / "store.lock").write_text, ["78 on elsewhere beat 0\n"]).start()
    with pytest.raises(StoreError, match="process 78 on elsewhere"), only_process(tmp_path / "store"):
        pass
