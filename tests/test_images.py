"""Images from the environment to C: frames stored once, V on frames, M and dreams on latents computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from image_env import DotEnv
from ray.rllib.core.columns import Columns
from ray.tune import register_env
from snapshots import assert_equal

from wm_rllib import WorldModelPPOConfig
from wm_rllib.acting.policy import load_policy
from wm_rllib.columns import LATENTS, MASK
from wm_rllib.dreamers.dream_env import DreamEnv
from wm_rllib.replay.frame_store import SLAB_BYTES, FrameStore
from wm_rllib.replay.replay import SequenceReplay, with_observations

pytestmark = pytest.mark.integration
RANDOM_STEPS = 600


def config_of(**dreamers: Any) -> WorldModelPPOConfig:
    register_env("dot", lambda settings: DotEnv(**settings))
    config = (
        WorldModelPPOConfig()
        .environment("dot")
        .world_model(
            latent_dim=6,
            vae_channels=[8, 16],
            vae_batch_size=32,
            vae_pretrain_epochs=3,
            vae_online_lr_fraction=0.0,
            mdn_hidden_dim=16,
            pretrain_epochs=20,
            updates_per_step=0.05,
            random_collection_steps=RANDOM_STEPS,
        )
    )
    return config.training(train_batch_size_per_learner=64).dreamers(
        imagination_ratio=0.8, num_dream_rounds=2, imagination_horizon=10, **dreamers
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Any:
    """An algorithm after its pretraining and some iterations, its results, and its checkpoint."""
    algorithm = config_of().build_algo()
    results = [algorithm.train() for _ in range(4)]
    path = tmp_path_factory.mktemp("images") / "checkpoint"
    algorithm.save_to_path(str(path))
    yield algorithm, results, path
    algorithm.stop()


def replay_of(algorithm: Any) -> SequenceReplay:
    return algorithm._replay.service._replay


def test_v_and_m_are_fitted_and_dreamed_in(trained: Any):
    _, results, _ = trained
    assert [result["phase"] for result in results] == ["random", "pretrain", "mixed", "mixed"]
    pretraining = results[1]
    assert {"fit_vae", "encode", "fit_mdn"} <= set(pretraining["seconds"])
    assert pretraining["vae"]["explained"] is not None and pretraining["vae"]["moving_explained"] is not None
    assert pretraining["mdn"]["nll"] < pretraining["mdn"]["nll_at_start"]
    assert pretraining["vae"]["reconstruction_loss"] < pretraining["vae"]["reconstruction_loss_at_start"]
    for result in results[2:]:
        assert result["vae"]["explained"] is None  # V keeps its weights, so that latents stay true
        assert result["imagination"]["ratio"] == pytest.approx(0.8, abs=0.01)


def test_every_frame_is_stored_once(trained: Any):
    algorithm, _, _ = trained
    replay, stats = replay_of(algorithm), algorithm._replay.service.stats()
    assert stats["num_frames"] == stats["num_timesteps"] + stats["num_episodes"]
    numbers = np.concatenate([episode.observations.data for episode in replay.episodes])
    assert len(np.unique(numbers)) == len(numbers) == stats["num_frames"]


def test_latents_are_what_v_makes_of_the_frames(trained: Any):
    algorithm, _, _ = trained
    replay, vae = replay_of(algorithm), algorithm.get_policy().world_model.vae.eval()
    last = algorithm._replay.service.frames_to_encode(1000)
    assert last is None
    for episode in list(replay.episodes)[:5]:
        numbers = episode.observations.data
        with torch.no_grad():
            expected = vae.encode(torch.as_tensor(replay.frames.get(numbers))).numpy()
        assert np.allclose(replay.frames.latents(numbers), expected, atol=1e-4)


def test_sequences_of_latents_belong_to_those_of_frames(trained: Any):
    algorithm, _, _ = trained
    replay, vae = replay_of(algorithm), algorithm.get_policy().world_model.vae.eval()
    replay.rng = np.random.default_rng(3)
    windows = replay._windows_anywhere(5, 8)
    frames = replay._gather(windows, 8, align_end=False)
    replay.rng = np.random.default_rng(3)
    latents = replay.sample_latent_sequences(5, 8)
    assert (frames[Columns.ACTIONS] == latents[Columns.ACTIONS]).all() and (frames[MASK] == latents[MASK]).all()
    with torch.no_grad():
        expected = vae.encode(torch.as_tensor(frames[Columns.OBS])).numpy()
    real = np.pad(latents[MASK], ((0, 0), (1, 0)), constant_values=True)
    assert np.allclose(latents[LATENTS][real], expected[real], atol=1e-4)
    assert not latents[LATENTS][~real].any()


def test_frames_for_v_come_with_the_one_before(trained: Any):
    pairs = replay_of(trained[0]).sample_frames(200).astype(int)
    assert pairs.shape == (200, 2, 16, 16, 3)
    columns = [np.argwhere(frame[..., 0] == 250)[:, 1].min() for frame in pairs.reshape(-1, 16, 16, 3)]
    steps = np.diff(np.array(columns).reshape(-1, 2), axis=1)
    assert np.abs(steps).max() == 1


def test_a_resumed_run_equals_the_one_that_went_on(trained: Any):
    algorithm, _, path = trained
    resumed = config_of().build_algo()
    resumed.restore_from_path(str(path))
    one, other = algorithm.train(), resumed.train()
    resumed.stop()
    assert one["mdn"] == other["mdn"] and one["ppo"] == other["ppo"]
    assert replay_of(resumed).frames.num_bytes == replay_of(algorithm).frames.num_bytes


def test_a_checkpoint_is_played_and_dreamed_in(trained: Any):
    _, _, path = trained
    policy = load_policy(path)
    observations = np.stack([DotEnv().reset(seed=seed)[0] for seed in range(3)])
    actions, _ = policy.act(observations, policy.initial_state(3))
    assert actions.shape == (3,)
    env = DreamEnv(str(path))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and np.isfinite(reward)


def test_frames_leave_with_their_episodes(trained: Any):
    episodes = list(replay_of(trained[0]).episodes)
    frames = replay_of(trained[0]).frames
    small = SequenceReplay(100, 0, FrameStore())
    for episode in episodes:
        small.add([with_observations(episode, frames.get(episode.observations.data))])
        held = sum(len(one) + 1 for one in small.episodes)
        assert len(small.frames) == held


def test_remote_parts_pass_frames_by_reference(local_ray: None):
    """Two learners, whose fits leave now V and now M without gradients."""
    config = config_of(num_dreamers=1, num_cpus_per_dreamer=0.2)
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.2)
    config.learners(num_learners=2, num_cpus_per_learner=0.2)
    config.replay_storage = "compressed"
    config.world_model(random_collection_steps=200, vae_pretrain_epochs=1, pretrain_epochs=2)
    algorithm = config.build_algo()
    try:
        phases = [algorithm.train()["phase"] for _ in range(4)]
        stats = ray.get(algorithm._replay.service.stats.remote())
        one, other = algorithm.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"])
    finally:
        algorithm.stop()
    assert phases[-1] == "mixed" and stats["num_frames"] > 200
    assert_equal(one.get(), other.get())
    assert stats["frame_bytes"] < SLAB_BYTES / 20  # a twentieth of what a single slab in memory takes


def test_v_that_trains_on_has_all_frames_encoded_anew(local_ray: None, tmp_path: Path):
    config = config_of().world_model(vae_online_lr_fraction=0.3, pretrain_epochs=2)
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(4)]
        test_latents_are_what_v_makes_of_the_frames((algorithm, results, tmp_path))
    finally:
        algorithm.stop()
    assert results[-1]["vae"]["explained"] is not None


def test_dreams_start_from_latents_though_nothing_is_fitted(local_ray: None, monkeypatch: pytest.MonkeyPatch):
    starts = []
    sample = SequenceReplay.sample_starts

    def spied(*args: Any) -> Any:
        starts.append(sample(*args))
        return starts[-1]

    monkeypatch.setattr(SequenceReplay, "sample_starts", spied)
    config = config_of().world_model(updates_per_step=0, pretrain_epochs=1, random_collection_steps=100)
    algorithm = config.build_algo()
    try:
        while algorithm.train()["rows"]["imagined"] == 0:
            pass
        algorithm.train()
    finally:
        algorithm.stop()
    assert len(starts) == 4 and all(LATENTS in arrays for arrays in starts)
