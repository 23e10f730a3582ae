# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""One training loop for every reader: the same data, the same tokens, the same optimizer."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch

from benchmarks.peers.reader import Reader, State
from memformer.config.schema import OptimizerConfig
from memformer.engine.optimizer import keep_matrices_whole, learning_rate, make_optimizer

PACED = (10, 40)  # steps whose pace says how many there is time for


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What one optimizer step reads.

    Attributes:
        tokens: int64 [B, T, S].
        weights: Weight of each token's loss, [B, T, S]; None counts all alike.
        starting: All documents begin with this rollout; otherwise they go on from the last.
    """

    tokens: torch.Tensor
    weights: torch.Tensor | None = None
    starting: bool = True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how fast to train.

    Attributes:
        steps: Optimizer steps.
        learning_rate: Its peak; warm-up over the first 5 %, then a cosine to 0, or constant and a fall to 0 over the
            last 30 % ("wsd").
        schedule: "cosine" or "wsd".
        clip: Largest norm of the gradient.
        weight_decay: On matrices.
        horizon: Segments through which the gradient goes back. A rollout is cut into parts of so many; the state is
            carried from part to part, the gradient is not. None: the whole rollout.
        seconds: Wall time; where the first steps show that it will not do, fewer steps are taken. None: all.
        optimizer: "adamw" or "muon".
        state_dtype: What its states are stored in, "float32" or "bfloat16".
        rates: Beginnings of names of parameters, and what their rate is multiplied by; 0 freezes them.
    """

    steps: int
    learning_rate: float
    schedule: str = "cosine"
    clip: float = 1.0
    weight_decay: float = 0.0
    horizon: int | None = None
    seconds: float | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    rates: tuple[tuple[str, float], ...] = ()

    def rate_of(self, name: str) -> float:
        """What a parameter's learning rate is multiplied by."""
        return next((rate for start, rate in self.rates if name.startswith(start)), 1.0)


@dataclasses.dataclass(frozen=True)
class History:
    """What training did.

    Attributes:
        losses: Mean weighted loss in nats of each tenth of the steps.
        seconds: Processor time.
        steps: That were taken.
    """

    losses: tuple[float, ...]
    seconds: float
    steps: int


def train(
    reader: Reader,
    rollouts: Iterable[Rollout],
    recipe: Recipe,
    report: Callable[[str], object] = lambda line: None,
) -> History:
    """Trains a reader on the first `recipe.steps` rollouts.

    Args:
        reader: What is trained.
        rollouts: The data, in order.
        recipe: The schedule.
        report: Given a line about ten times.
    """
    settings = OptimizerConfig(
        learning_rate=recipe.learning_rate,
        warmup_steps=max(1, recipe.steps // 20),
        schedule=recipe.schedule,  # type: ignore[arg-type]
        decay_fraction=0.3,
        final_fraction=0.0,
        weight_decay=recipe.weight_decay,
        beta2=0.98,
        name=recipe.optimizer,
        state_dtype=recipe.state_dtype,
    )
    device = next(reader.module.parameters()).device
    if not hasattr(reader.module, "undecayed"):
        reader.module.undecayed = set  # the models of other libraries: all of their matrices decay
    optimizer = make_optimizer(reader.module, settings, device)
    keep_matrices_whole(optimizer, reader.module)
    _apply_rates(reader.module, optimizer, recipe)
    reader.module.train()
    state: State = None
    started, began, window, shown = time.process_time(), time.perf_counter(), [], []
    steps, step = recipe.steps, 0
    tenth = max(1, steps // 10)
    for step, rollout in enumerate(rollouts, start=1):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(step, settings, steps)
        weights = torch.ones(rollout.tokens.shape) if rollout.weights is None else rollout.weights
        weights = weights / weights.sum()
        optimizer.zero_grad()
        losses, state = _backward(
            reader, rollout.tokens.to(device), None if rollout.starting else state, weights.to(device), recipe.horizon
        )
        torch.nn.utils.clip_grad_norm_(reader.module.parameters(), recipe.clip)
        optimizer.step()
        window.append(float((losses.cpu() * weights).sum()))
        if recipe.seconds is not None and step in PACED:
            pace = (time.perf_counter() - began) / step
            steps = max(step, min(recipe.steps, int(recipe.seconds / pace)))
            tenth = max(1, steps // 10)
        if step % tenth == 0 or step == steps:
            shown.append(sum(window) / len(window))
            window.clear()
            taken = time.perf_counter() - began
            report(f"{reader.name}: step {step} of {steps}, loss {shown[-1]:.3f}, {taken:.0f} s")
        if step >= steps:
            break
    reader.module.eval()
    return History(tuple(shown), time.process_time() - started, step)


def _apply_rates(module: torch.nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    """Splits the groups of an optimizer that has not stepped by `recipe.rate_of`, and freezes what has rate 0."""
    rates = {parameter: recipe.rate_of(name) for name, parameter in module.named_parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group, rate in itertools.product(groups, sorted(set(rates.values()))):
        members = [parameter for parameter in group["params"] if rates[parameter] == rate]
        if rate == 0:
            for parameter in members:
                parameter.requires_grad_(False)
        elif members:
            optimizer.add_param_group({**group, "params": members, "rate": rate})


def _backward(
    reader: Reader, tokens_BTS: torch.Tensor, state: State, weights_BTS: torch.Tensor, horizon: int | None
) -> tuple[torch.Tensor, State]:
    """`Reader.backward`, part by part of `horizon` segments."""
    horizon, losses = horizon or tokens_BTS.shape[1], []
    for tokens, weights in zip(tokens_BTS.split(horizon, dim=1), weights_BTS.split(horizon, dim=1), strict=True):
        loss, state = reader.backward(tokens, state, weights)
        losses.append(loss)
    return torch.cat(losses, dim=1), state


def chunks(tokens_BL: torch.Tensor, num_segments: int, segment_length: int) -> Iterator[Rollout]:
    """Documents of one length as rollouts; the last may have fewer segments, and a shorter last one is left out."""
    length = num_segments * segment_length
    for number, part in enumerate(tokens_BL.split(length, dim=1)):
        whole = part.shape[1] // segment_length * segment_length
        if whole:
            yield Rollout(part[:, :whole].unflatten(1, (-1, segment_length)), starting=number == 0)
