"""V on images: sizes, units, and what small moving things are worth to it."""

from __future__ import annotations

import pytest
import torch

from wm_rllib.models.config import VAEConfig
from wm_rllib.models.conv_vae import ConvolutionalVAE, frame_sizes


def make(
    shape: tuple[int, ...] = (16, 16, 3), channels: tuple[int, ...] = (8, 16), weight: float = 0.0, latent: int = 8
):
    torch.manual_seed(0)
    return ConvolutionalVAE(VAEConfig(shape, latent, (), 0.0, channels, weight))


@pytest.mark.parametrize("shape", [(64, 64, 3), (84, 84, 1), (96, 96, 3), (50, 37, 4)])
def test_frames_of_any_size_come_back_in_their_own(shape: tuple[int, ...]):
    vae = make(shape, (4, 4, 4, 4)).eval()
    frames = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    assert vae.encode(frames).shape == (2, 3, 8)
    assert vae.decode(vae.encode(frames)).shape == frames.shape


def test_too_many_layers_are_an_error_that_says_how_many_fit():
    assert frame_sizes((20, 9, 3), 3) == [(20, 9), (10, 4), (5, 2), (2, 1)]
    with pytest.raises(ValueError, match="has room for 3"):
        make((20, 9, 3), (4, 4, 4, 4))


def test_loss_is_half_the_squared_error_weighted_by_change():
    weight = 3.0
    vae = make(weight=weight).eval()
    vae.set_normalisation(torch.full((16, 16, 3), 100.0), torch.full((16, 16, 3), 50.0))
    before = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    now = before.clone()
    now[:, 3:5, 4:6] = (255 - before[:, 3:5, 4:6].int()).clamp(0, 255).to(torch.uint8)
    posterior = vae.posterior(now)
    vae.posterior = lambda _: type(posterior)(posterior.mean, torch.full_like(posterior.mean, -80.0))  # type: ignore
    losses = vae.frame_losses(torch.stack([before, now], 1))
    error = (vae.decoder(posterior.mean) - (now.float() - 100.0) / 50.0).square()
    change = ((now.float() - before.float()).abs().amax(-1) / 25.5).clamp(max=1.0)
    pixels = 1.0 + weight * change
    expected = 0.5 * (error.sum(-1) * pixels / pixels.mean()).sum((1, 2)).mean()
    assert losses.reconstruction.item() == pytest.approx(expected.item(), rel=1e-4)


def small_dots(count: int) -> torch.Tensor:
    """Pairs of frames with a dot of 2 x 2 pixels, which moves, over a large shape that stands still."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.zeros(count, 2, 16, 16, 3, dtype=torch.uint8)
    bright = torch.randint(40, 256, (count,), generator=generator).to(torch.uint8)
    frames[:, :, 8:, :] = bright[:, None, None, None, None]
    for row in range(count):
        x, y = (int(torch.randint(0, limit, (1,), generator=generator)) for limit in (13, 6))
        frames[row, 0, y : y + 2, x : x + 2] = 255
        frames[row, 1, y : y + 2, x + 1 : x + 3] = 255
    return frames


def fitted(weight: float) -> float:
    vae = make(weight=weight, latent=3)
    frames = small_dots(512)
    now = frames[:, 1].float()
    vae.set_normalisation(now.mean(0), torch.full((16, 16, 3), 2.0 * float(now.std(0).square().mean().sqrt())))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(250):
        batch = frames[torch.randint(0, 512, (64,))]
        optimizer.zero_grad()
        vae.frame_losses(batch).total.backward()
        optimizer.step()
    with torch.no_grad():
        explained = vae.eval().frame_losses(small_dots(512)).moving_explained
    assert explained is not None
    return float(explained)


@pytest.mark.learning
def test_what_moves_is_kept_when_it_counts():
    assert fitted(30.0) > fitted(0.0) + 0.1
