# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One data-parallel rank as a process: reads a stream, writes what was delivered, and saves the state, step by step.

The arguments are one JSON object: data, folder, rank, world_size, lanes, steps, state (a file to go on from, or null),
kill_at (a step at which the process kills itself between reading and saving, or null). `folder` gets
`rank-*.jsonl`, in the form of `memformer data trace`, and rank 0's `state-STEP.json` in the form of a checkpoint's.
"""

import json
import os
import signal
import sys
from pathlib import Path

from data_pipeline import SegmentStream, trace_rows


def main() -> None:
    a = json.loads(sys.argv[1])
    folder = Path(a["folder"])
    with (
        SegmentStream(
            a["data"],
            num_lanes=a["lanes"],
            segment_length=32,
            num_segments=3,
            seed=11,
            rank=a["rank"],
            world_size=a["world_size"],
        ) as stream,
        (folder / f"rank-{a['rank']}.jsonl").open("a") as audit,
    ):
        if a["state"]:
            stream.load_state_dict(json.loads(Path(a["state"]).read_text())["data"])
        for _ in range(a["steps"]):
            batch = next(stream)
            audit.writelines(json.dumps(row) + "\n" for row in trace_rows(batch, a["rank"]))
            audit.flush()
            if batch.step + 1 == a["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if a["rank"] == 0:
                temporary = folder / "state.temporary"
                temporary.write_text(json.dumps({"step": batch.step + 1, "data": stream.state_dict()}))
                temporary.rename(folder / f"state-{batch.step + 1}.json")


if __name__ == "__main__":
    main()
