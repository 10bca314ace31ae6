"""Images on their way from an environment to V: pick, crop, grey, shrink, and frames in which the action is repeated.

The same wrappers run wherever this package makes an environment. Whoever plays with a checkpoint's agent in an
environment of their own adds them by hand:

    policy = load_policy("runs/doom/checkpoints/best")
    env = preprocess(my_env, policy.pixels)

Nothing here imports Ray.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict

from wm_rllib.environments.car_racing import seen_frames

AnyEnv = gym.Env[Any, Any]

SECTION = "env.pixels"
PATHS = {**{f"{SECTION}.{name}": name for name in ("key", "crop", "grayscale", "size")}, "env.frame_skip": "frame_skip"}
"""From a setting's path in YAML to its attribute of `PixelSettings`."""
LUMA = np.array([299, 587, 114], np.int32)
"""Thousandths of red, green and blue in grey: ITU-R BT.601."""


class PixelError(ValueError):
    """Pixel settings that are wrong, or do not fit the environment; the message is meant for the user."""


def _are_whole(values: Any, count: int, least: int) -> bool:
    try:
        numbers = list(values)
    except TypeError:
        return False
    whole = all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in numbers)
    return len(numbers) == count and whole and all(number >= least for number in numbers)


@dataclass(frozen=True)
class PixelSettings:
    """What is done to an environment before V sees it. As it is without arguments: nothing at all.

    The steps are done in the order of the attributes.

    Attributes:
        key: Which image of a Dict observation to take, as ViZDoom's "screen"; None where observations are images.
        crop: Pixels to cut off, (top, bottom, left, right); None for none.
        grayscale: Whether to turn colours into one grey channel.
        size: (height, width) of the result, by area averaging; None to keep it.
        frame_skip: Steps of the environment for each action, for environments that have no such setting themselves.

    Raises:
        PixelError: A value is not allowed.
    """

    key: str | None = None
    crop: Sequence[int] | None = None
    grayscale: bool = False
    size: Sequence[int] | None = None
    frame_skip: int = 1

    def __post_init__(self) -> None:
        """Checks the values, and makes tuples of lists, which YAML and JSON have."""
        for name, rule, count, least in (
            ("crop", "four whole numbers of at least 0, (top, bottom, left, right), or None", 4, 0),
            ("size", "two whole numbers of at least 1, (height, width), or None", 2, 1),
        ):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, str) or not _are_whole(value, count, least):
                    raise PixelError(f"{name} is {value!r}, but must be {rule}. Fix: correct it.")
                object.__setattr__(self, name, tuple(int(number) for number in value))
        if not _are_whole([self.frame_skip], 1, 1):
            raise PixelError(f"frame_skip is {self.frame_skip!r}, but must be a whole number of at least 1. Fix: 1.")

    @property
    def has_images(self) -> bool:
        """Whether anything is done to observations."""
        return self.key is not None or self.crop is not None or self.grayscale or self.size is not None

    @property
    def is_neutral(self) -> bool:
        """Whether the environment stays as it is."""
        return not self.has_images and self.frame_skip == 1

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PixelSettings:
        """Return what settings by dotted YAML path say; those that are not given do nothing."""
        return cls(**{name: values[path] for path, name in PATHS.items() if path in values})

    def to_values(self) -> dict[str, Any]:
        """Return the values by dotted YAML path; the inverse of `from_values`."""
        return {path: getattr(self, name) for path, name in PATHS.items()}


AS_IT_IS = PixelSettings()


def preprocess(env: AnyEnv, settings: PixelSettings) -> AnyEnv:
    """Wraps an environment as the settings say; one that they leave alone is returned as it is.

    Args:
        env: Observations [H, W] or [H, W, C] uint8, C at most 4, or a Dict that has such images; any, where only
            frames are skipped.
        settings: What to do.

    Returns:
        Where anything is done to images, observations are a Box of [height, width, channels] uint8, C-contiguous.

    Raises:
        PixelError: The settings do not fit the environment's observations.
    """
    if settings.is_neutral:
        return env
    if not isinstance(env, gym.Env):
        raise PixelError(
            f"env.frame_skip and {SECTION} are for Gymnasium environments, but this is a {type(env).__name__}. Fix: "
            "remove them, or another environment."
        )
    if settings.frame_skip > 1:
        env = FrameSkip(env, settings.frame_skip)
    return ImageObservation(env, settings) if settings.has_images else env


