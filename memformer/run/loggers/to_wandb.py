# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Weights & Biases. Project, entity, mode (offline) and key come from its own variables, WANDB_PROJECT and so on."""

from collections.abc import Mapping

from memformer.run.exit_codes import DONE, FAILED, SAVED
from memformer.run.loggers.protocol import Ended, LoggedRun

EXIT_CODES: dict[Ended, int] = {"finished": DONE, "stopped": SAVED, "failed": FAILED}


class WandbLogger:
    """One run there for all lives of a run here: `id` is the run's, and it goes on where it is."""

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        run.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            id=run.identifier,
            name=run.name,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.settings),
            allow_val_change=True,  # a run may go on with other settings
            settings=wandb.Settings(console="off"),  # what is printed stays in the run's own logs
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A row of the step; several of one step are joined."""
        self._run.log(dict(values), step=step)

    def close(self, how: Ended) -> None:
        """Its state there: finished, or by the exit code crashed; `state` in its summary says which of ours."""
        self._run.summary["state"] = how
        self._run.finish(exit_code=EXIT_CODES[how])
