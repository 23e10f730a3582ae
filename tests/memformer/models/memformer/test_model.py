# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The model as a whole: settings, initial values, what may depend on what, precision, compilation.

Covers: memformer/models/memformer/computation.py, memformer/models/memformer/config.py,
memformer/models/memformer/initialise.py
"""

import dataclasses
import functools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.engine.compilation import compile_layers
from memformer.models.memformer import computation
from memformer.models.scoring import token_losses
from memformer.replay import Segment
from tests.memformer.examples import SMALL, START, full_segment, random_memory, random_tokens, small_config, small_model

LANES, LENGTH = 3, 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_encoder_layers": 0}, "num_encoder_layers is 0: set it to 1 or more"),
        ({"overlap": -1}, "overlap is -1: set it to 0 or more"),
        ({"block": "new"}, "block is new: choose paper or modern"),
        ({"residual_dtype": "bf16"}, "residual_dtype is bf16: choose float32 or compute"),
        ({"num_memory_slots": -1}, "num_memory_slots is -1: set it to 0 or more"),
        ({"memory_temperature": 0.0}, "memory_temperature is 0.0: set it above 0"),
        (
            {"memory_write_threshold": 1.0},
            "memory_write_threshold is 1.0: set it to at least 0 and below 1",
        ),
        ({"dropout": 1.0}, "dropout is 1.0: set it to at least 0 and below 1"),
        ({"num_heads": 3}, "num_heads is 3: choose a divisor of d_model/2 = 8"),
        ({"num_heads": 16}, "num_heads is 16: choose a divisor of d_model/2 = 8"),
        ({"writer_heads": 5}, "writer_heads is 5: choose a divisor of d_model 16"),
        ({"writer_heads": 0}, "writer_heads is 0: choose a divisor"),
        ({"vocab_size": 0}, "vocab_size is 0: set it to 1 or more"),
        ({"segment_length": 0}, "segment_length is 0: set it to 1 or more"),
        ({"start_token_id": 31}, "start_token_id is 31: choose an id below vocab_size 31"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        small_config(**changes)
    assert message in str(caught.value)


def test_settings_survive_a_dictionary() -> None:
    assert MemformerConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="unknown model field 'slots'"):
        MemformerConfig.from_dict({"slots": 3})


def test_a_model_needs_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="take them from the tokenizer"):
        Memformer(MemformerConfig())


def test_embeddings_are_tied_when_asked() -> None:
    tied, untied = small_model(), small_model(tie_embeddings=False)
    assert tied.head.weight is tied.embedding.tokens.weight
    assert untied.head.weight is not untied.embedding.tokens.weight


def expected_std(name: str, parameter: torch.Tensor, config: MemformerConfig) -> float:
    """What the table in memformer/models/memformer/initialise.py says of a matrix."""
    width = config.d_model
    if name in ("embedding.tokens.weight", "forget.bias"):
        return width**-0.5
    std = parameter.shape[1] ** -0.5
    if name.endswith(("output.weight", "down.weight")):
        branches = 3 * (config.num_encoder_layers if name.startswith("encoder") else config.num_decoder_layers)
        std *= branches**-0.5
    return std


def test_initial_values() -> None:
    config = small_config(d_model=128, num_heads=4, d_ff=256, num_memory_slots=32, vocab_size=300)
    torch.manual_seed(0)
    model = Memformer(config)
    width = config.d_model
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            weight = width**-0.25 if name.startswith("decoder_norm") else 1.0
            assert torch.equal(parameter, torch.full_like(parameter, weight if name.endswith("weight") else 0.0)), name
        else:
            std = expected_std(name, parameter, config)
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * std, name
            assert parameter.abs().max().item() < 6 * std, name


@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_model_guesses_evenly(tied: bool) -> None:
    """The loss starts within 0.2 nats of a uniform guess, although a tied head sees the input token's own row."""
    torch.manual_seed(0)
    model = Memformer(small_config(d_model=128, num_heads=4, d_ff=256, vocab_size=300, tie_embeddings=tied))
    segment = full_segment(8, 64)
    with torch.no_grad():
        loss, count, _ = model(segment, model.initial_memory(8))
    assert abs(loss.item() / count.item() - math.log(300)) < 0.2


