# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a run is refused for before anything is started, submitted or written: its data, and what it would resume.

Training itself refuses the same, but seconds later, or on a node where nobody looks. Imports no torch.
"""

from pathlib import Path

from data_pipeline.cloud_settings import is_cloud
from data_pipeline.errors import UserError
from data_pipeline.far import is_address
from launch.models import check_model
from memformer.checkpoints.fetching import wanted
from memformer.checkpoints.resuming import check_fits, choose, is_other_data
from memformer.config.schema import Config
from memformer.run.data import TrainingData
from memformer.run.directory import RunDirectory


def open_data(config: Config) -> TrainingData | None:
    """The data sets of a run, fit for its model; None where one is at an address, which opening is no quick check of.

    Raises:
        UserError: They are missing, damaged, or of another tokenizer than the model; or the run cannot be asked the
            tasks that it is to be.
    """
    data = _opened(config)
    return None if data is None else data.asking(config.evaluation)


def open_data_if_here(config: Config) -> TrainingData | None:
    """The same; also None where they cannot be opened, as on a machine that only submits jobs."""
    try:
        data = _opened(config)
    except UserError:
        return None
    return None if data is None else data.asking(config.evaluation)


def _opened(config: Config) -> TrainingData | None:
    sources = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    paths = [*(source if isinstance(source, str) else source.path for source in sources), config.data.eval_path or ""]
    if any(map(is_address, paths)):
        return None
    data = TrainingData.open(config.data)
    data.complete(config.model, config.data.segment_length)
    return data


def check_resume(config: Config, resume: str, data: TrainingData | None) -> None:
    """Refuses a run that may not go on from what is in its directory. Reads no more of checkpoints than sizes.

    Args:
        config: The run.
        resume: auto, never, the path of a run or checkpoint, or the address of a mirror or of a checkpoint in one; what
            is in such a checkpoint is left to training.
        data: Its data sets; None: what depends on them is left to training.

    Raises:
        UserError: No checkpoint can be used, or it is one of another model, tokenizer or data set; or the run starts
            afresh from what is no export.
    """
    if is_cloud(resume):
        wanted(RunDirectory(config.run_dir), resume, config.checkpoint)
        return
    start = choose(RunDirectory(config.run_dir), resume, sums=False)
    if start.checkpoint is None:
        if config.init_from and data is not None:
            check_model(Path(config.init_from), "init_from")
        return
    if data is None:
        known = {name: value for name, value in config.model.to_dict().items() if value is not None}
        check_fits(start.checkpoint, {"family": config.model.family, "model": known, "settings": config.values()})
        return
    model, train = data.complete(config.model, config.data.segment_length), data.train
    identity = {"family": model.family, "model": model.to_dict(), "tokenizer_sha256": train.tokenizer_sha256}
    check_fits(start.checkpoint, {**identity, "settings": config.values()})
    plan = {"fingerprint": train.fingerprint, "seed": config.seed}
    is_other_data(start.checkpoint, plan, config.data.on_change, config.data.path)
