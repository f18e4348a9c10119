"""Study files: every shipped one is valid arm by arm, every mistake is refused by name."""

import functools

import pytest

from brainage.config import differing_keys
from brainage.errors import ConfigError
from brainage.pretraining.folder import FINISHED
from brainage.studies import cells as cells_module
from brainage.studies import stage
from brainage.studies.cells import cells_of
from brainage.studies.study import form_of, load_study, shipped_studies

study_cells = functools.cache(stage.study_cells)  # nothing here changes a cell
SHIPPED = {"losses", "kernels", "scaling", "batch_size", "mae_auc"}


def study_file(folder, text):
    path = folder / "mine.yaml"
    path.write_text("base: demo\nreference: a\n" + text, encoding="utf-8")
    return str(path)


TWO_ARMS = "arms:\n  a: {loss.name: exp}\n  b: {loss.name: l1}\n"


def test_the_studies_are_shipped():
    assert set(shipped_studies()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("small", [False, True])
def test_every_arm_of_a_shipped_study_is_a_valid_experiment_of_one_network(name, small):
    form, cells = study_cells(name, small=small)
    assert form.description
    assert len(cells) == len(form.arms) * len(form.seeds)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert form.reference in form.arms
    for cell in cells:
        assert cell.experiment.evaluate.seeds == 1
        assert cell.experiment.evaluate.losses == []
        assert cell.experiment.seed == cell.seed
        assert bool(cell.subset) == (name == "scaling")


def test_the_small_form_trains_on_the_cpu_and_keeps_out_of_mlflow():
    for name in SHIPPED:
        form, cells = study_cells(name, small=True)
        assert form.simulate
        for cell in cells:
            assert cell.experiment.trainer.accelerator == "cpu"
            assert not cell.experiment.tracking.enabled
            assert cell.experiment.data.root.startswith("demo_data")


def test_the_losses_are_all_there_and_differ_in_nothing_else():
    form, cells = study_cells("losses")
    reference = next(cell for cell in cells if cell.arm == form.reference)
    found = {}
    for cell in cells[: len(form.arms)]:
        changed = differing_keys(reference.experiment, cell.experiment)
        assert set(changed) <= {"loss.name", "loss.similarity", "loss.temperature"}
        found[cell.arm] = cell.experiment.loss
    assert {loss.name for loss in found.values()} == {"l1", "supcon", "infonce", "yaware", "thr", "exp", "rnc"}
    assert [found[arm].similarity for arm in ("exp_cosine", "exp_shifted")] == ["cosine", "shifted"]
    assert found["rnc"].temperature == 2


def test_baselines_are_scored_once_beside_the_reference():
    _, cells = study_cells("losses")
    assert [(c.arm, c.seed) for c in cells if c.experiment.evaluate.baselines] == [("exp_cosine", 0)]


def test_cells_are_numbered_seed_by_seed():
    form, cells = study_cells("losses", small=True)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert [cell.arm for cell in cells[: len(form.arms)]] == list(form.arms)


def test_an_arm_that_two_studies_share_has_one_folder():
    losses = {c.folder for c in study_cells("losses")[1]}
    kernels = {c.folder for c in study_cells("kernels")[1]}
    assert len(losses & kernels) == 3  # L^exp with rbf 2, three seeds


def test_a_grid_is_every_combination(tmp_path):
    grid = "grid:\n  loss.kernel: [rbf, cauchy]\n  loss.sigma_years: [1, 4]\nreference: rbf_sigma_years_1\n"
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\n" + grid, encoding="utf-8")
    form = form_of(load_study(str(file)), small=False)
    assert set(form.arms) == {f"{k}_sigma_years_{s}" for k in ("rbf", "cauchy") for s in (1, 4)}
    assert form.arms["cauchy_sigma_years_4"] == {"loss.kernel": "cauchy", "loss.sigma_years": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO_ARMS + "seed: [0]\n", r"unknown key 'seed'; did you mean 'seeds'"),
        (TWO_ARMS + "small:\n  simulate: {peple: 3}\n", r"unknown key 'small.simulate.peple'"),
        (TWO_ARMS + "seeds: [0, 0]\n", "seeds"),
        (TWO_ARMS + "seeds: [zero]\n", "seeds"),
        (TWO_ARMS + "compare: [age/test_extern/mae_years]\n", "compare 'age/test_extern/mae_years'"),
        (TWO_ARMS.replace("b:", "c:").replace("a:", "d:"), "reference 'a' is no arm"),
        ("arms:\n  a: {}\n", "1 arms; expected two or more"),
        ("arms:\n  a: {}\n  b/c: {loss.name: l1}\n", "arm 'b/c'"),
        ("arms:\n  a: {}\n  b: l1\n", "arms.b: expected dotted keys"),
        ("arms:\n  a: {}\n  b: {}\ngrid:\n  loss.name: l1\n", "grid.loss.name: expected a list"),
    ],
)
def test_a_mistake_in_a_study_file_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_study(study_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO_ARMS.replace("loss.name: l1", "loss.nam: l1"), "arm b: .*unknown key 'loss.nam'; did you mean"),
        (TWO_ARMS.replace("loss.name: l1", "loss.name: l3"), "arm b: loss.name=l3"),
        (TWO_ARMS.replace("loss.name: l1", "loss.name: exp"), "arms a and b are the same experiment"),
        (TWO_ARMS.replace("loss.name: l1", "evaluate.seeds: 2"), "a cell is one network"),
        (TWO_ARMS.replace("loss.name: l1", "subset.peple: 2"), "unknown key 'subset.peple'"),
        (TWO_ARMS.replace("loss.name: l1", "subset.people: 0.5"), "expected a whole number"),
        (TWO_ARMS.replace("loss.name: l1", "subset.people: 20"), r"expected \[train\]"),
    ],
)
def test_a_mistake_in_an_arm_is_refused_with_the_arm(tmp_path, text, said):
    study = load_study(study_file(tmp_path, text))
    with pytest.raises(ConfigError, match=said):
        cells_of(form_of(study, small=False))


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'losses'"):
        load_study("lossess")


def test_a_seed_on_the_command_line_is_refused():
    with pytest.raises(ConfigError, match="seeds of its own"):
        study_cells("losses", ("seed=3",))


def test_a_word_of_the_command_line_reaches_every_arm():
    _, cells = study_cells("losses", ("trainer.epochs=7", "runs=elsewhere"), small=True)
    assert {cell.experiment.trainer.epochs for cell in cells} == {7}
    assert all(str(cell.folder).startswith("elsewhere/studies/cells/") for cell in cells)


def test_the_name_of_a_finished_run_is_the_one_that_training_writes():
    assert cells_module.FINISHED == FINISHED
