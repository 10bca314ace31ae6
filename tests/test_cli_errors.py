"""Mistakes on the command line: one message, exit code 2, no traceback, no Ray, nothing written."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from wm_rllib import WorldModelPPOConfig
from wm_rllib.cli.main import build_parser, main
from wm_rllib.cli.train import announce, build_algorithm, open_console
from wm_rllib.environments.names import env_spaces, make_env
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import apply_to_config, changed_on_resume, requested_values
from wm_rllib.runs.plan import plan_run
from wm_rllib.settings.settings import SettingError, parse_tree


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def error_of(capsys, *argv):
    """Returns the message of a command that must end with one error and nothing else."""
    before = sorted(os.walk("."))
    code = main(list(argv))
    out, err = capsys.readouterr()
    assert code == 2, err
    assert err.startswith("wm_rllib: error: ")
    assert "Traceback" not in err and "Traceback" not in out
    assert sorted(os.walk(".")) == before
    if "ray" in sys.modules:
        assert not sys.modules["ray"].is_initialized()
    return err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["--env"], "--env"),
        (["--log-level", "loud"], "loud"),
        (["--env", "CartPole-v1", "--total-timesteps", "many"], "--total-timesteps is 'many'"),
        (["--env", "CartPole-v1", "--total-timesteps", "0"], "whole number of at least 1"),
        (["--env", "CartPole-v1", "--seed", "-1"], "--seed is -1"),
        (["--env", "CartPole-v1", "--seed", "4294967296"], "a whole number from 0 to 2147483647"),
        (["--env", "CartPole-v1", "--set", "env.id=2024-13-45"], "not valid YAML"),
        (["--env", "./no_such_file.py:make"], "cannot import ./no_such_file.py"),
        (["--env", ":Env"], "Fix: "),
        (["--env", "CartPole-v1", "--device", "tpu"], "--device is 'tpu'"),
        (["--env", "CartPole-v1", "--set", "ppo.gamma"], "no value"),
        (["--env", "CartPole-v1", "--set", "ppo.gamma=2"], "a number from 0 to 1"),
        (["--env", "CartPole-v1", "--set", "ppo.gama=0.9"], "did you mean ppo.gamma?"),
        (["--env", "CartPole-v1", "--set", "num_env_runners=2"], "did you mean env_runners.num_env_runners?"),
        (["--env", "CartPole-v1", "--set", "num_workers=2"], "did you mean env_runners.num_env_runners?"),
        (["--env", "CartPole-v1", "--set", "train_batch_size=400"], "did you mean ppo.train_batch_size_per_learner?"),
        (["--env", "CartPole-v1", "--set", "env.config.size=3"], "--set 'env.config={size: ...}'"),
        (["--env", "CartPole-v1", "--set", "ppo.gamma={uniform: [0.9, 1.0]}"], "the command `sweep` draws from"),
        (["--env", "CartPole-v1", "--set", "ppo=1"], "ppo is a section"),
        (["--env", "CartPole-v1", "--set", "ppo.gamma=[1"], "not valid YAML"),
        (["--config", "none.yaml"], "none.yaml"),
        ([], "no environment"),
        (["--env", "CartPole-v1", "--run-dir", ""], "argument --run-dir: must name a folder, and is empty"),
        (["--env", "CartPole-v1", "--set", "seed=&a [*a]"], "an alias within what it stands for"),
        (["--env", "CartPole-v1", "--address", "ray://127.0.0.1:10001"], "an address of Ray Client"),
        (["--env", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--env", "CartPole-v77"], "CartPole-v1"),
        (["--env", "no_such_module:Env"], "cannot import no_such_module"),
        (["--env", "json:Env"], "does not exist"),
        (["--env", "collections:OrderedDict"], "no Gymnasium environment"),
        (["--env", "CartPole-v1", "--set", "env.config={nonsense: 1}"], "does not take env.config"),
        (["--env", "custom_envs:DictObservations"], "Dict"),
        (["--env", "CartPole-v1", "--resume", "auto"], "needs the run folder"),
        (["--env", "CartPole-v1", "--resume", "nowhere"], "does not exist"),
        (["--env", "CartPole-v1", "--resume", "."], "no checkpoint of wm_rllib"),
    ],
)
def test_mistakes_in_train(capsys, argv, expected):
    assert expected in error_of(capsys, "train", *argv)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "CHECKPOINT"),
        (["nowhere"], "does not exist"),
        (["."], "no checkpoint of wm_rllib"),
        ([".", "--episodes", "0"], "--episodes is 0"),
    ],
)
def test_mistakes_in_evaluate(capsys, argv, expected):
    assert expected in error_of(capsys, "evaluate", *argv)


def test_unknown_command(capsys):
    assert "frobnicate" in error_of(capsys, "frobnicate")


def test_unknown_key_in_the_file(capsys, tmp_path):
    path = write(tmp_path / "run.yaml", "env: {id: CartPole-v1}\ndreamers: {imagination_ratio: 0.5}\n")
    assert "world_model.training.imagination_ratio" in error_of(capsys, "train", "--config", path)


def test_malformed_file(capsys, tmp_path):
    assert "run.yaml is not valid YAML" in error_of(capsys, "train", "--config", write(tmp_path / "run.yaml", "a: ["))


def test_run_folder_in_use(capsys, tmp_path):
    write(tmp_path / "run" / "progress.jsonl", "{}\n")
    assert "in use" in error_of(capsys, "train", "--env", "CartPole-v1", "--run-dir", "run")


def save(path, iteration=10, settings=None):
    settings = settings or {"env": {"id": "CartPole-v1"}, "world_model": {"vae": {"latent_dim": 8}}}
    meta = CheckpointMeta(iteration, 100 * iteration, 5.0)
    return checkpoints.write(path.parent, path.name, meta, settings, lambda folder: None)


def test_foreign_checkpoints(capsys, tmp_path):
    write(tmp_path / "tune" / checkpoints.RLLIB_META_FILE, "{}")
    assert "cannot be resumed" in error_of(capsys, "train", "--env", "CartPole-v1", "--resume", "tune")
    assert "which environment" in error_of(capsys, "evaluate", "tune")


def test_resume_with_other_networks(capsys, tmp_path):
    save(tmp_path / "run" / "checkpoints" / "last")
    message = error_of(capsys, "train", "--resume", "run", "--set", "world_model.vae.latent_dim=16")
    assert "world_model.vae.latent_dim cannot change on resume, from 8 to 16" in message


def test_resume_with_other_spaces(capsys, tmp_path):
    save(
        tmp_path / "run" / "checkpoints" / "last", settings={"env": {"id": "custom_envs:Wide", "config": {"width": 2}}}
    )
    message = error_of(capsys, "train", "--resume", "run", "--set", "env.config={width: 3}")
    assert "env.config changes the observation space" in message and "(2,)" in message and "(3,)" in message
    assert plan_run(arguments("--resume", "run", "--set", "env.config={width: 2}")).source is not None


def test_the_uri_of_a_run_folder_needs_a_run_folder(capsys, tmp_path):
    save(tmp_path / "run" / "checkpoints" / "last")
    uri = f"file://{tmp_path}/run"
    assert f"Fix: --run-dir {uri} --resume auto" in error_of(capsys, "train", "--resume", uri)
    assert plan_run(arguments("--resume", uri, "--run-dir", "other")).folder.path.name == "other"
    plan = plan_run(arguments("--resume", f"{uri}/checkpoints/last"))
    assert plan.folder.path.parts[0] == "runs"


@pytest.mark.parametrize("argv", [["--resume", "swept"], ["--resume", "auto", "--run-dir", "swept"]])
def test_a_sweeps_folder_is_not_trained_in(capsys, tmp_path, argv):
    save(tmp_path / "swept" / "checkpoints" / "best")
    (tmp_path / "swept" / "trials").mkdir()
    assert "swept is the folder of a sweep" in error_of(capsys, "train", *argv)
    assert plan_run(arguments("--resume", "swept", "--run-dir", "longer")).source is not None


def test_arguments_that_an_environment_refuses(capsys):
    message = error_of(capsys, "train", "--env", "custom_envs:Wide", "--set", "env.config={width: 10}")
    assert "does not take env.config {'width': 10}: at most nine" in message


def test_an_environments_own_fault_keeps_its_traceback():
    with pytest.raises(TypeError, match="NoneType"):
        make_env("custom_envs:Faulty")


# What is not a mistake


def arguments(*argv):
    return build_parser().parse_args(["train", *argv])


def test_flags_win_over_set_and_set_over_the_file(tmp_path):
    path = write(tmp_path / "run.yaml", "seed: 1\nppo: {gamma: 0.9, num_epochs: 3}\nstop: {total_timesteps: 5}\n")
    argv = ["--config", path, "--set", "seed=2", "--set", "ppo.gamma=0.95", "--seed", "3", "--total-timesteps", "7"]
    values = requested_values(arguments(*argv))
    assert values == {"seed": 3, "ppo.gamma": 0.95, "ppo.num_epochs": 3, "stop.total_timesteps": 7}


def test_values_reach_the_config_by_attribute():
    config = SimpleNamespace()
    apply_to_config(config, {"ppo.lambda": 0.9, "env.id": "CartPole-v1", "stop.return": 475.0})
    assert vars(config) == {"lambda_": 0.9, "env": "CartPole-v1"}


def test_changes_on_resume_are_named():
    before = {"ppo.gamma": 0.9, "seed": 1}
    assert changed_on_resume(before, {"ppo.gamma": 0.95, "seed": 1}) == {"ppo.gamma": (0.9, 0.95)}
    with pytest.raises(CommandError, match=r"env.id cannot change"):
        changed_on_resume({"env.id": "A"}, {"env.id": "B"})


def test_import_paths_make_environments_from_their_arguments():
    assert make_env("custom_envs:Walk", {"step_size": 2.0}).step_size == 2.0
    observation_space, action_space = env_spaces("custom_envs:Walk")
    assert (observation_space.shape, action_space.n) == ((1,), 2)
    with pytest.raises(SettingError, match="does not take"):
        make_env("custom_envs:Walk", {"stride": 1})


class TestPlan:
    """Where a run starts and what it changes; needs RLlib's config, but no Ray."""

    def test_new_run(self):
        plan = plan_run(arguments("--env", "CartPole-v1", "--stop-return", "475", "--set", "evaluation.interval=250"))
        assert plan.folder.path.parts[0] == "runs"
        assert plan.source is None and plan.start.training_iteration == 0
        assert plan.rule.stop_return == 475
        assert plan.tree["env"]["id"] == "CartPole-v1"
        assert plan.tree["stop"] == {"total_timesteps": None, "iterations": None, "return": 475.0}
        assert parse_tree(plan.tree)

    @pytest.mark.parametrize(
        ("steps", "online", "is_said"), [(300, "true", True), (301, "true", False), (300, "false", False)]
    )
    def test_an_end_before_any_learning_is_said(self, capsys, steps, online, is_said):
        collection = "world_model.data_collection"
        settings = [f"{collection}.random_collection_steps=300", f"{collection}.online={online}"]
        settings += [] if online == "true" else ["world_model.training.imagination_ratio=1.0"]
        argv = [argument for setting in settings for argument in ("--set", setting)]
        plan = plan_run(arguments("--env", "CartPole-v1", "--total-timesteps", str(steps), *argv))
        with open_console(plan) as console:
            announce(plan, console)
        said = "nothing will be learned: 300 real steps (--total-timesteps) end before the random phase, which has 300"
        assert (said in capsys.readouterr().out) == is_said

    def test_resume_auto_before_the_first_checkpoint_keeps_the_settings(self, tmp_path):
        write(tmp_path / "run" / "config.yaml", "env:\n  id: CartPole-v1\nseed: 9\n")
        plan = plan_run(arguments("--run-dir", "run", "--resume", "auto"))
        assert plan.source is None and plan.values["env.id"] == "CartPole-v1"
        assert plan.config.seed == 9

    def test_resume_goes_on_in_the_checkpoints_folder(self, tmp_path):
        save(tmp_path / "run" / "checkpoints" / "last")
        plan = plan_run(arguments("--resume", "run", "--seed", "5"))
        assert plan.folder.path.name == "run"
        assert plan.start.training_iteration == 10
        assert plan.config.latent_dim == 8
        assert plan.changed == {"seed": (None, 5)}

    def test_resume_auto_takes_the_newest_or_starts_fresh(self, tmp_path):
        auto = arguments("--env", "CartPole-v1", "--resume", "auto", "--run-dir", "run")
        assert plan_run(auto).source is None
        save(tmp_path / "run" / "checkpoints" / "best", 4)
        save(tmp_path / "run" / "checkpoints" / "last", 6)
        assert plan_run(auto).start.training_iteration == 6

    def test_resume_into_a_used_other_folder_is_refused(self, tmp_path):
        save(tmp_path / "run" / "checkpoints" / "last")
        write(tmp_path / "other" / "progress.jsonl", "{}\n")
        with pytest.raises(CommandError, match="in use"):
            plan_run(arguments("--resume", "run", "--run-dir", "other"))