class FrameSkip(gym.Wrapper[Any, Any, Any, Any]):
    """Repeats each action, and sums the rewards; an end stops it.

    Observation and info are those of the last frame. Time limits inside of it count frames; `spec` has them in steps.

    CarRacing draws no frames but the last one (`wm_rllib.environments.car_racing`).

    Args:
        env: The environment.
        num_frames: How often an action is done.
    """

    def __init__(self, env: AnyEnv, num_frames: int):
        super().__init__(env)
        self._num_frames = num_frames
        self._spec: EnvSpec | None = None
        self._frames = seen_frames(env)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step of up to `num_frames` frames."""
        if self._frames is None:
            return self._repeat(action)
        with self._frames.skipped():
            _, reward, terminated, truncated, info = self._repeat(action)
        return self._frames.observation(), reward, terminated, truncated, info

    def _repeat(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._num_frames):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]  # a property in every Gymnasium wrapper
        """The environment's, with its time limit in steps of this wrapper."""
        if self._spec is None and super().spec is not None:
            self._spec = copy.copy(super().spec)
            if self._spec is not None and self._spec.max_episode_steps is not None:
                self._spec.max_episode_steps = -(-self._spec.max_episode_steps // self._num_frames)
        return self._spec


class ImageObservation(gym.ObservationWrapper[np.ndarray, Any, Any]):
    """Observations as V wants them: [height, width, channels] uint8.

    Args:
        env: The environment.
        settings: What to do; `frame_skip` is not looked at.

    Raises:
        PixelError: The settings do not fit the environment's observations.
    """

    def __init__(self, env: AnyEnv, settings: PixelSettings):
        super().__init__(env)
        self._key = settings.key
        space = _image_space(env.observation_space, settings.key)
        height, width, channels = _image_shape(space)
        self._given_shape = space.shape
        top, bottom, left, right = settings.crop or (0, 0, 0, 0)
        if top + bottom >= height or left + right >= width:
            raise PixelError(
                f"{SECTION}.crop is {list(settings.crop or ())}, but must leave something of {height} rows and {width} "
                "columns. Fix: cut off less; the order is [top, bottom, left, right]."
            )
        self._rows, self._columns = slice(top, height - bottom), slice(left, width - right)
        if settings.grayscale and channels not in (1, 3):
            raise PixelError(
                f"{SECTION}.grayscale is true, but the images have {channels} channels: it must be false unless they "
                f"have 3 (or 1, which is grey already). Fix: remove {SECTION}.grayscale."
            )
        self._to_gray = settings.grayscale and channels == 3
        cropped = height - top - bottom, width - left - right
        size = cropped if settings.size is None else (settings.size[0], settings.size[1])
        self._shrink = AreaAverage(cropped, size) if size != cropped else None
        self.observation_space = Box(0, 255, (*size, 1 if self._to_gray else channels), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """The image of an observation."""
        image = np.asarray(observation if self._key is None else observation[self._key])
        if image.shape != self._given_shape or image.dtype != np.uint8:
            raise PixelError(
                f"the environment gave a picture of shape {image.shape} and type {image.dtype}, but its observation "
                f"space says {self._given_shape} and uint8. Fix: mend the environment, or the space that it declares."
            )
        if image.ndim == 2:
            image = image[..., None]
        image = image[self._rows, self._columns]
        if self._to_gray:
            image = gray(image)
        if self._shrink is not None:
            image = self._shrink(image)
        return np.ascontiguousarray(image)


def _image_space(space: gym.Space[Any], key: str | None) -> gym.Space[Any]:
    """Return the space of the image that the key names."""
    if key is None:
        if isinstance(space, Dict):
            names = ", ".join(space.spaces)
            raise PixelError(
                f"{SECTION}.key is null, but must name one of {names}: observations are a Dict. Fix: set {SECTION}.key."
            )
        return space
    if not isinstance(space, Dict):
        raise PixelError(
            f"{SECTION}.key is {key!r}, but must be null: observations are {_described(space)}, and no Dict. Fix: "
            f"remove {SECTION}.key."
        )
    if key not in space.spaces:
        raise PixelError(
            f"{SECTION}.key is {key!r}, but must be one of {', '.join(space.spaces)}. Fix: correct {SECTION}.key."
        )
    return space.spaces[key]


def _image_shape(space: gym.Space[Any]) -> tuple[int, int, int]:
    """Return height, width and channels, or raise unless the space is one of images."""
    shape = space.shape or ()
    is_image = len(shape) == 2 or (len(shape) == 3 and 1 <= shape[-1] <= 4)
    if not isinstance(space, Box) or space.dtype != np.uint8 or not is_image:
        raise PixelError(
            f"{SECTION} needs images, but observations are {_described(space)}: they must be uint8 [height, width] or "
            f"[height, width, channels] with at most 4 channels. Fix: remove {SECTION}, or wrap the environment so "
            "that it gives such images."
        )
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _described(space: gym.Space[Any]) -> str:
    """Return a space in one line: a Box prints all its bounds."""
    return f"a Box of {space.shape} {space.dtype}" if isinstance(space, Box) else type(space).__name__


def gray(image: np.ndarray) -> np.ndarray:
    """Luma of an image [H, W, 3] uint8, rounded: [H, W, 1] uint8."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)  # NumPy 1 would multiply in 16 bits
    thousandths = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return ((thousandths + 500) // 1000).astype(np.uint8)[..., None]


class AreaAverage:
    """Resizes images: each pixel of the result is the mean of the area that it covers.

    Pillow's BOX filter is that for whole ratios only: from three pixels to two, where each covers one and a half, it
    takes the mean of two and the third alone. Sums are of whole numbers, so that the result is the same on every
    machine and with any number of threads; matrix products would be faster on one thread, and far slower where several
    processes share the cores.

    Args:
        before: Height and width of the images.
        after: Height and width of the results.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int]):
        self._area = before[0] * before[1]
        kind = np.int32 if 255 * self._area < 2**31 else np.int64
        self._rows, self._columns = (_shares(*lengths, kind) for lengths in zip(before, after, strict=True))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, C] uint8 to [height, width, C] uint8, halves rounded up."""
        rows = sum(image[index] * share[:, None, None] for index, share in self._rows)
        sums = sum(rows[:, index] * share[:, None] for index, share in self._columns)
        return np.floor(sums / self._area + 0.5).astype(np.uint8)


def _shares(before: int, after: int, kind: type) -> list[tuple[np.ndarray, np.ndarray]]:
    """How an axis of `before` pixels is spread over `after`: pairs of index [after] and share [after], of that kind.

    Lengths are in units in which a pixel before is `after` long and one of the result is `before` long, which makes
    all shares whole; those of a pixel of the result add up to `before`.
    """
    starts = np.arange(after) * before
    first, last = starts // after, (starts + before - 1) // after
    pairs = []
    for offset in range(int((last - first).max()) + 1):
        index = first + offset
        share = np.minimum((index + 1) * after, starts + before) - np.maximum(index * after, starts)
        pairs.append((np.minimum(index, before - 1), np.maximum(share, 0).astype(kind)))
    return pairs
