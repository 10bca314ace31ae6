"""V, M and the trainer: what users of the world model rely on. Also runs as `python tests/test_world_model.py`."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python tests/test_world_model.py` also works before installation

from custom_models import CustomMDNRNN, CustomVAE, NotAVAE
from tiny import RANDOM_STEPS, ROUNDS, TRAIN_BATCH, tiny_config
from tiny_models import HIDDEN_DIM, LATENT_DIM, OBSERVATION_DIM, mdn_config, sequences, vae_config, world_model

from wm_rllib.metrics import progress_row
from wm_rllib.models import MDNRNN, VariationalAutoencoder
from wm_rllib.models.mixture import MixtureParams, draw_noise, explained, mixture_nll, sample_mixture
from wm_rllib.models.world_model import SequenceBatch, WorldModel


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    """Gradient of the loss with respect to each parameter of the module; None where there is none."""
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True))


def normalised_vae(**changes: Any) -> VariationalAutoencoder:
    """V with units that are not 0 and 1."""
    vae = VariationalAutoencoder(vae_config(**changes))
    vae.set_normalisation(torch.tensor([1.0, -2.0, 0.0, 5.0]), torch.tensor([2.0, 0.5, 1.0, 3.0]))
    return vae


class TestVAE:
    @pytest.mark.parametrize("batch_shape", [(), (1,), (7,), (1, 1), (1, 5), (3, 1), (2, 4)])
    def test_shapes(self, batch_shape: tuple[int, ...]):
        vae, observations = normalised_vae(), torch.randn(*batch_shape, OBSERVATION_DIM)
        reconstruction, posterior = vae(observations)
        assert vae.encode(observations).shape == (*batch_shape, LATENT_DIM)
        assert reconstruction.shape == observations.shape
        assert posterior.mean.shape == posterior.log_variance.shape == (*batch_shape, LATENT_DIM)
        assert posterior.kl_from_standard_normal().shape == batch_shape

    def test_one_observation_is_encoded_as_within_a_batch(self):
        vae, observations = normalised_vae().eval(), torch.randn(3, 4, OBSERVATION_DIM)
        alone = vae.encode(observations[1:2, 2:3])
        torch.testing.assert_close(alone[0, 0], vae.encode(observations)[1, 2])

    def test_observations_of_any_dtype_are_taken(self):
        vae = normalised_vae().eval()
        integers = torch.arange(OBSERVATION_DIM, dtype=torch.uint8)
        torch.testing.assert_close(vae.encode(integers), vae.encode(integers.double()))

    def test_eval_mode_is_deterministic_and_gives_the_mean(self):
        vae, observations = normalised_vae().eval(), torch.randn(5, OBSERVATION_DIM)
        assert torch.equal(vae.encode(observations), vae.encode(observations))
        assert torch.equal(vae.encode(observations), vae.posterior(observations).mean)
        torch.testing.assert_close(vae(observations)[0], vae.decode(vae.posterior(observations).mean))

    def test_training_mode_samples_the_posterior(self):
        vae, observation = normalised_vae().train(), torch.randn(OBSERVATION_DIM)
        posterior = vae.posterior(observation)
        samples = vae.encode(observation.expand(40_000, -1))
        sigma = torch.exp(0.5 * posterior.log_variance)
        error = 5.0 / math.sqrt(len(samples))
        assert torch.all((samples.mean(0) - posterior.mean).abs() < error * sigma)
        assert torch.all((samples.std(0) / sigma - 1.0).abs() < error)

    def test_kl_equals_the_one_of_torch(self):
        posterior = normalised_vae().posterior(3.0 * torch.randn(50, OBSERVATION_DIM))
        own = Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
        expected = kl_divergence(own, Normal(0.0, 1.0)).sum(-1)
        torch.testing.assert_close(posterior.kl_from_standard_normal(), expected)

    @pytest.mark.parametrize("bias", [1e4, -1e4])
    def test_variance_stays_finite_whatever_the_encoder_says(self, bias: float):
        vae = normalised_vae()
        last = vae.encoder[-1]  # type: ignore[index]
        with torch.no_grad():
            last.bias.add_(bias)
        variance = vae.posterior(torch.randn(3, OBSERVATION_DIM)).log_variance.exp()
        assert torch.all((variance > 0) & variance.isfinite())

    def test_reconstruction_loss_by_hand(self):
        vae, observations = normalised_vae(), torch.randn(2, 3, OBSERVATION_DIM)
        mask = torch.tensor([[True, True, False], [True, False, True]])
        torch.manual_seed(3)
        losses = vae.losses(observations, mask)
        torch.manual_seed(3)
        decoded = vae.decode(vae.posterior(observations[mask]).sample())
        error = ((decoded - observations[mask]) / torch.tensor([2.0, 0.5, 1.0, 3.0])).detach().numpy()
        assert losses.reconstruction.item() == pytest.approx(0.5 * (error**2).sum(axis=1).mean(), rel=1e-5)

    def test_kl_loss_is_the_mean_over_unmasked_observations(self):
        vae, observations = normalised_vae(), torch.randn(2, 3, OBSERVATION_DIM)
        mask = torch.tensor([[True, True, False], [True, False, True]])
        posterior = vae.posterior(observations)
        expected = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(0.0, 1.0)).sum(-1)
        torch.testing.assert_close(vae.losses(observations, mask).kl_divergence, expected[mask].mean())

    def test_beta_zero_is_a_plain_autoencoder(self):
        vae, observations = normalised_vae(beta=0.0), torch.randn(2, 3, OBSERVATION_DIM)
        losses = vae.losses(observations, torch.ones(2, 3, dtype=torch.bool))
        assert torch.equal(losses.total, losses.reconstruction)
        assert losses.kl_divergence > 0
        for total, reconstruction in zip(
            gradients(vae, losses.total), gradients(vae, losses.reconstruction), strict=True
        ):
            assert torch.equal(total, reconstruction)

    @pytest.mark.parametrize("beta", [0.5, 1.0, 40.0])
    def test_beta_weighs_the_kl_term(self, beta: float):
        vae, observations = normalised_vae(beta=beta), torch.randn(2, 3, OBSERVATION_DIM)
        losses = vae.losses(observations, torch.ones(2, 3, dtype=torch.bool))
        assert losses.total.item() == pytest.approx(losses.reconstruction.item() + beta * losses.kl_divergence.item())

    def test_large_beta_empties_the_latent_and_beta_zero_fills_it(self):
        assert train_on_curve(beta=1000.0).kl_divergence < 0.01
        assert train_on_curve(beta=0.0).kl_divergence > 1.0

    def test_training_reduces_reconstruction_on_a_curve(self):
        observations = curve(512)
        guessing_the_mean = 0.5 * observations.var(0, correction=0).sum()
        assert train_on_curve(beta=1e-3, latent_dim=1).reconstruction < 0.2 * guessing_the_mean

    def test_normalisation_is_applied_on_the_way_in(self):
        vae, plain = normalised_vae().eval(), VariationalAutoencoder(vae_config()).eval()
        plain.encoder.load_state_dict(vae.encoder.state_dict())
        observations = torch.randn(6, OBSERVATION_DIM)
        by_hand = (observations - torch.tensor([1.0, -2.0, 0.0, 5.0])) / torch.tensor([2.0, 0.5, 1.0, 3.0])
        torch.testing.assert_close(vae.encode(observations), plain.encode(by_hand))

    def test_normalisation_is_undone_on_the_way_out(self):
        vae, plain = normalised_vae().eval(), VariationalAutoencoder(vae_config()).eval()
        plain.decoder.load_state_dict(vae.decoder.state_dict())
        latents = torch.randn(6, LATENT_DIM)
        expected = plain.decode(latents) * torch.tensor([2.0, 0.5, 1.0, 3.0]) + torch.tensor([1.0, -2.0, 0.0, 5.0])
        torch.testing.assert_close(vae.decode(latents), expected)

    def test_normalisation_travels_with_the_weights(self):
        vae, copied = normalised_vae().eval(), VariationalAutoencoder(vae_config()).eval()
        copied.load_state_dict(vae.state_dict())
        observations = torch.randn(6, OBSERVATION_DIM)
        assert torch.equal(vae.encode(observations), copied.encode(observations))

    def test_masked_observations_change_nothing(self):
        vae, observations = normalised_vae(), torch.randn(2, 4, OBSERVATION_DIM)
        mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
        perturbed = torch.where(mask[..., None], observations, torch.full_like(observations, 1e6))
        results = []
        for batch in (observations, perturbed):
            torch.manual_seed(1)
            losses = vae.losses(batch, mask)
            results.append([losses.total, *gradients(vae, losses.total)])
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("spec", [CustomVAE, "custom_models:CustomVAE", "custom_models.CustomVAE"])
    def test_a_users_class_replaces_v(self, spec: str | type):
        model = world_model(vae_class=spec)
        assert type(model.vae).__name__ == "CustomVAE"
        assert isinstance(model.vae.encoder, nn.Linear)
        vae, mdn = model.losses(sequences([3, 5], 5))
        assert (vae.total + mdn.total).isfinite()

    @pytest.mark.parametrize(
        "spec", [NotAVAE, "custom_models:NotAVAE", "custom_models:Missing", "no_such_module:V", "plain", 3]
    )
    def test_a_wrong_class_is_named_in_the_error(self, spec: Any):
        with pytest.raises(ValueError, match=r"world_model\.vae\.class = .*(NotAVAE|Missing|no_such_module|plain|3)"):
            world_model(vae_class=spec)


def curve(count: int) -> Tensor:
    """Points of a curve in O dimensions: one number would do to tell them apart."""
    position = torch.linspace(-1.0, 1.0, count)[:, None]
    return torch.cat([position, position**2, torch.sin(3 * position), -position], dim=1)


def train_on_curve(**changes: Any) -> Any:
    """V's last losses after 300 gradient steps on a curve."""
    torch.manual_seed(0)
    vae = VariationalAutoencoder(vae_config(**changes))
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    observations, mask = curve(128)[None], torch.ones(1, 128, dtype=torch.bool)
    for _ in range(300):
        losses = vae.losses(observations, mask)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    return losses


