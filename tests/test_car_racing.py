"""CarRacing that draws what is seen, held to Gymnasium's own pixels, rewards and ends."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit, TransformObservation

from wm_rllib.environments.car_racing import Near, seen_frames
from wm_rllib.environments.pixels import FrameSkip

pytest.importorskip("Box2D")


def as_gymnasium_draws(env):
    """The same environment in a wrapper that might change observations, so that it is left alone."""
    return TransformObservation(env, lambda observation: observation, env.observation_space)


@pytest.fixture
def make():
    envs = []

    def made(**settings):
        envs.append(gym.make("CarRacing-v3", **settings))
        return envs[-1]

    yield made
    for env in envs:
        env.close()


def drawn(env):
    """Counts the observations that an environment draws."""
    count, base = [], env.unwrapped
    draw = base._create_image_array
    base._create_image_array = lambda *args: count.append(1) or draw(*args)
    return count


@pytest.mark.parametrize("settings", [{}, {"domain_randomize": True}])
def test_every_pixel_reward_and_end_is_gymnasiums(make, settings):
    plain, quick = FrameSkip(as_gymnasium_draws(make(**settings)), 3), FrameSkip(make(**settings), 3)
    rng = np.random.default_rng(0)
    for seed in range(2):  # the second track is another one
        first, _ = plain.reset(seed=seed)
        assert np.array_equal(quick.reset(seed=seed)[0], first)
        for step in range(40):
            # Fast, so that the view turns and moves far.
            action = np.array([rng.uniform(-1, 1), 1.0, 0.0], np.float32)
            theirs, ours = plain.step(action), quick.step(action)
            assert np.array_equal(ours[0], theirs[0]), step
            assert ours[1:4] == theirs[1:4]


def test_one_frame_is_drawn_for_an_action_and_an_end_shows_its_own(make):
    env = FrameSkip(TimeLimit(make(), 6), 4)
    count = drawn(env)
    env.reset(seed=0)
    assert len(count) == 1
    action = np.array([0.0, 1.0, 0.0], np.float32)
    before = env.step(action)[0]
    after, _, _, truncated, _ = env.step(action)  # two frames, then the time is up
    assert len(count) == 3 and truncated and env.unwrapped.t == pytest.approx(7 / 50)
    assert not np.array_equal(after, before)
    assert np.array_equal(after, env.unwrapped._render("state_pixels"))


def test_pictures_for_people_are_drawn(make):
    env = FrameSkip(make(render_mode="rgb_array"), 2)
    env.reset(seed=0)
    env.step(np.array([0.0, 1.0, 0.0], np.float32))
    assert env.render().shape == (400, 600, 3)


def test_others_and_what_changes_observations_are_left_alone(make):
    assert seen_frames(gym.make("CartPole-v1")) is None
    env = make()
    changed = TransformObservation(env, lambda x: 255 - x, env.observation_space)
    assert seen_frames(changed) is None
    assert seen_frames(TimeLimit(env, 5)) is not None


def test_what_may_be_near_is_in_order_and_turned_with_the_view():
    squares = [[(x - 1.0, -1.0), (x + 1.0, -1.0), (x + 1.0, 1.0), (x - 1.0, 1.0)] for x in (0.0, 50.0, 100.0)]
    near = Near(squares)
    assert near.indices(1.0, (0.0, 0.0), 0.0, 0.0, (60, 10)).tolist() == [0, 1]
    assert near.indices(1.0, (0.0, 0.0), np.pi / 2, 0.0, (60, 10)).tolist() == [0]
    assert near.indices(2.0, (0.0, 0.0), np.pi / 2, 0.0, (60, 120)).tolist() == [0, 1]
    assert Near([]).indices(1.0, (0.0, 0.0), 0.0, 0.0, (60, 10)).tolist() == []
