"""The names under which experience and V and M are passed on, beside RLlib's own (`ray.rllib.core.columns`)."""

WORLD_MODEL_MODULE_ID = "world_model"
"""Of V and M among the learner's modules; C has RLlib's."""
MASK = "mask"
LATENTS = "latents"
"""Column of latents, computed once, in place of observations."""
STEPS_LEFT, TERMINATES = "steps_left", "terminates"
"""Columns of sequences: how many steps of the episode are stored from each step on, this one included, and whether the
last of them terminates."""
REACH, GREEDY, CHUNK, OFFSET = "reach", "greedy", "chunk", "offset"
"""Columns of newest windows; see `SequenceReplay.newest_windows`."""
