"""M: an LSTM over [z, a] with a mixture density head, a reward head and a termination head (Ha & Schmidhuber 2018)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wm_rllib.models.config import MDNRNNConfig
from wm_rllib.models.ensemble import Ensemble
from wm_rllib.models.layers import mlp
from wm_rllib.models.masks import places
from wm_rllib.models.mixture import MixtureParams, draw_noise, explained, mixture_nll, sample_mixture
from wm_rllib.models.outcome import Outcome, OutcomeEnsemble, Truth

State = tuple[Tensor, Tensor]
"""The LSTM's (h, c), each [B, D]."""


@dataclass(frozen=True)
class MDNRNNLosses:
    """Scalars, means over the transitions of a batch that are not masked."""

    total: Tensor
    nll: Tensor
    reward: Tensor
    termination: Tensor


@dataclass(frozen=True)
class Ahead:
    """What comes after each step of sequences, beyond where they stop.

    steps_left [B, T]: steps of the episode that are known from this one on, this one included; anything on padding.
    terminates [B] bool: whether the last of them ends the episode.
    """

    steps_left: Tensor
    terminates: Tensor

    @classmethod
    def of_whole(cls, terminated: Tensor, mask: Tensor) -> Ahead:
        """Of sequences [B, T] that are all that is known of their episodes, from some step on."""
        steps = torch.arange(mask.shape[1], device=mask.device)
        return cls(mask.sum(1, keepdim=True) - steps, terminated.any(1))


SMALLEST_CHANGE = 1e-3
"""Of a latent from one step to the next, that is worth predicting."""
SMALLEST_OUTCOME_UNIT = 0.03
"""Of change, for the outcome head's inputs. Latents have a spread of about 1; those that V does not use change by less
than this, and in units of their own they would be as loud as the others, and all noise."""

TOLERATED_GROWTH = 3.0
"""A unit of rewards that is too small by less does no harm, and each change of units disturbs the optimiser."""
REWARD, LAST_REWARD, TERMINATION = 0, 1, 2
"""Columns of the outcome head's output."""

NUM_ENDS = 5
"""The head on h says whether the episode ends within 1, 2, 4, 8 and 16 steps. The first is what dreams ask for; from
the others h learns of dangers that are far, which the first, with one end in a hundred steps, would hardly teach."""


