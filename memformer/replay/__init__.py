# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Memory replay back-propagation: cells, rollouts, the two backwards. Knows no model and no engine."""

from typing import TYPE_CHECKING

from data_pipeline.faces import face

if TYPE_CHECKING:
    from memformer.replay.backward import Backward, Cell, RolloutResult, bptt_backward, memory_replay_backward
    from memformer.replay.buffer import ReplayBuffer
    from memformer.replay.grouped import DecoderApart, grouped_replay_backward
    from memformer.replay.kept import DecoderGroups, KeptMemories, kept_memories
    from memformer.replay.piece import RolloutPiece
    from memformer.replay.rollout import Carry, Rollout
    from memformer.replay.segment import Segment
    from memformer.replay.windows import WindowCell, windowed_replay_backward

__all__ = [
    "Backward",
    "Carry",
    "Cell",
    "DecoderApart",
    "DecoderGroups",
    "KeptMemories",
    "ReplayBuffer",
    "Rollout",
    "RolloutPiece",
    "RolloutResult",
    "Segment",
    "WindowCell",
    "bptt_backward",
    "grouped_replay_backward",
    "kept_memories",
    "memory_replay_backward",
    "windowed_replay_backward",
]

__getattr__ = face(
    __name__,
    {
        "Backward": "backward",
        "Carry": "rollout",
        "Cell": "backward",
        "DecoderApart": "grouped",
        "DecoderGroups": "kept",
        "KeptMemories": "kept",
        "kept_memories": "kept",
        "ReplayBuffer": "buffer",
        "Rollout": "rollout",
        "RolloutPiece": "piece",
        "RolloutResult": "backward",
        "Segment": "segment",
        "WindowCell": "windows",
        "bptt_backward": "backward",
        "grouped_replay_backward": "grouped",
        "memory_replay_backward": "backward",
        "windowed_replay_backward": "windows",
    },
)
