"""The page: complete, self-contained, without persons, and honest about what is not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from brainage.config import EvaluateConfig, read_experiment, save_experiment
from brainage.data.table import read_table, write_table
from brainage.errors import ConfigError, DataError
from brainage.reporting.embedding_map import principal_plane
from brainage.reporting.findings import findings
from brainage.reporting.methods import methods
from brainage.reporting.report import write_report
from brainage.reporting.reproduce import reproduce
from brainage.reporting.run_folder import read_journal, read_run
from brainage.reporting.sections import SECTIONS
from tests.reporting.fake_run import PERSON_PREFIX, write_fake_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_report_has_every_section_and_shows_the_figures_it_wrote(reported):
    text = (reported / "report.html").read_text()
    assert [f'id="{section.anchor}"' in text for section in SECTIONS] == [True] * len(SECTIONS)
    images = [attrs for tag, attrs in _Tags(text).found if tag == "img"]
    written = {path.stem for path in (reported / "figures").glob("*.svg")}
    assert written == {path.stem for path in (reported / "figures").glob("*.png")}
    assert len(images) == len(written) >= 14
    assert all(len(attrs["alt"]) > 30 for attrs in images)
    assert "Not there yet" not in text
    assert {path.stem for path in (reported / "tables").glob("*.csv")} >= {"headline", "results", "cohort", "dropped"}


def test_the_report_is_one_file_that_asks_nobody_for_anything(reported):
    text = (reported / "report.html").read_text()
    assert len(text) < 3_000_000
    for tag, attrs in _Tags(text).found:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        loads = [attrs.get("src"), attrs.get("srcset"), attrs.get("href") if tag == "link" else None]
        assert all(address is None or address.startswith("data:") for address in loads)
        assert not any(name.startswith("on") for name in attrs)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_no_person_and_no_host_is_named_anywhere(reported):
    ours = [reported / "report.html", *(reported / "tables").iterdir(), *(reported / "figures").glob("*.svg")]
    for path in ours:
        text = path.read_text()
        assert PERSON_PREFIX not in text, path.name
        assert "node-of-jane" not in text, path.name


def test_the_reproduce_box_has_command_configuration_versions_and_split(reported):
    text = (reported / "report.html").read_text()
    for word in ("brainage pretrain ixi_thickness_exp", "sigma_years: 2.0", "2.13.0", "0123abc", "00112233aabbccdd"):
        assert word in text


def test_a_run_that_was_not_evaluated_says_how_to_evaluate_it_in_the_same_bytes_each_time(tmp_path):
    folder = write_fake_run(tmp_path / "run", evaluated=False)
    text = write_report(folder, pdf=False).read_text()
    assert write_report(folder, pdf=False).read_text() == text
    assert text.count(f"brainage evaluate {folder}") == 3
    assert "Not checked, since not there yet: results" in text
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert "training_loss" in drawn
    assert not any(name.startswith(("age_", "map_", "models_", "error_")) for name in drawn)


def test_config_yaml_alone_gives_a_report_without_figures(tmp_path):
    full = write_fake_run(tmp_path / "full", evaluated=False)
    (tmp_path / "bare").mkdir()
    shutil.copy(full / "config.yaml", tmp_path / "bare")
    text = write_report(tmp_path / "bare", pdf=False).read_text()
    assert "<img" not in text
    assert text.count("Not there yet") == 5


def test_markup_in_what_people_wrote_is_shown_and_not_run(tmp_path):
    (tmp_path / "run").mkdir()
    experiment = read_experiment(write_fake_run(tmp_path / "full", evaluated=False) / "config.yaml")
    experiment.description = "<script>alert(1)</script> & more"
    save_experiment(experiment, tmp_path / "run" / "config.yaml")
    text = write_report(tmp_path / "run", pdf=False).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_a_missing_folder_or_configuration_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="nowhere: not found"):
        write_report(tmp_path / "nowhere", pdf=False)
    with pytest.raises(DataError, match=r"config\.yaml: not found"):
        write_report(tmp_path, pdf=False)
    (tmp_path / "config.yaml").write_text("loss: {nmae: exp}")
    with pytest.raises(ConfigError, match="nmae"):
        write_report(tmp_path, pdf=False)
    (tmp_path / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"config\.yaml: not readable as YAML"):
        write_report(tmp_path, pdf=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.csv", "run,cohort\na,b\n"),
        ("health.json", "{"),
        ("table.parquet", "torn"),
        ("predictions.parquet", "x"),
    ],
)
def test_a_torn_file_is_named_and_the_old_report_stays(run_folder, name, content):
    (run_folder / "report.html").write_text("old")
    (run_folder / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(run_folder, pdf=False)
    assert (run_folder / "report.html").read_text() == "old"


def test_a_journal_cut_short_by_a_kill_is_read_up_to_there_and_damage_inside_is_named(tmp_path):
    good = json.dumps({"step": 1, "time_ms": 5, "metrics": {"train/loss": 2.0, "val/loss": None}})
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{good}\n{good[:20]}")
    assert read_journal(path).to_dict("records") == [{"step": 1, "time_ms": 5, "name": "train/loss", "value": 2.0}]
    path.write_text(f"{good}\n{good[:20]}\n{good}\n")
    with pytest.raises(DataError, match="line 2"):
        read_journal(path)


def test_a_step_that_was_replayed_counts_once_the_last_time(run_folder):
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "time_ms": 0, "metrics": {"train/loss": 99.0}}) + "\n")
    loss = read_run(run_folder).series("train/loss")
    assert loss["step"].tolist() == list(range(1, 401))
    assert loss.loc[loss["step"] == 7, "value"].item() == 99.0


def test_the_map_is_the_plane_of_scikit_learns_pca_up_to_a_fixed_sign(reported):
    from sklearn.decomposition import PCA

    vectors = np.vstack(read_table(reported / "embeddings" / "exp-seed0.parquet")["trunk"].to_list())
    points, shares = principal_plane(vectors)
    pca = PCA(2, svd_solver="full").fit(vectors.astype(float))
    assert np.allclose(np.abs(points), np.abs(pca.transform(vectors.astype(float))), atol=1e-6)
    assert np.allclose(shares, pca.explained_variance_ratio_)
    assert np.allclose(principal_plane(vectors[:, ::-1])[0], points)


def test_the_methods_say_what_the_configuration_says(run_folder):
    experiment = read_experiment(run_folder / "config.yaml")
    experiment.loss.similarity, experiment.loss.sigma_years, experiment.optim.lr = "shifted", 3.5, 2e-5
    save_experiment(experiment, run_folder / "config.yaml")
    text = " ".join(methods(read_run(run_folder)))
    for words in ("3.5 years", "2e-5", "minus 1", "Barbano", "site IOP was held out", "68 values", "noise (0.5)"):
        assert words in text


def test_what_the_evaluation_used_is_said_and_not_what_the_training_planned(run_folder):
    (run_folder / "evaluate.yaml").write_text("bootstrap: 37\nfit_splits: [train]\nallow_seen: true\nfeatures: head\n")
    run = read_run(run_folder)
    text = " ".join(methods(run))
    assert "37 bootstrap" in text
    assert "fitted on train." in text
    assert "projection head's output" in text
    assert "Scoring of seen people was allowed" in [finding.title for finding in findings(run)]
    assert run.experiment.evaluate.scatter_points == EvaluateConfig().scatter_points
    assert run.experiment.loss.name == "exp"
    assert "bootstrap: 37" in reproduce(run).config


@pytest.mark.parametrize(
    ("text", "message"),
    [("bootstrp: 3", "evaluate.bootstrp"), ("bootstrap: many", "evaluate.bootstrap"), ("[1, 2]", "keys and values")],
)
def test_an_evaluate_yaml_that_is_none_is_refused_by_name(run_folder, text, message):
    (run_folder / "evaluate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"evaluate\.yaml.*{message}"):
        read_run(run_folder)


def test_a_head_that_is_an_age_is_not_drawn_as_an_embedding(run_folder):
    experiment = read_experiment(run_folder / "config.yaml")
    experiment.loss.name, experiment.evaluate.features = "l1", "head"
    save_experiment(experiment, run_folder / "config.yaml")
    run = read_run(run_folder)
    assert run.features == "trunk"
    assert "encoder's features" in " ".join(methods(run))


def test_the_split_is_described_as_it_is_and_not_as_the_keys_have_it(run_folder):
    experiment = read_experiment(run_folder / "config.yaml")
    experiment.data.external_sites, experiment.data.val_fraction = ["HH", "Guys"], 0.4
    save_experiment(experiment, run_folder / "config.yaml")
    text = methods(read_run(run_folder))[0]
    assert "The site IOP was held out whole as the external test, 50 people." in text
    assert "20 of 180 training people were set apart" in text
    assert "40 %" not in text
    assert "splits" not in text  # where the split came from is not recorded
    table = read_table(run_folder / "table.parquet")
    table.loc[table["split"] == "val", ["site", "split"]] = ["IOP", "train"]
    write_table(table, run_folder / "table.parquet")
    text = methods(read_run(run_folder))[0]
    assert "50 people; people of 1 of its 1 sites are in other splits too" in text
    assert "Nobody was set apart" in text
    write_table(table[table["split"] == "train"], run_folder / "table.parquet")
    assert "There is no external test." in methods(read_run(run_folder))[0]
    (run_folder / "table.parquet").unlink()
    assert not re.search("external|set apart", methods(read_run(run_folder))[0])


@pytest.mark.parametrize(
    ("source", "words", "seeded"),
    [("official", "the cohort came with", True), ("file", "a file that was given", False), ("drawn", "a hash", True)],
)
def test_where_the_split_came_from_is_said_where_it_is_recorded(run_folder, source, words, seeded):
    recorded = json.loads((run_folder / "environment.json").read_text())
    (run_folder / "environment.json").write_text(json.dumps({**recorded, "split_source": source}))
    run = read_run(run_folder)
    assert words in methods(run)[0]
    assert ("seed of the split" in dict(reproduce(run).facts)) == seeded


def test_a_supervised_run_is_not_described_as_contrastive(run_folder):
    experiment = read_experiment(run_folder / "config.yaml")
    experiment.loss.name = "l1"
    save_experiment(experiment, run_folder / "config.yaml")
    text = " ".join(methods(read_run(run_folder)))
    assert "mean absolute difference" in text
    assert not any(word in text for word in ("temperature", "projection head (", "kernel"))


def test_the_report_needs_no_torch_lightning_or_mlflow():
    code = (
        "import sys, brainage.reporting.report\n"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_chromium_shows_the_headline_and_reports_no_error(reported, tmp_path):
    page = reported / "report.html"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}", "--window-size=390,800", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MAE external (years)" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