def test_an_untrained_slot_keeps_about_half_of_itself() -> None:
    """Neither frozen (nothing would be written) nor overwritten at every segment (nothing would be held)."""
    torch.manual_seed(0)
    model = Memformer(small_config(d_model=128, num_heads=4, d_ff=256, num_memory_slots=16, vocab_size=300))
    segment = full_segment(8, 64)
    assert model.writer is not None
    with torch.no_grad():
        x_BSD, mask_BS, memory_BKD = model.encode(segment, model.initial_memory(8))
        own = model.writer.weights(memory_BKD, x_BSD, mask_BS)[..., 0]
    assert 0.3 < own.mean().item() < 0.8


@pytest.mark.parametrize(("slots", "overlap"), [(3, 0), (0, 0), (3, 3)])
@pytest.mark.parametrize("ragged", [False, True])
def test_targets_do_not_leak(slots: int, overlap: int, ragged: bool) -> None:
    """Target i reaches no logits at positions <= i, and neither the encoder nor the memory at all."""
    model = small_model(num_memory_slots=slots, overlap=overlap)
    segment, memory = full_segment(LANES, LENGTH)._replace(ragged=ragged), random_memory(model, LANES)
    logits, next_memory = model.logits(segment, memory)
    for i in range(LENGTH):
        target = segment.target.clone()
        target[:, i] = (target[:, i] + 1) % START
        changed, changed_memory = model.logits(segment._replace(target=target), memory)
        torch.testing.assert_close(changed[:, : i + 1], logits[:, : i + 1], rtol=0, atol=1e-13)
        assert torch.equal(changed_memory, next_memory)
        if i + 1 < LENGTH:
            assert (changed[:, i + 1 :] - logits[:, i + 1 :]).abs().amax(-1).min() > 1e-6


def test_context_and_memory_reach_every_logit() -> None:
    """Every position hears of the context's first and last token and of the memory."""
    model = small_model()
    segment, memory = full_segment(LANES, LENGTH), random_memory(model, LANES)
    logits, next_memory = model.logits(segment, memory)
    for i in (0, LENGTH - 1):
        context = segment.context.clone()
        context[:, i] = (context[:, i] + 1) % START
        changed, changed_memory = model.logits(segment._replace(context=context), memory)
        assert (changed - logits).abs().amax(-1).min() > 1e-6
        assert (changed_memory - next_memory).abs().amax(-1).min() > 1e-6
    changed, _ = model.logits(segment, random_memory(model, LANES, seed=9))
    assert (changed - logits).abs().amax(-1).min() > 1e-6


