"""Which spaces are supported, and actions as the model sees them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space, unsquash_action

from wm_rllib.spaces import ActionCodec, check_action_space, check_spaces

VECTOR = Box(-1.0, 1.0, (3,))
HALF_BOUNDED = Box(np.array([-2.0, -np.inf, 0.0], np.float32), np.array([4.0, np.inf, np.inf], np.float32))


@pytest.mark.parametrize("space", [Discrete(2), MultiDiscrete([2, 3]), Box(-1.0, 1.0, (2,)), HALF_BOUNDED])
def test_supported_spaces(space: gym.Space[Any]):
    check_spaces(VECTOR, space)
    assert ActionCodec(space, normalized=True).dim > 0


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3, start=1),
        MultiDiscrete([[2, 2], [3, 3]]),
        MultiDiscrete([2, 2], start=[1, 0]),
        Box(-1.0, 1.0, (2, 2)),
        Box(0, 5, (2,), np.int64),
        MultiBinary(3),
        Text(4),
        Dict({"a": Discrete(2)}),
        Tuple((Discrete(2), Discrete(2))),
    ],
    ids=str,
)
def test_unsupported_actions_are_one_clear_message(space: gym.Space[Any]):
    with pytest.raises(
        ValueError, match=r"(?s)action space .* is not supported: .*Discrete, MultiDiscrete or Box.*Fix:"
    ):
        check_action_space(space)


def test_bounds_that_are_further_apart_than_float32_goes_are_refused():
    largest = np.finfo(np.float32).max
    with pytest.raises(ValueError, match=r"the distance between its bounds is no number in float32. Fix:"):
        check_action_space(Box(-largest, largest, (2,)))


@pytest.mark.parametrize(
    "space", [Discrete(3), Dict({"a": VECTOR}), Tuple((VECTOR, VECTOR)), Text(4), Box(-1.0, 1.0, (2, 2))], ids=str
)
def test_unsupported_observations_are_one_clear_message(space: gym.Space[Any]):
    with pytest.raises(ValueError, match=r"(?s)observation space .* is not supported.*Fix:"):
        check_spaces(space, Discrete(2))


def test_the_fix_for_observations_that_are_no_box_is_a_wrapper():
    with pytest.raises(ValueError, match=r"Fix: .*Gymnasium wrapper.*FlattenObservation") as error:
        check_spaces(Dict({"a": VECTOR}), Discrete(2))
    assert "connector" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "fix"),
    [
        (Dict({"ammo": VECTOR, "screen": Box(0, 255, (24, 32, 3), np.uint8)}), r"env.pixels.key=screen"),
        (Box(0, 255, (84, 84), np.uint8), r"env.pixels.grayscale=true"),
        (Box(0, 255, (3, 84, 84), np.uint8), r"channels last"),
        (Box(0, 255, (3, 16, 16), np.uint8), r"channels last"),
    ],
    ids=str,
)
def test_the_fix_for_images_is_one_for_images(space: gym.Space[Any], fix: str):
    with pytest.raises(ValueError, match=f"Fix: .*{fix}"):
        check_spaces(space, Discrete(2))


@pytest.mark.parametrize("batch_shape", [(), (1,), (2, 3)])
def test_shapes_of_encoded_actions(batch_shape: tuple[int, ...]):
    discrete = torch.zeros(batch_shape, dtype=torch.long)
    assert ActionCodec(Discrete(4), normalized=True).encode(discrete).shape == (*batch_shape, 4)
    multi = torch.zeros(*batch_shape, 2, dtype=torch.int32)
    assert ActionCodec(MultiDiscrete([4, 3]), normalized=True).encode(multi).shape == (*batch_shape, 7)
    assert ActionCodec(VECTOR, normalized=True).encode(torch.zeros(*batch_shape, 3)).shape == (*batch_shape, 3)


def test_discrete_is_one_hot():
    encoded = ActionCodec(Discrete(3), normalized=True).encode(torch.tensor([[2, 0]]))
    assert encoded.tolist() == [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]


def test_multi_discrete_is_one_hot_by_part():
    encoded = ActionCodec(MultiDiscrete([2, 3]), normalized=True).encode(torch.tensor([[1, 2]]))
    assert encoded.tolist() == [[0.0, 1.0, 0.0, 0.0, 1.0]]


def test_normalized_box_is_clipped_to_what_the_environment_can_receive():
    encoded = ActionCodec(Box(-3.0, 5.0, (3,)), normalized=True).encode(torch.tensor([[-1.7, 0.25, 1.01]]))
    torch.testing.assert_close(encoded, torch.tensor([[-1.0, 0.25, 1.0]]))


def test_raw_box_is_scaled_to_the_unit_range():
    encoded = ActionCodec(Box(-3.0, 5.0, (4,)), normalized=False).encode(torch.tensor([[-3.0, 1.0, 5.0, 7.0]]))
    torch.testing.assert_close(encoded, torch.tensor([[-1.0, 0.0, 1.0, 1.0]]))


def test_what_is_not_clipped_on_its_way_is_not_clipped_for_the_model():
    raw = ActionCodec(Box(-3.0, 5.0, (2,)), normalized=False, clipped=False).encode(torch.tensor([[1.0, 9.0]]))
    assert raw.tolist() == [[0.0, 2.0]]
    # RLlib neither unsquashes nor clips where one dimension has no bounds and actions are to be normalised.
    struct = get_base_struct_from_space(HALF_BOUNDED)
    assert unsquash_action(np.array([7.0, 0.0, 0.0], np.float32), struct)[0] == 7.0
    assert ActionCodec(HALF_BOUNDED, normalized=True).encode(torch.tensor([7.0, 0.0, 0.0]))[0] == 2.0
    assert ActionCodec(HALF_BOUNDED, normalized=False).encode(torch.tensor([7.0, 0.0, 0.0]))[0] == 1.0


def test_bounds_that_a_dream_looked_up_do_not_keep_gradients_from_others():
    codec = ActionCodec(VECTOR, normalized=False)
    with torch.inference_mode():
        codec.encode(torch.zeros(3))
    actions = torch.zeros(3, requires_grad=True)
    codec.encode(actions).sum().backward()
    assert actions.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("normalized", [True, False])
def test_unbounded_dimensions_are_left_alone_and_make_rllib_leave_the_others_in_env_space(normalized: bool):
    encoded = ActionCodec(HALF_BOUNDED, normalized=normalized).encode(torch.tensor([[2.5, 30.0, -7.0]]))
    assert encoded.tolist() == [[0.5, 30.0, -7.0]]


@pytest.mark.parametrize(
    "space",
    [Box(-3.0, 5.0, (3,)), Box(np.array([-1, 0], np.float32), np.array([1, 10], np.float32)), HALF_BOUNDED],
    ids=str,
)
def test_env_to_policy_is_the_inverse_of_rllibs_unsquashing(space: Box):
    codec, struct = ActionCodec(space, normalized=True), get_base_struct_from_space(space)
    space.seed(0)
    for _ in range(20):
        action = space.sample()
        unit = codec.env_to_policy(action)
        assert np.all(np.abs(unit) <= 1.0 + 1e-6) or space is HALF_BOUNDED
        np.testing.assert_allclose(unsquash_action(unit, struct), action, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_dimension_with_one_value_alone_is_a_number(normalized: bool):
    space = Box(np.array([-1, 0.5], np.float32), np.array([1, 0.5], np.float32))
    codec, struct = ActionCodec(space, normalized=normalized), get_base_struct_from_space(space)
    action = np.array([0.25, 0.5], np.float32)
    unit = codec.env_to_policy(action)
    assert codec.encode(torch.as_tensor(unit)).tolist() == [0.25, -1.0]
    if normalized:
        np.testing.assert_allclose(unsquash_action(unit, struct), action)
    else:
        assert codec.decode(torch.tensor([0.25, 1.0])).tolist() == [0.25, 0.5]


def test_env_to_policy_leaves_other_actions_alone():
    assert np.array_equal(ActionCodec(Discrete(3), normalized=True).env_to_policy(np.array([2, 1])), [2, 1])
    assert np.array_equal(ActionCodec(MultiDiscrete([3, 3]), normalized=True).env_to_policy(np.array([2, 1])), [2, 1])
    assert np.array_equal(ActionCodec(VECTOR, normalized=False).env_to_policy(np.array([0.2, 1.0, 0])), [0.2, 1.0, 0])


def test_both_ways_of_storing_a_box_action_look_the_same_to_the_model():
    space = Box(-3.0, 5.0, (2,))
    in_env_space = torch.tensor([[-2.0, 4.5]])
    in_policy_space = torch.as_tensor(ActionCodec(space, normalized=True).env_to_policy(in_env_space.numpy()))
    torch.testing.assert_close(
        ActionCodec(space, normalized=True).encode(in_policy_space),
        ActionCodec(space, normalized=False).encode(in_env_space),
    )
