"""`MDNRNN`'s own step, prediction and outcome for a fixed number of lanes, in place: what dreams spend their time on.

A lane is one row [h | z | a | z' | c] of a matrix, so that what each network takes is a slice of it and nothing is
concatenated: the LSTM takes [h, z, a]; M's head, once h has been overwritten by h', takes [h', z, a]; the outcome
head takes [z, a, z'], once its first layer has been rewritten for them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wm_rllib.models.cutting import Cuts, Cutter
from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureNoise
from wm_rllib.models.stack import Stack, affine, flat_layers, is_plain


def can_fuse_step(mdn_rnn: MDNRNN) -> bool:
    """Whether `step` is MDNRNN's own, on the LSTM that it builds."""
    lstm = mdn_rnn.lstm
    built = is_plain(lstm, nn.LSTM) and lstm.num_layers == 1 and lstm.bias and not lstm.proj_size
    return type(mdn_rnn).step is MDNRNN.step and built and not lstm.bidirectional


def can_fuse(mdn_rnn: MDNRNN) -> bool:
    """Whether this M does what is written here: a subclass that overrides one of these methods is left alone."""
    own = all(
        getattr(type(mdn_rnn), name) is getattr(MDNRNN, name)
        for name in ("predict", "outcome", "outcome_of", "decode_mixture", "decode_outcome")
    )
    mixture, outcome = flat_layers(mdn_rnn.mixture_head), flat_layers(mdn_rnn.outcome_head)
    linear = all(is_plain(layer, nn.Linear) for layer in (mixture[-1], outcome[0], outcome[-1]))
    return own and can_fuse_step(mdn_rnn) and linear


class Cell:
    """An LSTM's step on [h, z, a], in place.

    With the candidate gate's weights doubled, one sigmoid serves all gates: tanh(x) = 2 sigmoid(2 x) - 1.

    Args:
        lstm: Its weights are copied.
        rows: B.
        dtype: What its product is computed in; see `affine`.
    """

    def __init__(self, lstm: nn.LSTM, rows: int, dtype: torch.dtype = torch.float32):
        size = lstm.hidden_size
        weight_ih, weight_hh, bias_ih, bias_hh = (parameter.detach() for parameter in lstm.parameters())
        weight, bias = torch.cat([weight_hh, weight_ih], 1), bias_ih + bias_hh
        weight[2 * size : 3 * size] *= 2.0
        bias[2 * size : 3 * size] *= 2.0
        self._affine = affine(weight, bias, rows, dtype)
        self._size = size
        self._scratch = weight.new_empty(rows, size)

    def __call__(self, inputs: Tensor, h: Tensor, c: Tensor) -> None:
        """Overwrites h and c [B, D] by those after inputs [B, D + Z + A]; h may be a slice of the inputs."""
        write, keep, candidate, output = torch.split(self._affine(inputs).sigmoid_(), self._size, 1)
        c.mul_(keep).addcmul_(write, candidate, value=2.0).sub_(write)
        squashed = torch.add(c, c, out=self._scratch).sigmoid_()
        torch.mul(output, squashed.mul_(2.0).sub_(1.0), out=h)


def fused_burn_in(
    mdn_rnn: MDNRNN, z: Tensor, action: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32
) -> State:
    """The state after z [B, L + 1, Z] (the last one is not taken in) and action [B, L, A], where mask [B, L] is True.

    Padding comes first in a row, so that a row's state is zero until its first real transition.
    """
    rows, size = len(z), mdn_rnn.config.hidden_dim
    h, c = mdn_rnn.initial_state(rows)
    cell = Cell(mdn_rnn.lstm, rows, dtype)
    inputs = torch.cat([h, z[:, 0], action.new_empty(rows, action.shape[-1])], 1)
    hidden, latent, chosen = torch.split(inputs, [size, z.shape[-1], action.shape[-1]], 1)
    keep = mask.to(z).unsqueeze(-1)
    for t in range(mask.shape[1]):
        latent.copy_(z[:, t])
        chosen.copy_(action[:, t])
        cell(inputs, hidden, c)
        hidden.mul_(keep[:, t])
        c.mul_(keep[:, t])
    return h.copy_(hidden), c


