"""Experiments: every shipped file fits the schema, every mistake is refused by name, equal training hashes alike."""

import dataclasses
import re
from pathlib import Path

import pytest

from brainage.config import (
    NOT_TRAINING,
    Experiment,
    MemberConfig,
    differing_keys,
    flatten,
    from_plain,
    load_experiment,
    nearest,
    read_experiment,
    run_folder,
    save_experiment,
    shipped_experiments,
    sibling,
    to_plain,
    training_hash,
    training_values,
)
from brainage.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
FLAT = flatten(Experiment())


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "more"] if isinstance(value, list) else f"{value}more"


def changed(key: str) -> Experiment:
    """The default experiment with one leaf set to another value, past every check."""
    values = to_plain(Experiment())
    section = values
    *sections, leaf = key.split(".")
    for name in sections:
        section = section[name]
    section[leaf] = other(section[leaf])
    parts = {name: type(getattr(Experiment(), name))(**part) for name, part in values.items() if isinstance(part, dict)}
    return Experiment(**{**values, **parts})


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_loads_and_carries_its_own_name(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.description


def test_the_experiments_of_the_first_release_are_shipped():
    assert set(shipped_experiments()) >= {
        "openbhb_exp", "openbhb_yaware", "openbhb_l1", "openbhb_exp_quasiraw", "demo", "ixi_thickness_exp",
        "ixi_volumes_smoke",
    }  # fmt: skip


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_opens_with_its_command_and_is_a_small_difference(name):
    lines = shipped_experiments()[name].read_text(encoding="utf-8").splitlines()
    heading = "\n".join(line for line in lines if line.startswith("#"))
    assert "make pretrain EXP=" + name in heading or "make " + name in heading
    assert "Hardware" in heading
    if name != "openbhb_exp":
        assert any(line.startswith("base: ") for line in lines)


def test_the_base_experiment_shows_and_explains_every_key():
    explained, section = set(), ""
    for line in shipped_experiments()["openbhb_exp"].read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(# |  )?(\w+):( [^#]*)?(# .+)?", line)
        if not match:
            continue
        section = section if match[1] == "  " else ""
        if match[4]:
            explained.add(section + match[2])
        if not match[1] and not (match[3] or "").strip():
            section = f"{match[2]}."
    assert set(FLAT) - explained == {"description"}  # a sentence itself


def test_an_experiment_of_three_lines_outside_the_shipped_folder_builds_on_a_shipped_one(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: openbhb_exp\nloss:\n  sigma_years: 4\n")
    mine, base = load_experiment(path), load_experiment("openbhb_exp")
    assert mine.name == "mine"
    assert mine == dataclasses.replace(base, name="mine", loss=dataclasses.replace(base.loss, sigma_years=4.0))


def test_bases_are_followed_to_the_oldest_and_the_youngest_wins(tmp_path):
    write(tmp_path, "old.yaml", "seed: 1\nloss: {sigma_years: 3, temperature: 0.5}\nname: elder\n")
    write(tmp_path, "middle.yaml", "base: old\nloss: {sigma_years: 4}\n")
    experiment = load_experiment(write(tmp_path, "young.yaml", "base: middle.yaml\nseed: 2\n"), ["loss.temperature=1"])
    assert (experiment.seed, experiment.loss.sigma_years, experiment.loss.temperature) == (2, 4.0, 1.0)
    assert experiment.name == "young"  # a base's own name is not passed on


def test_a_file_may_have_the_name_of_the_shipped_experiment_it_builds_on(tmp_path):
    path = write(tmp_path, "openbhb_exp.yaml", "base: openbhb_exp\nseed: 7\n")
    assert load_experiment(path).seed == 7
    assert load_experiment(path).trainer.precision == "bf16"


def test_a_cycle_of_bases_is_refused_with_its_path(tmp_path):
    path = write(tmp_path, "a.yaml", "base: b\n")
    write(tmp_path, "b.yaml", "base: a\n")
    with pytest.raises(ConfigError, match=r"`base` names itself through a\.yaml -> b\.yaml"):
        load_experiment(path)


def test_a_base_that_does_not_exist_is_refused_with_the_file_that_names_it(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: openbhb_ex\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: base: .*did you mean 'openbhb_exp'"):
        load_experiment(path)


def test_a_section_whose_keys_are_commented_out_changes_nothing(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: openbhb_exp\nloss:\n#  sigma_years: 4\n")
    assert load_experiment(path).loss == load_experiment("openbhb_exp").loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss:\n  sigma_yeras: 4\n", r"mine\.yaml: unknown key 'loss.sigma_yeras'; did you mean 'loss.sigma_years'"),
        ("sigma_years: 4\n", r"mine\.yaml: unknown key 'sigma_years'; did you mean 'loss.sigma_years'"),
        ("los:\n  name: exp\n", r"mine\.yaml: unknown key 'los.name'; did you mean 'loss.name'"),
        ("loss: exp\n", r"mine\.yaml: unknown key 'loss'; did you mean 'loss.name'"),
        ("lr: 4\n", r"unknown key 'lr'; did you mean 'optim.lr'"),
        ("quux: 4\n", r"unknown key 'quux'; .*openbhb_exp.yaml explains every key"),
        ("loss:\n  sigma_years: wide\n", r"mine\.yaml: key 'loss.sigma_years': Value 'wide'"),
        ("data:\n  batch_size: 8.5\n", r"key 'data.batch_size': Value '8.5' of type 'float'"),
        ("data:\n  batch_size: true\n", r"key 'data.batch_size': Value 'True' of type 'bool'"),
        ("trainer:\n  precision: int8\n", r"key 'trainer.precision': .*'fp32', 'bf16', 'fp16'"),
        ("data:\n  external_sites: IOP\n", r"key 'data.external_sites'"),
        ("seed: ${nowhere}\n", r"key 'seed': Interpolation key 'nowhere' not found"),
        ("seed: 1\nseed: 2\n", r"mine\.yaml: not readable as YAML .*duplicate key"),
        ("seed: [1\n", r"mine\.yaml: not readable as YAML"),
        ("- seed\n", r"mine\.yaml: expected keys and values, found list"),
    ],
)
def test_a_mistake_in_a_file_is_refused_by_file_key_and_remedy(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, "mine.yaml", text))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.sigma_yeras=4", "override 'loss.sigma_yeras=4': unknown key .*did you mean 'loss.sigma_years'"),
        ("trainer.epochs", "expected key=value"),
        ("=3", "override '=3': unknown key"),
        ("data.external_sites=[IOP", "override .* not readable as YAML"),
        ("loss.sigma_years=", "override 'loss.sigma_years=': key 'loss.sigma_years'"),
        ("loss.name=expp", "loss.name=expp: unknown; did you mean 'exp'"),
        ("encoder.name=resnet81", "encoder.name=resnet81: unknown; did you mean 'resnet18'"),
        ("evaluate.losses=[l3]", "evaluate.losses=l3: unknown; known: exp, huber"),
        ("evaluate.baselines=[pca]", "evaluate.baselines=pca: unknown"),
        ("loss.sigma_years=0", "loss.sigma_years=0.0: expected a number above 0"),
        ("loss.sigma_years=nan", "loss.sigma_years=nan: expected a number above 0"),
        ("optim.lr=inf", "optim.lr=inf: expected a number above 0"),
        ("data.limit=-1", "data.limit=-1: expected 0 or more"),  # pandas' head(-1) would leave out the last scan
        ("seed=-1", "seed=-1: expected 0 or more"),
        ("augment.flip_p=1.5", "augment.flip_p=1.5: expected a share between 0 and 1"),
        ("encoder.dropout=nan", "encoder.dropout=nan: expected a share between 0 and 1"),
        ("name=a/b", "name='a/b': expected a word without '/'"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused_by_word_and_remedy(word, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment("openbhb_exp", [word])


def test_infonce_without_a_second_view_is_refused():
    with pytest.raises(ConfigError, match=r"infonce: expected augment.views of 2 or more"):
        load_experiment("openbhb_exp", ["loss.name=infonce", "augment.views=1"])


def test_an_unknown_experiment_is_refused_with_the_nearest_name_or_the_missing_file():
    with pytest.raises(ConfigError, match="did you mean 'openbhb_yaware'"):
        load_experiment("openbhb_yawar")
    with pytest.raises(ConfigError, match=r"experiment file nowhere\.yaml: not found"):
        load_experiment("nowhere.yaml")


def test_overrides_take_numbers_lists_empty_text_and_a_name_and_the_last_word_wins():
    words = ["seed=1", "seed=2", "data.external_sites=[IOP, HH]", "data.split=x.tsv", "data.split=", "name=other"]
    experiment = load_experiment("ixi_thickness_exp", [*words, "encoder.hidden=[8]", "optim.lr=1e-2"])
    assert experiment.seed == 2
    assert experiment.data.external_sites == ["IOP", "HH"]
    assert experiment.data.split == ""
    assert experiment.encoder.hidden == [8]
    assert experiment.optim.lr == 0.01
    assert run_folder(experiment).name == f"other-{training_hash(experiment)}"


def test_a_tilde_in_a_folder_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    experiment = load_experiment("openbhb_exp", ["data.root=~/openbhb", "data.store=~/stores/a", "runs=~/runs"])
    assert experiment.data.root == "/home/somebody/openbhb"
    assert experiment.data.store == "/home/somebody/stores/a"
    assert experiment.runs == "/home/somebody/runs"


@pytest.mark.parametrize("key", FLAT)
def test_every_key_that_decides_what_is_learnt_changes_the_training_hash_and_no_other(key):
    watching = key.startswith(("tracking.", "evaluate.", "finetune.", "checkpoint.", "health.")) or key in {
        "description", "runs", "data.root", "data.store", "data.workers", "data.prepare_workers", "data.resident",
        "trainer.progress", "trainer.threads", "trainer.devices", "trainer.nodes",
    }  # fmt: skip
    assert flatten(changed(key))[key] != FLAT[key]
    assert (training_hash(changed(key)) == training_hash(Experiment())) == watching
    assert (key in training_values(Experiment())) != watching


def test_what_is_not_training_is_named_by_keys_that_exist():
    for name in NOT_TRAINING:
        assert name in FLAT or any(key.startswith(f"{name}.") for key in FLAT)


def test_the_training_hash_survives_a_checkpoint():
    experiment = load_experiment("openbhb_exp")
    assert re.fullmatch("[0-9a-f]{8}", training_hash(experiment))
    assert training_hash(from_plain(to_plain(experiment))) == training_hash(experiment)


def test_a_sibling_differs_in_loss_and_seed_alone():
    base = load_experiment("openbhb_exp")
    differing = {key for key, value in flatten(sibling(base, "l1", 3)).items() if value != flatten(base)[key]}
    assert differing == {"loss.name", "seed"}


@pytest.mark.parametrize("name", shipped_experiments())
def test_a_saved_experiment_reads_back_equal_and_trains_alike_when_given_to_pretrain(name, tmp_path):
    experiment = load_experiment(name, ["name=mine", "data.external_sites=[a, '7']", "data.root=/data/x y#z"])
    path = tmp_path / "config.yaml"
    save_experiment(experiment, path)
    assert read_experiment(path) == experiment
    assert load_experiment(str(path)) == experiment  # keeps the name in the file: the same run folder


def test_a_damaged_saved_experiment_is_refused_by_name(tmp_path):
    path = tmp_path / "config.yaml"
    save_experiment(Experiment(), path)
    path.write_text(path.read_text(encoding="utf-8")[:40] + "\x00", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: not readable as YAML"):
        read_experiment(path)


def test_a_checkpoint_of_an_older_schema_gets_defaults_and_unknown_keys_are_refused():
    values = to_plain(load_experiment("openbhb_exp"))
    del values["loss"]["bin_years"]
    assert from_plain(values).loss.bin_years == Experiment().loss.bin_years
    values["loss"]["margin"] = 1
    with pytest.raises(ConfigError, match=r"checkpoint: unknown key 'loss.margin'"):
        from_plain(values)


def test_to_plain_holds_plain_types_only():
    def kinds(value):
        if isinstance(value, dict):
            return set().union(*(kinds(part) for part in value.values()))
        return {type(value)} | (set().union(*map(kinds, value)) if isinstance(value, list) else set())

    assert kinds(to_plain(load_experiment("ixi_thickness_exp"))) <= {str, int, float, bool, list}


def test_a_far_typo_lists_what_is_known():
    assert nearest("zzz", ["l1", "exp"]) == "; known: exp, l1"


def test_dictionaries_of_an_experiment_take_any_name_but_no_unknown_key_of_a_member():
    words = ["data.members.adni.root=/x", "data.members.adni.options.months=24", "data.weights.adni=0.5"]
    experiment = load_experiment("openbhb_exp", words)
    assert experiment.data.members == {"adni": MemberConfig(root="/x", options={"months": 24})}
    assert from_plain(to_plain(experiment)) == experiment
    with pytest.raises(ConfigError, match=r"unknown key 'data\.members\.adni\.rot'; did you mean 'data.members'"):
        load_experiment("openbhb_exp", ["data.members.adni.rot=/x"])


def test_where_a_member_or_a_file_of_options_lies_is_not_training_and_what_it_says_is():
    def digest(*words: str) -> str:
        return training_hash(load_experiment("openbhb_exp", list(words)))

    here = digest("data.members.a.root=/x", "data.options.withdrawn_file=/x/w.csv")
    assert here == digest("data.members.a.root=/y", "data.members.a.store=s", "data.options.withdrawn_file=/y/w.csv")
    assert here != digest("data.members.a.root=/x", "data.members.a.options.months=3")
    one, other = (load_experiment("openbhb_exp", words) for words in ([], ["data.options.months=3"]))
    assert differing_keys(one, other) == {"data.options.months": (None, 3)}
    assert differing_keys(other, one) == {"data.options.months": (3, None)}


@pytest.mark.parametrize("word", ["tasks=[]", "pairs=[]", "predictors=[]", "age_probes=[]", "label_shares=[]"])
def test_a_list_that_would_leave_nothing_to_do_is_refused(word):
    with pytest.raises(ConfigError, match=r"is empty"):
        load_experiment("openbhb_exp", [f"evaluate.{word}"])


def test_one_fold_is_none():
    with pytest.raises(ConfigError, match=r"evaluate.diagnosis_folds=1: expected 2 or more"):
        load_experiment("openbhb_exp", ["evaluate.diagnosis_folds=1"])
