"""runtime: lines from rank zero only, atomic files, the precision guard, and what ran where."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from brainage import runtime
from brainage.errors import ConfigError
from brainage.runtime.console import console
from brainage.runtime.precision import LAST_VOXEL_BLOCK

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _fresh_console(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    console.cache_clear()
    yield
    console.cache_clear()


@pytest.mark.parametrize("module", ["brainage.runtime", "brainage.tracking", "brainage.doctor"])
def test_importing_loads_neither_torch_nor_lightning_nor_mlflow(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'lightning', 'mlflow', 'pandas') if m in sys.modules])"
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_warning_is_one_line_on_stderr_however_long_the_message(capsys):
    runtime.warn("scan /data/sub-01 [T1w]\n   is damaged" + " and more" * 30)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: scan /data/sub-01 [T1w] is damaged and more")


@pytest.mark.parametrize(
    "started",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
    ],
    ids=["torchrun", "srun"],
)
def test_only_the_first_rank_speaks(started, monkeypatch, capsys):
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    runtime.console.cache_clear()
    runtime.warn("from rank 1")
    runtime.print_panel("panel", {"people": 12})
    captured = capsys.readouterr()
    runtime.console.cache_clear()
    assert (captured.out, captured.err) == ("", "")


def test_a_panel_is_plain_lines_where_there_is_no_terminal(capsys):
    runtime.print_panel("openbhb_exp", {"train [people]": 120, "store": "x" * 150})
    assert capsys.readouterr().out == f"openbhb_exp\n  train [people]: 120\n  store: {'x' * 150}\n"


def test_stages_add_up_repeated_stages_and_count_failed_ones(capsys):
    stages = runtime.Stages()
    for _ in range(2):
        with stages("prepare"):
            time.sleep(0.02)
    with pytest.raises(ValueError, match="boom"), stages("train"):
        raise ValueError("boom")
    (name, spent, share), (other, _, other_share) = stages.rows()
    assert (name, other) == ("prepare", "train")
    assert spent >= 0.04
    assert share + other_share == pytest.approx(1.0)
    stages.print()
    assert "prepare: 0.0 s" in capsys.readouterr().out


def test_json_is_written_whole_with_plain_values(tmp_path):
    path = tmp_path / "health.json"
    runtime.write_json_atomic(path, {"rank": np.float32(1.5), "n": np.int64(3), "loss": float("nan"), "p": Path("a")})
    assert json.loads(path.read_text()) == {"rank": 1.5, "n": 3, "loss": None, "p": "a"}
    assert os.listdir(tmp_path) == ["health.json"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "finished.json"
    runtime.write_json_atomic(path, {"step": 1})

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        runtime.write_json_atomic(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["finished.json"]


def test_equal_seeds_give_equal_numbers_everywhere():
    draws = []
    for _ in range(2):
        runtime.seed_everything(7)
        draws.append((np.random.rand(), torch.rand(1).item(), random.random()))
    assert draws[0] == draws[1]


def test_a_seed_that_numpy_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="seed=-1"):
        runtime.seed_everything(-1)


def test_threads_are_set_and_never_above_the_allowed_cores_by_default(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert runtime.set_threads(3) == 3
        monkeypatch.setattr("brainage.runtime.device.allowed_cores", lambda: 2)
        assert runtime.set_threads(0) == 2
    finally:
        torch.set_num_threads(before)


def test_gpu_is_refused_where_torch_sees_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.choose_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"sees no GPU.*brainage doctor"):
        runtime.choose_device("gpu")
    with pytest.raises(ConfigError, match="expected auto, cpu or gpu"):
        runtime.choose_device("tpu")


def test_fp16_on_a_cpu_is_refused_rather_than_turned_into_bf16():
    with pytest.raises(ConfigError, match="fp16: a CPU would train in bf16"):
        runtime.guard_precision("fp16", CPU)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="expected fp32, bf16 or fp16"):
        runtime.guard_precision("int8", CPU)


def test_bf16_rounding_alone_passes_the_guard():
    runtime.guard_precision("bf16", CPU)
    errors = runtime.conv_block_error((2, 4, 8, 8, 8), torch.bfloat16, CPU)
    assert 0.0005 < errors["output"] < 0.004  # half an ulp of 8 bits is 0.002: zero would mean nothing was rounded


def _broken(monkeypatch, breaks, damage):
    """Replace conv3d by one whose answer is damaged for low-precision inputs that `breaks` picks out."""
    right = torch.nn.functional.conv3d

    def conv3d(x, weight, **options):
        y = right(x, weight, **options)
        return damage(y) if x.dtype == torch.bfloat16 and breaks(x) else y

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)


def test_a_forward_pass_that_forgets_the_last_sample_is_refused(monkeypatch):
    _broken(monkeypatch, lambda x: True, lambda y: torch.cat([y[:-1], torch.zeros_like(y[-1:])]))
    with pytest.raises(ConfigError, match=r"the output of a conv3d block .* use trainer.precision=fp32"):
        runtime.guard_precision("bf16", CPU)


def test_a_forward_pass_full_of_nan_is_refused(monkeypatch):
    _broken(monkeypatch, lambda x: True, lambda y: y * float("nan"))
    with pytest.raises(ConfigError, match="the output of a conv3d block"):
        runtime.guard_precision("bf16", CPU)


def test_a_wrong_weight_gradient_is_refused_when_the_forward_pass_is_right(monkeypatch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context, y):
            return y.clone()

        @staticmethod
        def backward(context, gradient):
            return 2 * gradient

    _broken(monkeypatch, lambda x: True, Doubled.apply)
    with pytest.raises(ConfigError, match="the weight gradient of a conv3d block"):
        runtime.guard_precision("bf16", CPU)


def test_a_kernel_that_is_wrong_at_one_remaining_voxel_only_is_refused(monkeypatch):
    _broken(monkeypatch, lambda x: x.shape[-1] == LAST_VOXEL_BLOCK[-1], lambda y: 0.7 * y)
    with pytest.raises(ConfigError, match=r"\[2, 16, 5, 6, 2\], stride 2"):
        runtime.guard_precision("bf16", CPU)


@pytest.mark.gpu
def test_the_guard_passes_on_this_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for precision in ("bf16", "fp16"):
        runtime.guard_precision(precision, torch.device("cuda"), (4, 16, 96, 96, 96))


def test_the_environment_names_versions_but_no_machine_and_no_person():
    values = runtime.environment()
    assert values["versions"]["torch"] == torch.__version__
    assert values["cores"] >= 1
    text = json.dumps(values)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert str(REPOSITORY) not in text


def _git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_git_state_tells_a_changed_checkout_from_a_clean_one(tmp_path):
    _git(tmp_path, "init")
    (tmp_path / "a.py").write_text("1")
    _git(tmp_path, "add", "a.py")
    _git(tmp_path, "commit", "-m", "first")
    clean = runtime.git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "a.py").write_text("2")
    assert runtime.git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_git_state_is_empty_outside_git_and_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runtime.git_state(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert runtime.git_state() == {}


def test_memory_is_measured_in_gib():
    block = np.ones(2**27 // 8 * 2)  # a quarter of a GiB, touched
    assert 0.25 < runtime.peak_memory_gib() < 64
    assert 0 < runtime.available_memory_gib() < 2**14
    del block
