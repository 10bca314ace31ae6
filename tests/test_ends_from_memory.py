"""`world_model.mdn_rnn.ends_from: memory`: M says from h whether an episode ends, before it draws what comes next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_replay import chunk
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config, sequences, world_model
from torch import Tensor
from torch.nn import functional

from wm_rllib.columns import MASK, STEPS_LEFT, TERMINATES
from wm_rllib.models import MDNRNN
from wm_rllib.models.imagining import draw_step_noise, imagined_step
from wm_rllib.models.judging import Windows
from wm_rllib.models.lookahead import Lookahead, PlainSimulation
from wm_rllib.models.mdn_rnn import NUM_ENDS, Ahead, _later_ends_loss
from wm_rllib.models.mixture import mixture_nll
from wm_rllib.models.trust import end_probabilities
from wm_rllib.replay.replay import SequenceReplay, _ahead

ROWS, TIME = 5, 4


def batch() -> tuple[Tensor, ...]:
    """Latents, actions, rewards, terminateds and mask; each row's last real step terminates."""
    rows = sequences([4, 2, 3, 4, 1], TIME)
    action = functional.one_hot(rows.actions, 2).float()
    return torch.randn(ROWS, TIME + 1, LATENT_DIM), action, rows.rewards, rows.terminateds, rows.mask


def test_losses_by_the_book():
    mdn = MDNRNN(mdn_config(ends_from="memory", termination_positive_weight=3.0)).eval()
    z, action, reward, terminated, mask = batch()
    losses = mdn.losses(z, action, reward, terminated, mask)
    hidden, _ = mdn.unroll(z[:, :-1], action)
    errors, cross_entropies = [], []
    for row in range(ROWS):
        for t in range(int(mask[row].sum())):
            now = hidden[row, t], z[row, t], action[row, t]
            assert mdn.ends_head is not None
            logit = mdn.ends_head(torch.cat(now))[0]  # of the next step alone
            cross_entropies.append(functional.binary_cross_entropy_with_logits(logit, terminated[row, t].float()))
            if not terminated[row, t]:
                errors.append(mixture_nll(mdn.predict(*now), z[row, t + 1]))
    torch.testing.assert_close(losses.nll, torch.stack(errors).mean())
    torch.testing.assert_close(losses.termination, torch.stack(cross_entropies).mean())


def test_later_ends_by_the_book():
    """Where an episode that has not ended is not known any further, what comes within more steps is not known."""
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    steps_left, terminates = [9, 3, 20], [False, True, True]  # of the episode, from a row's first step on
    ahead = Ahead(torch.tensor(steps_left)[:, None] - torch.arange(5), torch.tensor(terminates))
    rows = mask.flatten().nonzero().squeeze(-1)
    logits = torch.randn(len(rows), NUM_ENDS - 1)
    expected = torch.zeros(())
    for column, within in enumerate((2, 4, 8, 16)):
        errors = []
        for row, place in enumerate(rows.tolist()):
            episode, t = divmod(place, 5)
            left = steps_left[episode] - t
            if terminates[episode] or left >= within:
                target = torch.tensor(float(terminates[episode] and left <= within))
                errors.append(functional.binary_cross_entropy_with_logits(logits[row, column], target))
        expected = expected + (torch.stack(errors).mean() if errors else 0.0)
    torch.testing.assert_close(_later_ends_loss(logits, ahead, rows), expected)


def test_sequences_are_whole_where_nothing_else_is_said():
    mdn = MDNRNN(mdn_config(ends_from="memory")).eval()
    z, action, reward, terminated, mask = batch()
    left = mask.sum(1, keepdim=True) - torch.arange(TIME)
    same = mdn.losses(z, action, reward, terminated, mask, ahead=Ahead(left, terminated.any(1)))
    assert torch.equal(mdn.losses(z, action, reward, terminated, mask).total, same.total)
    further = mdn.losses(z, action, reward, terminated, mask, ahead=Ahead(left + 7, terminated.any(1)))
    assert further.termination == same.termination and further.total != same.total


def test_what_is_learned_of_later_ends_does_not_depend_on_the_place_in_a_sequence():
    """At each place the same share of the steps of which it is known is said to end soon: M cannot learn to count."""
    length, within, num_steps = 8, 4, 40
    replay = SequenceReplay(100_000, 0)
    replay.add([chunk(i, 0, num_steps, "terminated") for i in range(20)])
    windows = replay._windows_anywhere(20_000, length)
    arrays = {**replay._gather(windows, length, align_end=False), **_ahead(windows, length)}
    mask, left = arrays[MASK], arrays[STEPS_LEFT]
    known = arrays[TERMINATES][:, None] | (left >= within)
    soon = [(left[:, t] <= within)[mask[:, t] & known[:, t]].mean() for t in range(length)]
    assert soon == pytest.approx([within / num_steps] * length, abs=0.04)


