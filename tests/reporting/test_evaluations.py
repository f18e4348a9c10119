"""Cohorts that a run was judged on: complete on the page, without persons, and honest about what is not there."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainage.data.table import read_table, write_table
from brainage.downstream.results import missing_row, result_row, results_frame, write_results
from brainage.errors import DataError
from brainage.reporting import page as page_module
from brainage.reporting.checklist import ITEMS
from brainage.reporting.cohort_sections import PARTS, cohort_section
from brainage.reporting.evaluations import FRAMES, read_evaluation, read_evaluations
from brainage.reporting.gap_section import by_group
from brainage.reporting.longitudinal_figures import Curve, mean_by_year
from brainage.reporting.page import Page
from brainage.reporting.references import references
from brainage.reporting.report import write_report
from brainage.reporting.run_folder import read_run
from brainage.reporting.task_findings import task_findings
from brainage.reporting.task_methods import task_methods
from brainage.reporting.task_tables import Column, parts_table
from brainage.statistics.bootstrap import Interval
from tests.reporting.fake_evaluation import WHERE, built, fake_results, judged
from tests.reporting.fake_run import PERSON_PREFIX


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its report; read only."""
    folder = tmp_path_factory.mktemp("written") / "run"
    shutil.copytree(source, folder)
    write_report(folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not written: writing is slow and tested elsewhere."""
    monkeypatch.setattr(page_module, "save_figure", lambda figure, stem, *, pdf: "data:,")


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values["href"][1:]] if str(values.get("href", "")).startswith("#") else []
        self.images += tag == "img"


def test_the_page_has_every_part_and_every_link_leads_somewhere(written):
    found = _Tags((written / "report.html").read_text(encoding="utf-8"))
    assert {f"on-adni-{name}" for name, _, _ in PARTS} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert "on-adni-gap" in found.links  # of the checklist and the section's contents


def test_every_figure_is_there_as_svg_pdf_and_png_and_stands_on_the_page(written):
    drawn = {}
    for folder in (written, written / "evaluations" / "adni"):
        for kind in ("svg", "png", "pdf"):
            drawn.setdefault(kind, set()).update((folder, path.stem) for path in (folder / "figures").glob(f"*.{kind}"))
    assert drawn["svg"] == drawn["png"] == drawn["pdf"]
    assert _Tags((written / "report.html").read_text(encoding="utf-8")).images == len(drawn["svg"])
    names = {name for _, name in drawn["svg"]}
    assert names >= {
        "age_scatter", "age_coverage", "gap_none", "gap_beheshti", "gap_by_age", "roc_CN_AD", "precision_CN_AD",
        "reliability_CN_AD", "labels_CN_AD", "site_accuracy", "fairness_sex", "trajectories", "person_slopes",
        "time_to_conversion", "kaplan_meier", "mae_auc_CN_AD",
    }  # fmt: skip


def test_nobody_is_named_and_nothing_is_asked_for(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|iframe|object)|src=.(?!data:)|@import|url\(", text)
    ours = written / "evaluations" / "adni"
    for path in (written / "report.html", *(ours / "tables").iterdir(), *(ours / "figures").glob("*.svg")):
        assert PERSON_PREFIX not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("absent", [*FRAMES, "table", "results.csv", "everything"])
def test_any_piece_may_be_missing(folder, absent):
    place = folder / "evaluations" / "adni"
    for path in place.iterdir():
        if path.stem == absent or path.name == absent or absent == "everything":
            path.unlink()
    shown = built(folder).parts
    if absent == "everything":
        assert list(shown) == ["who"]  # which says that the table is not there
    elif absent == "results.csv":
        assert list(shown) == ["who", "age", "gap", "diagnosis", "longitudinal", "survival"]
    else:
        assert list(shown) == [name for name, _, _ in PARTS]


def test_a_torn_file_or_a_missing_column_is_named(folder):
    place = folder / "evaluations" / "adni" / "gaps.parquet"
    write_table(read_table(place).drop(columns="healthy"), place)
    with pytest.raises(DataError, match=r"gaps\.parquet: missing columns healthy"):
        read_evaluations(read_run(folder))
    place.write_text("torn")
    with pytest.raises(DataError, match=r"gaps\.parquet"):
        read_evaluations(read_run(folder))


def test_the_own_cohort_has_a_section_only_where_a_task_was_judged(folder):
    assert [one.name for one in read_evaluations(read_run(folder))] == ["adni"]
    shutil.copy(folder / "evaluations" / "adni" / "gaps.parquet", folder)
    assert [one.name for one in read_evaluations(read_run(folder))] == ["", "adni"]


def test_the_row_of_all_seeds_is_taken_and_p_values_of_the_first(folder):
    task, parts = "gap_contrast", ("contrast=AD-CN", "correction=none")
    rows = [result_row("exp", *WHERE[1:], task, "difference_years", Interval(4.0, 3.0, 5.0), 50, *parts,
                       "seeds 0, 1, sd over seeds 0.5")]  # fmt: skip
    for seed, value in ((1, 4.5), (0, 3.5)):
        name = f"exp-seed{seed}"
        rows.append(result_row(name, *WHERE[1:], task, "difference_years", Interval(value, 3, 5), 50, *parts))
        rows.append(result_row(name, *WHERE[1:], task, "p", Interval(value / 100, np.nan, np.nan), 50, *parts))
    write_results(results_frame(rows), folder / "evaluations" / "adni" / "results.csv")
    found = judged(folder).rows(task)
    assert found.set_index("metric")["estimate"].to_dict() == {"difference_years": 4.0, "p": 0.035}
    table = parts_table("t", "T", found, {"contrast": "Contrast"}, [Column("difference_years", "D"), Column("p", "p")])
    assert "p values are those of the first seed" in table.note


def test_a_table_shows_numbers_and_says_why_others_are_missing(folder):
    rows = judged(folder).rows("diagnosis")
    table = parts_table("t", "T", rows[rows["labels"] == ""], {"pair": "Pair", "predictor": "Predictor"},
                        [Column("auc", "AUC", 3)])  # fmt: skip
    assert table.reasons == ("Not computed: 4 people of pMCI, fewer than 20 (sMCI-pMCI, gap).",)
    assert "sMCI-pMCI" not in set(table.shown["Pair"])
    assert "sMCI-pMCI" in set(table.data["pair"])
    first = table.shown.iloc[0]
    assert (str(first["AUC"]), first["Pair"]) == ("0.560 [0.510, 0.610]", "CN-AD")


@pytest.mark.usefixtures("undrawn")
def test_a_task_without_any_number_is_a_sentence(folder):
    place = folder / "evaluations" / "adni"
    write_results(results_frame([missing_row(*WHERE, "gap_repeat", "icc", "nobody came twice")]), place / "results.csv")
    run = read_run(folder)
    blocks = cohort_section(judged(folder)).build(Page(run))
    told = [block.content for block in blocks if block.kind == "text"]
    assert "Two scans of one person within 90 days: not computed: nobody came twice." in told


def test_groups_of_few_people_are_not_drawn(folder):
    gaps = judged(folder).frame("gaps").drop_duplicates("participant_id")
    few = pd.concat([gaps[gaps["diagnosis"] == "CN"], gaps[gaps["diagnosis"] == "AD"].head(4)])
    assert set(by_group(few, "gap_none_years")) == {"CN"}
    nobody = gaps.assign(diagnosis=pd.array([pd.NA] * len(gaps), dtype="string"))
    assert [len(found) for found in by_group(nobody, "gap_none_years").values()] == [len(gaps)]


def test_a_survival_curve_is_that_of_statsmodels_until_few_are_left():
    from statsmodels.duration.survfunc import SurvfuncRight

    rng = np.random.default_rng(0)
    time, event = rng.exponential(4, 80).round(1) + 0.1, rng.uniform(size=80) < 0.6
    curve, known = Curve(time, event), SurvfuncRight(time, event.astype(int))
    kept = known.n_risk >= 5
    assert np.array_equal(curve.steps[1:], known.surv_times[kept])
    assert np.allclose(curve.survival[1:], known.surv_prob[kept])
    spread = 1.96 * (known.surv_prob_se / (known.surv_prob * np.abs(np.log(known.surv_prob))))[kept]
    assert np.allclose(curve.low[1:], curve.survival[1:] ** np.exp(spread))
    assert curve.at_risk(curve.end) >= 5


def test_a_mean_by_year_counts_a_person_once_and_needs_five():
    rows = pd.DataFrame({
        "cohort": "x", "participant_id": ["a", "a", "b", "c", "d", "e", "a"], "visit_years": [0, 0.2, 0, 0, 0, 0, 1],
        "gap_years": [1.0, 3.0, 2.0, 2.0, 2.0, 7.0, 9.0],
    })  # fmt: skip
    (found,) = mean_by_year(rows).to_dict("records")
    assert (found["years"], found["estimate"], found["people"]) == (0, 3.0, 5)


def test_a_sound_evaluation_warns_of_ages_only(folder):
    titles = [title for _, title, _ in task_findings(read_run(folder), judged(folder))]
    assert titles == ["Ages outside the training range (adni)"]


def _results(**changes):
    """Spoil rows of results: query -> new values."""

    def spoil(folder: Path) -> None:
        place = folder / "evaluations" / "adni"
        frame = fake_results(read_table(place / "gaps.parquet"))
        for query, values in changes["rows"].items():
            index = frame.query(query, engine="python").index
            assert len(index)
            for column, value in values.items():
                frame.loc[index, column] = value
        write_results(frame, place / "results.csv")

    return spoil


def _seen(folder: Path) -> None:
    split = pd.read_csv(folder / "split.tsv", sep="\t", dtype=str)
    first = read_table(folder / "evaluations" / "adni" / "table.parquet").iloc[0]
    more = pd.DataFrame({"cohort": ["adni"], "participant_id": [first["participant_id"]], "split": ["train"]})
    pd.concat([split, more]).to_csv(folder / "split.tsv", sep="\t", index=False)


def _frame(name, change):
    def spoil(folder: Path) -> None:
        path = folder / "evaluations" / "adni" / f"{name}.parquet"
        write_table(change(read_table(path)), path)

    return spoil


AUC = "metric == 'auc' and note.str.startswith('pair=CN-AD; predictor=%s')"
FAULTS = [
    ("People seen in training were judged", _seen),
    ("No better than the mean age", _results(rows={"task == 'age' and run == 'exp' and note == 'ridge of the run'":
                                                   {"estimate": 8.0, "low": 7.0, "high": 9.0}})),
    ("Bias correction outside its ages",
     _frame("gaps", lambda gaps: gaps.assign(healthy=gaps["healthy"] & (gaps["age_years"] < 70)))),
    ("The corrected gap still depends on age",
     _results(rows={"metric == 'age_slope' and note.str.contains('CN; correction=beheshti')":
                    {"estimate": 0.2, "low": 0.1, "high": 0.3}})),
    ("Age tells the groups apart", _results(rows={AUC % "age_sex": {"estimate": 0.75, "low": 0.7, "high": 0.8}})),
    ("No better than pca_ridge", _results(rows={"run == 'pca_ridge' and note == 'pair=CN-AD; predictor=probe'":
                                                {"estimate": 0.84, "low": 0.8, "high": 0.9}})),
    ("Not clearly better than guessing", _results(rows={AUC % "gap": {"estimate": 0.55, "low": 0.45, "high": 0.65}})),
    ("A site probe did not converge", _results(rows={"task == 'site' and run == 'exp' and note == 'lbfgs converged'":
                                                     {"note": "lbfgs NOT converged, C 1"}})),
    ("The mixed model fell back",
     _results(rows={"metric == 'slope_years_per_year' and note.str.contains('group=CN; correction=none')":
                    {"note": "group=CN; correction=none; fell back to a random intercept only"}})),
    ("Few events", _frame("survival", lambda rows: rows.assign(event=rows["event"] & (rows["time_years"] < 0.5)))),
]  # fmt: skip


@pytest.mark.parametrize(("title", "spoil"), FAULTS, ids=[title for title, _ in FAULTS])
def test_each_fault_is_said_and_names_nobody(folder, title, spoil):
    spoil(folder)
    found = task_findings(read_run(folder), judged(folder))
    assert title in {name.split(" (")[0] for _, name, _ in found}
    assert not any(PERSON_PREFIX in text for _, _, text in found)


def test_methods_and_references_are_of_what_was_done(folder):
    run, evaluation = read_run(folder), judged(folder)
    text, cited = " ".join(task_methods([evaluation])), " ".join(one.text for one in references(run, [evaluation]))
    for words in ("Beheshti et al. 2019", "cross-fitted", "10 % and 50 % of the labels", "ComBat", "Kaplan"):
        assert words in text, words
    for author in ("Beheshti", "Cole", "Butler", "DeLong", "Sun X.", "Johnson", "Fortin", "Vovk", "Lei J.", "Hedges",
                   "Holm", "Collins", "Cox", "de Lange"):  # fmt: skip
        assert author in cited, author
    assert "McGraw" not in cited  # no repeat was measured
    own = " ".join(one.text for one in references(run, []))
    assert "DeLong" not in own
    assert "Barbano" in own
    assert "Dufumier B. et al. (2021)" not in own
    assert task_methods([]) == []


def test_the_checklist_goes_through_the_27_items_and_links_what_is_there(written):
    numbers = {int(n) for item in ITEMS for n in re.findall(r"^\d+", item.number)}
    assert numbers == set(range(1, 28))
    text = (written / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="(done|open)"><th[^>]*>([^<]+)</th>(.*?)</tr>', text, re.DOTALL)
    assert len(rows) == len(ITEMS)
    states = {number: state for state, number, _ in rows}
    assert (states["17"], states["14"], states["23a"]) == ("open", "done", "done")
    assert all(("Add:" in rest) or state == "done" for state, _, rest in rows)


def test_an_evaluation_of_a_foreign_table_of_embeddings_has_its_own_main_model(folder):
    place = folder / "evaluations" / "adni"
    rows = [result_row("freesurfer", *WHERE[1:], "age", "mae_years", Interval(4.0, 3.0, 5.0), 50)]
    write_results(results_frame(rows), place / "results.csv")
    assert read_evaluation(read_run(folder), place, "adni").model == "freesurfer"
