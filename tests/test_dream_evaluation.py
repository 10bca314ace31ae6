"""Whole dreamed episodes: what is counted, and when they end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wm_rllib.dreamers import evaluation as dream_evaluation
from wm_rllib.dreamers.evaluation import DreamScore, evaluate_in_dream
from wm_rllib.models.imagining import ImaginedStep

LENGTHS = [3, 1, 5]


class Scripted:
    """A dream whose lanes end after LENGTHS steps and pay their number and the step's, and an agent in it."""

    def __init__(self, monkeypatch):
        self.steps = 0
        self.seen = []
        self.world_model = SimpleNamespace(mdn_rnn=None, codec=SimpleNamespace(encode=lambda action: action))
        monkeypatch.setattr(dream_evaluation, "start_states", self.start)
        monkeypatch.setattr(dream_evaluation, "imagined_step", self.step)
        monkeypatch.setattr(dream_evaluation, "draw_step_noise", lambda mdn_rnn, lanes: torch.rand(lanes))

    def start(self, model, observations):
        self.steps = 0
        return torch.zeros(len(observations), 1), (torch.zeros(len(observations), 2),) * 2

    def choose(self, z, h, explore):
        self.seen.append((z[0, 0].item(), h[0, 0].item(), explore))
        return z

    def step(self, mdn_rnn, z, action, state, temperature, noise):
        self.steps += 1
        reward = 100.0 * torch.arange(3) + self.steps
        ended = torch.tensor([length <= self.steps for length in LENGTHS])  # it goes on saying so afterwards
        return ImaginedStep(z + 1, (state[0] + 10, state[1]), reward, ended, torch.zeros(3))


def test_each_dream_counts_up_to_its_end(monkeypatch):
    agent = Scripted(monkeypatch)
    score = evaluate_in_dream(agent, np.zeros((3, 1)), temperature=1.0, max_steps=50)
    assert score.lengths == LENGTHS
    assert score.returns == [1 + 2 + 3, 101, 200 * 5 + 15]
    assert score.num_unfinished == 0
    assert agent.steps == 5  # nothing is dreamed after the last has ended
    assert agent.seen == [(float(t), 10.0 * t, False) for t in range(5)]


def test_dreams_at_the_limit_are_counted(monkeypatch):
    agent = Scripted(monkeypatch)
    score = evaluate_in_dream(agent, np.zeros((3, 1)), temperature=1.0, max_steps=3, explore=True)
    assert score.lengths == [3, 1, 3]
    assert score.num_unfinished == 1  # the one that ends in the last step has ended
    assert all(explore for _, _, explore in agent.seen)


def test_mean_and_spread():
    score = DreamScore([1.0, 3.0], [1, 3], 0)
    assert (score.mean, score.std) == (2.0, 1.0)


@pytest.mark.parametrize("how", [{"max_steps": 0}, {"temperature": 0.0}])
def test_numbers_are_checked(monkeypatch, how):
    with pytest.raises(ValueError, match="must be"):
        evaluate_in_dream(Scripted(monkeypatch), np.zeros((3, 1)), **{"temperature": 1.0, "max_steps": 3, **how})


def test_the_seed_is_all_that_it_depends_on(monkeypatch):
    agent = Scripted(monkeypatch)
    drawn = []
    monkeypatch.setattr(dream_evaluation, "draw_step_noise", lambda _, lanes: drawn.append(torch.rand(lanes)))
    before = torch.random.get_rng_state()
    for seed in (1, 1, 2):
        evaluate_in_dream(agent, np.zeros((3, 1)), temperature=1.0, max_steps=1, seed=seed)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), before)