def test_what_comes_after_an_end_is_nothing_to_the_mixture():
    mdn = MDNRNN(mdn_config(ends_from="memory"))
    z, action, reward, terminated, mask = batch()
    before = mdn.losses(z, action, reward, terminated, mask)
    for row, end in enumerate(mask.sum(1).tolist()):
        z[row, end] = 100.0
    after = mdn.losses(z, action, reward, terminated, mask)
    assert torch.equal(before.nll, after.nll) and torch.equal(before.termination, after.termination)
    plain = MDNRNN(mdn_config())
    assert plain.ends_head is None and plain.losses(z, action, reward, terminated, mask).nll > 100.0


def test_a_batch_of_nothing_but_ends_has_no_nll():
    mdn = MDNRNN(mdn_config(ends_from="memory"))
    z, action, reward, _, mask = batch()
    losses = mdn.losses(z, action, reward, mask, mask)
    assert losses.nll == 0.0
    losses.total.backward()
    assert all(param.grad is None or param.grad.isfinite().all() for param in mdn.parameters())


def test_the_base_rate_is_where_the_head_starts():
    mdn = MDNRNN(mdn_config(ends_from="memory", hidden_dim=64))
    mdn.set_normalisation(*map(torch.tensor, (0.0, 1.0, 1.0, 0.02)))
    outcome = mdn.outcome_of(
        torch.zeros(1, 64), torch.zeros(1, LATENT_DIM), torch.zeros(1, 2), torch.zeros(1, LATENT_DIM)
    )
    assert outcome.termination_logit.sigmoid().item() == pytest.approx(0.02, rel=1.0)


def danger_seen(ends_from: Any) -> tuple[float, float]:
    """Probability of an end three steps after a danger was in sight, and after none was; both look the same by then."""
    torch.manual_seed(0)
    mdn = MDNRNN(mdn_config(ends_from=ends_from, hidden_dim=16, nll_coeff=1.0, residual=False))
    mdn.set_normalisation(*map(torch.tensor, (0.0, 1.0, 1.0, 0.1)))
    optimizer = torch.optim.Adam(mdn.parameters(), 5e-3)
    action, mask = torch.zeros(64, 4, 2), torch.ones(64, 4, dtype=torch.bool)
    for _ in range(200):
        z = 0.3 * torch.randn(64, 5, LATENT_DIM)
        danger = torch.rand(64) < 0.5
        z[:, 0, 0] = torch.where(danger, 3.0, -3.0)
        z[danger, 4] = 0.0  # a blank picture
        ended = torch.zeros(64, 4, dtype=torch.bool)
        ended[:, 3] = danger
        loss = mdn.losses(z, action, torch.ones(64, 4), ended, mask).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mdn.eval()
    z = 0.3 * torch.randn(400, 5, LATENT_DIM)
    z[:200, 0, 0], z[200:, 0, 0] = 3.0, -3.0
    state = mdn.initial_state(400)
    with torch.no_grad():
        for t in range(3):
            state = mdn.step(z[:, t], torch.zeros(400, 2), state)
        step = imagined_step(mdn, z[:, 3], torch.zeros(400, 2), state, 1.0, draw_step_noise(mdn, 400))
    return step.termination_prob[:200].mean().item(), step.termination_prob[200:].mean().item()


def test_a_danger_that_is_out_of_sight_is_remembered():
    dangerous, harmless = danger_seen("memory")
    assert dangerous > 0.8 and harmless < 0.2


def test_plans_meet_the_same_ends_fused_and_step_by_step():
    mdn = world_model(mdn={"ends_from": "memory"}).mdn_rnn
    mdn.set_normalisation(*map(torch.tensor, (0.0, 1.0, 1.0, 0.3)))
    start = torch.randn(3, LATENT_DIM), (torch.randn(3, HIDDEN_DIM), torch.randn(3, HIDDEN_DIM))
    plans = functional.one_hot(torch.randint(2, (3, 6, 5)), 2).float()
    found = []
    for fused in (True, False):
        lookahead = Lookahead(mdn, None, discount=0.9, num_particles=2, temperature=1.0)
        assert lookahead._fused
        if not fused:
            lookahead._simulation = lambda rows, horizon: PlainSimulation(mdn)  # type: ignore[method-assign]
        found.append(lookahead(*start, plans, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found[0].survival, found[1].survival, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].returns, found[1].returns, rtol=1e-4, atol=1e-4)
    assert 0.0 < found[0].survival.min() < 1.0


def test_the_report_s_probabilities_are_the_head_s():
    model = world_model(mdn={"ends_from": "memory"}).eval()
    rows = sequences([5, 5], 5)
    windows = Windows(2, rows.observations, rows.actions, rows.rewards, rows.terminateds, rows.mask)  # type: ignore[arg-type]
    with torch.no_grad():
        found, ends = end_probabilities(model, windows)
        mdn, z = model.mdn_rnn, model.vae.encode(rows.observations)  # type: ignore[arg-type]
        action = model.codec.encode(rows.actions)
        hidden, _ = mdn.unroll(z[:, :-1], action)
        assert mdn.ends_head is not None
        expected = mdn.ends_head(torch.cat([hidden, z[:, :-1], action], -1))[:, 2:, 0].sigmoid().flatten()
    torch.testing.assert_close(found, expected)
    assert ends.sum() == 2
