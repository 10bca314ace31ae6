"""V for images: a convolutional beta-VAE (Ha & Schmidhuber 2018, appendix A.1), for frames of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wm_rllib.models.config import VAEConfig
from wm_rllib.models.vae import VAELosses, VariationalAutoencoder

KERNEL, STRIDE, PADDING = 4, 2, 1
"""Of every layer: each halves the frame, rounded down, so that any size fits that is not used up."""

FRAMES_AT_ONCE = 512
"""In a forward pass without gradients: more take gigabytes for the first layer's channels."""

FULL_CHANGE = 0.1
"""Change of a pixel from one frame to the next, of the range of its values, from which it counts in full as moving."""


def is_image(shape: Sequence[int]) -> bool:
    """Whether observations of this shape are taken as images [H, W, C]."""
    return len(shape) == 3


def frame_sizes(shape: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Height and width of the frame and behind each of `depth` layers.

    Raises:
        ValueError: Some layer has nothing left to halve.
    """
    sizes = [(int(shape[0]), int(shape[1]))]
    for _ in range(depth):
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    if min(sizes[-1]) < 1:
        raise ValueError(
            f"world_model.vae.channels has {depth} layers, each of which halves the frame, but a frame of "
            f"{shape[0]} x {shape[1]} pixels has room for {int(math.log2(min(shape[0], shape[1])))}. Fix: fewer "
            "channels, or larger frames (env.pixels.size)."
        )
    return sizes


class ConvolutionalVAE(VariationalAutoencoder):
    """Compresses frames [..., H, W, C] (uint8, or numbers in that range) into latents [..., Z].

    What moves may be small: a fireball of TakeCover has 10 of a frame's 4,096 pixels, and a plain squared error is
    better off without it. Pixels that changed since the frame before count `change_weight` times more.

    Args:
        config: Sizes, beta, channels and change_weight.
    """

    def __init__(self, config: VAEConfig):
        self._sizes = frame_sizes(config.observation_shape, len(config.channels))
        super().__init__(config)

    def make_encoder(self) -> nn.Module:
        """A network from normalised frames [N, H, W, C] to mean and log variance, [N, 2 Z]."""
        config, layers = self.config, list[nn.Module]()
        width = config.observation_shape[-1]
        for channels in config.channels:
            layers += [nn.Conv2d(width, channels, KERNEL, STRIDE, PADDING), nn.ReLU()]
            width = channels
        height, length = self._sizes[-1]
        head = nn.Linear(width * height * length, 2 * config.latent_dim)
        return nn.Sequential(_ChannelsFirst(), *layers, nn.Flatten(), head).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def make_decoder(self) -> nn.Module:
        """A network from latents [N, Z] to normalised frames [N, H, W, C]."""
        config = self.config
        channels = [*reversed(config.channels), config.observation_shape[-1]]
        height, width = self._sizes[-1]
        layers: list[nn.Module] = [
            nn.Linear(config.latent_dim, channels[0] * height * width),
            nn.Unflatten(-1, (channels[0], height, width)),
        ]
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            large, small = self._sizes[-2 - index], self._sizes[-1 - index]
            odd = (large[0] - 2 * small[0], large[1] - 2 * small[1])  # what halving rounded away
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, KERNEL, STRIDE, PADDING, output_padding=odd)]
        return nn.Sequential(*layers, _ChannelsLast()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def frame_losses(self, frames: Tensor) -> VAELosses:
        """See `VariationalAutoencoder.frame_losses`; moving pixels count more."""
        before, now = frames[:, 0], frames[:, 1]
        posterior = self.posterior(now)
        target = self.normalise(now)
        error = (self.decoder(posterior.sample()).float() - target).square()
        moving = self.moving(before, now)
        weight = 1.0 + self.config.change_weight * moving
        reconstruction = 0.5 * (error * (weight / weight.mean())).flatten(1).sum(-1).mean()
        kl_divergence = posterior.kl_from_standard_normal().mean()
        total = reconstruction + self.config.beta * kl_divergence
        return VAELosses(total, reconstruction, kl_divergence, *_explained(error, target, moving))

    def moving(self, before: Tensor, now: Tensor) -> Tensor:
        """How much each pixel of frames [N, H, W, C] has changed: 0 not at all, 1 from `FULL_CHANGE` on."""
        change = (now.float() - before.float()).abs().amax(-1, keepdim=True) / (255.0 * FULL_CHANGE)
        return change.clamp(max=1.0)


class _ChannelsFirst(nn.Module):
    """[N, H, W, C] as [N, C, H, W], without moving anything in memory."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames.permute(0, 3, 1, 2)


class _ChannelsLast(nn.Module):
    """[N, C, H, W] as [N, H, W, C], without moving anything in memory."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames.permute(0, 2, 3, 1)


@torch.no_grad()
def _explained(error: Tensor, target: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the squared deviation from the mean frame that V explains: of all pixels, and of the moving ones."""
    deviation = target.square()
    moving = moving.expand_as(error)
    everywhere = 1.0 - error.sum() / deviation.sum().clamp(min=1e-6)
    return everywhere, 1.0 - (moving * error).sum() / (moving * deviation).sum().clamp(min=1e-6)
