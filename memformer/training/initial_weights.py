# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model that a new run starts with: drawn from the seed, a pretrained one, or an export (`init_from`).

Under ZeRO 3, tensor parallelism or pipelines no process ever holds all of it.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline import UserError
from memformer.checkpoints.directory import refuse_unexported
from memformer.config.schema import Config
from memformer.engine.zero import spread_unsent, write_share
from memformer.models.configuration import ModelConfig, first_difference
from memformer.models.construction import Construction, Part, StoredTensor, check_shape
from memformer.models.exported import read_description
from memformer.models.loading import described_model, exported_weights
from memformer.models.protocol import MemoryModel
from memformer.models.registry import family_of, stages_of
from memformer.parallel.pipeline.construction import StagedConstruction
from memformer.parallel.pipeline.split import split_of
from memformer.parallel.tensor import SlicedConstruction, sharding_of
from memformer.processes.group import World
from memformer.run.data import TrainingData

LOG = logging.getLogger("memformer")


class Partitioned(Construction):
    """Each part is spread over the processes as soon as it is drawn (`deepspeed.zero.Init`).

    Parts are made on the CPU, as in the plain construction, since a GPU would draw other random numbers; a process
    holds at most one whole part, a layer or the embedding, beside its share of the others.

    Args:
        offload: The shares lie in host memory.
        gathers_again: Weights go with each layer that has used them, and linear maps gather them again in the backward:
            torch's would keep them, and under autocast have nothing to add a gradient to when they are gone.
    """

    def __init__(self, offload: bool = False, gathers_again: bool = False) -> None:
        self._options: dict[str, Any] = {"dtype": torch.float32, "mem_efficient_linear": gathers_again}
        if offload:
            self._options.update(remote_device="cpu", pin_memory=torch.cuda.is_available())

    def built(self, module: Part) -> Part:
        """Spreads a part's parameters; those that hold nothing yet are not sent to the other processes first."""
        if self.reads:
            spread_unsent(module, self._options)
            return module
        import deepspeed

        deepspeed.zero.Init(module=module, **self._options)
        return module

    def whole(self, parameters: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[object]:
        """Gathers parameters; at the end they are spread again, with what was written to them."""
        import deepspeed

        # Every process writes the same; DeepSpeed keeps changes only if one of them is named as their source.
        gathered: contextlib.AbstractContextManager[object] = deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=0
        )
        return gathered

    def read(self, name: str, parameter: torch.Tensor, stored: StoredTensor) -> None:
        """Reads this process's share."""
        shared: Any = parameter
        check_shape(name, stored, shared.ds_shape)
        write_share(shared, lambda start, stop: flat_part(stored, start, stop))


def flat_part(stored: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """The elements start .. stop-1 of a stored tensor in the order of its rows: no other rows are read."""
    shape = stored.get_shape()
    row = math.prod(shape[1:])
    first = start // row
    rows = stored[first : -(-stop // row)]
    return rows.reshape(-1)[start - first * row : stop - first * row]


def construction_of(config: Config, model: ModelConfig, world: World) -> Construction:
    """How the run's model comes into being: cut or spread from the start where it will be, plain otherwise.

    With both tensor parallelism and ZeRO 3 it is cut at first; the engine spreads the parts.
    """
    made: Construction
    if world.mesh.tensor.size > 1:
        made = SlicedConstruction(world.mesh.tensor, sharding_of(model))
    elif config.parallel.zero_stage < 3:
        made = Construction()
    else:
        parallel = config.parallel
        made = Partitioned(parallel.offload_parameters == "cpu", parallel.zero3_gather == "segment")
    if world.mesh.pipe.size > 1:
        stages = stages_of(model)
        own = split_of(config, model).own(world.mesh.pipe.rank, stages.places(model))
        made = StagedConstruction(stages.kind, own, made)
    return made


def initial_model(
    config: Config, model_config: ModelConfig, data: TrainingData, world: World, resumed: bool = False
) -> MemoryModel:
    """The model before the first step, equal on all processes, or each one's part of it.

    Args:
        config: The run.
        model_config: The model, completed by the data.
        data: What it will be trained on.
        world: The processes.
        resumed: A checkpoint will be loaded into it: no other weights are.

    Raises:
        UserError: `init_from` is no export, or is one of another model or tokenizer; or the family's own weights cannot
            be had.
    """
    torch.manual_seed(config.seed)
    construction, family = construction_of(config, model_config, world), family_of(model_config)
    loaded = resumed or config.init_from is not None
    try:
        stored = None if loaded or family.weights is None else family.weights(model_config)
        construction.reads = loaded or stored is not None
        model: MemoryModel = family.build(model_config, construction)
        if stored is not None:
            _load(model, stored, construction)
        elif not loaded and config.training.train != "all":
            LOG.warning(
                "training.train is %s, but what it freezes is drawn at random: give a pretrained model, or an "
                "export as init_from",
                config.training.train,
            )
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    if resumed or config.init_from is None:
        return model
    source = Path(config.init_from)
    refuse_unexported(source, "init_from: ")
    try:
        description = read_description(source)
        kind, exported = described_model(source, description)
        if kind.name != family.name:
            raise ValueError(f"it is of family {kind.name}, model.family is {family.name}")
    except Exception as error:
        raise _not_loaded(source, error) from None
    if description.get("tokenizer_sha256") != data.train.tokenizer.sha256:
        raise UserError(
            f"init_from: {source} was trained with another tokenizer than {data.train.path} was built with: build the "
            "data set with the tokenizer.json of the export"
        )
    differing = first_difference(exported.to_dict(), model_config.to_dict(), model_config.weightless)
    if differing is not None:
        name, there, here = differing
        raise UserError(f"init_from: model.{name} is {there} in {source} and {here} here: set it to {there}")
    try:
        names = [name for name, _ in model.named_parameters()]
        _load(model, exported_weights(source, description, names), construction)
    except Exception as error:  # safetensors raises a class of its own for a file that it cannot read
        raise _not_loaded(source, error) from None
    LOG.info("weights from %s", source)
    return model


def _load(model: MemoryModel, tensors: Iterator[tuple[str, StoredTensor]], construction: Construction) -> None:
    """Copies weights, one tensor at a time."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        construction.read(name, parameters[name], tensor)


def _not_loaded(source: Path, error: Exception) -> UserError:
    if str(error).startswith(str(source)):  # it names the file, and the mend
        return UserError(f"init_from: {error}")
    return UserError(f"init_from: {source} cannot be loaded ({error}): give a directory of memformer export")
