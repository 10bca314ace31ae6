"""The learning rates that the optimisers of V, M and C really work with.

Read from the optimisers, not from the config: Adam's state in a checkpoint brings the rates of its time along, and
after a restore (a resumed run, an exploit of Tune's PBT) the two could differ.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from wm_rllib.columns import WORLD_MODEL_MODULE_ID

VAE_OPTIMIZER = "vae"
MDN_RNN_OPTIMIZER = "mdn_rnn"
POLICY_OPTIMIZER = "policy"
LEARNING_RATES = {
    VAE_OPTIMIZER: WORLD_MODEL_MODULE_ID,
    MDN_RNN_OPTIMIZER: WORLD_MODEL_MODULE_ID,
    POLICY_OPTIMIZER: DEFAULT_MODULE_ID,
}
"""Our name of each optimiser, and the module in whose metrics `<name>_lr` is."""


def log_learning_rate(metrics: Any, optimizer_name: str, optimizer: torch.optim.Optimizer) -> None:
    """Logs an optimiser's learning rate to a MetricsLogger; whose name is neither V's nor M's is C's."""
    ours = (name for name in (VAE_OPTIMIZER, MDN_RNN_OPTIMIZER) if optimizer_name.endswith(name))
    name = next(ours, POLICY_OPTIMIZER)
    metrics.log_value((LEARNING_RATES[name], f"{name}_lr"), float(optimizer.param_groups[0]["lr"]), window=1)
