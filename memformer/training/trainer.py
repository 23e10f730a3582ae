# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A training run, from top to bottom: data, processes, model, engine, resume, loop, end."""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from data_pipeline import SegmentStream
from data_pipeline.addresses import told
from memformer.checkpoints import state as checkpoint
from memformer.checkpoints.lane_states import LaneStates
from memformer.checkpoints.resuming import Start
from memformer.config.files import dump_yaml
from memformer.config.schema import Config
from memformer.config.topology import replicas_of
from memformer.engine.deepspeed_config import deepspeed_config
from memformer.engine.making import make_engine
from memformer.engine.precision import resolve_precision
from memformer.guards.watchdog import Watchdog
from memformer.inference.tasks import refuse_without_logits
from memformer.parallel.segment.sharing import trained_segments
from memformer.processes import group
from memformer.processes.environment import prepare_environment
from memformer.run import exit_codes
from memformer.run.data import Audit, TrainingData
from memformer.run.directory import RunDirectory, write_atomically
from memformer.run.grace import Grace
from memformer.run.loggers.registry import Loggers, refuse_missing
from memformer.run.metrics import MetricsWriter, set_up_logging
from memformer.run.stop_requests import StopRequests
from memformer.training.callbacks import Callback, TrainingState
from memformer.training.description import describe_run, run_identity, told_to_services
from memformer.training.initial_weights import initial_model
from memformer.training.life import Life, refuse_untrained
from memformer.training.loop import TrainingLoop
from memformer.training.mirroring import Mirroring
from memformer.training.profiling import Profiler
from memformer.training.resumption import differences, give_up_what_followed, go_on_from

LOG = logging.getLogger("memformer")


def train(config: Config, resume: str = "auto", callbacks: Sequence[Callback] = ()) -> int:
    """Trains until `training.max_steps` or until it is asked to stop, from the newest checkpoint if there is one.

    Called by every process of the run, with the same configuration.

    Args:
        config: The run.
        resume: auto, never, or the path of a run or checkpoint.
        callbacks: Called at named points of the loop, in this order, after what the run itself does there.

    Returns:
        0 when the run has finished; 75 when it was asked to stop, has saved and can be started again; 130 after Ctrl-C.

    Raises:
        UserError: The settings, the data, the checkpoint or the number of processes do not fit.
    """
    # Everything a user may have got wrong is checked before the slow part (DeepSpeed, the process group) starts.
    prepare_environment()
    set_up_logging(int(os.environ["RANK"]))
    data = TrainingData.open(config.data).asking(config.evaluation)
    model_config = data.complete(config.model, config.data.segment_length)
    replicas_of(config, int(os.environ["WORLD_SIZE"]))
    refuse_missing(config.loggers)
    grace = Grace()
    run = RunDirectory(config.run_dir)
    run.refuse_unwritable()

    timeout, parallel = config.guards.collective_timeout_seconds, config.parallel
    world = group.initialise(config.device, timeout)
    world = world.arranged(parallel.tensor, parallel.pipeline, parallel.segment, timeout)
    with Life(run, world, grace) as life:
        precision = resolve_precision(config.precision, world.device)
        identity = run_identity(config, model_config, data, world, precision)
        start = checkpoint.find(run, world, resume, config.checkpoint)
        with data.train_stream(config, world, trained_segments(config, world.mesh)) as stream:
            changes = differences(start, identity, stream, config)
            model = initial_model(config, model_config, data, world, resumed=start.checkpoint is not None)
            if data.asked:
                refuse_without_logits(model)
            engine = make_engine(model, config, world, precision)
            lanes = LaneStates(engine.empty_carry(config.data.num_lanes // world.mesh.data.size))
            state = TrainingState(config, run, world, engine, lanes, checkpoint.Progress())
            if start.checkpoint is not None:
                state.lanes, state.progress = checkpoint.load(start.checkpoint, world, engine, stream)
            # Nothing in the run directory has changed up to here: what is refused has left no trace.
            life.accept()
            if world.is_main:
                write_atomically(run.config, config.as_yaml())
                generated = deepspeed_config(config, world.mesh.gradients.size, precision)
                write_atomically(run.deepspeed, json.dumps(generated, indent=1) + "\n")
                describe_run(config, model_config, data, world, precision)
            if start.checkpoint is not None:
                go_on_from(start, state, changes)
            with Mirroring(config.checkpoint, state, start, grace) as mirroring:
                exit_code = loop(life, state, stream, data, identity, start, [mirroring, *callbacks])
                mirroring.wait()
        engine.close()
        return exit_code


def loop(
    life: Life,
    state: TrainingState,
    stream: SegmentStream,
    data: TrainingData,
    identity: dict[str, Any],
    start: Start,
    callbacks: Sequence[Callback],
) -> int:
    """Runs the loop with everything open that it needs; returns the exit code."""
    config, run, world, first = state.config, state.run, state.world, state.progress.step + 1
    if first > config.training.max_steps:
        LOG.info("nothing to do: the run has finished its %d steps", config.training.max_steps)
        refuse_untrained(state)
        life.ended(exit_codes.DONE)
        state.event("end", step=state.progress.step, tokens=state.progress.tokens, steps=0)
        return 0
    give_up_what_followed(state, start)
    state.progress = dataclasses.replace(state.progress, data=stream.state_dict())
    state.event("start", step=state.progress.step, processes=world.size)
    for_services = functools.partial(told_to_services, identity, config, state.engine.model.config)
    with (
        Audit(run, world, config.data.audit) as audit,
        Loggers(run, config.loggers if world.is_main else [], for_services, start.trained, life.grace) as loggers,
        MetricsWriter(run, world.is_main, config.tensorboard, first, loggers) as writer,
        StopRequests(run.stop_file, config.training.wall_clock_limit_seconds, life.leave, life.grace.began) as requests,
        Watchdog(run, world, config.guards.hang_timeout_seconds, life.give_up) as watchdog,
        Profiler(run, world, config.profile, first) as profiler,
    ):
        writer.text("settings", dump_yaml(told(config.values())), state.progress.step)
        saved_step = start.step if start.own else -1
        steps = TrainingLoop(
            state, data, identity, saved_step, audit, writer, requests, watchdog, [profiler, *callbacks]
        )
        exit_code = steps.run(stream)
        loggers.ended(exit_code)
        if exit_code != exit_codes.DONE:
            life.ended(exit_code)
    if exit_code == exit_codes.DONE:
        refuse_untrained(state)
        life.ended(exit_code)
        step, tokens = state.progress.step, state.progress.tokens
        state.event("end", step=step, tokens=tokens, steps=step - first + 1)
    return exit_code