class Lanes:
    """Rows of the lanes [B, .] and, below them, of the start states [B, .], as views of one matrix.

    Args:
        mdn_rnn: For the sizes.
        start_z: [B, Z].
        start_state: [B, D] each.
    """

    def __init__(self, mdn_rnn: MDNRNN, start_z: Tensor, start_state: State):
        z, action, h = mdn_rnn.config.latent_dim, mdn_rnn.config.action_dim, mdn_rnn.config.hidden_dim
        rows = len(start_z)
        self.all = start_z.new_zeros(2 * rows, h + z + action + z + h)
        for half in torch.split(self.all, rows):
            half[:, :h], half[:, -h:] = start_state
            half[:, h : h + z] = start_z
        self.live = self.all[:rows]
        self.h, self.z, self.action, self.next_z, self.c = torch.split(self.live, [h, z, action, z, h], 1)
        self.step_input = self.live[:, : h + z + action]
        self.outcome_input = self.live[:, h : h + z + action + z]


class MixtureHead:
    """M's mixture heads and a draw; only the chosen component is taken out of the head of means and sigmas.

    That head's outputs are reordered so that a component's lie together: [B, K, mean Z | log sigma Z].

    Args:
        mdn_rnn: Its weights are copied.
        rows: B.
        dtype: What its products are computed in; see `affine`.
    """

    def __init__(self, mdn_rnn: MDNRNN, rows: int, dtype: torch.dtype = torch.float32):
        config = mdn_rnn.config
        self._config = config
        components, width = config.num_mixtures, config.latent_dim
        self._joint = config.mixture == "joint"
        device = mdn_rnn.reward_mean.device
        parts = torch.arange(2 * components * width, device=device).view(2, components, width)
        self._network = Stack(flat_layers(mdn_rnn.mixture_head), rows, parts.transpose(0, 1).flatten(), dtype)
        self._weights = Stack(flat_layers(mdn_rnn.weight_head), rows, dtype=dtype)
        self._shape = (rows, components, 2 * width)
        self._offsets = components * torch.arange(rows, device=device)
        self._change_scale = mdn_rnn.change_scale

    def sample(self, inputs: Tensor, gumbel: Tensor, normal: Tensor, z: Tensor, out: Tensor) -> None:
        """Writes a draw [B, Z].

        Args:
            inputs: [h', z, a], [B, D + Z + A].
            gumbel: Noise like the logits, times the temperature: then arg max needs neither division nor softmax.
            normal: Normal noise times the temperature's root [B, Z].
            z: [B, Z].
            out: [B, Z].
        """
        packed, logits = self._network(inputs).view(self._shape), self._weights(inputs)
        if self._joint:
            chosen = (logits + gumbel).argmax(1) + self._offsets
            mean, log_sigma = packed.flatten(0, 1).index_select(0, chosen).chunk(2, 1)
        else:
            means, log_sigmas = packed.chunk(2, 2)
            chosen = (logits.view_as(gumbel) + gumbel).argmax(1, keepdim=True)
            mean, log_sigma = means.gather(1, chosen).squeeze(1), log_sigmas.gather(1, chosen).squeeze(1)
        torch.addcmul(mean, log_sigma.clamp_(*self._config.log_sigma_range).exp_(), normal, out=out)
        out.mul_(self._change_scale)
        if self._config.residual:
            out.add_(z)


def outcome_layers(mdn_rnn: MDNRNN) -> list[nn.Module]:
    """The outcome head as layers that take [z, a, z'] where its own take [z, a, (z' - z) / outcome scale]."""
    first, *rest = flat_layers(mdn_rnn.outcome_head)
    assert isinstance(first, nn.Linear)
    width = mdn_rnn.config.latent_dim
    folded = nn.Linear(first.in_features, first.out_features, device=first.weight.device)
    with torch.no_grad():
        change = first.weight[:, -width:] / mdn_rnn.outcome_scale
        folded.weight.copy_(first.weight)
        folded.weight[:, :width] -= change
        folded.weight[:, -width:] = change
        folded.bias.zero_() if first.bias is None else folded.bias.copy_(first.bias)
    return [folded, *rest]


