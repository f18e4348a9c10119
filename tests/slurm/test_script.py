"""Scripts: bash takes them, they ask for what the profile says, and their steps do what they say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from brainage.config import load_experiment, run_folder
from brainage.errors import ConfigError
from brainage.pretraining.launch import launch
from brainage.slurm.jobs import JOBS
from brainage.slurm.profile import load_profile
from brainage.slurm.script import INDEX, array_script, deliver_script, pretrain_script
from brainage.slurm.submission import submit_array, submit_pretraining
from brainage.slurm_cli import slurm

# Commands of Slurm that note what they were called with; srun fails as FAKE_CODE says.
FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >> "{calls}"
case "$(basename "$0")" in srun) exit "${{FAKE_CODE:-0}}";; sbatch) echo "77;here";; squeue) cat "{queue}";; esac
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A file with the calls of Slurm's commands, which do nothing else."""
    calls, queue, folder = tmp_path / "calls", tmp_path / "queue", tmp_path / "bin"
    folder.mkdir()
    queue.write_text("")
    for name in ("srun", "scontrol", "sbatch", "squeue", "sacct", "sleep"):
        (folder / name).write_text(FAKE.format(calls=calls, queue=queue))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return calls


def bash(script: str, **environment: str) -> subprocess.CompletedProcess:
    known = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1", **environment}
    return subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, env={**os.environ, **known}, timeout=20
    )


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_asks_for_what_the_profile_says():
    words = ["account=abc", "qos=long", "time=1-00:00:00", "gpu_type=a100", "sbatch=[--exclusive]"]
    script = pretrain_script(load_profile("two_nodes", words), "name", ["demo"], "runs/x", evaluate=False)
    assert set(options(script)) == {
        "--job-name=name", "--account=abc", "--qos=long", "--time=1-00:00:00", "--nodes=2", "--ntasks=8",
        "--ntasks-per-node=4", "--cpus-per-task=8", "--gpus-per-node=a100:4", "--mem=256G", "--signal=SIGUSR1@120",
        "--open-mode=append", "--output=runs/slurm/%x-%j.log", "--requeue", "--exclusive",
    }  # fmt: skip


def test_store_training_and_evaluation_are_steps_of_one_many_and_one_tasks(fake):
    profile = load_profile("two_nodes", ["command=apptainer exec --nv 'my image.sif' brainage", "modules=[a, b]"])
    profile.setup = ['module() { echo "module $*" >> calls; }']
    script = pretrain_script(profile, "name", ["demo", "data.root=/my data"], "runs/demo-1", evaluate=True)
    script = script.replace("module load a b\n", "").replace("export OMP", "module load a b\nexport OMP")
    assert bash(script).returncode == 0
    loaded, *steps = fake.read_text().splitlines()
    assert loaded == "module load a b"
    alone = "--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=32"
    shared = "demo data.root=/my data trainer.devices=4 trainer.nodes=2 evaluate.after_training=false"
    assert steps == [
        f"srun {alone} apptainer exec --nv my image.sif brainage prepare {shared}",
        "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 --kill-on-bad-exit=1 "
        f"apptainer exec --nv my image.sif brainage pretrain {shared}",
        f"srun --overlap {alone} apptainer exec --nv my image.sif brainage evaluate runs/demo-1",
    ]


def test_one_process_of_a_job_of_two_machines_evaluates_whatever_its_profile(fake):
    for name in ("two_nodes", "one_node", "one_gpu", "cpu"):
        fake.unlink(missing_ok=True)
        assert bash(pretrain_script(load_profile(name), "n", ["demo"], "runs/x", evaluate=True)).returncode == 0
        prepares, trains, evaluates = fake.read_text().splitlines()
        assert " evaluate.after_training=false" in trains  # else every rank would
        assert "--ntasks=1 " in evaluates
        assert evaluates.endswith(" evaluate runs/x")
        assert "--ntasks=1 " in prepares


@pytest.mark.parametrize(("cores", "asked"), [("32", " --cpus-per-task=8"), (None, ""), ("3", "")])
def test_a_task_that_starts_the_ranks_of_several_machines_says_how_many(fake, monkeypatch, tmp_path, cores, asked):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_NTASKS", "1")  # of the step that this process is
    if cores is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", cores)
    experiment = load_experiment("demo", ["trainer.devices=4", "trainer.nodes=2", f"runs={tmp_path / 'runs'}"])
    launch(experiment, label="l1", parent=None)
    call = fake.read_text().splitlines()[0]
    assert call.startswith(f"srun --overlap --nodes=2 --ntasks=8 --ntasks-per-node=4{asked} --kill-on-bad-exit=1 ")
    assert " train-rank " in call


@pytest.mark.parametrize(("code", "requeued"), [(138, True), (143, False), (1, False)])
def test_the_code_of_the_warning_requeues_the_job_and_no_other_does(fake, code, requeued):
    script = pretrain_script(load_profile("cpu"), "name", ["demo"], "runs/x", evaluate=True)
    assert bash(script, FAKE_CODE=str(code)).returncode == code
    calls = fake.read_text().splitlines()
    assert len([call for call in calls if call.startswith("srun")]) == 1  # the steps behind it are not tried
    assert (calls[1:] == ["scontrol requeue 77", "sleep 600"]) == requeued  # who leaves by itself has failed


