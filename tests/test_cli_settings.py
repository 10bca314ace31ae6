"""The command `settings`, and the document that is its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_rllib.cli.main import main
from wm_rllib.cli.settings import described, markdown
from wm_rllib.config import WorldModelPPOConfig
from wm_rllib.settings.table import SETTINGS

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_document_is_the_commands_output():
    assert DOCUMENT.read_text(encoding="utf-8").endswith(f"\n\n{markdown(described())}\n")


def test_every_name_in_python_sets_its_setting():
    rows = [row for row in described() if row.python]
    assert len(rows) > 0.9 * len(SETTINGS)
    for row in rows:
        method, _, parameter = row.python.strip(".)=").partition("(")
        config = WorldModelPPOConfig()
        value = {"warp": 7} if isinstance(getattr(config, row.setting.attr), dict) else 7
        getattr(config, method)(**{parameter: value})
        assert getattr(config, row.setting.attr) == value, row.python


def test_some_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["settings", "HORIZON"]) == 0
    shown = capsys.readouterr().out
    assert "world_model.training.imagination_horizon = 50  .dreamers(imagination_horizon=)" in shown
    assert "a whole number of at least 1" in shown and "latent_dim" not in shown


def test_none_is_one_message(capsys: pytest.CaptureFixture[str]):
    assert main(["settings", "warp"]) == 2
    assert "'warp'" in (message := capsys.readouterr().err) and "Fix: " in message and message.count("\n") == 1
