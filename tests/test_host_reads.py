"""Gradient steps read nothing back from the device, and bring nothing to it that it would have to wait for.

On a GPU each read, and each copy of memory that is not pinned, would wait for all that was launched.
"""

from __future__ import annotations

import traceback
from collections import Counter
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from test_merge import SPACES, config_of, imagined_block, make_learner, real_episodes
from torch.utils._python_dispatch import TorchDispatchMode

from wm_rllib.columns import LATENTS, MASK, WORLD_MODEL_MODULE_ID
from wm_rllib.learners.learner import WorldModelPPOLearner

pytestmark = pytest.mark.usefixtures("no_ray")

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)
STEPS = 4


class HostReads(TorchDispatchMode):
    """Counts by place what would have the host wait for a GPU: values read, and results whose size depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does what is asked."""
        if func in READS or (func is aten.index.Tensor and any(_is_mask(index) for index in args[1])):
            callers = traceback.extract_stack()[:-1]
            # torch's one_hot looks at its input's least and largest value, but not on a GPU.
            if not any("one_hot" in (caller.line or "") for caller in callers):
                self.places[
                    " < ".join(f"{caller.name}:{caller.lineno}" for caller in islice(reversed(callers), 6))
                ] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return index is not None and index.dtype == torch.bool


def merged_update(learner: WorldModelPPOLearner, num_epochs: int) -> None:
    learner.update(
        episodes=real_episodes(SPACES["discrete"]),
        imagined=[[[imagined_block(SPACES["discrete"], 6, 5)]]],
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1},
        num_epochs=num_epochs,
        minibatch_size=31,
    )


def fit_v(learner: WorldModelPPOLearner, num_epochs: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3)).astype(np.uint8)
    batch = MultiAgentBatch({WORLD_MODEL_MODULE_ID: SampleBatch({Columns.OBS: frames})}, env_steps=8)
    learner.update(batch=batch, minibatch_size=4, num_epochs=num_epochs, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})


def fit_m(learner: WorldModelPPOLearner, num_epochs: int) -> None:
    """Sequences of latents, padded; with V, sequences of observations."""
    rng = np.random.default_rng(0)
    rows, time = 8, 5
    length = rng.integers(1, time + 1, (rows, 1))
    mask = np.arange(time) < length
    columns = {
        Columns.ACTIONS: rng.integers(0, 2, (rows, time)),
        Columns.REWARDS: rng.normal(size=(rows, time)).astype(np.float32),
        Columns.TERMINATEDS: np.arange(time) == length - 1,
        MASK: mask,
    }
    dim = learner.world_model.config.vae.latent_dim
    shape = (dim,) if learner.world_model.takes_frames else learner.world_model.config.vae.observation_shape
    name = LATENTS if learner.world_model.takes_frames else Columns.OBS
    columns[name] = rng.normal(size=(rows, time + 1, *shape)).astype(np.float32)
    batch = MultiAgentBatch({WORLD_MODEL_MODULE_ID: SampleBatch(columns)}, env_steps=rows)
    learner.update(batch=batch, minibatch_size=4, num_epochs=num_epochs, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})


def image_config(**settings: Any) -> Any:
    space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    return config_of(vae_channels=[4, 8], **settings).environment(observation_space=space)


KL_PENALTY = "merged update, with a penalty on the KL"
WORK = {
    "merged update": (partial(config_of, use_kl_loss=False), merged_update),
    KL_PENALTY: (config_of, merged_update),
    "fit of V on frames": (image_config, fit_v),
    "fit of M on latents": (image_config, fit_m),
    "fit of M on latents, ends from memory": (partial(image_config, ends_from="memory"), fit_m),
    "fit of V and M": (config_of, fit_m),
}


@pytest.mark.parametrize("name", WORK)
def test_more_gradient_steps_read_no_more(name: str):
    make_config, work = WORK[name]
    learner = make_learner(make_config())
    work(learner, 1)  # optimisers make their state
    counted = []
    for num_epochs in (1, STEPS):
        with HostReads() as reads:
            work(learner, num_epochs)
        counted.append(reads.places)
    more = counted[1] - counted[0]
    assert not more, "\n".join(f"{count} x {place}" for place, count in more.items())


@pytest.mark.parametrize("name", sorted(set(WORK) - {KL_PENALTY}))  # RLlib's own loss, which copies zeros
def test_more_gradient_steps_make_no_more_tensors_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch):
    make_config, work = WORK[name]
    learner = make_learner(make_config())
    work(learner, 1)
    counted = []
    for num_epochs in (1, STEPS):
        places: Counter[str] = Counter()

        def counting(maker: Any, places: Counter[str] = places) -> Any:
            def made(*args: Any, **kwargs: Any) -> Any:
                places[
                    " < ".join(f"{c.name}:{c.lineno}" for c in islice(reversed(traceback.extract_stack()), 1, 5))
                ] += 1
                return maker(*args, **kwargs)

            return made

        with monkeypatch.context() as patch:
            for maker in ("tensor", "as_tensor", "from_numpy"):
                patch.setattr(torch, maker, counting(getattr(torch, maker)))
            work(learner, num_epochs)
        counted.append(places)
    more = counted[1] - counted[0]
    assert not more, "\n".join(f"{count} x {place}" for place, count in more.items())
