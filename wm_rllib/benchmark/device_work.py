"""What `speed gpu` measures: gradient steps of V, M and C, and V's encoding, at the paper's sizes. No Ray.

Each kind of work is built from a `Setup` and is then called; a call is one gradient step, one batch of frames or, in
`device_dreams`, one dream. Gradient steps are the learner's: minibatches gathered from rows on the device, the losses
of `wm_rllib.models` (for C RLlib's PPO loss, written out), the check for gradients that are not finite, clipping and
fused Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import gymnasium as gym
import torch
from torch import Tensor, nn

from wm_rllib.benchmark.device_clock import FLOAT32, autocast
from wm_rllib.models import MDNRNNConfig, VAEConfig, WorldModel, WorldModelConfig
from wm_rllib.models.controller import CategoricalSampler
from wm_rllib.models.conv_vae import ConvolutionalVAE
from wm_rllib.models.world_model import SequenceBatch
from wm_rllib.rl_modules.gradient_steps import clip_and_step

EAGER, GRAPH, COMPILED = "eager", "CUDA graph", "compiled"

LATENT, HIDDEN, MIXTURES, ACTIONS = 32, 256, 5, 2
FRAME = (64, 64, 3)
CHANNELS = (32, 64, 128, 256)
SEQUENCE = 32
POOL = 4
"""Minibatches' worth of rows that minibatches are gathered from."""
CLIP, VALUE_COEFF, ENTROPY_COEFF = 0.2, 1.0, 0.01


@dataclass(frozen=True)
class Setup:
    """How work is done.

    Attributes:
        device: Where.
        batch: Lanes, frames, sequences or rows of a call.
        precision: One of `device_clock`'s.
        mode: EAGER, GRAPH or COMPILED.
    """

    device: torch.device
    batch: int
    precision: str = FLOAT32
    mode: str = EAGER

    def autocast(self) -> AbstractContextManager[Any]:
        """What a forward pass runs in."""
        return autocast(self.precision, self.device)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The function, by torch.compile where that is the mode, with Inductor's options."""
        return torch.compile(function, dynamic=False, options=options or None) if self.mode == COMPILED else function


class DeviceWork(Protocol):
    """Work that is built and can be called again and again."""

    items: int
    """Steps, frames, transitions or rows of a call."""

    def __call__(self) -> Any:
        """One call."""


def paper_world_model(device: torch.device) -> WorldModel:
    """M at the paper's size, with the defaults' ensemble and losses, on two actions; V is one for vectors."""
    mdn_rnn = MDNRNNConfig(
        latent_dim=LATENT,
        action_dim=ACTIONS,
        hidden_dim=HIDDEN,
        head_hidden_dims=(),
        num_mixtures=MIXTURES,
        mixture="joint",
        residual=True,
        log_sigma_range=(-3.0, 1.0),
        input_noise=0.1,
        shuffled_coeff=0.1,
        nll_coeff=0.1,
        reward_loss_coeff=1.0,
        termination_loss_coeff=5.0,
        ensemble_size=3,
    )
    vae = VAEConfig((4,), LATENT, (64, 64), 1e-4)
    model = WorldModel(WorldModelConfig(vae, mdn_rnn, gym.spaces.Discrete(ACTIONS), True, False, "zh")).to(device)
    model.mdn_rnn.grow_change_scale(torch.full((LATENT,), 0.1, device=device))
    return model


