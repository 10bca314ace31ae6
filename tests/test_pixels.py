"""Images on their way to V, against numbers that were worked out by hand or by brute force."""

import gymnasium as gym
import numpy as np
import pytest
from custom_envs import Gallery, Walk
from gymnasium.spaces import Box, Dict, Discrete

from wm_rllib.environments.pixels import AreaAverage, FrameSkip, PixelError, PixelSettings, gray, preprocess


class Shows(gym.Env):
    """Shows one observation, in a space that fits it."""

    action_space = Discrete(2)

    def __init__(self, observation):
        self.shown = observation
        self.observation_space = space_of(observation)

    def reset(self, *, seed=None, options=None):
        return self.shown, {}

    def step(self, action):
        return self.shown, 0.0, False, False, {}


def space_of(observation):
    if isinstance(observation, dict):
        return Dict({key: space_of(value) for key, value in observation.items()})
    high = 255 if observation.dtype == np.uint8 else 1.0
    return Box(0, high, observation.shape, observation.dtype)


def seen(observation, **settings):
    """The first observation of the preprocessed environment, after a look at its form."""
    env = preprocess(Shows(observation), PixelSettings(**settings))
    image, _ = env.reset()
    assert env.observation_space.dtype == image.dtype == np.uint8
    assert env.observation_space.shape == image.shape
    assert image.flags["C_CONTIGUOUS"]
    stepped = env.step(0)[0]
    assert np.array_equal(image, stepped)
    return image


def numbers(height, width, channels=3):
    """An image in which no two neighbours are alike."""
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


# --- resizing --------------------------------------------------------------------------------------------------------


def test_a_whole_ratio_takes_means_of_blocks():
    image = np.array([[0, 4, 10, 10], [8, 0, 10, 10], [1, 1, 0, 0], [2, 2, 0, 255]], np.uint8)
    # (0+4+8+0)/4 = 3, 10, (1+1+2+2)/4 = 1.5 up to 2, 255/4 = 63.75 up to 64
    assert seen(image, size=(2, 2))[..., 0].tolist() == [[3, 10], [2, 64]]


def test_three_pixels_to_two_share_the_middle_one():
    image = np.array([[30, 90, 240]], np.uint8)
    # (30 + 90/2) / 1.5 = 50 and (90/2 + 240) / 1.5 = 190; Pillow's BOX has 60 and 240
    assert seen(image, size=(1, 2))[..., 0].tolist() == [[50, 190]]


def test_enlarging_covers_each_pixel_as_often():
    assert seen(np.array([[7, 200]], np.uint8), size=(2, 4))[..., 0].tolist() == [[7, 7, 200, 200]] * 2


@pytest.mark.parametrize(
    ("before", "after"), [((24, 24), (16, 16)), ((21, 28), (16, 12)), ((7, 5), (3, 4)), ((3, 2), (5, 3))]
)
def test_any_ratio_is_the_mean_of_the_area(before, after):
    image = numbers(*before)
    # Each pixel as a block of after[0] x after[1]: then every pixel of the result is a mean of whole blocks' parts.
    fine = image.repeat(after[0], axis=0).repeat(after[1], axis=1)
    means = fine.reshape(after[0], before[0], after[1], before[1], 3).mean(axis=(1, 3))
    assert np.array_equal(AreaAverage(before, after)(image), np.floor(means + 0.5))


def test_an_even_image_stays_even_and_a_mean_is_kept():
    assert np.array_equal(seen(np.full((84, 84, 3), 255, np.uint8), size=(64, 64)), np.full((64, 64, 3), 255))
    image = numbers(96, 96)
    assert abs(seen(image, size=(64, 64)).mean() - image.mean()) < 0.5


def test_images_of_many_megapixels_do_not_overflow():
    assert AreaAverage((3000, 3000), (1, 1))(np.full((3000, 3000, 1), 255, np.uint8)).item() == 255