def test_a_ray_job_needs_a_run_folder_that_outlasts_it(capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    argv = ("train", "--env", "CartPole-v1", "--total-timesteps", "10")
    for more in ((), ("--run-dir", "runs/mine"), ("--run-dir", "runs/mine", "--resume", "auto")):
        message = error_of(capsys, *argv, *more)
        assert "is relative, but a Ray job" in message and "Fix: --run-dir with an absolute path" in message


def test_custom_resources_are_checked(capsys):
    for text in ("{CPU: 1}", "{rollout: 0}", "{rollout: many}", "[rollout]"):
        setting = f"dreamers.custom_resources_per_dreamer={text}"
        message = error_of(capsys, "train", "--env", "CartPole-v1", "--set", setting)
        assert "a mapping of custom resources to amounts above 0" in message


def test_unknown_filesystem_is_one_message(capsys):
    message = error_of(capsys, "train", "--env", "CartPole-v1", "--run-dir", "nowhere://bucket/run")
    assert "nowhere://bucket/run cannot be used" in message


def test_a_reader_that_has_gone_is_no_defect(processes_without_ray):
    """As in `... | head`."""
    command = [sys.executable, "-m", "wm_rllib", "benchmark", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141


def test_cuda_for_a_learner_in_this_process_needs_a_gpu_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = WorldModelPPOConfig().environment("CartPole-v1").learners(device="cuda")
    with pytest.raises(CommandError, match=r"device = 'cuda'.*sees no GPU.*--device auto"):
        build_algorithm(SimpleNamespace(config=config), local=True)
