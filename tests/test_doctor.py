"""doctor: every trouble is named with what to do, and one broken check hides no other."""

import importlib.metadata
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from brainage import doctor
from brainage.doctor import Finding
from brainage.runtime.console import console
from brainage.runtime.environment import GIB

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _fresh_console():
    console.cache_clear()
    yield
    console.cache_clear()


def _free(monkeypatch, gib):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(gib * GIB, 0, gib * GIB))


def test_this_machine_is_examined_without_a_broken_check(tmp_path):
    findings = doctor.diagnose(runs=str(tmp_path / "runs"), stores=str(tmp_path), uri=f"sqlite:///{tmp_path}/mlflow.db")
    names = [finding.name for finding in findings]
    assert names == [
        "versions", "device", "precision", "threads", "memory", "disk: runs", "disk: stores", "shared memory",
        "MLflow", "templates", "Slurm",
    ]  # fmt: skip
    assert not [finding for finding in findings if "check itself failed" in finding.found]
    assert all(finding.advice for finding in findings if finding.status != "ok")
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


def test_a_check_that_breaks_is_a_finding_and_the_others_still_run(monkeypatch):
    def broken():
        raise RuntimeError("odd machine")

    monkeypatch.setattr(doctor, "check_device", broken)
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert findings["device"].status == "warn"
    assert "RuntimeError: odd machine" in findings["device"].found
    assert "Slurm" in findings


@pytest.mark.parametrize(("statuses", "code"), [(["ok", "warn"], 0), (["ok", "fail", "warn"], 1), ([], 0)])
def test_the_exit_code_is_1_only_when_something_fails(statuses, code, capsys):
    findings = [Finding(f"check {n}", status, "[found]", "do this") for n, status in enumerate(statuses)]
    assert doctor.print_findings(findings) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(statuses) + 1
    for n, status in enumerate(statuses):
        assert lines[n] == f"{status:4}  check {n}: [found] -> do this"


def test_a_table_is_printed_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    doctor.print_findings([Finding("memory", "warn", "1.0 GiB free", "close other programs")])
    out = capsys.readouterr().out
    assert "what to do" in out
    assert "close other programs" in out


def test_versions_other_than_the_tested_ones_are_named(tmp_path):
    constraints = tmp_path / "constraints.txt"
    installed = importlib.metadata.version("numpy")
    constraints.write_text(f"# tested\nnumpy==0.0.1\nScikit_Learn=={importlib.metadata.version('scikit-learn')}\n")
    (finding,) = doctor.check_versions(constraints)
    assert finding == Finding(
        "versions", "warn", f"numpy {installed} (tested: 0.0.1)", "make install puts the tested versions back"
    )
    constraints.write_text(f"numpy=={installed}\ntorch=={torch.__version__.split('+')[0]}\n")
    assert doctor.check_versions(constraints)[0].status == "ok"  # torch's "+cpu" is the same version


def test_an_absent_package_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package-here"))
    (finding,) = doctor.check_versions(tmp_path / "absent.txt")
    assert (finding.status, finding.found) == ("fail", "not installed: no-such-package-here")


@pytest.mark.parametrize(
    ("cuda_build", "cards", "status", "advice"),
    [
        (None, "", "ok", "small grids"),
        (None, "NVIDIA A100, 550.54", "warn", "install a CUDA build"),
        ("12.6", "NVIDIA A100, 470.10", "warn", "update the driver to one for CUDA 12.6"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_explained(cuda_build, cards, status, advice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_build)
    monkeypatch.setattr(doctor, "_nvidia_cards", lambda: cards)
    (finding,) = doctor.check_device()
    assert finding.status == status
    assert advice in finding.advice
    assert cards in finding.found


def test_nvidia_cards_are_read_from_the_system(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100, 550.54'\necho 'NVIDIA A100, 550.54'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor._nvidia_cards() == "NVIDIA A100, 550.54; NVIDIA A100, 550.54"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._nvidia_cards() == ""
    monkeypatch.setenv("PATH", "")
    assert doctor._nvidia_cards() == ""


def test_wrong_low_precision_convolutions_are_reported(monkeypatch):
    right = torch.nn.functional.conv3d
    monkeypatch.setattr(
        torch.nn.functional, "conv3d", lambda x, *a, **k: right(x, *a, **k) * (1 + (x.dtype != torch.float32))
    )
    (finding,) = doctor.check_precision()
    assert finding.status == "warn"
    assert "trainer.precision=fp32" in finding.advice


@pytest.mark.parametrize(("threads", "status"), [("8", "warn"), ("2", "ok"), ("", "ok")])
def test_more_threads_than_allowed_cores_are_reported(threads, status, monkeypatch):
    monkeypatch.setattr(doctor, "allowed_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert doctor.check_threads()[0].status == status


@pytest.mark.parametrize(("free", "status"), [(5.9, "warn"), (6.1, "ok")])
def test_memory_below_the_demos_need_is_reported(free, status, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_gib", lambda: free)
    assert doctor.check_memory()[0].status == status


@pytest.mark.parametrize(("gib", "status"), [(0.5, "fail"), (10, "warn"), (100, "ok")])
def test_disk_space_is_judged_where_the_folder_will_be_made(gib, status, monkeypatch, tmp_path):
    _free(monkeypatch, gib)
    (finding,) = doctor.check_disk({"runs": str(tmp_path / "not" / "yet" / "made")})
    assert finding.status == status
    assert str(tmp_path) in finding.found


def test_a_folder_that_cannot_be_written_fails(tmp_path):
    file = tmp_path / "runs"
    file.write_text("a file where the folder should be")
    assert doctor.check_disk({"runs": str(file)})[0].status == "fail"


def test_a_containers_small_shared_memory_is_reported(monkeypatch, tmp_path):
    _free(monkeypatch, 0.0625)
    (finding,) = doctor.check_shared_memory(tmp_path)
    assert finding.status == "warn"
    assert "--shm-size" in finding.advice
    assert doctor.check_shared_memory(Path("/no/such/place"))[0].status == "ok"


def test_an_mlflow_store_that_is_away_is_a_warning_with_a_way_out(tmp_path):
    (finding,) = doctor.check_mlflow(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert finding.status == "warn"
    assert "absent or not writable" in finding.found
    assert "brainage sync" in finding.advice


def test_absent_templates_fail(monkeypatch):
    monkeypatch.setattr(doctor, "TEMPLATES", ("t1", "tissue-that-is-not-there"))
    (finding,) = doctor.check_templates()
    assert (finding.status, "tissue-that-is-not-there" in finding.found) == ("fail", True)


@pytest.mark.parametrize(
    ("commands", "status"), [((), "ok"), (("sbatch",), "warn"), (("sbatch", "srun", "scontrol"), "ok")]
)
def test_half_a_slurm_is_reported(commands, status, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name in commands else None)
    assert doctor.check_slurm()[0].status == status