def random_mixture(*batch_shape: int, joint: bool, components: int = 4) -> MixtureParams:
    """A mixture whose weights, means and scales are all different."""
    logits = torch.randn(*batch_shape, components, *(() if joint else (LATENT_DIM,)))
    mean, log_sigma = torch.randn(2, *batch_shape, components, LATENT_DIM).unbind(0)
    return MixtureParams(torch.log_softmax(logits, -1 if joint else -2), 2.0 * mean, 0.5 * log_sigma)


def reference_mixture(params: MixtureParams, temperature: float = 1.0) -> MixtureSameFamily:
    """The same mixture by torch: over vectors if joint, else one for each dimension."""
    sigma = params.log_sigma.exp() * math.sqrt(temperature)
    if params.joint:
        return MixtureSameFamily(
            Categorical(logits=params.log_pi / temperature), Independent(Normal(params.mean, sigma), 1)
        )
    weights = Categorical(logits=params.log_pi.mT / temperature)
    return MixtureSameFamily(weights, Normal(params.mean.mT, sigma.mT))


def draw(params: MixtureParams, count: int, temperature: float) -> Tensor:
    """`count` draws [count, Z] from one mixture."""
    expanded = MixtureParams(*(t.expand(count, *t.shape) for t in (params.log_pi, params.mean, params.log_sigma)))
    noise = draw_noise((count,), params.mean.shape[-2], params.mean.shape[-1], params.joint, torch.device("cpu"))
    return sample_mixture(expanded, temperature, noise)