class EndsHead:
    """M's head on [h', z, a] that says whether the episode ends, where there is one.

    Args:
        mdn_rnn: Its weights are copied.
        rows: B.
    """

    def __init__(self, mdn_rnn: MDNRNN, rows: int):
        head = mdn_rnn.ends_head
        self._network = None if head is None else Stack(flat_layers(head), rows)

    @property
    def is_there(self) -> bool:
        """Whether M has one."""
        return self._network is not None

    def write(self, inputs: Tensor, out: Tensor) -> None:
        """Writes the logits [B] of inputs [B, D + Z + A], if it is there."""
        if self._network is not None:
            out.copy_(self._network(inputs)[:, 0])


class FusedTransition:
    """Steps of all lanes through M. See `wm_rllib.models.dreaming.Transition`.

    Args:
        mdn_rnn: One that `can_fuse` accepts; its weights are copied.
        start_z: [B, Z].
        start_state: [B, D] each.
        noise: gumbel [H, B, .], normal [H, B, Z].
        temperature: tau.
        death_logit: [H, B]; a lane ends where M's logit of termination is above it.
        restart: [H, B]; the start state that a lane goes on from then.
        cutter: Ends dreams of which M is unsure, or None.
        dtype: What the LSTM's and the mixture's products are computed in. Rewards and terminations stay float32: they
            are read off the change of z, a difference that bfloat16 has no digits for.
    """

    def __init__(
        self,
        mdn_rnn: MDNRNN,
        start_z: Tensor,
        start_state: State,
        noise: MixtureNoise,
        temperature: float,
        death_logit: Tensor,
        restart: Tensor,
        cutter: Cutter | None,
        dtype: torch.dtype = torch.float32,
    ):
        rows = len(start_z)
        self._mdn_rnn = mdn_rnn
        self._lanes, self._spare = (Lanes(mdn_rnn, start_z, start_state) for _ in range(2))
        self._cell = Cell(mdn_rnn.lstm, rows, dtype)
        self._head = MixtureHead(mdn_rnn, rows, dtype)
        self._outcome = Stack(outcome_layers(mdn_rnn), rows)
        self._ends = EndsHead(mdn_rnn, rows)
        self._gumbel, self._normal = temperature * noise.gumbel, math.sqrt(temperature) * noise.normal
        self._death_logit = death_logit
        self._cutter = cutter
        self._source = torch.arange(rows, device=start_z.device)
        self._restart = restart + rows
        self._outcomes: list[Tensor] = []
        self._terminateds: list[Tensor] = []

    @property
    def z(self) -> Tensor:
        """[B, Z]."""
        return self._lanes.z

    @property
    def h(self) -> Tensor:
        """[B, D]."""
        return self._lanes.h

    @property
    def action(self) -> Tensor:
        """[B, A], to be written before `advance`."""
        return self._lanes.action

    def advance(self, t: int, *, restarts: bool) -> None:
        """One step; lanes that end go on from a start state unless `restarts` is False."""
        lanes = self._lanes
        self._cell(lanes.step_input, lanes.h, lanes.c)
        self._head.sample(lanes.step_input, self._gumbel[t], self._normal[t], lanes.z, lanes.next_z)
        outcome = self._outcome(lanes.outcome_input).clone()
        self._ends.write(lanes.step_input, outcome[:, -1])
        terminated = outcome[:, -1] > self._death_logit[t]
        self._outcomes.append(outcome)
        self._terminateds.append(terminated)
        ended = terminated
        if restarts and self._cutter:
            ended = self._cutter.cut(lanes.z, lanes.action, terminated, lanes.next_z, lanes.h)
        lanes.z.copy_(lanes.next_z)
        if restarts:
            source = torch.where(ended, self._restart[t], self._source)
            torch.index_select(lanes.all, 0, source, out=self._spare.live)
            self._lanes, self._spare = self._spare, lanes

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """Rewards and terminateds of all steps so far, [B, H]."""
        outcome, terminateds = torch.stack(self._outcomes, 1), torch.stack(self._terminateds, 1)
        return self._mdn_rnn.decode_outcome(outcome).reward_if(terminateds), terminateds

    def cuts(self) -> Cuts | None:
        """See `wm_rllib.models.dreaming.Transition`."""
        return self._cutter.cuts() if self._cutter else None