def test_lanes_do_not_mix() -> None:
    model, segment = small_model(), full_segment(LANES, LENGTH)
    memory = random_memory(model, LANES)
    logits, next_memory = model.logits(segment, memory)
    alone = segment.lanes(1, 2)
    logits_alone, memory_alone = model.logits(alone, memory[1:2])
    torch.testing.assert_close(logits_alone, logits[1:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(memory_alone, next_memory[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("slots", "overlap"), [(3, 0), (0, 0), (3, 1), (3, 5), (3, LENGTH)])
def test_a_lane_with_reset_forgets_what_was_before(slots: int, overlap: int) -> None:
    """It equals a lane that begins with the start token and the initial memory; its neighbours do not notice."""
    model = small_model(num_memory_slots=slots, overlap=overlap)
    segment, memory = full_segment(LANES, LENGTH), random_memory(model, LANES)
    undisturbed, undisturbed_memory = model.logits(segment, memory)
    reset = torch.tensor([False, True, False])
    begun = segment._replace(reset=reset, ragged=True)
    logits, next_memory = model.logits(begun, memory)
    others = ~reset
    torch.testing.assert_close(logits[others], undisturbed[others], rtol=0, atol=1e-12)
    torch.testing.assert_close(next_memory[others], undisturbed_memory[others], rtol=0, atol=1e-12)

    start_only = random_tokens(LANES, LENGTH, seed=11)
    start_only[:, 0] = START
    fresh = segment._replace(context=start_only, context_length=torch.ones(LANES, dtype=torch.int64), ragged=True)
    expected, expected_memory = model.logits(fresh, model.initial_memory(LANES))
    torch.testing.assert_close(logits[1], expected[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(next_memory[1], expected_memory[1], rtol=0, atol=1e-12)

    elsewhere = random_memory(model, LANES, seed=12)
    again, _ = model.logits(begun._replace(context=random_tokens(LANES, LENGTH, seed=13)), elsewhere)
    assert torch.equal(again[1], logits[1])


def gradients(model: Memformer, segment: Segment, memory: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _, _ = model(segment, memory)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("reset", [False, True])
def test_an_idle_lane_does_nothing(reset: bool, overlap: int) -> None:
    """No loss, no count, no gradient, whatever its tokens hold; its memory stays finite."""
    model, segment = small_model(overlap=overlap), full_segment(2, LENGTH)
    memory = random_memory(model, 2)
    idle = torch.zeros(2, dtype=torch.int64)
    idle[0] = LENGTH
    both = segment._replace(context_length=idle, target_length=idle, reset=torch.tensor([False, reset]), ragged=True)
    first = segment.lanes(0, 1)
    loss, count, next_memory = model(both, memory)
    expected_loss, expected_count, _ = model(first, memory[:1])
    assert count.item() == expected_count.item() == LENGTH
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert next_memory.isfinite().all()
    expected = gradients(model, first, memory[:1])
    for name, gradient in gradients(model, both, memory).items():
        if name != "forget.bias":  # no path from it without a reset in the lane that counts
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)
        else:
            assert not gradient.any()


def test_a_batch_of_idle_lanes_has_zero_gradients() -> None:
    model, segment = small_model(), full_segment(2, LENGTH)
    nothing = torch.zeros(2, dtype=torch.int64)
    idle = segment._replace(context_length=nothing, target_length=nothing, ragged=True)
    loss, count, _ = model(idle, random_memory(model, 2))
    assert loss.item() == 0 and count.item() == 0
    assert all(not g.any() for g in gradients(model, idle, random_memory(model, 2)).values())


def test_no_lane_is_masked_whole() -> None:
    """A softmax over nothing is NaN in some attention kernels, if not in all."""
    model, segment = small_model(), full_segment(2, LENGTH)
    nothing = torch.zeros(2, dtype=torch.int64)
    _, mask, _ = model.encode(segment._replace(context_length=nothing, ragged=True), random_memory(model, 2))
    assert mask is not None and mask.sum(-1).tolist() == [1, 1]


def test_a_short_target_equals_a_shorter_segment() -> None:
    model, segment = small_model(), full_segment(1, LENGTH)
    memory = random_memory(model, 1)
    losses = token_losses(model.logits(segment, memory)[0], segment)
    short = segment._replace(target_length=torch.tensor([5]))
    loss, count, _ = model(short, memory)
    assert count.item() == 5
    torch.testing.assert_close(loss, losses[:, :5].sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("overlap", [0, 3, 5])
def test_a_short_context_equals_a_shorter_segment(overlap: int) -> None:
    """Memory and logits. Decoder positions count from the full width, so those of its attention to the context are
    left out here; positions come from a float32 table, hence the logits' tolerance."""
    model = small_model(rotary_cross_attention=False, overlap=overlap)
    segment, memory = full_segment(1, LENGTH), random_memory(model, 1)
    short = segment._replace(context_length=torch.tensor([5]), ragged=True)
    cut = segment._replace(context=segment.context[:, :5], context_length=torch.tensor([5]))
    logits, next_memory = model.logits(short, memory)
    expected_logits, expected_memory = model.logits(cut, memory)
    torch.testing.assert_close(next_memory, expected_memory, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 3])
def test_a_mask_that_hides_nothing_changes_nothing(overlap: int) -> None:
    """The kernel without a mask, which full segments take, and the one with a mask agree."""
    model, segment = small_model(overlap=overlap), full_segment(LANES, LENGTH)
    memory = random_memory(model, LANES)
    masked = model.logits(segment._replace(ragged=True), memory)
    for got, expected in zip(masked, model.logits(segment, memory), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slots", [3, 0])
def test_advance_is_forward_without_the_decoder(slots: int) -> None:
    """Whatever the overlap, which is the decoder's alone."""
    model = small_model(num_memory_slots=slots)
    segment, memory = full_segment(LANES, LENGTH), random_memory(model, LANES)
    assert torch.equal(model.advance(segment, memory), model(segment, memory)[2])
    overlapping = small_model(num_memory_slots=slots, overlap=LENGTH)
    assert torch.equal(overlapping.advance(segment, memory), model.advance(segment, memory))


@pytest.mark.parametrize("overlap", [0, 1, 4, LENGTH, 2 * LENGTH])
def test_the_decoder_begins_with_the_end_of_the_segment_before(overlap: int) -> None:
    """Behind it the targets but the last; a mask only where a lane may know less of it than another."""
    config, segment = small_config(overlap=overlap), full_segment(LANES, LENGTH)
    tokens, seen = computation.inputs(segment, START, config)
    front = segment.context[:, -overlap:] if overlap else torch.full((LANES, 1), START)
    assert seen is None and torch.equal(tokens, torch.cat([front, segment.target[:, :-1]], 1))
    assert tokens.shape[1] == config.decoder_length(LENGTH)
    tokens, seen = computation.inputs(segment._replace(ragged=True, reset=torch.ones(LANES).bool()), START, config)
    assert (tokens[:, config.prefix_length(LENGTH) - 1] == START).all()
    assert (seen is None) == (overlap <= 1)
    if seen is not None:
        assert torch.equal(seen[0, 0, -1], torch.arange(tokens.shape[1]) >= config.prefix_length(LENGTH) - 1)


def test_the_decoder_reads_the_overlap_itself() -> None:
    """With the encoder's output held fast, the overlap's tokens reach every logit, and no token before it does."""
    model = small_model(overlap=3)
    segment, memory = full_segment(LANES, LENGTH), random_memory(model, LANES)
    x_BSD, mask_BS, _ = model.encode(segment, memory)
    logits = model.decode(segment, x_BSD, mask_BS)
    for i in range(LENGTH):
        context = segment.context.clone()
        context[:, i] = (context[:, i] + 1) % START
        changed = model.decode(segment._replace(context=context), x_BSD, mask_BS)
        reached = (changed - logits).abs().amax(-1)
        assert reached.min() > 1e-6 if i >= LENGTH - 3 else reached.max() == 0


def test_older_files_keep_their_meaning() -> None:
    read = MemformerConfig.from_dict({})
    assert (read.overlap, read.block) == (0, "paper")


def test_without_slots_there_is_no_memory() -> None:
    model = small_model(num_memory_slots=0)
    names = [name for name, _ in model.named_parameters()]
    assert not any(part in name for name in names for part in ("writer", "forget", "reader"))
    memory = model.initial_memory(LANES)
    assert memory.shape == (LANES, 0, 16)
    loss, _, next_memory = model(full_segment(LANES, LENGTH), memory)
    assert loss.isfinite() and next_memory.shape == memory.shape


def test_the_encoder_is_bidirectional() -> None:
    model, segment = small_model(), full_segment(1, LENGTH)
    memory = random_memory(model, 1)
    context = segment.context.clone()
    context[:, -1] = (context[:, -1] + 1) % START
    difference = model.encode(segment._replace(context=context), memory)[0] - model.encode(segment, memory)[0]
    assert difference.abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("setting", [True, False])
def test_the_decoder_knows_the_contexts_order_when_asked(setting: bool) -> None:
    """Without positions, attention to the context does not see a permutation of it."""
    model, segment = small_model(rotary_cross_attention=setting), full_segment(1, LENGTH)
    context_BSD = model.encode(segment, random_memory(model, 1))[0]
    turned = model.decode(segment, context_BSD.flip(1), None)
    unchanged = torch.allclose(turned, model.decode(segment, context_BSD, None), rtol=0, atol=1e-10)
    assert unchanged is not setting


def test_dropout_draws_only_in_training() -> None:
    model, segment = small_model(dropout=0.3), full_segment(1, LENGTH)
    memory = random_memory(model, 1)
    assert not torch.equal(model.logits(segment, memory)[0], model.logits(segment, memory)[0])
    model.eval()
    assert torch.equal(model.logits(segment, memory)[0], model.logits(segment, memory)[0])


@pytest.mark.parametrize("stream", ["float32", "compute"])
def test_bf16_autocast_keeps_losses_and_memory_in_float32(stream: str) -> None:
    model = small_model(torch.float32, residual_dtype=stream)
    seen = set()
    for layer in model.layers():
        layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    segment, memory = full_segment(LANES, LENGTH), random_memory(small_model(torch.float32), LANES)
    expected_loss, _, expected_memory = model(segment, memory)
    assert seen == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, next_memory = model(segment, memory)
        assert torch.equal(model.advance(segment, memory), next_memory)
    assert seen == {torch.bfloat16 if stream == "compute" else torch.float32}
    assert loss.dtype == next_memory.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.02)
    torch.testing.assert_close(next_memory, expected_memory, rtol=0, atol=0.05)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_bfloat16_model_runs() -> None:
    model, segment = small_model(torch.bfloat16), full_segment(LANES, LENGTH)
    loss, _, next_memory = model(segment, random_memory(model, LANES))
    assert loss.dtype == torch.float32 and next_memory.dtype == torch.bfloat16
    loss.backward()


@pytest.mark.parametrize("changes", [{}, {"memory_forgetting": "written", "memory_write_threshold": 0.01}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_compiled_layers_and_writes_equal_eager_ones(
    changes: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured with their gradients; the C++ that inductor would write of them takes longer than all else here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    model = small_model(torch.float64, num_encoder_layers=1, num_decoder_layers=1, **changes)
    assert model.writer is not None
    model.writer.fused = fused
    memory, whole = random_memory(model, LANES), full_segment(LANES, LENGTH)
    ragged = whole._replace(context_length=torch.tensor([LENGTH, 3, 0]), reset=torch.tensor([False, False, True]))
    segments = [whole, ragged._replace(ragged=True)]
    expected = [gradients(model, segment, memory) for segment in segments]
    compile_layers(model)
    assert "write" in vars(model)
    for segment, plain in zip(segments, expected, strict=True):
        got = gradients(model, segment, memory)
        assert got.keys() == plain.keys()
        for name in plain:
            torch.testing.assert_close(got[name], plain[name], rtol=1e-9, atol=1e-12, msg=name)
    compile_layers(other := small_model(), methods=False)
    assert "write" not in vars(other)


def test_the_model_needs_torch_alone() -> None:
    """An exported model runs where neither DeepSpeed nor the configuration's packages are installed.

    Of the data pipeline it needs what makes the faces of packages, a module of the standard library alone.
    """
    code = (
        "import sys\n"
        "for name in ('deepspeed', 'pydantic', 'yaml', 'webdataset', 'tensorboard'): sys.modules[name] = None\n"
        "from memformer import Memformer, MemformerConfig, load_model\n"
        "from memformer.replay import bptt_backward, memory_replay_backward\n"
        "import memformer.models.memformer.flops\n"
        "found = {name for name in sys.modules if name.split('.')[0] == 'data_pipeline'}\n"
        "assert found == {'data_pipeline', 'data_pipeline.faces'}, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_settings_are_documented() -> None:
    """Help and errors are made from the docstring below each field; a field without one would be silent."""
    from memformer.config.schema import describe_fields

    described = describe_fields()
    for field in dataclasses.fields(MemformerConfig):
        line = next(line for line in described.splitlines() if f"--model.{field.name} " in line)
        assert len(line.split("(default")[0].split()) > 3, field.name
