"""The command reads its words, and hands them on."""

import typer
from typer.testing import CliRunner

from brainage.studies.command import add_study_command


def call(*words: str):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # else a single command has no name
    add_study_command(app, open_cohort=lambda experiment: None, layouts=dict)
    return CliRunner().invoke(app, ["study", *words])


def test_without_a_name_the_studies_are_listed():
    shown = call().output
    assert all(name in shown for name in ("losses", "kernels", "scaling", "batch_size"))


def test_the_list_shows_the_cells_that_an_array_counts(tmp_path):
    done = call("losses", "--small", "--list", f"runs={tmp_path}")
    assert done.exit_code == 0
    assert "exp_shifted" in done.output
    assert done.output.count("missing") == 24


def test_two_tasks_at_once_are_refused():
    done = call("losses", "--list", "--only", "3")
    assert done.exit_code == 2
    assert "expected one of them" in done.output
