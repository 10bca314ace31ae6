"""V and M of another run: what is taken over, with which units, what stays as it is, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Reference
from ray.rllib.core import DEFAULT_MODULE_ID
from test_dream_env import write_checkpoint
from test_merge import OBSERVATIONS, SPACES, config_of, fit, make_learner
from torch import Tensor

from wm_rllib import WorldModelPPOConfig
from wm_rllib.acting.policy import load_module, load_policy
from wm_rllib.cli.main import main
from wm_rllib.environments.pixels import AS_IT_IS, PixelSettings
from wm_rllib.learners.learner import WorldModelPPOLearner
from wm_rllib.models.parts import CONTROLLER, WHOLE
from wm_rllib.training.iteration import IterationReport
from wm_rllib.training.phases import pretrain
from wm_rllib.training.state import TrainingState
from wm_rllib.training.transfer import transferred_policy, transferred_weights, warn_of_other_pictures

pytestmark = pytest.mark.usefixtures("no_ray")

PARTS = {"v": ("vae",), "vm": ("vae", "mdn_rnn"), "vmc": ("vae", "mdn_rnn")}
STATS = {
    "obs_mean": np.float32([1, 2, 3, 4]),
    "obs_scale": np.float32([5, 6, 7, 8]),
    "reward_mean": np.float32(9),
    "reward_scale": np.float32(10),
    "last_reward_scale": np.float32(11),
    "termination_rate": np.float32(0.25),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another run."""
    return write_checkpoint(tmp_path_factory.mktemp("source"))


def heir(source: Path, **settings: Any) -> WorldModelPPOLearner:
    """A learner of a new run that has taken over what its settings say."""
    config = config_of(transfer_from=str(source), seed=1, **settings)
    learner = make_learner(config)
    policy = None
    if CONTROLLER in config.transferred_parts:
        own = config.world_model_config(OBSERVATIONS, SPACES["discrete"])
        policy = Reference(transferred_policy(source, own, config.policy_hidden_dims))
    learner.take_over(Reference(taken_over(source, config)), policy)
    return learner


def taken_over(source: Path, config: WorldModelPPOConfig, space: str = "discrete") -> dict[str, Tensor]:
    own = config.world_model_config(OBSERVATIONS, SPACES[space])
    return transferred_weights(source, config.transferred_parts, own)


def weights(learner: WorldModelPPOLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.world_model.state_dict().items()}


def of_parts(names: Any, parts: str) -> set[str]:
    return {name for name in names if name.startswith(PARTS[parts])}


@pytest.mark.parametrize("parts", PARTS)
def test_the_chosen_parts_are_the_other_runs_and_the_rest_is_new(source: Path, parts: str):
    theirs, new = load_policy(source).world_model.state_dict(), weights(make_learner(config_of(seed=1)))
    ours = weights(heir(source, transfer_parts=parts))
    taken = of_parts(ours, parts)
    assert all(torch.equal(ours[name], (theirs if name in taken else new)[name]) for name in ours)
    assert not all(torch.equal(theirs[name], new[name]) for name in taken)


@pytest.mark.parametrize("parts", PARTS)
def test_the_controller_is_the_other_runs_where_that_is_asked_for(source: Path, parts: str):
    theirs, new = (
        load_module(source).state_dict(),
        make_learner(config_of(seed=1)).module[DEFAULT_MODULE_ID].state_dict(),
    )
    ours = heir(source, transfer_parts=parts).module[DEFAULT_MODULE_ID].state_dict()
    expected = theirs if parts == "vmc" else new
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    assert not all(torch.equal(theirs[name], new[name]) for name in theirs)


@pytest.mark.parametrize("parts", PARTS)
def test_units_come_with_the_weights(source: Path, parts: str):
    learner = heir(source, transfer_parts=parts)
    before = weights(learner)
    learner.set_normalisation(STATS)
    after = weights(learner)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    units = {"mdn_rnn.reward_mean", "mdn_rnn.reward_scale", "mdn_rnn.last_reward_scale"}
    assert moved == (units | {"mdn_rnn.outcome_head.3.bias"} if parts == "v" else set())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("parts", PARTS)
def test_only_what_is_not_frozen_is_trained(source: Path, parts: str, frozen: bool):
    learner = heir(source, transfer_parts=parts, transfer_frozen=frozen)
    before, names = weights(learner), {name for name, _ in learner.world_model.named_parameters()}
    fit(learner)
    moved = {name for name in names if not torch.equal(learner.world_model.state_dict()[name], before[name])}
    assert moved == (names - of_parts(names, parts) if frozen else names)


