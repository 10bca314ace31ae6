"""The replay in checkpoints, when it is not where the driver is."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_rllib.replay.client import ReplayClient, holds_replay
from wm_rllib.replay.service import ReplayService


class Elsewhere:
    """A replay that writes where one cannot look from here."""

    def save(self, directory: str, filesystem: object) -> None:
        """Writes nothing here."""


def test_what_was_written_is_seen(tmp_path: Path):
    folder = tmp_path / "replay"
    assert not holds_replay(folder)
    ReplayClient(ReplayService(100, 0)).save_to_path(folder)
    assert holds_replay(folder) and holds_replay(folder.as_uri())


def test_a_replay_on_another_node_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"on another node, so that the checkpoint is not whole. Fix: "):
        ReplayClient(Elsewhere()).save_to_path(tmp_path / "replay")