class MDNRNN(nn.Module):
    """Predicts z_{t+1} from (z_t, a_t) and the past; r_t and done_t from the transition (z_t, a_t, z_{t+1}).

    Reward and termination do not see h. With few episodes h mostly tells the time, and heads on h learn that time
    kills: after 1,050 real steps of CartPole a controller that never fails lived 53 dreamed steps with them, 89 without
    (medians).

    With `ends_from` "memory" a head on (h_{t+1}, z_t, a_t) says whether the episode ends, as in the paper, before
    z_{t+1} is drawn, and the mixture is not fitted to what comes after ends. That is for environments whose last
    observation is blank, or in which what kills may have left the picture; it needs thousands of ends.

    The mixture's weights have layers of their own. Gradients of means and of small sigmas are a hundred times those of
    the weights, and in shared layers that is all that Adam follows: on 14,000 steps of LunarLander-v3 with 80 touches
    of the ground, M gave them probabilities of 0.01 to 0.03 where they happened, and 0.2 with layers of their own.

    `step` and `unroll` run the same weights, one transition at a time or a whole sequence at once. Subclass and name
    the class in ``world_model.mdn_rnn.class`` to replace it. Dreams run `wm_rllib.models.fused` in place of `step`,
    `predict` and `outcome` where none of them is overridden: a change to one of these must be made there too.

    Args:
        config: Sizes and loss weights.
    """

    reward_mean: Tensor
    reward_scale: Tensor
    last_reward_scale: Tensor
    change_scale: Tensor
    has_change_scale: Tensor

    def __init__(self, config: MDNRNNConfig):
        super().__init__()
        self.config = config
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_scale", torch.ones(()))
        self.register_buffer("last_reward_scale", torch.ones(()))
        self.register_buffer("change_scale", torch.ones(config.latent_dim))
        self.register_buffer("has_change_scale", torch.zeros((), dtype=torch.bool))
        input_dim = config.latent_dim + config.action_dim
        self.lstm = nn.LSTM(input_dim, config.hidden_dim, batch_first=True)
        mixture_logits = config.num_mixtures * (1 if config.mixture == "joint" else config.latent_dim)
        # Widths of logits, means and log sigmas.
        self.sizes = [mixture_logits, *[config.num_mixtures * config.latent_dim] * 2]
        head_input = config.hidden_dim + input_dim
        self.weight_head = mlp(head_input, config.head_hidden_dims, mixture_logits)
        self.mixture_head = mlp(head_input, config.head_hidden_dims, sum(self.sizes[1:]))
        self.ensemble = Ensemble(input_dim, config.latent_dim, config.ensemble_size) if config.ensemble_size else None
        self.outcome_ensemble = OutcomeEnsemble(input_dim, config.ensemble_size) if config.ensemble_size else None
        self.outcome_head = mlp(input_dim + config.latent_dim, config.head_hidden_dims, 3)
        self.ends_head = mlp(head_input, config.head_hidden_dims, NUM_ENDS) if config.ends_from == "memory" else None

    @torch.no_grad()
    def set_normalisation(
        self, reward_mean: Tensor, reward_scale: Tensor, last_reward_scale: Tensor, termination_rate: Tensor
    ) -> None:
        """Fixes the units of the reward head, and starts the termination head at the base rate.

        A head that starts at one half ends most early dreams at once, and where rewards are negative a policy learns
        to look for those ends. An M whose outcome head has other layers starts as it is made.

        Args:
            reward_mean: Scalar; the head predicts (r - reward_mean) / reward_scale.
            reward_scale: Scalar above 0.
            last_reward_scale: Scalar above 0; a terminating transition's reward is predicted as r / last_reward_scale.
            termination_rate: Scalar in (0, 1), terminations a step.
        """
        self.reward_mean.copy_(reward_mean)
        self.reward_scale.copy_(reward_scale)
        self.last_reward_scale.copy_(last_reward_scale)
        last = _linear(self.outcome_head, -1)
        if last is not None and last.out_features > TERMINATION:
            last.bias[TERMINATION] = torch.logit(termination_rate.to(last.bias))
        ends = None if self.ends_head is None else _linear(self.ends_head, -1)
        if ends is not None:
            ends.bias.fill_(torch.logit(termination_rate))

    @torch.no_grad()
    def grow_change_scale(self, spread: Tensor) -> None:
        """Takes the units of change from how much latents change in a step; later on, units only grow.

        A head whose units are whole latents starts with errors larger than what it has to predict: a step changes a
        latent by a few hundredths. But a latent that random actions never moved (a leg that has not touched the ground)
        would be a thousand of its units away when it first moves, and its errors all that M learns from. When units
        grow, the heads' weights change so that predictions stay what they were (PopArt), but for log sigma's limits. An
        M with heads of other layers keeps its first units.

        Args:
            spread: How large z_{t+1} - z_t is, [Z]: its standard deviations, or what it is in each step.
        """
        if not self.config.residual:
            return
        measured = spread.clamp(min=SMALLEST_CHANGE)
        if not self.has_change_scale:
            self.change_scale.copy_(measured)
            self.has_change_scale.fill_(True)
            return
        last, first = _linear(self.mixture_head, -1), _linear(self.outcome_head, 0)
        if last is not None and first is not None:
            change, outcome = self.change_scale.clone(), self.outcome_scale
            self.change_scale.copy_(torch.maximum(change, measured))
            self._rescale_mixture(last, (change / self.change_scale).repeat(self.config.num_mixtures))
            first.weight[:, -len(change) :] *= self.outcome_scale / outcome

    @torch.no_grad()
    def grow_reward_scales(self, ordinary: Tensor, last: Tensor) -> None:
        """Takes larger units of rewards where the first ones have become far too small.

        Random actions may never have met the goal that an environment is about, or run as fast as is paid for: in units
        of a thousandth of what it pays, its error would be all that M learns from, and the head would be long in coming
        to promise it. Predictions stay what they were, as when units of change grow. An M that predicts otherwise keeps
        its first units.

        Args:
            ordinary: Root mean square of how far rewards that do not end an episode are from `reward_mean`, scalar; NaN
                of none.
            last: Root mean square of those that do.
        """
        layer = _linear(self.outcome_head, -1)
        if layer is None or type(self).decode_outcome is not MDNRNN.decode_outcome:
            return
        for unit, measured, column in (
            (self.reward_scale, ordinary, REWARD),
            (self.last_reward_scale, last, LAST_REWARD),
        ):
            grows = measured.isfinite() & (measured > TOLERATED_GROWTH * unit)
            factor = torch.where(grows, unit / measured, torch.ones_like(unit))
            layer.weight[column] *= factor
            layer.bias[column] *= factor
            if self.outcome_ensemble is not None:
                self.outcome_ensemble.weight[..., column] *= factor
                self.outcome_ensemble.bias[..., column] *= factor
            unit /= factor

    def _rescale_mixture(self, last: nn.Linear, factors: Tensor) -> None:
        """Multiplies the means and sigmas [K Z] that the mixture head's last layer predicts."""
        width = len(factors)
        last.weight[:width] *= factors[:, None]
        last.bias[:width] *= factors
        # Far below the range a sigma would be long in coming back; at its edge it is what it was.
        lowest = last.bias[width:].clamp(max=self.config.log_sigma_range[0])
        last.bias[width:] = torch.maximum(last.bias[width:] + factors.log(), lowest)

    def initial_state(self, batch_size: int) -> State:
        """The state before anything was seen: zeros, [B, D] each."""
        zeros = torch.zeros(batch_size, self.config.hidden_dim, device=self.reward_mean.device)
        return zeros, zeros.clone()

    def step(self, z: Tensor, action: Tensor, state: State) -> State:
        """h_{t+1} of z_t [B, Z], a_t [B, A] (model input) and h_t."""
        lstm = self.lstm
        inputs = torch.cat([z, action], -1)
        h, c = torch.lstm_cell(inputs, state, lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0)  # type: ignore[arg-type]
        return h, c

    def unroll(self, z: Tensor, action: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """All of h_1 .. h_T [B, T, D], and the last state, of z_0 .. z_{T-1} [B, T, Z] and a_0 .. a_{T-1} [B, T, A]."""
        if state is None:
            state = self.initial_state(z.shape[0])
        inputs = torch.cat([z, action], -1).to(next(self.lstm.parameters()).dtype)
        # Under autocast cuDNN's LSTM would compute in float16 whatever autocast is told, and small gradients be lost.
        with torch.autocast("cuda", enabled=False) if inputs.is_cuda else nullcontext():
            output, (h, c) = self.lstm(inputs, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
        return output, (h.squeeze(0), c.squeeze(0))

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        """p(z_{t+1}) from h_{t+1} [..., D], z_t [..., Z] and a_t [..., A]."""
        inputs = torch.cat([next_h, z, action], -1)
        return self.decode_mixture(torch.cat([self.weight_head(inputs), self.mixture_head(inputs)], -1), z)

    def decode_mixture(self, out: Tensor, z: Tensor) -> MixtureParams:
        """The mixture that both heads' outputs [..., sum(sizes)] stand for: logits, means, log sigmas, all float32."""
        logits, mean, log_sigma = torch.split(out.float(), self.sizes, -1)  # bfloat16 under autocast
        shape = (*out.shape[:-1], self.config.num_mixtures, self.config.latent_dim)
        mean = mean.reshape(shape) * self.change_scale
        if self.config.residual:
            mean = mean + z.unsqueeze(-2)
        log_sigma = log_sigma.reshape(shape).clamp(*self.config.log_sigma_range)
        if self.config.mixture == "per_dimension":
            log_pi = torch.log_softmax(logits.reshape(shape), dim=-2)
        else:
            log_pi = torch.log_softmax(logits, dim=-1)
        return MixtureParams(log_pi, mean, log_sigma + self.change_scale.log())

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        """r_t and done_t of the transition from z_t [..., Z] by a_t [..., A] to z_{t+1} [..., Z].

        The head sees the change, in its own units: many rewards are differences from step to step, which a network on
        z_t and z_{t+1} has to find in their last digits.
        """
        return self.decode_outcome(self.outcome_head(torch.cat([z, action, (next_z - z) / self.outcome_scale], -1)))

    def outcome_of(self, next_h: Tensor, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        """What `outcome` says; whether it is an end by h_{t+1} [..., D] too, if that is what ends are read from."""
        outcome = self.outcome(z, action, next_z)
        return outcome if self.ends_head is None else self._ended_by_memory(outcome, next_h, z, action)

    def _ended_by_memory(self, outcome: Outcome, next_h: Tensor, z: Tensor, action: Tensor) -> Outcome:
        assert self.ends_head is not None
        logits = self.ends_head(torch.cat([next_h, z, action], -1))
        return replace(outcome, termination_logit=logits[..., 0].float())  # bfloat16 under autocast

    @property
    def outcome_scale(self) -> Tensor:
        """Units [Z] of the change that the outcome head sees: those of one step, but none that are very small."""
        return self.change_scale.clamp(min=SMALLEST_OUTCOME_UNIT)

    def decode_outcome(self, out: Tensor) -> Outcome:
        """What the outcome head's output [..., 3] stands for, float32; its last column is the logit of termination."""
        reward, last_reward, termination_logit = out.float().unbind(-1)  # bfloat16 under autocast
        reward = reward * self.reward_scale + self.reward_mean
        return Outcome(reward, termination_logit, last_reward * self.last_reward_scale)

    def disagreement(self, z: Tensor, action: Tensor) -> Tensor:
        """How unsure M is of what follows z_t [N, Z] and a_t [N, A]: [N], 1 is the most that is usual on real steps.

        0 without an ensemble.
        """
        if self.ensemble is None:
            return z.new_zeros(len(z))
        return self.ensemble.disagreement(torch.cat([z, action], -1))

    def optimism(self, z: Tensor, action: Tensor) -> Tensor:
        """How much better than expected the reward of z_t [N, Z] and a_t [N, A] may turn out: [N], in its own units.

        The standard deviation of the expected reward over the members, above what is usual on real steps. 0 without an
        ensemble.
        """
        if self.outcome_ensemble is None:
            return z.new_zeros(len(z))
        members = self.decode_outcome(self.outcome_ensemble.predict(torch.cat([z, action], -1)))
        return (members.reward_spread() - self.outcome_ensemble.usual).clamp(min=0.0)

    def losses(
        self,
        z: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        mask: Tensor,
        num_real: int | None = None,
        ahead: Ahead | None = None,
    ) -> MDNRNNLosses:
        """Losses of sequences that each lie within one episode.

        Args:
            z: [B, T + 1, Z]; no gradient is sent into it.
            action: [B, T, A] model input.
            reward: [B, T] in the environment's units.
            terminated: [B, T] bool; truncation is not termination.
            mask: [B, T] bool; False on padding, which comes last in a row.
            num_real: How many in `mask` are True, if the host knows.
            ahead: What the head on h, if there is one, learns of ends that are further off. None: the sequences are all
                that is known of their episodes.

        Returns:
            Means over the unmasked transitions: `nll` in nats, `reward` half squared error in normalised units,
            `termination` cross-entropy in nats, not weighted; `total` weighs them by the config, and has the ensemble's
            loss, that of shuffled transitions and that of drawn next latents in it.
        """
        z = z.detach()
        noisy, shift = self._disturbed(z[:, :-1])
        hidden, _ = self.unroll(noisy, action)
        # Heads see the transitions that happened and no others: with short episodes, half of a batch is padding.
        rows = places(mask, num_real)
        if ahead is None and self.ends_head is not None:
            ahead = Ahead.of_whole(terminated, mask)
        hidden, noisy, shift, now, after, action, reward, terminated = (
            x.flatten(0, 1)[rows] for x in (hidden, noisy, shift, z[:, :-1], z[:, 1:], action, reward, terminated)
        )
        predicted = self.predict(hidden, noisy, action)
        log_likelihood_error = mixture_nll(predicted, after)
        if self.ends_head is None:
            nll = _mean(log_likelihood_error)
        else:
            nll = torch.where(terminated, 0.0, log_likelihood_error).sum() / (~terminated).sum().clamp(min=1)
        truth = Truth(reward, terminated, torch.where(terminated, self.last_reward_scale, self.reward_scale))
        outcome = self.outcome(now + shift, action, after + shift)
        drawn = self.outcome(noisy, action, self._draw(predicted, after)) if self.training else outcome
        later_ends: Tensor | float = 0.0
        if self.ends_head is not None and ahead is not None:
            logits = self.ends_head(torch.cat([hidden, noisy, action], -1)).float()
            outcome, drawn = (replace(each, termination_logit=logits[:, 0]) for each in (outcome, drawn))
            later_ends = _later_ends_loss(logits[:, 1:], ahead, rows)
        weight = self.config.termination_positive_weight
        # Half of it from what happened, half from what M would have drawn for it: see `_draw`.
        reward_loss = _mean(truth.reward_error(outcome))
        reward_error = (reward_loss + _mean(truth.reward_error(drawn))) / 2
        termination_error = sum(_mean(truth.termination_error(each, weight)) for each in (outcome, drawn)) / 2
        total = (
            self.config.nll_coeff * nll
            + self.config.reward_loss_coeff * reward_error
            + self.config.termination_loss_coeff
            * (termination_error + later_ends + self._shuffled_loss(now, action, after - now))
            + self._ensemble_loss(torch.cat([now, action], -1), after - now, truth)
        )
        return MDNRNNLosses(total, nll, reward_loss, _mean(truth.termination_error(outcome)))

    @torch.no_grad()
    def _draw(self, predicted: MixtureParams, after: Tensor) -> Tensor:
        """Next latents [N, Z] as a dream would draw them, by the components that explain those that came, `after`.

        In a dream the outcome head sees such draws and nothing else. Of an impact, say, they have the speed, but not to
        the last digit: a head that was fitted to what happened alone does not know a crash again, and gives a leg that
        is said to touch the ground a little the reward of touching it a little.
        """
        count, num_mixtures, latent_dim = predicted.mean.shape
        noise = draw_noise((count,), num_mixtures, latent_dim, predicted.joint, after.device)
        return sample_mixture(explained(predicted, after), 1.0, noise)

    def _shuffled_loss(self, z: Tensor, action: Tensor, change: Tensor) -> Tensor | float:
        """Cross-entropy of "no termination" on transitions that are put together from parts of real ones.

        Whatever was never seen to end an episode is to be tried, not to be feared: of a lander's legs on the ground,
        random actions show nothing but crashes, and what tells a crash is then as well the height as the speed. Each
        dimension of z [N, Z] and of its change [N, Z], and the action [N, A], come from other transitions. Where ends
        were seen the real ones outweigh these.
        """
        weight = self.config.shuffled_coeff
        if not (self.training and weight and len(z)) or self.ends_head is not None:
            return 0.0
        parts = torch.cat([z, change], -1)
        mixed_z, mixed_change = parts.gather(0, torch.rand_like(parts).argsort(0)).chunk(2, -1)
        outcome = self.outcome(mixed_z, action[torch.randperm(len(z), device=z.device)], mixed_z + mixed_change)
        logit = outcome.termination_logit + math.log(self.config.termination_positive_weight)
        return weight * nn.functional.softplus(logit).mean()

    def _disturbed(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, T, Z] with noise, as M's input in training, and a shift [B, T, Z] for the outcome head's.

        What M is told to predict stays the true next latent: it learns to come back to where real latents are, from the
        small errors that its own steps add up to in a dream (Sanchez-Gonzalez et al. 2020).
        """
        if not self.training or not self.config.input_noise:
            return z, torch.zeros_like(z)
        size = self.config.input_noise * self.change_scale
        return z + size * torch.randn_like(z), size * torch.randn_like(z)

    def _ensemble_loss(self, inputs: Tensor, change: Tensor, truth: Truth) -> Tensor | float:
        if self.ensemble is None or self.outcome_ensemble is None:
            return 0.0
        members = self.decode_outcome(self.outcome_ensemble.predict(inputs))
        return self.ensemble.loss(inputs, change) + self.outcome_ensemble.loss(
            members, truth, self.config.termination_positive_weight
        )


def _later_ends_loss(logits: Tensor, ahead: Ahead, rows: Tensor) -> Tensor:
    """Cross-entropy of whether episodes end within 2, 4, 8 and 16 steps; their sum, means over steps.

    Nothing is learned where that is not known. It must not depend on where in its sequence a step is: by what a
    sequence itself shows, its last steps would be known where it ends and not where it goes on, and M learn to count.

    Args:
        logits: [N, E - 1], of the steps that happened.
        ahead: Of the sequences, B of T steps.
        rows: [N], where the steps are in [B T].
    """
    left = ahead.steps_left.flatten()[rows, None]
    ends = ahead.terminates[:, None].expand_as(ahead.steps_left).flatten()[rows, None]
    within = 2 ** torch.arange(1, NUM_ENDS, device=left.device)  # of a list, it would be copied from the host
    known = (ends | (left >= within)).to(logits)
    target = (ends & (left <= within)).to(logits)
    errors = nn.functional.binary_cross_entropy_with_logits(logits, target, weight=known, reduction="none")
    return (errors.sum(0) / known.sum(0).clamp(min=1.0)).sum()


def _linear(network: nn.Module, index: int) -> nn.Linear | None:
    """A layer of a sequence of layers, if it is one and the layer is linear."""
    layer = network[index] if isinstance(network, nn.Sequential) else None
    return layer if isinstance(layer, nn.Linear) else None


def _mean(values: Tensor) -> Tensor:
    """The mean of [N], 0 for N = 0."""
    return values.sum() / max(1, len(values))
