"""One judgement of M: its skill on fresh experience, and its dreams' returns against real ones.

For the gate of `imagination_ratio="auto"`, and for people at each evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from wm_rllib.columns import CHUNK, GREEDY, MASK, OFFSET, REACH
from wm_rllib.learners.gate import Judgement
from wm_rllib.models.controller import ActionSampler, Controller
from wm_rllib.models.dreaming import Dream, dream
from wm_rllib.models.judging import Windows, dreamed_returns, open_loop_skill, real_returns
from wm_rllib.models.trust import calibrate, end_probabilities, open_loop_errors
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.replay import Arrays
from wm_rllib.rl_modules.policy_network import make_policy

GAP_HORIZON = 15
"""Steps over which dreamed and real returns are compared: an iteration brings few longer stretches of one episode."""


def judge_world_model(
    world_model: WorldModel, module: Any, arrays: Arrays, *, burn_in: int, gamma: float, temperature: float
) -> Judgement:
    """Judges M on windows of experience that it was not fitted to.

    Args:
        world_model: V and M.
        module: C with its critic, which acted in these windows.
        arrays: As `SequenceReplay.newest_windows` returns them.
        burn_in: L of the windows.
        gamma: Discount of the returns.
        temperature: tau of the dreams.
    """

    def column(name: str) -> Tensor:
        return torch.tensor(arrays[name], device=world_model.device)

    names = (Columns.OBS, Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS, MASK)
    windows = Windows(burn_in, *map(column, names))
    skill = open_loop_skill(world_model, windows)

    def values(features: Tensor) -> Tensor:
        return module.compute_values({Columns.OBS: features})

    near = windows.first(GAP_HORIZON)
    with torch.no_grad():
        real = real_returns(world_model, near, values, gamma)
        lanes, acted_alike = _dream_alike(world_model, module, near, temperature, column(GREEDY))
        dreamed = dreamed_returns(lanes, values, gamma, column(REACH).clamp(max=near.horizon))
    stretches = np.stack([arrays[CHUNK], arrays[OFFSET] // GAP_HORIZON])
    gap = _gap((dreamed - real)[acted_alike].cpu().numpy(), stretches[:, acted_alike.cpu().numpy()])
    return Judgement(
        skill=_skill_by_step(torch.minimum(skill.observation, skill.reward)),
        gap=gap[0],
        gap_error=gap[1],
        return_scale=_return_scale(module, real[acted_alike]),
        trust=_trust(world_model, windows, temperature),
    )


def _dream_alike(
    world_model: WorldModel, module: Any, windows: Windows, temperature: float, greedy: Tensor
) -> tuple[Dream, Tensor]:
    """Dreams from the windows' starts, acted as the real steps were: greedily where greedy [N]; and where so [N].

    A C that draws its own noise explores in every dream.
    """
    policy = make_policy(module)
    acts_alike = isinstance(policy, Controller)
    if isinstance(policy, Controller):
        sampler = SomeGreedy(policy.sampler, module.get_inference_action_dist_cls(), greedy)
        policy = dataclasses.replace(policy, sampler=sampler)
    z, state = windows.start(world_model)
    lanes = dream(world_model, policy, z, state, windows.horizon, temperature)
    return lanes, torch.ones_like(greedy) if acts_alike else ~greedy


class SomeGreedy:
    """An `ActionSampler` that is greedy in some lanes, by the same distribution as an env runner's greedy environments.

    Args:
        sampler: What the other lanes draw from.
        distribution: RLlib's class of greedy actions.
        greedy: [N] bool, by lane.
    """

    def __init__(self, sampler: ActionSampler, distribution: Any, greedy: Tensor):
        self._sampler, self._distribution, self._greedy = sampler, distribution, greedy
        self.input_dim, self.draw, self.logp = sampler.input_dim, sampler.draw, sampler.logp

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """See `ActionSampler`."""
        drawn = self._sampler.sample(inputs, noise)
        best = self._distribution.from_logits(inputs).to_deterministic().sample()
        return torch.where(self._greedy.view(-1, *[1] * (drawn.ndim - 1)), best, drawn)


def _return_scale(module: Any, returns: Tensor) -> float:
    """The spread of returns [N] as the critic knows it or, before the first merged update has told it, as they have it.

    Rewards in the hundreds would close the gate otherwise, and nothing but an update with dreams moves those units.
    """
    scale = float(getattr(module, "value_scale", 1.0))
    if scale == 1.0 and len(returns):
        scale = max(scale, float(returns.std(correction=0)))
    return max(scale, 1e-6)


def _trust(world_model: WorldModel, windows: Windows, temperature: float) -> dict[str, float | None]:
    """Open-loop error against standing still, and ends expected against ends seen."""
    errors = open_loop_errors(world_model, windows)
    probabilities, ended = end_probabilities(world_model, windows, temperature)
    calibration = calibrate(probabilities.cpu(), ended.cpu())
    relative = _plain(errors.relative)
    return {
        "steps_ahead": float(errors.steps_ahead),
        "error_next": relative[0],
        "error_at_horizon": relative[-1],
        "termination_calibration": calibration.error,
        "ends_expected": calibration.expected_ends,
        "ends_seen": float(calibration.seen_ends),
    }


def _gap(differences: np.ndarray, stretches: np.ndarray) -> tuple[float | None, float | None]:
    """Mean of differences [N], and half the half-width of its 95 % interval, by which 2 of them are that; None of one.

    An iteration's windows lie in a few dozen steps and overlap nearly whole: taken for independent, they made the error
    five times too small. Those that begin in one stretch of `GAP_HORIZON` steps count as one measurement, of which
    there are few (Student's t); windows of neighbouring stretches still overlap in part.

    Args:
        differences: [N].
        stretches: [k, N], equal where two windows begin in the same one.
    """
    from scipy.special import stdtrit  # a quarter of a second in each process that imports it

    _, index, counts = np.unique(stretches, axis=1, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None, None
    mean = float(differences.mean())
    of_stretches = np.bincount(index.ravel(), differences) / counts
    squares = (counts / len(differences) * (of_stretches - mean)) ** 2
    freedom = len(counts) - 1
    error = math.sqrt(squares.sum() * len(counts) / freedom)
    return mean, float(error * stdtrit(freedom, 0.975) / 2.0)


def _skill_by_step(skill: Tensor) -> list[float | None]:
    """None where no window reaches, which is NaN; errors beyond all numbers are no skill at all."""
    return [None if math.isnan(value) else value if math.isfinite(value) else -1.0 for value in skill.tolist()]


def _plain(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