class TestMDNRNN:
    @pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
    @pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 4), (3, 1), (2, 5)])
    def test_shapes(self, batch: int, time: int, mixture: Any):
        mdn = MDNRNN(mdn_config(mixture=mixture))
        z, action = torch.randn(batch, time, LATENT_DIM), torch.randn(batch, time, 2)
        hidden, (h, c) = mdn.unroll(z, action)
        mixture_params, outcome = mdn.predict(hidden, z, action), mdn.outcome(z, action, torch.randn_like(z))
        assert hidden.shape == (batch, time, HIDDEN_DIM)
        assert h.shape == c.shape == (batch, HIDDEN_DIM)
        weights = (batch, time, 4) if mixture == "joint" else (batch, time, 4, LATENT_DIM)
        assert mixture_params.log_pi.shape == weights
        assert mixture_params.mean.shape == mixture_params.log_sigma.shape == (batch, time, 4, LATENT_DIM)
        assert outcome.reward.shape == outcome.termination_logit.shape == (batch, time)
        assert mixture_nll(mixture_params, z).shape == (batch, time)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_unroll_equals_repeated_step(self, batch: int):
        mdn = MDNRNN(mdn_config())
        z, action = torch.randn(batch, 6, LATENT_DIM), torch.randn(batch, 6, 2)
        hidden, last = mdn.unroll(z, action)
        state = mdn.initial_state(batch)
        for t in range(6):
            state = mdn.step(z[:, t], action[:, t], state)
            torch.testing.assert_close(state[0], hidden[:, t])
        torch.testing.assert_close(state, last)

    def test_unroll_goes_on_from_a_state(self):
        mdn = MDNRNN(mdn_config())
        z, action = torch.randn(2, 6, LATENT_DIM), torch.randn(2, 6, 2)
        _, middle = mdn.unroll(z[:, :4], action[:, :4])
        rest, last = mdn.unroll(z[:, 4:], action[:, 4:], middle)
        whole, whole_last = mdn.unroll(z, action)
        torch.testing.assert_close(rest, whole[:, 4:])
        torch.testing.assert_close(last, whole_last)

    def test_hidden_state_knows_only_the_past(self):
        mdn = MDNRNN(mdn_config())
        z, action = torch.randn(1, 6, LATENT_DIM), torch.randn(1, 6, 2)
        later_z, later_action = z.clone(), action.clone()
        later_z[:, 3:], later_action[:, 3:] = 9.0, -9.0
        before, after = mdn.unroll(z, action)[0], mdn.unroll(later_z, later_action)[0]
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert not torch.allclose(before[:, 3], after[:, 3])

    @pytest.mark.parametrize("joint", [True, False])
    def test_one_component_is_a_normal(self, joint: bool):
        params, target = random_mixture(5, joint=joint, components=1), torch.randn(5, LATENT_DIM)
        expected = -Normal(params.mean[:, 0], params.log_sigma[:, 0].exp()).log_prob(target).sum(-1)
        torch.testing.assert_close(mixture_nll(params, target), expected)

    @pytest.mark.parametrize("batch_shape", [(1,), (1, 1), (6, 5)])
    def test_joint_nll_equals_the_mixture_of_torch(self, batch_shape: tuple[int, ...]):
        params, target = random_mixture(*batch_shape, joint=True), torch.randn(*batch_shape, LATENT_DIM)
        torch.testing.assert_close(mixture_nll(params, target), -reference_mixture(params).log_prob(target))

    @pytest.mark.parametrize("batch_shape", [(1,), (1, 1), (6, 5)])
    def test_per_dimension_nll_equals_a_mixture_of_torch_for_each(self, batch_shape: tuple[int, ...]):
        params, target = random_mixture(*batch_shape, joint=False), torch.randn(*batch_shape, LATENT_DIM)
        torch.testing.assert_close(mixture_nll(params, target), -reference_mixture(params).log_prob(target).sum(-1))

    @pytest.mark.parametrize("joint", [True, False])
    def test_components_explain_a_target_by_bayes_rule(self, joint: bool):
        params, target = random_mixture(6, 5, joint=joint), torch.randn(6, 5, LATENT_DIM)
        mixture = reference_mixture(params)
        given_component = mixture.component_distribution.log_prob(target.unsqueeze(-2 if joint else -1))
        weights = mixture.mixture_distribution.logits + given_component - mixture.log_prob(target).unsqueeze(-1)
        ours = explained(params, target)
        torch.testing.assert_close(ours.log_pi if joint else ours.log_pi.mT, weights)
        assert ours.mean is params.mean and ours.log_sigma is params.log_sigma

    @pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
    def test_mixture_weights_sum_to_one(self, mixture: Any):
        mdn = MDNRNN(mdn_config(mixture=mixture))
        log_pi = mdn.predict(torch.randn(5, HIDDEN_DIM), torch.randn(5, LATENT_DIM), torch.randn(5, 2)).log_pi
        total = log_pi.exp().sum(-1 if mixture == "joint" else -2)
        torch.testing.assert_close(total, torch.ones_like(total))

    @pytest.mark.parametrize("joint", [True, False])
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
    def test_temperature_shapes_the_moments_of_samples(self, temperature: float, joint: bool):
        params, count = random_mixture(joint=joint), 100_000
        samples, expected = draw(params, count, temperature), reference_mixture(params, temperature)
        mean_error = torch.sqrt(expected.variance / count)
        assert torch.all((samples.mean(0) - expected.mean).abs() < 5 * mean_error)
        # The variance of a sample variance: (fourth central moment - variance^2) / n.
        fourth = ((samples - expected.mean) ** 4).mean(0)
        variance_error = torch.sqrt((fourth - expected.variance**2) / count)
        assert torch.all((samples.var(0) - expected.variance).abs() < 5 * variance_error)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_temperature_shapes_the_choice_of_component(self, temperature: float):
        logits = torch.tensor([0.0, 1.0, 2.0])
        means = torch.tensor([-100.0, 0.0, 100.0])[:, None].expand(3, LATENT_DIM)
        params = MixtureParams(torch.log_softmax(logits, 0), means, torch.zeros(3, LATENT_DIM))
        samples = draw(params, 20_000, temperature)
        counts = torch.bincount((samples[:, 0] / 100.0).round().long() + 1, minlength=3)
        expected = 20_000 * torch.softmax(logits.double() / temperature, 0)
        assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3

    @pytest.mark.parametrize("joint", [True, False])
    def test_components_are_chosen_for_the_whole_latent_or_for_each_dimension(self, joint: bool):
        means = torch.tensor([-100.0, 100.0])[:, None].expand(2, LATENT_DIM)
        params = MixtureParams(
            torch.full((2,) if joint else (2, LATENT_DIM), math.log(0.5)), means, torch.zeros(2, LATENT_DIM)
        )
        signs = draw(params, 10_000, 1.0).sign()
        agreement = (signs[:, 0] == signs[:, 1]).float().mean().item()
        assert agreement == 1.0 if joint else abs(agreement - 0.5) < 5 * 0.5 / 100

    @pytest.mark.parametrize(("bias", "bound"), [(1e4, 1.0), (-1e4, -6.0)])
    def test_log_sigma_is_clipped(self, bias: float, bound: float):
        mdn = MDNRNN(mdn_config())
        last = mdn.mixture_head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias += bias
        log_sigma = mdn.predict(torch.randn(2, HIDDEN_DIM), torch.randn(2, LATENT_DIM), torch.randn(2, 2)).log_sigma
        assert torch.all(log_sigma == bound)

    def test_residual_means_are_offsets_from_the_latent(self):
        direct, residual = MDNRNN(mdn_config(residual=False)), MDNRNN(mdn_config(residual=True))
        residual.load_state_dict(direct.state_dict())
        inputs = torch.randn(2, HIDDEN_DIM), torch.randn(2, LATENT_DIM), torch.randn(2, 2)
        offset = residual.predict(*inputs).mean - direct.predict(*inputs).mean
        torch.testing.assert_close(offset, inputs[1][:, None].expand_as(offset), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("space", "actions", "by_hand"),
        [
            (gym.spaces.Discrete(3), [2, 0], [[0, 0, 1], [1, 0, 0]]),
            (gym.spaces.MultiDiscrete([2, 3]), [[1, 0], [0, 2]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
            (gym.spaces.Box(-4.0, 4.0, (2,)), [[0.5, -3.0], [1.5, 0.0]], [[0.5, -1.0], [1.0, 0.0]]),
        ],
        ids=["Discrete", "MultiDiscrete", "Box"],
    )
    def test_every_kind_of_action_reaches_the_lstm(self, space: Any, actions: list[Any], by_hand: list[list[float]]):
        model = world_model(space)
        z, state = torch.randn(2, LATENT_DIM), model.mdn_rnn.initial_state(2)
        advanced = model.advance(z, torch.as_tensor(actions), state)
        torch.testing.assert_close(advanced, model.mdn_rnn.step(z, torch.tensor(by_hand).float(), state))

    def test_burn_in_equals_the_unrolled_history_of_each_row(self):
        model = world_model().eval()
        observations, actions = torch.randn(3, 6, OBSERVATION_DIM), torch.randint(2, (3, 5))
        lengths = [5, 2, 0]
        mask = torch.arange(5)[None] >= 5 - torch.tensor(lengths)[:, None]
        z, (h, _) = model.burn_in(observations, actions, mask)
        for row, length in enumerate(lengths):
            past = model.vae.encode(observations[row, 5 - length : 5])
            encoded = torch.nn.functional.one_hot(actions[row, 5 - length :], 2).float()
            expected = model.mdn_rnn.unroll(past[None], encoded[None])[0][0, -1] if length else torch.zeros(HIDDEN_DIM)
            torch.testing.assert_close(h[row], expected)
            torch.testing.assert_close(z[row], model.vae.encode(observations[row, -1]))

    @pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
    def test_padding_changes_neither_loss_nor_gradient(self, mixture: Any):
        model, batch = world_model(mdn={"mixture": mixture}), sequences([2, 6, 1], 6)
        loud = perturb_padding(batch)
        for one, other in zip(losses_and_gradients(model, batch), losses_and_gradients(model, loud), strict=True):
            assert torch.equal(one, other)

    def test_padding_equals_no_padding(self):
        model, batch = world_model(), sequences([3, 3], 8)
        short = SequenceBatch(
            batch.observations[:, :4],
            batch.actions[:, :3],
            batch.rewards[:, :3],
            batch.terminateds[:, :3],
            batch.mask[:, :3],
        )
        torch.manual_seed(1)
        padded = model.losses(batch)
        torch.manual_seed(1)
        unpadded = model.losses(short)
        for one, other in zip(padded, unpadded, strict=True):
            for name in vars(one):
                torch.testing.assert_close(getattr(one, name), getattr(other, name))

    def test_a_real_step_does_change_the_loss(self):
        model, batch = world_model(), sequences([2, 6, 1], 6)
        last = batch.mask.clone()
        last[:, :-1] &= ~batch.mask[:, 1:]
        changed = copy.copy(vars(batch)) | {"rewards": torch.where(last, batch.rewards + 1.0, batch.rewards)}
        assert model.losses(batch)[1].reward != model.losses(SequenceBatch(**changed))[1].reward

    def test_losses_by_hand(self):
        mdn = MDNRNN(mdn_config()).eval()
        mdn.set_normalisation(*map(torch.tensor, (2.0, 3.0, 20.0, 0.1)))
        z, action, reward = torch.randn(2, 4, LATENT_DIM), torch.randn(2, 3, 2), torch.randn(2, 3)
        terminated = torch.tensor([[False, False, True], [False, False, False]])
        mask = torch.tensor([[True, True, True], [True, False, False]])
        losses = mdn.losses(z, action, reward, terminated, mask)
        mixture = mdn.predict(mdn.unroll(z[:, :3], action)[0], z[:, :3], action)
        outcome = mdn.outcome(z[:, :3], action, z[:, 1:])
        nll = -reference_mixture(mixture).log_prob(z[:, 1:])
        probability = torch.sigmoid(outcome.termination_logit)
        cross_entropy = -torch.where(terminated, probability, 1 - probability).log()
        assert outcome.last_reward is not None
        predicted = torch.where(terminated, outcome.last_reward, outcome.reward)
        squared = 0.5 * ((predicted - reward) / torch.where(terminated, 20.0, 3.0)) ** 2
        parts = [values[mask].mean() for values in (nll, squared, cross_entropy)]
        for mine, expected in zip((losses.nll, losses.reward, losses.termination), parts, strict=True):
            torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(losses.total, 0.1 * parts[0] + 1.0 * parts[1] + 5.0 * parts[2])

    def test_no_gradient_flows_from_m_into_v_or_from_v_into_m(self):
        model = world_model()
        vae, mdn = model.losses(sequences([4, 6], 6))
        assert all(gradient is None for gradient in gradients(model.vae, mdn.total))
        assert all(gradient is None for gradient in gradients(model.mdn_rnn, vae.total))
        assert all(gradient is not None for gradient in gradients(model.vae, vae.total))
        assert all(gradient is not None for gradient in gradients(model.mdn_rnn, mdn.total))

    def test_m_sends_no_gradient_into_latents_given_to_it(self):
        z = torch.randn(2, 4, LATENT_DIM, requires_grad=True)
        rest = torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
        MDNRNN(mdn_config()).losses(z, torch.randn(2, 3, 2), torch.randn(2, 3), *rest).total.backward()
        assert z.grad is None

    def test_m_learns_on_the_means_whatever_mode_v_is_in(self):
        model, batch = world_model(), sequences([4, 6], 6)
        model.mdn_rnn.eval()
        model.vae.train()
        in_training = model.losses(batch)[1]
        model.vae.eval()
        assert torch.equal(in_training.total, model.losses(batch)[1].total)

    def test_half_of_what_the_outcome_head_learns_from_is_drawn_as_in_a_dream(self):
        mdn = MDNRNN(mdn_config(reward_loss_coeff=1.0, termination_loss_coeff=5.0)).train()
        z, action, reward = torch.randn(5, 2, LATENT_DIM), torch.randn(5, 1, 2), torch.randn(5, 1)
        terminated = torch.tensor([[True], [False], [False], [True], [False]])
        seed = 3
        torch.manual_seed(seed)
        losses = mdn.losses(z, action, reward, terminated, torch.ones(5, 1, dtype=torch.bool))
        now, after, action = z[:, 0], z[:, 1], action[:, 0]
        predicted = mdn.predict(mdn.unroll(z[:, :1], action[:, None])[0][:, 0], now, action)
        torch.manual_seed(seed)
        noise = draw_noise((5,), mdn.config.num_mixtures, LATENT_DIM, predicted.joint, z.device)
        draw = sample_mixture(explained(predicted, after), 1.0, noise)
        total = 0.1 * losses.nll
        for next_z in (after, draw):
            outcome = mdn.outcome(now, action, next_z)
            assert outcome.last_reward is not None
            expected = torch.where(terminated[:, 0], outcome.last_reward, outcome.reward)
            squared = 0.5 * (expected - reward[:, 0]) ** 2
            logit = outcome.termination_logit
            cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logit, terminated[:, 0].float())
            total = total + 0.5 * (squared.mean() + 5.0 * cross_entropy)
        torch.testing.assert_close(losses.total, total)

    def test_reward_is_predicted_in_the_environments_units(self):
        plain, scaled = MDNRNN(mdn_config()), MDNRNN(mdn_config())
        scaled.load_state_dict(plain.state_dict())
        scaled.set_normalisation(*map(torch.tensor, (50.0, 10.0, 200.0, 0.5)))
        inputs = torch.randn(5, LATENT_DIM), torch.randn(5, 2), torch.randn(5, LATENT_DIM)
        ours, theirs = scaled.outcome(*inputs), plain.outcome(*inputs)
        torch.testing.assert_close(ours.reward, 10.0 * theirs.reward + 50.0)
        torch.testing.assert_close(ours.last_reward, 200.0 * theirs.last_reward)
        # The units of rewards leave the termination logit alone, but for its bias, which starts at the base rate.
        shift = ours.termination_logit - theirs.termination_logit
        torch.testing.assert_close(shift, shift[:1].expand(5))

    def test_reward_and_termination_depend_on_all_of_the_transition(self):
        mdn = MDNRNN(mdn_config())
        inputs = [torch.randn(5, width, requires_grad=True) for width in (LATENT_DIM, 2, LATENT_DIM)]
        outcome = mdn.outcome(*inputs)
        for output in (outcome.reward, outcome.termination_logit):
            for gradient in torch.autograd.grad(output.sum(), inputs, retain_graph=True):
                assert torch.all(gradient.abs().sum(-1) > 0)

    def test_reward_and_termination_do_not_depend_on_the_past(self):
        mdn = MDNRNN(mdn_config())
        z, action, reward = torch.randn(2, 4, LATENT_DIM), torch.randn(2, 3, 2), torch.randn(2, 3)
        terminated = torch.tensor([[False, False, True], [False, True, False]])
        last = torch.tensor([[False, False, True]]).expand(2, 3)
        losses = mdn.losses(z, action, reward, terminated, last)
        z_of_another_past, action_of_another_past = z.clone(), action.clone()
        z_of_another_past[:, :2], action_of_another_past[:, :2] = 9.0, -9.0
        other = mdn.losses(z_of_another_past, action_of_another_past, reward, terminated, last)
        assert not torch.allclose(losses.nll, other.nll)
        for name in ("reward", "termination"):
            assert torch.equal(getattr(losses, name), getattr(other, name))
            assert all(gradient is None for gradient in gradients(mdn.lstm, getattr(losses, name)))
            assert all(gradient is not None for gradient in gradients(mdn.outcome_head, getattr(losses, name)))
        assert all(gradient is None for gradient in gradients(mdn.outcome_head, losses.nll))

    def test_reward_loss_does_not_depend_on_the_unit(self):
        plain, scaled = MDNRNN(mdn_config()), MDNRNN(mdn_config())
        scaled.load_state_dict(plain.state_dict())
        scaled.set_normalisation(*map(torch.tensor, (50.0, 10.0, 200.0, 0.5)))
        z, action, reward = torch.randn(2, 4, LATENT_DIM), torch.randn(2, 3, 2), torch.randn(2, 3)
        terminated, mask = torch.tensor([[False, False, True], [False] * 3]), torch.ones(2, 3, dtype=torch.bool)
        in_units = torch.where(terminated, 200.0 * reward, 10.0 * reward + 50.0)
        one = plain.losses(z, action, reward, terminated, mask)
        other = scaled.losses(z, action, in_units, terminated, mask)
        torch.testing.assert_close(one.reward, other.reward, rtol=1e-4, atol=1e-5)

    def test_a_users_class_replaces_m(self):
        model = world_model(mdn_rnn_class="custom_models:CustomMDNRNN")
        assert isinstance(model.mdn_rnn, CustomMDNRNN)
        batch = sequences([3], 3)
        torch.testing.assert_close(model.losses(batch)[1].reward, 0.5 * (batch.rewards - 7.0).square().mean())

    def test_learns_a_deterministic_system_better_than_z_stays(self):
        mdn = MDNRNN(mdn_config(latent_dim=2, hidden_dim=16, num_mixtures=2))
        optimizer = torch.optim.Adam(mdn.parameters(), lr=5e-3)
        for _ in range(300):
            loss = mdn.losses(*rotation(batch=32, time=8)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        z, action, reward, terminated, _ = rotation(batch=64, time=8)
        mixture = mdn.predict(mdn.unroll(z[:, :-1], action)[0], z[:, :-1], action)
        outcome = mdn.outcome(z[:, :-1], action, z[:, 1:])
        mean = (mixture.log_pi.exp()[..., None] * mixture.mean).sum(-2)
        staying, learned = (z[:, 1:] - z[:, :-1]).square().mean(), (z[:, 1:] - mean).square().mean()
        assert learned < 0.1 * staying
        assert (outcome.reward - reward).square().mean() < 0.1 * reward.var()
        ends = outcome.termination_logit.sigmoid()
        assert ends[terminated].mean() > ends[~terminated].mean() + 0.5


def perturb_padding(batch: SequenceBatch) -> SequenceBatch:
    """The batch with nonsense in every masked step and in every observation that no real step touches."""
    seen = torch.nn.functional.pad(batch.mask, (0, 1)) | torch.nn.functional.pad(batch.mask, (1, 0))
    return SequenceBatch(
        observations=torch.where(seen[..., None], batch.observations, torch.full_like(batch.observations, 77.0)),
        actions=torch.where(batch.mask, batch.actions, 1 - batch.actions),
        rewards=torch.where(batch.mask, batch.rewards, torch.full_like(batch.rewards, -55.0)),
        terminateds=torch.where(batch.mask, batch.terminateds, torch.ones_like(batch.terminateds)),
        mask=batch.mask,
    )


def losses_and_gradients(model: WorldModel, batch: SequenceBatch) -> list[Tensor]:
    """V's and M's total losses, and their gradients."""
    torch.manual_seed(1)
    vae, mdn = model.losses(batch)
    return [vae.total, mdn.total, *gradients(model.vae, vae.total), *gradients(model.mdn_rnn, mdn.total)]  # type: ignore[list-item]


def rotation(batch: int, time: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A point on a plane that one action turns left and the other right; it is rewarded and ends by where it is."""
    action = torch.nn.functional.one_hot(torch.randint(2, (batch, time)), 2).float()
    start = 6.28 * torch.rand(batch, 1)
    angles = torch.cat([start, start + torch.cumsum(0.7 * (action[..., 0] - action[..., 1]), dim=1)], dim=1)
    z = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return z, action, 3.0 * z[:, :-1, 0], z[:, 1:, 1] > 0.8, torch.ones(batch, time, dtype=torch.bool)


def world_model_weights(algo: Any) -> dict[str, Tensor]:
    """A copy of V's and M's weights at the learner."""
    state = algo.learner_group._learner.world_model.state_dict()
    return {name: value.clone() for name, value in state.items()}


def policy_weights(algo: Any) -> dict[str, Any]:
    """A copy of C's weights at the learner."""
    return copy.deepcopy(algo.learner_group._learner.module["default_policy"].get_state())


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of the weights that differ in any bit."""
    return {name for name in before if not np.array_equal(np.asarray(before[name]), np.asarray(after[name]))}


@pytest.fixture(scope="module")
def run(local_ray: None) -> Iterator[tuple[Any, list[dict[str, Any]], list[tuple[dict[str, Any], dict[str, Any]]]]]:
    """A tiny run: the algorithm, its results, and the weights (world model, policy) before the first and after each."""
    algo = tiny_config(imagination_ratio=0.9, updates_per_step=0.25).build_algo()
    weights = [(world_model_weights(algo), policy_weights(algo))]
    results = []
    for _ in range(5):
        results.append(algo.train())
        weights.append((world_model_weights(algo), policy_weights(algo)))
    yield algo, results, weights
    algo.stop()


class TestWorldModelPPOTrainer:
    def test_phases_come_in_order(self, run: Any):
        _, results, _ = run
        assert [result["phase"] for result in results] == ["random", "pretrain", "mixed", "mixed", "mixed"]

    def test_real_steps_are_counted(self, run: Any):
        _, results, _ = run
        steps = [result["num_env_steps_sampled_lifetime"] for result in results]
        assert steps == [RANDOM_STEPS, RANDOM_STEPS, *(RANDOM_STEPS + TRAIN_BATCH * n for n in (1, 2, 3))]

    @pytest.mark.parametrize(
        "name",
        ["vae/reconstruction_loss", "vae/kl_divergence", "mdn/nll", "mdn/reward_loss", "mdn/termination_loss"],
    )
    def test_world_model_losses_are_reported_from_pretraining_on(self, run: Any, name: str):
        _, results, _ = run
        rows = [progress_row(result) for result in results]
        assert rows[0].get(name) is None
        assert all(math.isfinite(row[name]) for row in rows[1:])
        assert len({row[name] for row in rows[2:]}) == 3  # a new value each time, not the last one repeated

    @pytest.mark.parametrize(
        "name",
        [
            *("imagination/ratio", "imagination/horizon", "imagination/return_gap", "rows/real", "rows/imagined"),
            *("ppo/policy_loss", "ppo/vf_loss", "ppo/entropy", "seconds/fit", "seconds/dream", "seconds/update"),
        ],
    )
    def test_imagination_is_reported_in_the_mixed_phase(self, run: Any, name: str):
        _, results, _ = run
        assert all(math.isfinite(progress_row(result)[name]) for result in results[2:])

    def test_the_ratio_is_realised_exactly_in_every_round(self, run: Any):
        _, results, _ = run
        for result in results[2:]:
            assert result["imagination"]["rows_by_round"] == [[TRAIN_BATCH, 9 * TRAIN_BATCH]] * ROUNDS
            assert result["rows"] == {"real": ROUNDS * TRAIN_BATCH, "imagined": ROUNDS * 9 * TRAIN_BATCH}
            assert result["imagination"]["ratio"] == pytest.approx(0.9, abs=1e-12)

    def test_random_phase_moves_no_weights(self, run: Any):
        _, _, weights = run
        assert not moved(weights[0][0], weights[1][0])
        assert not moved(weights[0][1], weights[1][1])

    def test_pretraining_fits_the_world_model_and_leaves_the_controller(self, run: Any):
        _, _, weights = run
        (world_before, policy_before), (world_after, policy_after) = weights[1], weights[2]
        constant = {"mdn_rnn.reward_scale", "mdn_rnn.last_reward_scale"}  # CartPole's rewards are all 1
        assert moved(world_before, world_after) == set(world_before) - constant
        assert not moved(policy_before, policy_after)

    def test_world_model_still_learns_in_the_mixed_phase(self, run: Any):
        _, results, weights = run
        units = {name for name in weights[0][0] if name.endswith(("_mean", "_scale"))}
        for (before, policy_before), (after, policy_after) in itertools.pairwise(weights[2:]):
            assert moved(before, after) - {"mdn_rnn.change_scale"} == set(before) - units  # that one may grow
            assert moved(policy_before, policy_after)
        assert [result["world_model"]["version"] for result in results] == [0, 1, 2, 3, 4]
        assert [result["policy"]["version"] for result in results] == [0, 0, 2, 4, 6]

    def test_env_runner_acts_with_the_learners_weights(self, run: Any):
        algo, _, weights = run
        runner = algo.env_runner_group.local_env_runner
        runner.pull()
        held = {name: value.clone() for name, value in runner.world_model.state_dict().items()}
        assert not moved(weights[-1][0], held)
        assert not moved(runner.module.get_state(), weights[-1][1])

    def test_policy_update_leaves_the_world_model_untouched(self, local_ray: None):
        algo = tiny_config(updates_per_step=0.0).build_algo()
        for _ in range(2):
            algo.train()
        before, policy_before = world_model_weights(algo), policy_weights(algo)
        result = algo.train()
        algo.stop()
        assert result["phase"] == "mixed"
        assert not moved(before, world_model_weights(algo))
        assert moved(policy_before, policy_weights(algo))

    def test_controller_on_z_alone(self, local_ray: None):
        algo = tiny_config(controller_inputs="z").build_algo()
        results = [algo.train() for _ in range(3)]
        module = algo.learner_group._learner.module["default_policy"]
        algo.stop()
        assert module.observation_space.shape == (3,)
        assert results[-1]["rows"] == {"real": ROUNDS * TRAIN_BATCH, "imagined": ROUNDS * TRAIN_BATCH}


class ChangingVAE(VariationalAutoencoder):
    """One that is another in training mode, as any with dropout or normalisation of batches."""

    def make_encoder(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.config.observation_shape[0], 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.Linear(16, 2 * self.config.latent_dim),
        )


def test_m_is_fitted_to_the_latents_that_c_sees():
    model = world_model(vae_class=ChangingVAE)
    batch = sequences([5, 3], 5)
    assert batch.observations is not None
    norm = model.vae.encoder[1]
    before = norm.running_mean.clone()
    torch.testing.assert_close(model.latents(batch.observations), model.eval().vae.encode(batch.observations))
    model.train()
    assert torch.equal(norm.running_mean, before)
    assert model.vae.training and norm.training
    seen = []
    model.mdn_rnn.losses = lambda z, *rest: seen.append(z)  # type: ignore[method-assign,assignment]
    model.losses(batch)
    torch.testing.assert_close(seen[0], model.eval().vae.encode(batch.observations))
    assert not seen[0].requires_grad


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
