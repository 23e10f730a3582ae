# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run goes on from, whether it may, and what differs then. Changes nothing; imports no torch.

A run starts afresh only where it is known that there is nothing to go on from. A checkpoint that cannot be used now,
or one that is known of and gone, is a reason to refuse.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.addresses import shown
from data_pipeline.errors import UserError
from memformer.checkpoints import directory as files
from memformer.config.schema import CheckpointConfig
from memformer.models.configuration import first_difference
from memformer.models.registry import DEFAULT, family
from memformer.run import jsonl
from memformer.run.directory import RunDirectory

PLAN = ("fingerprint", "seed", "order", "block_window", "max_document_tokens")
"""What of a data state must be the same for a stream to go on where another one stood."""

_ASKED = ("tasks", "length", "depths", "documents", "seed", "text")
"""The settings of `evaluation` that decide on its documents."""

_LAYOUT = {
    "world_size": "{} -> {} processes",
    "tensor": "tensor {} -> {}",
    "pipeline": "pipeline {} -> {}",
    "segment": "segment {} -> {}",
    "zero_stage": "ZeRO {} -> {}",
    "num_lanes": "{} -> {} lanes",
    "precision": "precision {} -> {}",
    "device": "device {} -> {}",
}
_NAMED_ELSEWHERE = frozenset(
    {
        "run_dir",
        "precision",
        "device",
        "data.num_lanes",
        "parallel.tensor",
        "parallel.pipeline",
        "parallel.segment",
        "parallel.zero_stage",
    }
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: What it goes on from; None: from nothing.
        own: Whether that is a checkpoint of its own, not of another run.
        named: Whether `--resume` has named it, and not the run that it is of.
        instead_of: What `--resume` has named, where the run began in an earlier life and has saved since.
        passed_over: A line for each newer checkpoint that cannot be used.
        lost: A line for each file of the checkpoint that is missing or damaged and that a run can go on without.
        trained: The last step that was trained before, or said to be; up to there, steps are trained again.
        reasons: Why these are more than what any kill costs: a line each, none where they are no more.
    """

    checkpoint: Path | None = None
    own: bool = False
    named: bool = False
    instead_of: str | None = None
    passed_over: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    trained: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The steps that are done."""
        return 0 if self.checkpoint is None else files.step_of(self.checkpoint)


def choose(run: RunDirectory, resume: str, sums: bool = True) -> Start:
    """The checkpoint to go on from.

    Args:
        run: The run.
        resume: auto (the newest that can be used), never, or the path of a run or checkpoint. A path where the run
            began in an earlier life is the same command again, as of a job that is requeued: what has been saved since
            goes before it.
        sums: Whether to read every file for its SHA-256; without, this is a first look that refuses early.

    Raises:
        UserError: There are checkpoints and none can be used; there were some and they are gone; never, and the run
            directory holds a run; the path holds no checkpoint; or it is another run's, and this one has checkpoints
            of its own, which did not come from there.
    """
    if resume == "never":
        if run.metrics.exists() or files.candidates(run):
            raise UserError(f"run_dir: {run.root} holds a run: choose another directory, or --resume auto")
        return Start()
    if resume != "auto":
        again = _again(run, resume, sums)
        if again is not None:
            return dataclasses.replace(again, instead_of=resume)
        if not os.path.isdir(resume):
            raise UserError(f"--resume {resume}: is no directory: give auto, never, or a run or one of its checkpoints")
        found = files.locate(resume, sums=sums)
        own = os.path.isdir(run.checkpoints) and os.path.samefile(found.parent, run.checkpoints)
        others = [] if own else files.candidates(run)
        if others:
            raise UserError(
                f"--resume {resume}: run_dir {run.root} has checkpoints of its own (the newest is {others[0].name}): "
                "go on from them with --resume auto, or choose another run_dir"
            )
        return Start(found, own, named=files.meant(resume) == found, lost=tuple(files.lost(found)) if sums else ())
    newest, passed_over = files.newest_complete(run, sums=sums)
    if newest is not None:
        lost = tuple(files.lost(newest)) if sums else ()
        return Start(newest, True, passed_over=tuple(passed_over), lost=lost)
    if passed_over:
        raise UserError(
            f"run_dir: {run.root} has {len(passed_over)} checkpoint(s), and none can be used: "
            f"{'; '.join(passed_over)}. Mend what is named (all is left as it is), or start afresh in another run_dir",
            exit_code=1,
        )
    step = known_step(run)
    if step is not None:
        raise UserError(
            f"run_dir: {run.root} had a checkpoint of step {step}, and there is none in {run.checkpoints}: put it "
            "back, name one with --resume PATH, or start afresh in another run_dir",
            exit_code=1,
        )
    return Start()


def _again(run: RunDirectory, resume: str, sums: bool) -> Start | None:
    """Where a run goes on that began at what `resume` names and has saved since; None: there is nothing of the kind.

    What it names may be gone by then, as checkpoints are of a run that keeps the last few.
    """
    if not files.candidates(run):
        return None
    given = files.meant(resume)
    named = files.NAME.fullmatch(given.name) is not None
    there = os.path.realpath(given.parent if named else RunDirectory(given).checkpoints)
    if there != os.path.realpath(run.checkpoints):
        return choose(run, "auto", sums) if _went_on_from(run, there) else None
    saved = _saved_since(run, given.name) if named else set()
    start = choose(run, "auto", sums) if saved else Start()
    return start if start.step in saved else None


def _went_on_from(run: RunDirectory, there: str) -> bool:
    """Whether a life of a run has gone on from a checkpoint of that directory, which is another run's."""
    said = jsonl.last(run.events, lambda event: event.get("event") == "resume" and _place(event)[0] == there)
    return said is not None


def _saved_since(run: RunDirectory, name: str) -> set[int]:
    """The steps that lives have saved that began at a checkpoint of the run's own because they were told to.

    And those of the lives that went on from these: with a life that began anywhere else, another history begins.
    """
    own, saved = os.path.realpath(run.checkpoints), None
    for event in jsonl.records(run.events):
        if event.get("event") == "resume":
            if _place(event) == (own, name) and (event.get("named") or saved is not None):
                saved = set[int]()
            elif _place(event)[0] != own or event.get("step") not in (saved or ()):
                saved = None
        elif event.get("event") == "save" and saved is not None and isinstance(event.get("step"), int):
            saved.add(event["step"])
    return saved or set()


def _place(event: jsonl.Record) -> tuple[str, str]:
    """The directory and the name of the checkpoint that a life says it has gone on from."""
    directory, name = os.path.split(str(event.get("checkpoint")))
    return os.path.realpath(directory), name


def known_step(run: RunDirectory) -> int | None:
    """The step of the checkpoint that a run saved or went on from last, by its own word; None: it tells of none."""
    said = jsonl.last(
        run.events, lambda event: event.get("event") in ("save", "resume") and isinstance(event.get("step"), int)
    )
    steps = [] if said is None else [int(said["step"])]
    with contextlib.suppress(OSError, ValueError, UserError):  # a pointer that is missing or lies misleads nobody
        steps.append(files.step_of(Path((run.checkpoints / "latest").read_text(encoding="utf-8").strip())))
    return max(steps, default=None)


def repeated_steps(run: RunDirectory, start: Start, settings: CheckpointConfig) -> tuple[int, list[str]]:
    """The steps that were trained already and will be again.

    Args:
        run: The run.
        start: Where it begins.
        settings: How often it saves.

    Returns:
        The last of these steps (`start.step`: none is repeated), and why they are more than what any kill costs: a line
        for each reason, none where it is no more.
    """
    row = jsonl.last(run.metrics, lambda line: isinstance(line.get("step"), int))
    trained = 0 if row is None else int(row["step"])
    reasons = list(start.passed_over)
    newer = [path for path in files.candidates(run) if files.step_of(path) > start.step]
    last = max([start.step, trained, *map(files.step_of, newer)])
    if newer and not reasons:
        reasons.append(f"{newer[0]} is newer, and was not asked for")
    known = known_step(run) or 0
    if known > start.step and not newer:
        reasons.append(f"a checkpoint of step {known} was saved and is gone")
    usual = settings.interval * (2 if settings.background else 1)
    if settings.interval and trained - start.step > usual and not reasons:
        reasons.append(f"{run.metrics} has steps up to {trained}, and a checkpoint was due every {settings.interval}")
    return max(last, known), reasons


def check_fits(directory: Path, identity: Mapping[str, Any]) -> list[str]:
    """Refuses a checkpoint of another model or tokenizer; anything else is carried over.

    Args:
        directory: A checkpoint.
        identity: This run's, as it would be saved, or as much of it as is known.

    Returns:
        How the processes, the lanes and their arithmetic differ from those of the run that saved, in words, such as
        `2 -> 4 processes`.

    Raises:
        UserError: Names the first difference that cannot be carried over, both values and the mend.
    """
    state = files.read_state(directory)
    saved_family = state.get("family", DEFAULT)
    if saved_family != identity["family"]:
        raise UserError(
            f"{directory}: is a checkpoint of another model: model.family is {saved_family} there and "
            f"{identity['family']} here; set it back, or choose another run_dir"
        )
    model = _as_written_now(saved_family, state["model"])
    differing = first_difference(model, identity["model"], family(saved_family).config.weightless)
    if differing is not None:
        where, there, here = differing
        raise UserError(
            f"{directory}: is a checkpoint of another model: model.{where} is {_plain(there)} there and {_plain(here)} "
            "here; set it back, or choose another run_dir"
        )
    tokenizer = identity.get("tokenizer_sha256", state["tokenizer_sha256"])
    if state["tokenizer_sha256"] != tokenizer:
        raise UserError(
            f"{directory}: was written with tokenizer_sha256 {state['tokenizer_sha256']}, this run has {tokenizer}: "
            "use the data set that the run was started on, or one built with its tokenizer.json"
        )
    here, there = (_optimizer(known.get("settings", {})) for known in (identity, state))
    if "settings" in identity and here != there:
        raise UserError(
            f"{directory}: was trained with optimizer.name {there}, and {here} cannot go on with its states: set it "
            "back, or start another run_dir from an export of this one (init_from)"
        )
    state = {**state, **sizes(state)}
    return [
        text.format(state[name], identity[name])
        for name, text in _LAYOUT.items()
        if name in identity and state[name] != identity[name]
    ]


def _optimizer(settings: Mapping[str, Any]) -> str:
    """`optimizer.name`; checkpoints from before there was a choice say nothing of it."""
    return str(settings.get("optimizer", {}).get("name", "adamw"))


def _as_written_now(saved_family: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's model as this program would write it: settings have changed their form, and JSON knows no tuples.

    As it stands where this program cannot read it: then a difference is named.
    """
    try:
        return family(saved_family).config.from_dict(model).to_dict()
    except (ValueError, TypeError):
        return model


def is_other_data(directory: Path, plan: Mapping[str, Any], on_change: str, path: object) -> bool:
    """Whether the data set, or the order that it is read in, is another than the checkpoint's.

    Args:
        directory: A checkpoint.
        plan: Of a stream's state what `PLAN` names, or as much of it as is known.
        on_change: The setting `data.on_change`.
        path: The setting `data.path`, for the message.

    Raises:
        UserError: It is, and `on_change` is refuse; names both.
    """
    state = files.read_state(directory)
    name = next((name for name in PLAN if name in plan and plan[name] != state["data"].get(name)), None)
    if name is None or on_change == "restart":
        return name is not None
    before, mend = (
        state["data"].get(name),
        "or set data.on_change to restart: read from the beginning, with the weights",
    )
    if name == "fingerprint":
        there = shown(str(state.get("settings", {}).get("data", {}).get("path", "not known by its path")))
        raise UserError(
            f"data.path: {shown(str(path))} (fingerprint {plan[name]}) is not the data set that {directory} was "
            f"reading ({there}, fingerprint {before}): name that one again, {mend} and the optimizer as they are"
        )
    raise UserError(
        f"{name}: is {plan[name]}, and {directory} was reading its data set with {before}: set it back, {mend} and the "
        "optimizer as they are"
    )


def changed_settings(directory: Path, settings: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the run that saved, such as `optimizer.learning_rate 0.01 -> 0.1`.

    Left out is what `check_fits` tells, settings that only one of the two versions of this program has, and what is
    secret in addresses: a fresh signature is no change.

    Args:
        directory: A checkpoint.
        settings: `Config.values()`.
    """
    before, now = (dict(_leaves(values)) for values in (files.read_state(directory).get("settings", {}), settings))
    return [
        f"{name} {_words(before[name])} -> {_words(value)}"
        for name, value in now.items()
        if name in before and before[name] != value and name not in _NAMED_ELSEWHERE
        if _words(before[name]) != _words(value)
    ]


def changed_questions(directory: Path, identity: Mapping[str, Any]) -> list[str]:
    """Whether a run is asked other documents by the same settings, in words; settings that differ say so themselves.

    Args:
        directory: A checkpoint.
        identity: This run's, as it would be saved.
    """
    state = files.read_state(directory)
    before, now = state.get("asked_sha256"), identity["asked_sha256"]
    there, here = (
        {name: each.get("evaluation", {}).get(name) for name in _ASKED}
        for each in (state.get("settings", {}), identity["settings"])
    )
    if None in (before, now) or before == now or there != here:
        return []
    return ["evaluation.tasks asks other documents (a file of it, or of evaluation.text, is another than it was)"]


def _words(value: Any) -> str:
    """A setting's value as a configuration has it, without what is secret in an address."""
    return shown(value if isinstance(value, str) else json.dumps(value))


def _plain(value: Any) -> str:
    """A setting's value in words, null as YAML has it."""
    return value if isinstance(value, str) else _words(value)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and not all(str(key).isdecimal() for key in value):
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """The topology that a checkpoint was saved from; those of format 2 know replicas alone."""
    size = state["world_size"]
    return {
        "world_size": size,
        **{name: state.get(name, 1) for name in ("pipeline", "tensor", "segment")},
        "replicas": state.get("replicas", size),
    }


def not_carried(changes: list[str], dropout: float) -> str:
    """What a resume with these changes cannot carry over, in one clause; `dropout`: the run's."""
    if dropout and any(word in change for change in changes for word in ("processes", "lanes", "pipeline", "segment")):
        return "dropout draws other masks, since its random streams belong to the old layout"
    if any("precision" in change for change in changes):
        return "losses agree to the rounding of the coarser precision"
    return "losses agree to rounding" if changes else "nothing is lost"
