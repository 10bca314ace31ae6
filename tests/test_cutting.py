"""Dreams are cut where M's ensemble disagrees, bootstrapped there, and shared out with their own cuts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.columns import Columns
from test_dreaming import FIRST_BIRTH, Bench, Clockwork, counting_policy, numbered_dream
from test_fused_dream import SPACES, Overridden, controller_for, starts
from tiny_models import HIDDEN_DIM, LATENT_DIM, world_model
from torch import Tensor

from wm_rllib.dreamers.dreamer import DreamRequest, num_lanes, shard_lanes, to_arrays
from wm_rllib.learners.dreamed_rows import dreamed_rows
from wm_rllib.models.cutting import make_cutter
from wm_rllib.models.dreaming import Dream, draw_dream_noise, dream


class Unsure(Clockwork):
    """A Clockwork that is as unsure of a step as its lane is old."""

    def disagreement(self, z: Tensor, action: Tensor) -> Tensor:
        return z[:, 1]


def unsure_dream(lifetimes: list[int], horizon: int, limit: float | None, *, inputs: str = "zh") -> Dream:
    """Lanes of these lifetimes, cut after steps of an age above the limit."""
    model = world_model(mdn_rnn_class=Unsure, mdn={"ensemble_size": 2}, controller_inputs=inputs)
    start = torch.zeros(len(lifetimes), LATENT_DIM)
    start[:, 0] = FIRST_BIRTH + torch.tensor(lifetimes)
    h = torch.zeros(len(lifetimes), HIDDEN_DIM)
    return dream(model, counting_policy, start, (h, h.clone()), horizon, 1.0, limit)


def test_where_m_is_unsure_a_lane_goes_on_from_a_start_state():
    result = unsure_dream([99, 98], horizon=8, limit=1.5)
    age = result.features[..., 1].round()
    # Steps of ages 0, 1 and 2, then a new life; the last step of a dream is never a cut.
    assert age.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]] * 2
    assert result.truncateds is not None and result.cut_features is not None
    assert result.truncateds.tolist() == [[False, False, True, False, False, True, False, False]] * 2
    assert not result.terminateds.any()
    births = set(result.features[..., 0].round().unique().tolist())
    assert births <= {FIRST_BIRTH + 99, FIRST_BIRTH + 98}
    assert torch.equal(result.features[..., LATENT_DIM], age)  # h starts again with z
    assert result.cut_features[:, 1].round().tolist() == [3.0] * 4  # what the policy would have seen
    assert result.cut_features[:, LATENT_DIM].tolist() == [3.0] * 4
    assert result.bootstrap_features[:, 1].round().tolist() == [2.0, 2.0]
    assert (result.num_cuts, result.num_segments) == (4, 6)


def test_cut_features_come_lane_by_lane():
    result = unsure_dream([70, 80, 90], horizon=6, limit=0.5)
    assert result.truncateds is not None and result.cut_features is not None
    lanes, steps = torch.nonzero(result.truncateds, as_tuple=True)
    assert len(lanes) == len(result.cut_features) == 6
    born = result.features[lanes, steps, 0].round()
    assert torch.equal(result.cut_features[:, 0].round(), born)


def test_a_termination_is_no_cut():
    result = unsure_dream([3, 3], horizon=7, limit=1.5)  # the third step ends a life, and is one of which M is unsure
    assert result.truncateds is not None
    assert not result.truncateds.any()
    assert torch.nonzero(result.terminateds[0]).flatten().tolist() == [2, 5]
    assert (result.num_cuts, result.num_segments) == (0, 6)


def test_with_a_limit_of_nothing_every_step_but_the_last_is_cut():
    result = unsure_dream([99] * 3, horizon=5, limit=-1.0)
    assert result.truncateds is not None
    assert result.truncateds.tolist() == [[True] * 4 + [False]] * 3
    assert not result.features[..., 1].round().any()
    assert (result.num_cuts, result.num_segments) == (12, 15)


@pytest.mark.parametrize("limit", [None, math.inf])
def test_without_a_limit_nothing_is_cut(limit: float | None):
    torch.manual_seed(1)
    result = unsure_dream([2, 99], 6, limit)
    torch.manual_seed(1)
    expected = unsure_dream([2, 99], 6, None)
    assert result.num_cuts == 0 and result.num_segments == expected.num_segments
    assert (result.truncateds is None) is (limit is None)
    for name in ("features", "rewards", "terminateds", "bootstrap_features"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_a_dream_of_one_step_is_never_cut():
    result = unsure_dream([99], horizon=1, limit=-1.0)
    assert result.truncateds is None and result.num_segments == 1


def test_a_controller_on_z_is_shown_z_after_a_cut():
    result = unsure_dream([99], horizon=4, limit=0.5, inputs="z")
    assert result.cut_features is not None
    assert result.cut_features.shape == (1, LATENT_DIM)
    assert result.cut_features[0, 1].round() == 2.0


def test_without_an_ensemble_there_is_nothing_to_cut_by():
    assert make_cutter(world_model().mdn_rnn, 1.0) is None
    assert make_cutter(world_model(mdn={"ensemble_size": 2}).mdn_rnn, None) is None


@pytest.mark.parametrize("space", SPACES[:3], ids=str)
@pytest.mark.parametrize("inputs", ["zh", "z"])
def test_fused_and_plain_dreams_are_cut_alike(space: gym.Space[Any], inputs: str):
    mdn = {"ensemble_size": 3}
    fused = world_model(space, mdn=mdn, controller_inputs=inputs)
    plain = world_model(space, mdn=mdn, controller_inputs=inputs, mdn_rnn_class=Overridden)
    fused.mdn_rnn.set_normalisation(*map(torch.tensor, (1.0, 2.0, 9.0, 0.1)))
    fused.mdn_rnn.change_scale.copy_(torch.tensor([0.5, 2.0, 0.1]))
    plain.load_state_dict(fused.state_dict())
    controller = controller_for(fused, space)
    start_z, state = starts(9, LATENT_DIM, HIDDEN_DIM)
    limit = fused.mdn_rnn.disagreement(start_z, torch.zeros(9, fused.config.mdn_rnn.action_dim)).median().item()
    noise = draw_dream_noise(fused, controller, 7, 9)
    one, other = (dream(model, controller, start_z, state, 7, 1.0, limit, noise) for model in (fused, plain))
    assert 5 < one.num_cuts < 50 and 0 < one.terminateds.sum() < 50
    assert one.truncateds is not None and not (one.truncateds & one.terminateds).any()
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(other, name), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert one.cut_features is not None and not one.cut_features.is_inference()


def with_cuts(lanes: Dream, every: int = 3) -> Dream:
    """A numbered dream with cuts, after which the policy would have seen minus the number of the row, less a half."""
    truncateds = (lanes.actions % every == 1) & ~lanes.terminateds
    truncateds[:, -1] = False
    return dataclasses.replace(lanes, truncateds=truncateds, cut_features=-lanes.features[truncateds] - 0.5)


@pytest.mark.parametrize("rows", [[15], [7, 8], [2, 0, 11], [12, 3], [6, 4, 2, 1]])
def test_shards_keep_their_own_cuts_and_exactly_their_rows(rows: list[int]):
    lanes = with_cuts(numbered_dream(num_lanes(rows, 5), 5))
    assert lanes.truncateds is not None
    shards = shard_lanes(lanes, rows, 5)
    assert [sum(block.rewards.numel() for block in shard) for shard in shards] == rows
    kept = 0
    for block in (block for shard in shards for block in shard):
        assert block.truncateds is not None and block.cut_features is not None
        numbers = block.rewards[block.truncateds]
        assert block.cut_features.flatten().tolist() == (-numbers - 0.5).tolist()
        # All cuts inside are there; one after a block's last row is the truncation that is there anyway.
        inside = (block.rewards % 3 == 1) & ~block.terminateds
        inside[:, -1] = False
        assert torch.equal(block.truncateds, inside)
        kept += block.num_cuts
    assert kept > 0


@pytest.mark.parametrize(("length", "expected"), [(1, 1.0), (2, -1.5), (3, 3.0), (4, 4.0)])
def test_a_lane_trimmed_right_after_a_cut_is_bootstrapped_from_what_followed(length: int, expected: float):
    lanes = with_cuts(numbered_dream(2, 6))
    assert lanes.truncateds is not None and torch.nonzero(lanes.truncateds[0]).flatten().tolist() == [1, 4]
    ((block,),) = shard_lanes(lanes, [length], 6)
    assert block.bootstrap_features.tolist() == [[expected]]
    assert lanes.features[0, 2].item() == 2.0  # where the lane went on, from elsewhere
    ((whole, trimmed),) = shard_lanes(lanes, [6 + length], 6)
    assert whole.bootstrap_features.tolist() == [[6.0]]
    assert trimmed.rewards[0, 0] == 100.0


def test_arrays_tell_of_cuts_only_where_dreams_are_cut():
    assert not {Columns.TRUNCATEDS, "cut_obs"} & set(to_arrays(numbered_dream(2, 5)))
    arrays = to_arrays(with_cuts(numbered_dream(2, 5)))
    assert arrays[Columns.TRUNCATEDS].shape == (2, 5)
    assert len(arrays["cut_obs"]) == arrays[Columns.TRUNCATEDS].sum() > 0


def critic(features: Tensor) -> Tensor:
    return 3.0 * features[:, 0] - features[:, 1]


def targets_of(blocks: list[dict[str, np.ndarray]]) -> Tensor:
    rows = dreamed_rows(blocks, critic, gamma=0.9, lambda_=0.8, device=torch.device("cpu"))
    return rows["value_targets"]


@pytest.mark.parametrize("limit", [0.5, 1.5, math.inf])
def test_targets_of_cut_dreams_are_those_of_separate_ones(limit: float):
    """Each stretch between cuts, as a block of its own that is bootstrapped from what would have followed."""
    whole = unsure_dream([99, 3, 5], 6, limit)
    assert whole.truncateds is not None and whole.cut_features is not None
    together, cuts, apart = targets_of([to_arrays(whole)]), iter(whole.cut_features), []
    for lane in range(3):
        start, stops = 0, [*(torch.nonzero(whole.truncateds[lane]).flatten() + 1).tolist(), 6]
        for stop in stops:
            which = slice(lane, lane + 1)
            bootstrap = next(cuts)[None] if stop < 6 else whole.bootstrap_features[which]
            columns = ("features", "actions", "action_logp", "action_dist_inputs", "rewards", "terminateds")
            part = Dream(*(getattr(whole, name)[which, start:stop] for name in columns), bootstrap)
            apart.append(targets_of([to_arrays(part)]))
            start = stop
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-4)


def test_dreamers_cut_as_they_are_told(no_ray: None):
    bench = Bench()
    bench.publish(0)
    assert bench.runner.world_model.mdn_rnn.ensemble is not None

    def ordered(limit: float | None) -> Any:
        return bench.dreamer.dream(DreamRequest([7, 8], 5, 1.0, limit, 0.0, 0.0, bench.starts, 0, 0))  # type: ignore[arg-type]

    for limit, cuts in ((None, 0), (math.inf, 0), (0.0, 11)):
        dreamed = ordered(limit)
        shards = ray.get(dreamed.shard_refs)
        assert [sum(block[Columns.REWARDS].size for block in shard) for shard in shards] == [7, 8]
        blocks = [block for shard in shards for block in shard]
        ends = sum(int(block[Columns.TERMINATEDS][:, :-1].sum()) for block in blocks)
        # Four lanes of 5, 2, 5 and 3 rows: every step but a lane's last one ends in one way or the other.
        assert dreamed.num_cuts == (cuts - ends if cuts else 0)
        assert dreamed.num_segments == 4 + ends + dreamed.num_cuts
        assert sum(len(block.get("cut_obs", ())) for block in blocks) == dreamed.num_cuts
