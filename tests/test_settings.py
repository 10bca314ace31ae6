"""The table of settings, the messages about mistakes, and YAML as this project reads it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from wm_rllib.settings import settings
from wm_rllib.settings.settings import SettingError, check_attrs, check_value, flat_tree, parse_tree, to_tree
from wm_rllib.settings.table import BY_PATH, SETTINGS
from wm_rllib.settings.types import rule_of
from wm_rllib.settings.yaml_files import parse_yaml, read_yaml, write_yaml
from wm_rllib.sweep.search import SECTION, flat_search
from wm_rllib.sweep.spec import parse_sweep

# The example of the document that this project was created from.
SEED_EXAMPLE = """
world_model:
  vae: {latent_dim: 32, hidden_dims: [256, 128], beta: 1.0, learning_rate: 0.001}
  mdn_rnn: {hidden_dim: 256, num_mixtures: 5, temperature: 1.0, learning_rate: 0.001}
  training: {pretrain_epochs: 10, imagination_ratio: 0.5, imagination_horizon: 15}
  data_collection: {random_collection_steps: 10000}
"""


def tree_of(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def message(path, value):
    with pytest.raises(SettingError) as error:
        parse_tree(tree_of(path, value))
    return str(error.value)


def test_table_is_consistent():
    assert len(BY_PATH) == len(SETTINGS)
    attrs = [setting.attr for setting in SETTINGS if setting.attr]
    assert len(set(attrs)) == len(attrs)
    assert not settings.SECTIONS & BY_PATH.keys()
    assert all(rule_of(setting.type) and setting.doc.endswith(".") for setting in SETTINGS)


def test_seed_example_parses():
    values = parse_tree(parse_yaml(SEED_EXAMPLE, "seed"))
    assert values["world_model.vae.hidden_dims"] == [256, 128]
    assert values["world_model.training.imagination_ratio"] == 0.5


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("tune_configs/*.yaml")), ids=lambda p: p.name)
def test_shipped_files_parse(path):
    tree = read_yaml(path)
    search = tree.pop(SECTION, None)
    assert parse_tree(tree) if search is None else parse_sweep(flat_tree(tree), flat_search(search)).spaces


def test_to_tree_is_the_inverse():
    tree = parse_yaml(SEED_EXAMPLE, "seed")
    assert to_tree(parse_tree(tree)) == tree


def test_empty_files_and_sections_are_no_settings():
    assert parse_tree(None) == {}
    assert parse_tree({"ppo": None}) == {}


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("dreamers.imagination_ratio", "world_model.training.imagination_ratio"),
        ("world_model.vae.latent_dims", "world_model.vae.latent_dim"),
        ("world_model.vea.latent_dim", "world_model.vae"),
        ("ppo.lr", "ppo.learning_rate"),
        ("ppo.lambda_", "ppo.lambda"),
        ("stop.timesteps", "stop.total_timesteps"),
        ("checkpoint_frequency", "checkpoint.frequency"),
    ],
)
def test_unknown_key_suggests_the_nearest(unknown, nearest):
    text = message(unknown, 1)
    assert text.endswith(f"did you mean {nearest}?")
    assert "unknown setting " in text


def test_hopeless_key_lists_the_sections():
    assert "world_model" in message("xyzzyqq", 1)


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("world_model.training.imagination_ratio", 1.5, "a number from 0 to 1, or a schedule"),
        ("world_model.training.imagination_ratio", -0.1, "a number from 0 to 1"),
        ("world_model.training.imagination_ratio", [[0, 0.5]], "at least two points"),
        ("world_model.training.imagination_ratio", [[5, 0.5], [10, 0.6]], "the first of them 0"),
        ("world_model.training.imagination_ratio", [[0, 0.5], [0, 0.6]], "ascending"),
        ("world_model.training.imagination_ratio", [[0, 0.5], [10, 1.6]], "from 0 to 1"),
        ("world_model.training.imagination_ratio", {"a": 1}, "from 0 to 1"),
        ("world_model.vae.latent_dim", 0, "a whole number of at least 1"),
        ("world_model.vae.latent_dim", True, "a whole number of at least 1"),
        ("world_model.vae.latent_dim", None, "a whole number of at least 1"),
        ("world_model.vae.beta", float("nan"), "a number of at least 0"),
        ("world_model.vae.beta", True, "a number of at least 0"),
        ("world_model.vae.class", "no path", "an import path"),
        ("world_model.mdn_rnn.log_sigma_range", [1, -1], "low below high"),
        ("world_model.mdn_rnn.mixture", "both", '"joint" or "per_dimension"'),
        ("ppo.learning_rate", 0, "a number above 0"),
        ("ppo.num_cpus_per_learner", "all", 'or "auto"'),
        ("ppo", 3, "must be a section"),
        ("device", "tpu", '"auto" or "cpu" or "cuda"'),
    ],
)
def test_wrong_value_names_key_value_rule_and_fix(path, value, rule):
    text = message(path, value)
    assert text.startswith(f"{path} is {value!r}")
    assert rule in text
    assert "Fix: " in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        ("stop.total_timesteps", 1e6, "write 1000000"),
        ("seed", "3", "without quotes"),
        ("ppo.hidden_dims", 64, "write [64]"),
    ],
)
def test_fix_is_specific_where_it_can_be(path, value, fix):
    assert fix in message(path, value)


@pytest.mark.parametrize(
    ("path", "value", "plain"),
    [
        ("world_model.training.imagination_ratio", 1, 1.0),
        ("world_model.training.imagination_ratio", ((0, 0), (100, 0.9)), [[0, 0.0], [100, 0.9]]),
        ("world_model.vae.hidden_dims", (256, 128), [256, 128]),
        ("world_model.vae.hidden_dims", [], []),
        ("world_model.vae.class", "my.package:MyVAE", "my.package:MyVAE"),
        ("world_model.vae.class", None, None),
        ("ppo.num_epochs", np.int64(3), 3),
        ("ppo.grad_clip", None, None),
        ("ppo.vf_clip_param", float("inf"), float("inf")),
        ("ppo.num_cpus_per_learner", "auto", "auto"),
        ("dreamers.remote_replay", None, None),
        ("env.config", {"gravity": 9.8}, {"gravity": 9.8}),
    ],
)
def test_allowed_values(path, value, plain):
    result = check_value(BY_PATH[path], value)
    assert result == plain
    assert yaml.safe_load(yaml.safe_dump(result)) == plain


class SearchSpace:
    def sample(self):
        raise NotImplementedError


def test_check_attrs_checks_all_but_search_spaces():
    allowed = {bool: True, int: 1, float: 0.5}
    config = SimpleNamespace(**{setting.attr: _any_allowed(setting) for setting in SETTINGS if setting.attr})
    check_attrs(config)
    config.latent_dim = SearchSpace()
    config.beta = {"grid_search": [0.1, 1.0]}
    check_attrs(config)
    config.vae_lr = -allowed[float]
    with pytest.raises(SettingError, match=r"vae_lr \(world_model.vae.learning_rate in YAML\) is -0.5"):
        check_attrs(config)


def _any_allowed(setting):
    for value in (
        None,
        1,
        2,
        0.5,
        True,
        [1],
        [0, 1],
        [0.1, 0.9],
        {},
        "auto",
        "zh",
        "joint",
        "vm",
        "memory",
        "float32",
        "some.module:Name",
    ):
        try:
            return check_value(setting, value)
        except SettingError:
            continue
    raise AssertionError(setting)


def test_key_given_twice():
    with pytest.raises(SettingError, match="given twice"):
        parse_yaml("seed: 1\nseed: 2", "file.yaml")
    with pytest.raises(SettingError, match="given twice"):
        parse_tree({"env.id": "A", "env": {"id": "B"}})


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-2E5", -2e5), ("3", 3), ("1.5", 1.5), ("v1e5", "v1e5")])
def test_numbers_with_exponents(text, value):
    assert parse_yaml(text, "text") == value


def test_merge_keys_may_override():
    assert parse_yaml("a: &a {p: 1, q: 1}\nb: {<<: *a, q: 2}", "file.yaml")["b"] == {"p": 1, "q": 2}


def test_malformed_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("ppo:\n  gamma: [0.9\n")
    with pytest.raises(SettingError, match=r"bad.yaml is not valid YAML: .*line 3"):
        read_yaml(path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(SettingError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingError, match="not a text file"):
        read_yaml(tmp_path / "binary")


def test_write_and_read_again(tmp_path):
    tree = parse_yaml(SEED_EXAMPLE, "seed")
    write_yaml(tmp_path / "config.yaml", tree)
    assert read_yaml(tmp_path / "config.yaml") == tree
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
