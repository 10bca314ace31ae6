"""Dreams on a device for `speed gpu`: as dreamers make them, as one CUDA graph, and step by step by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wm_rllib.benchmark.device_clock import BFLOAT16
from wm_rllib.benchmark.device_work import (
    ACTIONS,
    GRAPH,
    HIDDEN,
    LATENT,
    Setup,
    paper_world_model,
    tanh_network,
)
from wm_rllib.models.controller import CategoricalSampler, Controller
from wm_rllib.models.dreaming import Dream, DreamNoise, draw_dream_noise, dream
from wm_rllib.models.imagining import StepNoise, imagined_step
from wm_rllib.models.mixture import MixtureNoise

HORIZON = 15


class _Dreams:
    """A paper-sized world model, a controller, and random starts of `setup.batch` dreams of `HORIZON` steps."""

    def __init__(self, setup: Setup):
        self.items = setup.batch * HORIZON
        self._model = paper_world_model(setup.device).eval()
        self._policy = _controller(setup.device)
        self._z = torch.randn(setup.batch, LATENT, device=setup.device)
        self._state = self._model.mdn_rnn.initial_state(setup.batch)


class Dreams(_Dreams):
    """Whole dreams by `wm_rllib.models.dreaming.dream`, in bfloat16 by its own means, not by autocast."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self._dtype = torch.bfloat16 if setup.precision == BFLOAT16 else torch.float32
        self._call: Callable[[], Any] = self._dream
        if setup.mode == GRAPH:
            self._check_graph(setup.device)
            self._call, _ = captured(self._dream, setup.device)

    def _dream(self, noise: DreamNoise | None = None) -> Dream:
        start = self._z, self._state
        return dream(self._model, self._policy, *start, HORIZON, 1.0, noise=noise, dtype=self._dtype)

    def _check_graph(self, device: torch.device) -> None:
        """Raises unless a replayed dream is the one that the same noise gives without a graph."""
        noise = draw_dream_noise(self._model, self._policy, HORIZON, len(self._z))
        plain = self._dream(noise).features
        replay, graphed = captured(lambda: self._dream(noise).features, device)
        replay()
        equal = torch.isclose(plain, graphed, atol=1e-4).all(-1).float().mean().item()
        if equal < 0.99:  # rounding may turn a draw here and there
            raise RuntimeError(f"the CUDA graph dreams otherwise: {equal:.1%} of its steps are those of the plain loop")

    def __call__(self) -> None:
        """One dream."""
        self._call()


def _controller(device: torch.device) -> Controller:
    network = tanh_network([LATENT + HIDDEN, 256, 128, ACTIONS]).to(device)
    return Controller(network, CategoricalSampler([ACTIONS], scalar=True))


def captured(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """The work as a CUDA graph, to be launched at once, and its result, which each launch overwrites.

    Random numbers go on from launch to launch; weights are read anew, where they were.
    """
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # libraries want to be set up before a capture
        for _ in range(3):
            work()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class StepwiseDreams(_Dreams):
    """Dreams whose step, by the public methods of M, is one function, to be compiled: what a compiler makes of it.

    It computes what `Dreams` does but for log-probabilities, and keeps only features and rewards.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self._setup = setup
        self._step = setup.compiled(self._one_step)

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor]:
        """Features [B, H, F] and rewards [B, H] of one dream."""
        noise = draw_dream_noise(self._model, self._policy, HORIZON, len(self._z))
        assert noise.action is not None
        lanes, features, rewards = (self._z, *self._state), [], []
        for t in range(HORIZON):
            mixture = MixtureNoise(noise.mixture.gumbel[t], noise.mixture.normal[t])
            with self._setup.autocast():
                seen, reward, *lanes = self._step(
                    *lanes, StepNoise(mixture, noise.death_logit[t]), noise.restart[t], noise.action[t]
                )
            features.append(seen)
            rewards.append(reward)
        return torch.stack(features, 1), torch.stack(rewards, 1)

    def _one_step(
        self, z: Tensor, h: Tensor, c: Tensor, noise: StepNoise, restart: Tensor, action_noise: Tensor
    ) -> tuple[Tensor, ...]:
        """Features, rewards, and the next z, h and c of all lanes."""
        model = self._model
        features = model.features(z, h)
        actions = self._policy.sampler.sample(self._policy.network(features).float(), action_noise)
        step = imagined_step(model.mdn_rnn, z, model.codec.encode(actions), (h, c), 1.0, noise)
        ended, starts = step.terminated[:, None], (self._z, *self._state)
        lanes = zip(starts, (step.z, *step.state), strict=True)
        return features, step.reward, *(torch.where(ended, start[restart], now.float()) for start, now in lanes)
