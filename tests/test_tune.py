"""Under Ray Tune: by name, with search spaces, and with every actor inside the trial's placement group."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from ray import tune
from ray.tune import CheckpointConfig, RunConfig
from remote import report_placement
from tiny import tiny_config

import wm_rllib
from wm_rllib import WorldModelPPO
from wm_rllib.cli import sweep
from wm_rllib.cli.main import main
from wm_rllib.metrics import progress_row
from wm_rllib.runs.errors import CommandError
from wm_rllib.sweep.trial import SweepTrial
from wm_rllib.training import placement
from wm_rllib.training.placement import ClusterTooSmallError, check_cluster

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

RATIOS = (0.5, 0.9)
ITERATIONS = 4


@pytest.fixture(scope="module")
def trials(local_ray, tmp_path_factory):
    """Two trials over the ratio, each with a remote dreamer."""
    wm_rllib.register()  # this process may have had another Ray before
    config = (
        tiny_config(evaluation_interval_steps=32, num_cpus_per_learner=0.25, num_cpus_per_dreamer=0.25)
        .dreamers(num_dreamers=1, imagination_ratio=tune.grid_search(list(RATIOS)))
        .training(lr=tune.choice([1e-3]))
        .evaluation(evaluation_duration=4)
        .callbacks(on_train_result=report_placement)
    )
    results = tune.Tuner(
        "WorldModelPPO",
        param_space=config,
        run_config=RunConfig(
            storage_path=str(tmp_path_factory.mktemp("tune")),
            stop={"training_iteration": ITERATIONS},
            checkpoint_config=CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert not results.errors, results.errors
    return sorted(results, key=lambda result: result.config["imagination_ratio"])


def test_each_trial_ran_with_its_own_ratio(trials):
    assert [trial.config["imagination_ratio"] for trial in trials] == list(RATIOS)
    for ratio, trial in zip(RATIOS, trials, strict=True):
        assert trial.config["lr"] == 1e-3
        metrics = trial.metrics
        assert metrics["training_iteration"] == ITERATIONS
        assert metrics["phase"] == "mixed"
        for real, imagined in metrics["imagination"]["rows_by_round"]:
            assert real > 0 and imagined == round(real * ratio / (1 - ratio))
        assert progress_row(metrics)["mdn/nll"] is not None


def test_dreamers_run_inside_the_placement_group(trials):
    groups = set()
    for trial in trials:
        found = trial.metrics["placement"]
        group = found["trial"]["group"]
        assert group and int(group, 16) != 2 ** (4 * len(group)) - 1  # all ones: in none
        groups.add(group)
        assert found["num_bundles"] == 2
        assert found["trial"]["bundles"] == [0]
        assert found["replays"] == [{"group": group, "bundles": [0]}]
        assert found["dreamers"] == [{"group": group, "bundles": [1]}]
    assert len(groups) == 2


def test_from_checkpoint_evaluates_as_the_trial_did(trials):
    trial = trials[-1]
    evaluation = trial.metrics["evaluation"]
    assert evaluation["episodes"] == 4
    algorithm = WorldModelPPO.from_checkpoint(trial.checkpoint.path)
    try:
        assert algorithm.iteration == ITERATIONS
        assert algorithm._state.num_env_steps == trial.metrics["num_env_steps_sampled_lifetime"]
        # Each evaluation plays episodes of its own: play those of the trial's last one again.
        algorithm._state.num_evaluations -= 1
        algorithm._iteration -= 1
        result = algorithm.evaluate_return()
        assert result.mean == evaluation["episode_return_mean"]
        assert (min(result.returns), max(result.returns)) == (
            evaluation["episode_return_min"],
            evaluation["episode_return_max"],
        )
        assert algorithm.evaluate_return().returns != result.returns  # and the next ones are others
    finally:
        algorithm.stop()


# --- what is asked of the cluster ------------------------------------------------------------------------------------


def bundles(**overrides) -> list[dict[str, float]]:
    config = tiny_config(num_cpus_for_main_process=0.25, num_cpus_for_replay=0.125, **overrides)
    return WorldModelPPO.default_resource_request(config).bundles


def test_request_puts_dreamers_last_and_the_replay_first():
    asked = bundles(
        num_env_runners=2,
        num_cpus_per_env_runner=0.5,
        num_learners=1,
        num_cpus_per_learner=0.75,
        num_dreamers=3,
        num_cpus_per_dreamer=0.0625,
        num_gpus_per_dreamer=0.5,
    )
    assert asked[0] == {"CPU": 0.25 + 0.125}
    assert [bundle["CPU"] for bundle in asked[1:3]] == [0.5, 0.5]
    assert asked[-3:] == [{"CPU": 0.0625, "GPU": 0.5}] * 3
    assert asked[3]["CPU"] == 0.75 and len(asked) == 7


@pytest.mark.parametrize("ratio", [0.0, [[0, 0.0], [1000, 0.0]]])
def test_request_of_ratio_0_has_no_dreamers(ratio):
    # In a single process the learner is the main process's.
    assert len(bundles(num_dreamers=3, imagination_ratio=ratio)) == 1
    assert len(bundles(num_dreamers=3, imagination_ratio=[[0, 0.0], [1000, 0.1]])) == 4


def test_request_without_remote_parts_has_no_replay():
    [single] = bundles()
    [replay] = bundles(remote_replay=True)
    assert replay["CPU"] - single["CPU"] == 0.125


def test_impossible_requests_name_what_is_missing(monkeypatch):
    """Waiting for ever, as Ray does, tells nobody anything."""
    config = tiny_config(num_dreamers=3, num_cpus_per_dreamer=1.0, num_gpus_per_dreamer=0.5)
    request = WorldModelPPO.default_resource_request(config)
    start = time.monotonic()
    with pytest.raises(ClusterTooSmallError) as caught:
        check_cluster(request, config, patience_s=1.5)
    assert 1.0 < time.monotonic() - start < 15
    for words in (
        "3.25 CPU are needed and 2 exist",
        "1.5 GPU are needed and 0 exist",
        "num_cpus_per_dreamer",
        "num_gpus_per_dreamer",
    ):
        assert words in str(caught.value)
    assert tiny_config().cluster_timeout_s < 60  # "within a minute"
    monkeypatch.setattr(check_cluster, "__defaults__", (0.0,))
    with pytest.raises(ClusterTooSmallError):
        config.build_algo()
    exact = tiny_config(num_dreamers=2, num_cpus_per_dreamer=1.0)
    with pytest.raises(ClusterTooSmallError):  # the replay's share does not fit beside them
        check_cluster(WorldModelPPO.default_resource_request(exact), exact, patience_s=0.0)
    fitting = tiny_config(num_dreamers=2, num_cpus_per_dreamer=0.5)
    check_cluster(WorldModelPPO.default_resource_request(fitting), fitting, patience_s=0.0)


def test_a_request_too_large_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wm_rllib.cli.train.ray_session", lambda *_, **__: nullcontext(True))
    settings = ("dreamers.num_dreamers=1", "dreamers.num_cpus_per_dreamer=400", "stop.total_timesteps=100")
    argv = ["train", "--env", "CartPole-v1", "--run-dir", str(tmp_path / "run")]
    assert main([*argv, *(word for setting in settings for word in ("--set", setting))]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wm_rllib: error: ") and "400" in line and "CPU" in line


def test_an_autoscaler_is_asked_for_what_is_missing_and_not_held_to_it(monkeypatch):
    """Nothing else would tell it: the actors come after the check."""
    asked = []
    monkeypatch.setattr(placement, "request_resources", lambda bundles: asked.append(bundles))
    config = tiny_config(num_env_runners=1, num_dreamers=1, custom_resources_per_env_runner={"rollout": 1})
    config.custom_resources_per_dreamer = {"rollout": 1}
    request = WorldModelPPO.default_resource_request(config)
    with pytest.raises(ClusterTooSmallError, match=r"2 rollout are needed and 0 exist.*cluster.timeout_s"):
        check_cluster(request, config, patience_s=0.2)
    assert asked == [[{"CPU": 0.25}, {"CPU": 1, "rollout": 1}, {"CPU": 1.0, "rollout": 1}], []]
    asked.clear()
    check_cluster(WorldModelPPO.default_resource_request(tiny_config()), tiny_config(), patience_s=5)
    assert asked == [], "what is there needs no request"


def test_a_sweep_asks_an_autoscaler_for_a_trials_bundles(monkeypatch):
    """No trial waits for nodes before Tune has started one."""
    asked = []
    monkeypatch.setattr(placement, "request_resources", lambda bundles: asked.append(bundles))
    config = tiny_config(num_env_runners=1, custom_resources_per_env_runner={"rollout": 1}, cluster_timeout_s=0.2)
    with pytest.raises(CommandError, match=r"a trial does not fit: .* 1 rollout are needed and 0 exist"):
        sweep._check_cluster(SimpleNamespace(configs=[config]), local=False)
    assert asked == [[*SweepTrial.default_resource_request(config).bundles], []]


def test_a_trial_that_fits_no_node_is_refused_though_all_nodes_together_would_do(monkeypatch):
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr("ray.nodes", lambda: [node] * 3)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 6.0})
    plan = SimpleNamespace(configs=[tiny_config(num_env_runners=1, num_cpus_per_env_runner=3)])
    with pytest.raises(CommandError, match="one actor needs 3 CPU, and no node has as much"):
        sweep._check_cluster(plan, local=True)
