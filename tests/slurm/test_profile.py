"""Profiles: the shipped ones are what sbatch takes, and what it would refuse is refused before."""

import pytest

from brainage.errors import ConfigError
from brainage.slurm.profile import Profile, load_profile, shipped_profiles


@pytest.mark.parametrize("name", sorted(shipped_profiles()))
def test_every_shipped_profile_is_read_and_says_what_it_is(name):
    profile = load_profile(name)
    assert profile.description
    assert profile.name == name
    assert f"--profile {name} " in shipped_profiles()[name].read_text()


def test_the_shipped_profiles_are_those_of_the_manual():
    tasks = {name: (load_profile(name).nodes, load_profile(name).tasks_per_node) for name in shipped_profiles()}
    assert tasks == {"cpu": (1, 2), "one_gpu": (1, 1), "one_node": (1, 4), "two_nodes": (2, 4)}


def test_words_override_keys_as_they_are_written():
    words = ["time=02:00:00", "account=007", "nodes=3", "modules=[cuda/12.8, gcc]", "environment={NCCL_DEBUG: INFO}"]
    profile = load_profile("two_nodes", words)
    assert (profile.time, profile.account, profile.nodes) == ("02:00:00", "007", 3)
    assert profile.modules == ["cuda/12.8", "gcc"]
    assert profile.environment == {"OMP_NUM_THREADS": "8", "NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["acount=me"], r"slurm\.acount=me: unknown key 'acount'; did you mean 'account'\?"),
        (["time"], r"slurm\.time: expected slurm\.key=value"),
        (["nodes=many"], r"key 'nodes'"),
        (["nodes=0"], r"nodes=0: expected 1 or more"),
        (["time=86400"], r"time=86400: expected a text in quotes"),
        (["gpus_per_node=2"], r"gpus_per_node=2 for tasks_per_node=1: expected one task a GPU"),
        (["account=me --hold"], r"account='me --hold': expected one word"),
        (["sbatch=[exclusive]"], r"'exclusive': expected an option of sbatch"),
        (["environment={a-b: c}"], r"'a-b' cannot be the name of a variable"),
        (["signal_seconds=0"], r"signal_seconds=0"),
    ],
)
def test_what_sbatch_would_refuse_is_refused_before(words, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("one_gpu", words)


def test_a_time_that_yaml_read_as_a_number_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("time: 24:00:00\n")  # sexagesimal: 86400
    with pytest.raises(ConfigError, match=r"mine\.yaml: time=86400: expected a text in quotes"):
        load_profile(str(tmp_path / "mine.yaml"))


def test_an_unknown_profile_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"profile 'two_node': not shipped; did you mean 'two_nodes'\?"):
        load_profile("two_node")
    with pytest.raises(ConfigError, match=r"absent\.yaml: not found"):
        load_profile(str(tmp_path / "absent.yaml"))


def test_a_file_with_few_keys_has_the_defaults_of_the_others(tmp_path):
    (tmp_path / "mine.yaml").write_text("account: abc\nsetup:\n")
    assert load_profile(str(tmp_path / "mine.yaml")) == Profile(name="mine", account="abc")
