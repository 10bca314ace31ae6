"""A sweep's YAML: spaces, the section search, and one clear message for each mistake, before anything starts."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from sweeping import TINY, write_sweep

from wm_rllib.cli.main import main
from wm_rllib.settings.settings import SettingError, flat_tree
from wm_rllib.settings.table import BY_PATH
from wm_rllib.settings.types import rule_of
from wm_rllib.sweep.search import DEFAULTS, TABLE, flat_search, parse_search
from wm_rllib.sweep.spaces import parse_space
from wm_rllib.sweep.spec import parse_sweep

RATE = "ppo.learning_rate"
SPACE = {RATE: {"loguniform": [1e-4, 1e-2]}}


def space(path, kind, arguments):
    return parse_space(BY_PATH[path], {kind: arguments})


def spec(settings=None, search=None):
    return parse_sweep({**flat_tree(TINY), **SPACE, **(settings or {})}, flat_search(search))


@pytest.mark.parametrize(
    ("path", "kind", "arguments", "drawn"),
    [
        (RATE, "loguniform", [1e-4, 1e-2], float),
        ("world_model.mdn_rnn.temperature", "uniform", [1, 2], float),
        ("world_model.vae.latent_dim", "integer", [2, 3], int),
        ("world_model.vae.hidden_dims", "choice", [[16], [32, 32]], list),
        ("world_model.training.imagination_ratio", "choice", [0.5, "auto"], (float, str)),
    ],
)
def test_draws_stay_in_the_space(path, kind, arguments, drawn):
    domain = space(path, kind, arguments).for_tune()
    values = [domain.sample() for _ in range(60)]
    assert all(isinstance(value, drawn) for value in values)
    if kind in ("integer", "choice"):  # both ends, and all values
        assert {str(value) for value in values} == {str(value) for value in arguments}
    else:
        assert all(arguments[0] <= value <= arguments[1] for value in values)


def test_grid_and_what_pbt_gets():
    assert space(RATE, "grid", [1e-3, 1e-2]).for_tune() == {"grid_search": [1e-3, 1e-2]}
    assert space("world_model.training.imagination_horizon", "choice", [5, 10]).for_pbt() == [5, 10]


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        (RATE, {"loguniform": [1e-2, 1e-4]}, ("low below high", "[0.01, 0.0001]")),
        (RATE, {"loguniform": [0, 1e-4]}, ("bounds above 0", "uniform")),
        (RATE, {"uniform": [0, 1e-4]}, ("a bound of ppo.learning_rate's uniform is 0.0", "a number above 0")),
        (RATE, {"uniform": 3}, ("two numbers [low, high]",)),
        (RATE, {"uniform": [True, 2]}, ("two numbers",)),
        (RATE, {"uniform": [1e-3, float("nan")]}, ("low below high",)),
        (RATE, {"loguniforn": [1e-4, 1e-2]}, ("did you mean loguniform?", "loguniforn")),
        (RATE, {"uniform": [0.1, 0.2], "choice": [1, 2]}, ("a search space is one of",)),
        (RATE, {}, ("a search space is one of",)),
        (RATE, {"choice": [1e-3]}, ("at least two values",)),
        (RATE, {"choice": [1e-3, -1.0]}, ("a value of ppo.learning_rate's choice is -1.0", "a number above 0")),
        (RATE, {"choice": [1e-3, 1e-3]}, ("different values", "0.001 once")),
        ("ppo.gamma", {"uniform": [0.9, 1.5]}, ("a bound of ppo.gamma's uniform is 1.5", "from 0 to 1")),
        ("world_model.vae.latent_dim", {"uniform": [2, 8]}, ("draws fractions", "{integer: [2, 8]}")),
        ("world_model.vae.latent_dim", {"integer": [2.5, 8]}, ("whole bounds",)),
        ("world_model.vae.latent_dim", {"integer": [0, 8]}, ("integer is 0", "at least 1")),
        ("evaluation.episodes", {"choice": [2, 4]}, ("cannot be searched", "comparable")),
        ("env.id", {"choice": ["CartPole-v1", "Acrobot-v1"]}, ("cannot be searched",)),
        ("stop.total_timesteps", {"integer": [100, 200]}, ("cannot be searched",)),
    ],
)
def test_wrong_space_names_key_value_rule_and_fix(path, given, words):
    with pytest.raises(SettingError) as caught:
        parse_space(BY_PATH[path], given)
    text = str(caught.value)
    assert path in text and "Fix: " in text and "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"sheduler": "asha"}, ("unknown setting search.sheduler", "did you mean search.scheduler?")),
        ({"asha": {"grace": 3}}, ("unknown setting search.asha.grace", "search.asha.grace_period?")),
        ({"grace_period": 3}, ("unknown setting search.grace_period", "search.asha.grace_period?")),
        ({"asha": 3}, ("search.asha is 3", "a section", "grace_period")),
        ([1], ("search is [1]", "a section")),
        ({"scheduler": "hyperband"}, ("search.scheduler is 'hyperband'", '"asha" or "pbt" or "none"')),
        ({"num_samples": 0}, ("search.num_samples is 0", "at least 1")),
        ({"metric": "loss"}, ("search.metric is 'loss'", "evaluation/episode_return_mean")),
        ({"asha": {"reduction_factor": 1}}, ("search.asha.reduction_factor is 1", "above 1")),
        ({"pbt": {"quantile_fraction": 0.6}}, ("search.pbt.quantile_fraction is 0.6", "from 0 to 0.5")),
    ],
)
def test_wrong_search_names_key_value_rule_and_fix(section, words):
    with pytest.raises(SettingError) as caught:
        parse_search(flat_search(section))
    text = str(caught.value)
    assert all(word in text for word in words) and "Fix: " in text, text


@pytest.mark.parametrize(
    ("settings", "search", "words"),
    [
        ({RATE: 1e-3}, None, ("nothing is searched",)),
        ({"stop.total_timesteps": None}, None, ("stop.total_timesteps is null",)),
        ({"evaluation.interval": None}, None, ("evaluation.interval is null",)),
        (
            {"stop.total_timesteps": 500},
            None,
            ("stop.total_timesteps is 500", "multiple of evaluation.interval", "512"),
        ),
        ({"stop.iterations": 3}, None, ("stop.iterations is 3", "stop.total_timesteps ends them")),
        ({"stop.return": 475}, {"mode": "min"}, ("stop.return", "search.mode min")),
        ({RATE: {"grid": [1e-3, 1e-2]}}, {"scheduler": "pbt"}, ("ppo.learning_rate is a grid", "choice")),
        ({RATE: {"grid": [1e-3, 1e-2]}}, {"searcher": "optuna"}, ("ppo.learning_rate is a grid",)),
        (None, {"asha": {"grace_period": 600}}, ("search.asha.grace_period is 600", "512")),
        (None, {"asha": {"grace_period": 128, "brackets": 3}}, ("search.asha.brackets is 3", "Fix: 2 at most")),
        (None, {"scheduler": "pbt", "num_samples": 1}, ("search.num_samples is 1", "at least 2")),
        (None, {"scheduler": "pbt", "searcher": "optuna"}, ("search.searcher is 'optuna'", "pbt")),
        (None, {"scheduler": "pbt", "max_concurrent_trials": 2}, ("search.max_concurrent_trials is 2", "(8)")),
        (None, {"mlflow": {"tracking_uri": "file:x"}}, ("search.mlflow.experiment_name",)),
    ],
)
def test_what_does_not_fit_together(settings, search, words):
    with pytest.raises(SettingError) as caught:
        spec(settings, search)
    text = str(caught.value)
    assert all(word in text for word in words) and "Fix: " in text, text


def test_tree_parses_to_an_equal_sweep():
    first = spec({"world_model.vae.latent_dim": {"integer": [2, 4]}}, {"asha": {"grace_period": 128}})
    tree = yaml.safe_load(yaml.safe_dump(first.tree()))
    search = flat_search(tree.pop("search"))
    assert parse_sweep(flat_tree(tree), search) == first


def test_points_hold_each_end_once():
    points = list(spec({"world_model.vae.latent_dim": {"integer": [2, 4]}}).points())
    found = [(point[RATE], point["world_model.vae.latent_dim"]) for point in points]
    assert sorted(found) == [(1e-4, 2), (1e-4, 4), (1e-2, 2)]


def test_a_mapping_that_is_a_value_is_no_space():
    """Custom resources are mappings themselves."""
    path = "dreamers.custom_resources_per_dreamer"
    assert spec({path: {"dream_node": 1}}).values[path] == {"dream_node": 1}
    assert spec({path: {}}).values[path] == {}
    with pytest.raises(SettingError, match="a search space is one of"):
        spec({path: {"dream_node": -1}})


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def error_of(tmp_path, monkeypatch, capsys):
    """Returns the one message of a `sweep` that must end with exit code 2, without Ray and without a file."""
    monkeypatch.chdir(tmp_path)

    def error_of(*argv, search=None, **settings):
        write_sweep(tmp_path, search or {}, {**SPACE, **settings})
        before = sorted(os.walk("."))
        code = main(["sweep", "--config", "sweep.yaml", *argv])
        out, err = capsys.readouterr()
        assert code == 2 and err.startswith("wm_rllib: error: ") and "Traceback" not in err + out, err
        assert sorted(os.walk(".")) == before
        assert not ("ray" in sys.modules and sys.modules["ray"].is_initialized())
        return err

    return error_of


def test_mistakes_on_the_command_line(error_of):
    assert "add --run-dir" in error_of("--resume", "auto")
    assert "unknown setting ppo.lr. Fix: did you mean ppo.learning_rate?" in error_of("--set", "ppo.lr=1")
    assert "did you mean search.num_samples?" in error_of("--set", "search.samples=4")
    assert "a bound of ppo.gamma's uniform is 2.0" in error_of("--set", "ppo.gamma={uniform: [0.9, 2]}")
    assert "--total-timesteps is 'many'" in error_of("--total-timesteps", "many")
    assert "CartPole-v11" in error_of("--env", "CartPole-v11")
    assert "`sweep` needs a local folder" in error_of("--run-dir", "s3://bucket/sweep")
    assert "needs a local folder: its runs" in error_of("--set", "world_model.transfer.from=s3://bucket/run")
    assert "checkpoint nowhere does not exist" in error_of("--set", "world_model.transfer.from=nowhere")


def test_a_relative_folder_would_go_with_a_ray_job(error_of, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "run folder runs/a is relative" in error_of("--run-dir", "runs/a")
    assert "is relative" in error_of()


def test_settings_that_do_not_fit_at_one_end_of_a_space(error_of):
    path = "world_model.training.max_disagreement"
    text = error_of(**{path: 3, "world_model.mdn_rnn.ensemble_size": {"integer": [0, 3]}})
    assert "ensemble_size = 0" in text


def test_networks_that_do_not_fit_the_images_at_one_end_of_a_space(error_of, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    layers = {"world_model.vae.channels": {"choice": [[8], [8, 16, 32, 64, 128, 256, 512]]}}
    assert "has 7 layers" in error_of("--env", "image_env:DotEnv", **layers)


def test_a_trial_must_last_until_an_evaluation(error_of):
    text = error_of(**{"world_model.data_collection.random_collection_steps": 512})
    assert "stop.total_timesteps is 512, but must exceed" in text and "(512)" in text


def test_pbt_refuses_what_a_checkpoint_fixes(error_of):
    text = error_of(search={"scheduler": "pbt"}, **{"world_model.vae.latent_dim": {"choice": [2, 3]}})
    assert "world_model.vae.latent_dim cannot be searched with search.scheduler pbt" in text


def test_pbt_refuses_what_would_need_other_actors(error_of):
    ratios = {"world_model.training.imagination_ratio": {"choice": [0.5, 0.0]}, "dreamers.num_dreamers": 1}
    text = error_of(search={"scheduler": "pbt"}, **ratios)
    assert "world_model.training.imagination_ratio" in text and "0.0 needs others than 0.5" in text


@pytest.mark.parametrize(
    ("search", "package"),
    [
        ({"searcher": "optuna"}, "optuna"),
        ({"wandb": {"project": "p"}}, "wandb"),
        ({"mlflow": {"experiment_name": "e"}}, "mlflow"),
    ],
)
def test_missing_packages_are_named(error_of, monkeypatch, search, package):
    monkeypatch.setattr("wm_rllib.sweep.loggers.find_spec", lambda name: None)
    text = error_of(search=search)
    assert f"needs the package {package}, which is not installed. Fix: pip install" in text


def test_train_says_that_a_sweep_is_none_of_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path, {}, SPACE)
    assert main(["train", "--config", "sweep.yaml"]) == 2
    assert "so it is for `sweep`" in capsys.readouterr().err


def test_a_sweep_that_goes_on_keeps_its_settings(error_of, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(spec().tree()))
    assert "is in use" in error_of("--run-dir", "run")
    text = error_of("--run-dir", "run", "--resume", "auto", "--set", "ppo.gamma=0.9")
    assert "ppo.gamma cannot change in a sweep that goes on, from None to 0.9" in text
    text = error_of("--run-dir", "run", "--resume", "auto", "--set", "search.num_samples=9")
    assert "search.num_samples cannot change" in text
    code = main(["sweep", "--run-dir", "run", "--resume", "auto", "--seed", "5"])  # the folder's own file
    assert code == 2 and "seed cannot change in a sweep that goes on" in capsys.readouterr().err


def test_the_document_has_all_keys_of_the_search():
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    for path, setting in TABLE.items():
        default = "null" if DEFAULTS[path] is None else DEFAULTS[path]
        assert f"| `search.{path}` | `{default}` | {rule_of(setting.type)} | {setting.doc} |\n" in text