def tanh_network(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, the input's first, with tanh between them, as RLlib's default."""
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers += [nn.Linear(width, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class GradientSteps:
    """The learner's gradient steps on a network.

    Args:
        network: What is trained.
        max_norm: Of its gradients; None for no clipping.
    """

    def __init__(self, network: nn.Module, max_norm: float | None):
        self._max_norm = max_norm
        self._optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def __call__(self, loss: Tensor) -> None:
        """One step."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_and_step(self._optimizer, self._max_norm)


def _rows(setup: Setup) -> Tensor:
    """Indices of a random minibatch of the pool."""
    return torch.randint(POOL * setup.batch, (setup.batch,), device=setup.device)


def _vae(device: torch.device) -> ConvolutionalVAE:
    vae = ConvolutionalVAE(VAEConfig(FRAME, LATENT, (), 1e-4, CHANNELS, change_weight=3.0)).to(device)
    vae.set_normalisation(torch.full(FRAME, 127.5), torch.full(FRAME, 73.6))
    return vae


def _frames(count: int, device: torch.device, *, pairs: bool) -> Tensor:
    """Random frames [N, H, W, C], or pairs of them [N, 2, H, W, C]."""
    return torch.randint(0, 256, (count, 2, *FRAME) if pairs else (count, *FRAME), dtype=torch.uint8, device=device)


class VaeTraining:
    """Gradient steps of the convolutional V on frames, each with the one before it, that are on the device."""

    def __init__(self, setup: Setup):
        self.items, self._setup = setup.batch, setup
        vae = _vae(setup.device)
        self._loss = setup.compiled(lambda frames: vae.frame_losses(frames).total)
        self._step = GradientSteps(vae, 10.0)
        self._pool = self._make_pool()

    def _make_pool(self) -> Tensor:
        return _frames(POOL * self.items, self._setup.device, pairs=True)

    def minibatch(self) -> Tensor:
        """Frames [B, 2, H, W, C]."""
        return self._pool[_rows(self._setup)]

    def __call__(self) -> None:
        """One gradient step."""
        frames = self.minibatch()
        with self._setup.autocast():
            loss = self._loss(frames)
        self._step(loss)


class VaeTrainingFromHost(VaeTraining):
    """The same with frames in pinned memory of the host; the next minibatch is copied while this one is learned from.

    On a CPU there is nothing to copy to: what is measured then is a copy from memory to memory.
    """

    def _make_pool(self) -> Tensor:
        pool = _frames(POOL * self.items, self._setup.device, pairs=True).cpu()
        on_gpu = self._setup.device.type == "cuda"
        self._stream = torch.cuda.Stream(self._setup.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._turn = 0
        pool = pool.pin_memory() if on_gpu else pool
        self._next = self._copy(pool)
        return pool

    def _copy(self, pool: Tensor) -> Tensor:
        first = self._turn * self.items
        self._turn = (self._turn + 1) % POOL
        part, device = pool[first : first + self.items], self._setup.device
        if self._stream is None:
            return part.clone()
        with torch.cuda.stream(self._stream):
            return part.to(device, non_blocking=True)

    def minibatch(self) -> Tensor:
        """See `VaeTraining`."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._setup.device)
            current.wait_stream(self._stream)
            self._next.record_stream(current)  # else its memory might be copied into while it is read
        frames, self._next = self._next, self._copy(self._pool)
        return frames


class VaeEncoding:
    """V's posterior means of frames that are on the device."""

    def __init__(self, setup: Setup):
        self.items, self._setup, self._turn = setup.batch, setup, 0
        vae = _vae(setup.device).eval()
        self._encode = setup.compiled(lambda frames: vae.posterior(frames).mean)
        self._pool = _frames(POOL * setup.batch, setup.device, pairs=False).split(setup.batch)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Latents [B, Z] of one batch."""
        self._turn = (self._turn + 1) % POOL
        with self._setup.autocast():
            latents: Tensor = self._encode(self._pool[self._turn])
        return latents


class MdnRnnTraining:
    """Gradient steps of M on sequences of latents, all of them full."""

    def __init__(self, setup: Setup):
        self.items, self._setup = setup.batch * SEQUENCE, setup
        model, device, pool = paper_world_model(setup.device), setup.device, POOL * setup.batch
        self._latents = torch.randn(pool, SEQUENCE + 1, LATENT, device=device).mul_(0.1).cumsum(1)
        self._columns = (
            torch.randint(ACTIONS, (pool, SEQUENCE), device=device),
            torch.randn(pool, SEQUENCE, device=device),
            torch.rand(pool, SEQUENCE, device=device) < 0.01,
            torch.ones(pool, SEQUENCE, dtype=torch.bool, device=device),
        )

        lengths = [SEQUENCE] * setup.batch

        def loss(z: Tensor, actions: Tensor, rewards: Tensor, ends: Tensor, mask: Tensor) -> Tensor:
            return model.latent_losses(z, SequenceBatch(None, actions, rewards, ends, mask, lengths)).total

        # Inductor (torch 2.13) takes M's rows in random order for a pattern of its own, and fails.
        self._loss = setup.compiled(loss, pattern_matcher=False)
        self._step = GradientSteps(model.mdn_rnn, 10.0)

    def __call__(self) -> None:
        """One gradient step."""
        rows = _rows(self._setup)
        columns = [column[rows] for column in self._columns]
        with self._setup.autocast():
            loss = self._loss(self._latents[rows], *columns)
        self._step(loss)


class ActorCritic(nn.Module):
    """C's two networks on features [B, F], and RLlib's PPO loss without the KL term."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = tanh_network([LATENT + HIDDEN, 64, 64, ACTIONS])
        self.critic = tanh_network([LATENT + HIDDEN, 64, 64, 1])
        self._sampler = CategoricalSampler([ACTIONS], scalar=True)

    def forward(self, features: Tensor, action: Tensor, old_logp: Tensor, advantage: Tensor, target: Tensor) -> Tensor:
        """The loss of rows [B, F] and [B]; probabilities, ratios and values are float32."""
        logits, values = self.actor(features).float(), self.critic(features).float().squeeze(-1)
        ratio = torch.exp(self._sampler.logp(logits, action) - old_logp)
        surrogate = torch.min(advantage * ratio, advantage * ratio.clamp(1.0 - CLIP, 1.0 + CLIP))
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return (-surrogate + VALUE_COEFF * (values - target).square() - ENTROPY_COEFF * entropy).mean()


class PpoUpdate:
    """Gradient steps of C."""

    def __init__(self, setup: Setup):
        self.items, self._setup = setup.batch, setup
        device, pool = setup.device, POOL * setup.batch
        network = ActorCritic().to(device)
        self._columns = (
            torch.randn(pool, LATENT + HIDDEN, device=device),
            torch.randint(ACTIONS, (pool,), device=device),
            torch.full((pool,), -0.693, device=device),
            torch.randn(pool, device=device),
            torch.randn(pool, device=device),
        )
        self._loss = setup.compiled(network.forward)
        self._step = GradientSteps(network, None)

    def __call__(self) -> None:
        """One gradient step."""
        rows = _rows(self._setup)
        columns = [column[rows] for column in self._columns]
        with self._setup.autocast():
            loss = self._loss(*columns)
        self._step(loss)