# --- crop, grey, key -------------------------------------------------------------------------------------------------


def test_crop_counts_from_each_side():
    image = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert seen(image, crop=(1, 0, 2, 1))[..., 0].tolist() == [[7, 8], [12, 13], [17, 18]]
    assert seen(image, crop=(0, 3, 0, 4))[..., 0].tolist() == [[0]]


def test_crop_comes_before_the_resizing():
    image = np.array([[255, 10, 20], [255, 30, 40]], np.uint8)
    assert seen(image, crop=(0, 0, 1, 0), size=(1, 1)).item() == 25


def test_gray_is_luma_and_keeps_an_axis():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]], np.uint8)
    # 76.245, 149.685, 29.07, 255 and 2.99 + 11.74 + 3.42 = 18.15
    assert gray(image)[..., 0].tolist() == [[76, 150, 29, 255, 18]]
    assert seen(image, grayscale=True).shape == (1, 5, 1)


def test_gray_images_stay_as_they_are():
    image = numbers(4, 4, 1)
    assert np.array_equal(seen(image, grayscale=True), image)
    assert np.array_equal(seen(image[..., 0], grayscale=True), image)


@pytest.mark.parametrize("side", [84, 96])
def test_all_at_once(side):
    image = numbers(side, side + 4)
    grey = gray(image[10:-2, 3:-1])
    expected = AreaAverage((side - 12, side), (64, 32))(grey)
    found = seen(
        {"screen": image, "health": np.zeros(1, np.float32)},
        key="screen",
        crop=[10, 2, 3, 1],
        grayscale=True,
        size=[64, 32],
    )
    assert np.array_equal(found, expected)


def test_an_image_of_a_dict_as_it_is():
    image = numbers(3, 4)
    assert np.array_equal(seen({"screen": image}, key="screen"), image)


def test_what_comes_out_is_contiguous_whatever_comes_in():
    image = numbers(6, 4).transpose(1, 0, 2)
    assert not image.flags["C_CONTIGUOUS"]
    assert np.array_equal(seen({"screen": image}, key="screen"), image)


# --- frames ----------------------------------------------------------------------------------------------------------


def test_rewards_of_skipped_frames_are_summed():
    env = FrameSkip(Gallery(rewards=[1, 2, 4, 8, 16, 32]), 3)
    env.reset()
    assert env.step(0)[1:4] == (7.0, False, False)
    assert env.step(0)[1:4] == (56.0, True, False)


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_an_end_within_the_frames_stops_them(how):
    inner = Gallery(rewards=[1, 2, 4, 8, 16], end=how)
    env = FrameSkip(inner, 4)
    env.reset()
    env.step(0)
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (16.0, how == "terminated", how == "truncated")
    assert inner.frame == info["frame"] == 5


def test_the_observation_is_the_last_frame_s():
    env = preprocess(Gallery(), PixelSettings(size=(2, 2), frame_skip=3))
    assert env.reset()[0].max() == 0
    assert env.step(1)[0].max() == 3
    assert env.unwrapped.actions == [1, 1, 1]


def test_environments_without_images_can_skip_frames():
    env = preprocess(Walk(), PixelSettings(frame_skip=4))
    env.reset()
    assert env.step(1)[:2] == (np.float32([4.0]), 4.0)


def test_a_time_limit_is_given_in_steps():
    env = preprocess(gym.make("CartPole-v1"), PixelSettings(frame_skip=3))
    assert env.spec.max_episode_steps == 167  # of 500 frames
    assert env.env.spec.max_episode_steps == 500
    assert preprocess(Walk(), PixelSettings(frame_skip=3)).spec is None


# --- nothing to do ---------------------------------------------------------------------------------------------------


def test_defaults_leave_the_environment_alone():
    for env in (Walk(), Gallery(), Shows({"screen": numbers(2, 2)})):
        assert preprocess(env, PixelSettings()) is env
    assert PixelSettings().is_neutral and not PixelSettings(frame_skip=2).is_neutral