def test_an_array_gives_each_member_its_number(fake):
    script = array_script(load_profile("one_gpu"), "a", ["study", "losses", "--only", INDEX], 6, limit=2)
    assert "--array=0-5%2" in options(script)
    assert "--output=runs/slurm/%x-%A_%a.log" in options(script)
    assert bash(script, SLURM_ARRAY_TASK_ID="4").returncode == 0
    assert fake.read_text().strip().endswith("brainage.cli study losses --only 4")


def test_the_delivery_waits_for_the_array_and_goes_on_behind_a_run_that_it_cannot_deliver(fake):
    script = deliver_script(load_profile("one_node"), ["runs/a", "runs/b c"], "77")
    assert "--dependency=afterany:77,singleton" in options(script)
    assert not [option for option in options(script) if option.startswith("--gpus")]
    done = bash(script, FAKE_CODE="2")
    assert [call.rsplit(" sync ")[1] for call in fake.read_text().splitlines()] == ["runs/a", "runs/b c"]
    assert done.stdout.count("not delivered") == 2


def test_a_submission_is_noted_and_says_where_it_logs(fake, tmp_path):
    result = CliRunner().invoke(slurm, ["pretrain", "demo", "--profile", "cpu", "slurm.logs=logs", "seed=3"])
    name = run_folder(load_experiment("demo", ["seed=3"])).name
    assert result.exit_code == 0, result.output
    assert f"log     logs/{name}-77.log" in result.output
    assert "MLflow  sqlite:///mlflow.db" in result.output
    assert fake.read_text().splitlines() == [f"sbatch --parsable logs/{name}.sbatch"]
    assert (tmp_path / "logs" / JOBS).read_text().count("\n") == 1


def test_a_run_in_the_queue_is_not_submitted_twice(fake, tmp_path):
    submit_pretraining("demo", [], "cpu")
    (tmp_path / "queue").write_text("77  RUNNING  0  None\n")
    with pytest.raises(ConfigError, match=r"job 77 \(running\) works on this run; scancel 77"):
        submit_pretraining("demo", [], "cpu")
    submit_pretraining("demo", ["seed=1"], "cpu")
    (tmp_path / "queue").write_text("77  COMPLETED  0  None\n")
    submit_pretraining("demo", [], "cpu")


def test_a_finished_run_is_not_submitted(fake, tmp_path):
    folder = run_folder(load_experiment("openbhb_exp"))
    folder.mkdir(parents=True)
    (folder / "finished.json").write_text("{}")
    submission = submit_pretraining("openbhb_exp", [], "one_gpu")
    assert submission.note == f"finished before, nothing to submit: {folder}"
    assert not fake.exists()


def test_the_dry_run_prints_what_would_be_submitted_and_leaves_nothing(fake, tmp_path):
    result = CliRunner().invoke(
        slurm, ["pretrain", "demo", "--profile", "two_nodes", "--dry-run", "--data", "/my data"]
    )
    assert result.exit_code == 0, result.output
    assert "'data.root=\"/my data\"'" in result.output
    assert bash(result.output + "\nexit 3").returncode == 3
    assert not (tmp_path / "runs").exists()


def test_words_that_cannot_work_are_refused_before_the_queue(fake):
    with pytest.raises(ConfigError, match=r"did you mean 'loss\.sigma_years'"):
        submit_pretraining("demo", ["loss.sigma_year=4"], "cpu")
    with pytest.raises(ConfigError, match=r"data\.batch_size=4 for the 8 devices of two_nodes"):
        submit_pretraining("demo", ["data.batch_size=4"], "two_nodes")
    with pytest.raises(ConfigError, match=r"nodes=2: expected 1"):
        submit_array("a", [INDEX], [load_experiment("demo")], load_profile("two_nodes"))
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_ID"):
        submit_array("a", ["study"], [load_experiment("demo")], load_profile("cpu"))


def test_an_array_is_prepared_before_and_delivered_and_gathered_behind(fake):
    experiments = [load_experiment("demo", [f"seed={seed}"]) for seed in range(2)]
    words = ["study", "x", "--only", INDEX]
    done = submit_array(
        "x", words, experiments, load_profile("cpu"), first=["study", "x"], last=["study", "x", "--list"]
    )
    assert list(done.scripts) == ["x-prepare", "x", "brainage-deliver", "x-gather"]
    assert "--dependency=afterok:77" in options(done.scripts["x"])
    assert "--dependency=afterany:77" in options(done.scripts["x-gather"])
    assert done.jobs[1].runs == [str(run_folder(experiment)) for experiment in experiments]
    served = [load_experiment("demo", ["tracking.uri=http://mlflow:5000"])]
    assert "brainage-deliver" not in submit_array("y", words, served, load_profile("cpu"), dry_run=True).scripts