def test_ms_units_of_change_are_taken_over_and_frozen_with_it(tmp_path: Path):
    teacher = make_learner(config_of())
    fit(teacher)
    (tmp_path / "learner_group").mkdir()
    teacher.save_to_path(str(tmp_path / "learner_group" / "learner"))
    learner = heir(tmp_path, transfer_frozen=True)
    units = teacher.world_model.mdn_rnn.change_scale
    assert torch.equal(learner.world_model.mdn_rnn.change_scale, units) and not torch.equal(units, torch.ones(3))
    learner.world_model.vae.obs_scale.mul_(0.01)  # a hundred times the change
    fit(learner)
    assert torch.equal(learner.world_model.mdn_rnn.change_scale, units)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 5}, r"world_model\.vae\.latent_dim is 3 there and 5 in this run"),
        ({"vae_hidden_dims": [8, 8]}, r"world_model\.vae\.hidden_dims is \[16\] there and \[8, 8\]"),
        ({"mdn_hidden_dim": 9}, r"world_model\.mdn_rnn\.hidden_dim is 8 there and 9"),
        ({"num_mixtures": 7}, r"world_model\.mdn_rnn\.num_mixtures is 2 there and 7"),
        ({"ensemble_size": 0}, r"world_model\.mdn_rnn\.ensemble_size is 3 there and 0"),
        ({"mdn_residual": False}, r"world_model\.mdn_rnn\.residual is True there and False"),
        ({"vae_class": "custom_models:CustomVAE"}, "its networks have other layers than this run's"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_with_both_values(source: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        taken_over(source, config_of(transfer_from=str(source), **settings))


def test_spaces_have_to_fit_for_what_depends_on_them(source: Path, tmp_path: Path):
    def check(checkpoint: Path, space: str, parts: str) -> None:
        taken_over(checkpoint, config_of(space, transfer_from=str(checkpoint), transfer_parts=parts), space)

    check(source, "multi", "v")  # V knows nothing of actions
    with pytest.raises(ValueError, match=r"action space is Discrete\(2\) there and MultiDiscrete\(\[2 3\]\) in this"):
        check(source, "multi", "vm")
    own = config_of().world_model_config(type(OBSERVATIONS)(-1, 1, (7,)), SPACES["discrete"])
    with pytest.raises(ValueError, match=r"shape of observations is \(4,\) there and \(7,\) in this run"):
        transferred_weights(source, frozenset({"vae"}), own)
    with pytest.raises(FileNotFoundError, match=r"world_model\.transfer\.from: .* is not a checkpoint"):
        transferred_weights(tmp_path, frozenset({"vae"}), own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_hidden_dims": [9]}, r"ppo\.hidden_dims is \[16\] there and \[9\] in this run"),
        ({"controller_inputs": "z"}, r"world_model\.controller_inputs is 'zh' there and 'z' in this run"),
    ],
)
def test_a_controller_that_does_not_fit_is_named(source: Path, settings: dict[str, Any], message: str):
    config = config_of(transfer_from=str(source), transfer_parts="vmc", **settings)
    with pytest.raises(ValueError, match=message):
        transferred_policy(
            source, config.world_model_config(OBSERVATIONS, SPACES["discrete"]), config.policy_hidden_dims
        )


def test_a_frozen_world_model_leaves_the_controller_to_be_trained(source: Path):
    config = config_of(transfer_from=str(source), transfer_parts="vmc", transfer_frozen=True)
    assert config.frozen_parts == WHOLE


def test_nothing_can_be_frozen_that_is_not_taken_over():
    with pytest.raises(ValueError, match=r"transfer_frozen = True .* transfer_from = None"):
        config_of(transfer_frozen=True).validate()


def test_units_are_published_where_nothing_is_fitted(monkeypatch: pytest.MonkeyPatch):
    """V taken over and frozen, M frozen at its initial weights: M's units are new all the same."""
    config = config_of(transfer_from="x", transfer_parts="v", transfer_frozen=True, mdn_frozen=True)
    assert config.frozen_parts == WHOLE
    service = SimpleNamespace(normalisation=lambda: dict(STATS), stats=lambda: {"num_timesteps": 100})
    parts = SimpleNamespace(replay=SimpleNamespace(service=service), learners=None, state=TrainingState())
    done: list[str] = []
    stages = SimpleNamespace(
        config=config,
        parts=parts,
        observation_space=OBSERVATIONS,
        num_shards=1,
        takes_frames=False,
        report=IterationReport(),
        fit=lambda updates, instalment: done.append("fit"),
        publish=lambda **what: done.append("publish"),
    )
    monkeypatch.setattr("wm_rllib.training.phases.on_learners", lambda learners, name, **kwargs: done.append(name))
    pretrain(stages)
    assert done == ["set_normalisation", "publish"]


@pytest.mark.parametrize(
    ("source_of", "message"),
    [
        (lambda source: "nowhere", "checkpoint nowhere does not exist"),
        (lambda source: source, "does not fit: world_model.vae.latent_dim is 3 there and 8 in this run"),
    ],
    ids=["missing", "other"],
)
def test_the_command_line_refuses_before_anything_starts(
    source: Path, source_of: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    (source / "rllib_checkpoint.json").write_text("{}")
    assert main(["train", "--env", "CartPole-v1", "--set", f"world_model.transfer.from={source_of(source)}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pictures_that_were_made_otherwise_are_told(source: Path, caplog: pytest.LogCaptureFixture):
    warn_of_other_pictures(source, AS_IT_IS)
    assert not caplog.records
    warn_of_other_pictures(source, PixelSettings(crop=(0, 12, 0, 0)))
    assert "saw pictures made by" in caplog.text and "(0, 12, 0, 0)" in caplog.text
