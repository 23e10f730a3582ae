# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay back-propagation, independent of any training engine."""

from memformer.replay.backward import Backward, Cell, RolloutResult, bptt_backward, memory_replay_backward
from memformer.replay.buffer import ReplayBuffer
from memformer.replay.rollout import Carry, Rollout

__all__ = [
    "Backward",
    "Carry",
    "Cell",
    "ReplayBuffer",
    "Rollout",
    "RolloutResult",
    "bptt_backward",
    "memory_replay_backward",
]
