"""An iteration that a signal cuts short: less is done, nothing is lost."""

import pytest
from tiny import RANDOM_STEPS, TRAIN_BATCH, tiny_config

from wm_rllib import WorldModelPPO

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


def test_cut_short_iteration_fits_and_updates_later(tmp_path):
    algorithm = tiny_config(evaluation_interval_steps=TRAIN_BATCH).build_algo()
    try:
        while algorithm.train()["phase"] != "mixed":
            pass
        algorithm.cut_short()
        cut = algorithm.train()
        assert cut["num_env_steps_sampled_lifetime"] == RANDOM_STEPS + 2 * TRAIN_BATCH
        assert cut["rows"] == {"real": 0, "imagined": 0}
        assert "episode_return_mean" not in cut.get("evaluation", {})  # RLlib repeats its own keys of the last one
        assert {"fit", "dream", "update", "evaluate"}.isdisjoint(cut["seconds"])
        owed = algorithm._state.pending_updates
        assert owed == 0.25 * TRAIN_BATCH
        path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algorithm.stop()
    resumed = WorldModelPPO.from_checkpoint(path)
    try:
        result = resumed.train()
        assert result["rows"]["real"] > 0 and result["evaluation"]["episodes"] == 2
        updates = result["steps_per_second"]["fit_updates"] * result["seconds"]["fit"]
        assert updates == pytest.approx(2 * owed)
    finally:
        resumed.stop()


def test_a_signal_between_two_dream_rounds_leaves_the_rest_out(monkeypatch):
    algorithm = tiny_config(num_dream_rounds=5).build_algo()
    try:
        while algorithm.train()["phase"] != "mixed":
            pass
        whole = algorithm._stages.update

        def update(real, harvest, rows, ratio, round_index, num_rounds):
            whole(real, harvest, rows, ratio, round_index, num_rounds)
            if round_index == 1:
                algorithm.cut_short()

        monkeypatch.setattr(algorithm._stages, "update", update)
        result = algorithm.train()
        assert len(result["imagination"]["rows_by_round"]) == 2
        assert result["imagination"]["ratio"] == pytest.approx(0.5)
        monkeypatch.undo()
        assert len(algorithm.train()["imagination"]["rows_by_round"]) == 5  # the next one is whole again
    finally:
        algorithm.stop()