# --- mistakes --------------------------------------------------------------------------------------------------------

IMAGE = np.zeros((8, 6, 3), np.uint8)
MISTAKES = {
    "a key without a Dict": (IMAGE, {"key": "screen"}, "env.pixels.key is 'screen', but must be null"),
    "a Dict without a key": (
        {"screen": IMAGE},
        {"size": (4, 4)},
        "env.pixels.key is null, but must name one of screen",
    ),
    "another key": ({"screen": IMAGE}, {"key": "scren"}, "env.pixels.key is 'scren', but must be one of screen"),
    "floats": (IMAGE.astype(np.float32), {"size": (4, 4)}, "a Box of (8, 6, 3) float32: they must be uint8"),
    "vectors": (np.zeros(4, np.uint8), {"grayscale": True}, "a Box of (4,) uint8: they must be uint8 [height, width]"),
    "channels first": (IMAGE.transpose(2, 0, 1), {"size": (4, 4)}, "at most 4 channels"),
    "rows gone": (IMAGE, {"crop": (4, 4, 0, 0)}, "env.pixels.crop is [4, 4, 0, 0], but must leave something of 8 rows"),
    "columns gone": (IMAGE, {"crop": (0, 0, 0, 6)}, "and 6 columns"),
    "two channels to grey": (
        IMAGE[..., :2],
        {"grayscale": True},
        "env.pixels.grayscale is true, but the images have 2",
    ),
    "vector in a Dict": ({"health": np.zeros(1, np.float32)}, {"key": "health"}, "a Box of (1,) float32"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_one_clear_error(name):
    observation, settings, words = MISTAKES[name]
    with pytest.raises(PixelError) as caught:
        preprocess(Shows(observation), PixelSettings(**settings))
    message = str(caught.value)
    assert words in message and "Fix: " in message and "\n" not in message


@pytest.mark.parametrize(
    "given", [np.ones((8, 6, 3), np.float32), np.zeros((10, 6, 3), np.uint8), np.zeros((8, 6), np.uint8)]
)
def test_pictures_that_are_not_as_declared_are_one_clear_error(given):
    env = Shows(np.zeros((8, 6, 3), np.uint8))
    wrapped = preprocess(env, PixelSettings(size=(4, 3)))
    env.shown = given
    with pytest.raises(PixelError, match=r"gave a picture of shape .* but its observation space says .*8, 6, 3.*Fix:"):
        wrapped.reset()


def test_observations_that_are_no_box():
    env = Walk()
    env.observation_space = Discrete(3)
    with pytest.raises(PixelError, match="observations are Discrete"):
        preprocess(env, PixelSettings(size=(2, 2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (64,)}, "size is (64,), but must be two whole numbers"),
        ({"size": 64}, "size is 64"),
        ({"size": "64"}, "size is '64'"),
        ({"size": (0, 64)}, "at least 1"),
        ({"size": (64.0, 64)}, "whole numbers"),
        ({"crop": (1, 2, 3)}, "crop is (1, 2, 3), but must be four whole numbers"),
        ({"crop": (-1, 0, 0, 0)}, "at least 0"),
        ({"frame_skip": 0}, "frame_skip is 0"),
        ({"frame_skip": True}, "frame_skip is True"),
    ],
)
def test_wrong_values(settings, words):
    with pytest.raises(PixelError) as caught:
        PixelSettings(**settings)
    assert words in str(caught.value) and "Fix: " in str(caught.value)


def test_from_values_of_yaml():
    values = {"env.id": "X", "env.pixels.size": [64, 48], "env.pixels.key": "screen", "env.frame_skip": 4}
    assert PixelSettings.from_values(values) == PixelSettings(key="screen", size=(64, 48), frame_skip=4)
    assert PixelSettings.from_values({}) == PixelSettings()
