# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reading, writing and forgetting, each against a plain reference or a property that must hold."""

import itertools
import math
from typing import Any

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.models.configuration import FORGETTING, Forgetting
from memformer.models.memformer.computation import observe
from memformer.models.memformer.layers import split_heads
from memformer.models.memformer.memory import (
    FUSED_SLOTS,
    BiasedMemoryNormalisation,
    MemoryReader,
    MemoryWriter,
    Written,
)
from tests.memformer.examples import full_segment, random_memory, small_config, small_model

LANES, LENGTH = 3, 7


def writer_of(**changes: object) -> MemoryWriter:
    torch.manual_seed(3)
    return MemoryWriter(small_config(**changes)).double()


def tokens_of(seed: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LANES, LENGTH, 16, generator=generator, dtype=torch.float64)


def naive_write(
    writer: MemoryWriter,
    memory_BKD: torch.Tensor,
    x_BSD: torch.Tensor,
    lengths: list[int],
    temperature: float,
    threshold: float = 0.0,
) -> torch.Tensor:
    """The paper's equations one slot, head and token at a time; a share below the threshold is not written.

    Slots enter the projections at the tokens' length, sqrt(D), and values leave theirs divided by it (see
    memformer/models/memformer/memory.py).
    """
    width = memory_BKD.shape[-1]
    size = width // writer.num_heads
    w_q, w_k, w_v = writer.query.weight, writer.key.weight, writer.value.weight / width**0.5
    written = torch.zeros_like(memory_BKD)
    for b, length in enumerate(lengths):
        for i in range(memory_BKD.shape[1]):
            slot = memory_BKD[b, i]
            for h in range(writer.num_heads):
                part = slice(h * size, (h + 1) * size)
                query = (w_q @ (slot * math.sqrt(width)))[part]
                keys = [(w_k @ (slot * math.sqrt(width)))[part]]
                values = [slot[part]]
                for s in range(length):
                    keys.append((w_k @ x_BSD[b, s])[part])
                    values.append((w_v @ x_BSD[b, s])[part])
                logits = [float(query @ key) / math.sqrt(size) / temperature for key in keys]
                top = max(logits)
                weights = [math.exp(logit - top) for logit in logits]
                weights = [weight / sum(weights) for weight in weights]
                share = sum(weights[1:])
                scale = max(0.0, share - threshold) / (1 - threshold) / share if share else 0.0
                weights = [1 - scale * share, *(scale * weight for weight in weights[1:])]
                for weight, value in zip(weights, values, strict=True):
                    written[b, i, part] += weight * value
    return written


@pytest.mark.parametrize("heads", [None, 1, 4])
@pytest.mark.parametrize("temperature", [0.25, 1.0])
@pytest.mark.parametrize("lengths", [[LENGTH] * LANES, [LENGTH, 3, 1]], ids=["full", "ragged"])
@pytest.mark.parametrize("threshold", [0.0, 0.85])
def test_the_writer_equals_the_papers_equations(
    heads: int | None, temperature: float, lengths: list[int], threshold: float
) -> None:
    """With a threshold, too, which some of these slots are above."""
    writer = writer_of(writer_heads=heads, memory_temperature=temperature, memory_write_threshold=threshold)
    memory, x_BSD = random_memory(small_model(), LANES), tokens_of()
    mask = None
    if min(lengths) < LENGTH:
        mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        written = writer(memory, x_BSD, mask).memory_BKD
        expected = naive_write(writer, memory, x_BSD, lengths, temperature, threshold)
        kept = (writer.weights(memory, x_BSD, mask)[..., 0] == 1).double().mean().item()
    assert 0 < kept < 1 if threshold else kept == 0, kept
    torch.testing.assert_close(written, expected, rtol=1e-11, atol=1e-13)


def test_weights_are_a_distribution_over_itself_and_valid_tokens() -> None:
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 3, 1])[:, None]
    weights = writer_of().weights(random_memory(small_model(), LANES), tokens_of(), mask)
    assert weights.shape == (LANES, 2, 3, 1 + LENGTH)
    torch.testing.assert_close(weights.sum(-1), torch.ones(LANES, 2, 3, dtype=torch.float64))
    assert not weights[1, ..., 1 + 3 :].any()
    assert weights[1, ..., : 1 + 3].min() > 0


def test_slots_do_not_see_each_other() -> None:
    writer, memory, x_BSD = writer_of(), random_memory(small_model(), LANES), tokens_of()
    changed = memory.clone()
    changed[:, 0] = random_memory(small_model(), LANES, seed=8)[:, 0]
    written = writer(memory, x_BSD, None).memory_BKD, writer(changed, x_BSD, None).memory_BKD
    assert torch.equal(written[0][:, 1:], written[1][:, 1:])
    assert not torch.equal(written[0][:, 0], written[1][:, 0])


def test_full_weight_on_itself_is_an_exact_copy() -> None:
    """Query and key agree strongly on the slot and not at all on tokens of zeros."""
    writer = writer_of()
    with torch.no_grad():
        writer.query.weight.copy_(10 * torch.eye(16))
        writer.key.weight.copy_(10 * torch.eye(16))
    memory = random_memory(small_model(), LANES)
    assert torch.equal(
        writer.weights(memory, torch.zeros_like(tokens_of()), None)[..., 0].min(), torch.tensor(1.0).double()
    )
    assert torch.equal(writer(memory, torch.zeros_like(tokens_of()), None).memory_BKD, memory)


def test_small_writes_add_up_unless_a_threshold_keeps_them_out() -> None:
    """400 writes of tokens that have something in common, each of at most a twentieth of a slot."""
    left = {}
    for threshold in (0.0, 0.05):
        generator = torch.Generator().manual_seed(9)
        first = torch.nn.functional.normalize(torch.randn(1, 3, 16, generator=generator).double(), dim=-1)
        model = small_model(writer_heads=1, memory_forgetting="off", memory_write_threshold=threshold)
        assert model.writer is not None
        with torch.no_grad():
            # Query and key agree on a slot, and hardly on tokens, which are small.
            model.writer.query.weight.copy_(0.65 * torch.eye(16))
            model.writer.key.weight.copy_(0.65 * torch.eye(16))
            memory = first
            for _ in range(400):
                tokens = 0.3 * (1 + torch.randn(1, LENGTH, 16, generator=generator)).double()
                assert model.writer.weights(memory, tokens, None)[..., 0].min() > 0.95
                memory = model.write(memory, tokens, None)
        left[threshold] = (first * memory).sum(-1).min().item()
    assert left[0.0] < 0.8 and left[0.05] == pytest.approx(1, abs=1e-12), left


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("forgetting", FORGETTING)
def test_what_a_write_leaves_of_a_slot_is_the_derivative_at_fixed_attention(
    forgetting: Forgetting, threshold: float
) -> None:
    """Of a small difference in one head's part of a slot, across the slot that is written."""
    model = small_model(memory_forgetting=forgetting, memory_write_threshold=threshold)
    assert model.writer is not None
    memory, x_BSD = random_memory(model, LANES), tokens_of()
    seen = observe(model.writer, model.forget, memory, x_BSD, None)
    assert torch.equal(seen.memory_BKD, model.write(memory, x_BSD, None))
    torch.manual_seed(3)
    heads, slots = seen.retained_BHK.shape[1:]
    for head, slot in ((0, 0), (heads - 1, slots - 1)):
        difference = torch.zeros_like(memory)
        across_BE = torch.randn(LANES, 16 // heads).double()
        here_BE = split_heads(seen.memory_BKD, heads)[:, head, slot]
        across_BE -= (across_BE * here_BE).sum(-1, keepdim=True) / here_BE.square().sum(-1, keepdim=True) * here_BE
        split_heads(difference, heads)[:, head, slot] = across_BE

        def after(moved: torch.Tensor) -> torch.Tensor:
            return model.forget(model.writer.mixed(seen.weights_BHKL, moved, x_BSD))  # type: ignore[union-attr]

        _, change = torch.func.jvp(after, (memory,), (difference,))
        expected = seen.retained_BHK[:, head, slot] * across_BE.norm(dim=-1)
        torch.testing.assert_close(change.flatten(1).norm(dim=1), expected, rtol=1e-10, atol=0)


def test_a_lower_temperature_sharpens() -> None:
    memory, x_BSD = random_memory(small_model(), LANES), tokens_of()
    sharp, even = (writer_of(memory_temperature=t).weights(memory, x_BSD, None) for t in (0.25, 1.0))
    entropies = [-(w * w.clamp(min=1e-300).log()).sum(-1) for w in (sharp, even)]
    assert (entropies[0] < entropies[1]).all()


def test_one_writer_head_gives_each_slot_one_weight() -> None:
    """The ablation "without multi-head writing": the whole slot is kept or replaced by one and the same weight."""
    weights = writer_of(writer_heads=1).weights(random_memory(small_model(), LANES), tokens_of(), None)
    assert weights.shape[1] == 1


@pytest.mark.parametrize("read_norm", [False, True])
def test_the_reader_is_attention_over_all_slots(read_norm: bool) -> None:
    torch.manual_seed(5)
    reader = MemoryReader(small_config(memory_read_norm=read_norm)).double()
    memory, x_BSD = random_memory(small_model(), LANES), tokens_of()
    slots = memory * 4.0
    if read_norm:
        slots = (slots - slots.mean(-1, keepdim=True)) / (slots.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    weights = reader.attention
    expected = torch.zeros_like(x_BSD)
    for part in (slice(0, 8), slice(8, 16)):
        q = (x_BSD @ weights.query.weight.T)[..., part]
        k, v = (slots @ weights.key.weight.T)[..., part], (slots @ weights.value.weight.T)[..., part]
        expected[..., part] = ((q @ k.transpose(1, 2)) / math.sqrt(8)).softmax(-1) @ v
    torch.testing.assert_close(reader(x_BSD, memory), expected @ weights.output.weight.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("forgetting", FORGETTING)
def test_forgetting_adds_the_bias_and_normalises(forgetting: Forgetting) -> None:
    """Slot by slot and head by head; `written` by the heads' own weights on the slot."""
    config = small_config(memory_forgetting=forgetting)
    writer, forget = writer_of(memory_forgetting=forgetting), BiasedMemoryNormalisation(config).double()
    torch.nn.init.normal_(forget.bias)
    memory, x_BSD = random_memory(small_model(), LANES), tokens_of()
    weights = writer.weights(memory, x_BSD, None)
    written = writer(memory, x_BSD, None)
    moved = written.memory_BKD.clone()
    heads, size = weights.shape[1], moved.shape[-1] // weights.shape[1]
    for lane, head, slot in itertools.product(range(LANES), range(heads), range(moved.shape[1])):
        part = slice(head * size, (head + 1) * size)
        share = {"off": 0, "written": weights[lane, head, slot, 1:].sum(), "paper": 1}[forgetting]
        moved[lane, slot, part] += share * forget.bias[slot, part]
    torch.testing.assert_close(forget(written), moved / moved.square().sum(-1, keepdim=True).sqrt())
    initial = forget.bias / forget.bias.square().sum(-1, keepdim=True).sqrt()
    for lane in forget(None, LANES):
        torch.testing.assert_close(lane, initial)


def test_nothing_written_decays_to_the_initial_memory() -> None:
    model = small_model(memory_forgetting="paper")
    memory = random_memory(model, LANES)
    for _ in range(200):
        memory = model.forget(Written(memory))
    torch.testing.assert_close(memory, model.initial_memory(LANES), rtol=0, atol=1e-6)


def test_what_is_kept_is_not_forgotten_where_only_what_is_written_forgets() -> None:
    """A slot that keeps itself stays as it is; in the paper's form it moves to its bias."""
    memory, nothing = random_memory(small_model(), LANES), torch.zeros(LANES, 3, 2).double()
    for forgetting, stays in (("off", True), ("written", True), ("paper", False)):
        forget = small_model(memory_forgetting=forgetting).forget
        assert torch.allclose(forget(Written(memory, nothing)), memory) == stays
        assert torch.allclose(forget(Written(memory * 0, nothing + 1)), forget(None, LANES)) == (forgetting != "off")


@pytest.mark.parametrize(("old", "new"), [(True, "paper"), (False, "off"), ("written", "written")])
def test_older_files_keep_their_meaning(old: Any, new: str) -> None:
    config = MemformerConfig.from_dict({"memory_forgetting": old})
    assert config.memory_forgetting == config.to_dict()["memory_forgetting"] == new


def random_walk(model: Memformer, segments: int, length: int) -> torch.Tensor:
    """The memory after random segments; on the way every slot of every memory must have unit length."""
    memory = model.initial_memory(2)
    with torch.no_grad():
        for step in range(segments):
            memory = model.advance(full_segment(2, length, seed=step), memory)
            torch.testing.assert_close(memory.norm(dim=-1), torch.ones(memory.shape[:2]), rtol=0, atol=1e-5)
    return memory


@pytest.mark.parametrize(
    ("encoder_layers", "d_model", "heads", "d_ff", "slots", "length", "walk"),
    [
        pytest.param(2, 16, 2, 24, 3, 8, 200, id="small"),
        pytest.param(2, 128, 4, 512, 16, 128, 100, id="tiny"),
        pytest.param(4, 128, 4, 256, 64, 56, 100, id="paper-mnist-4-8"),
        pytest.param(4, 512, 8, 2048, 128, 32, 30, id="paper-wikitext-4-16"),
    ],
)
def test_untrained_slots_stay_apart(
    encoder_layers: int, d_model: int, heads: int, d_ff: int, slots: int, length: int, walk: int
) -> None:
    """Mean pairwise cosine after a walk over random segments: about 0.05 seen; without the slots' bias it nears 1."""
    torch.manual_seed(0)
    config = small_config(
        num_encoder_layers=encoder_layers,
        num_decoder_layers=1,
        d_model=d_model,
        num_heads=heads,
        d_ff=d_ff,
        num_memory_slots=slots,
    )
    memory = random_walk(Memformer(config), walk, length)
    cosines_BKK = memory @ memory.transpose(1, 2)
    mean = (cosines_BKK.sum((1, 2)) - slots) / (slots * (slots - 1))
    assert mean.max().item() < 0.5


def test_without_our_initial_values_and_forgetting_slots_collapse() -> None:
    """As in public code that lacks them; without this, the test above could not be seen to fail."""
    model = small_model(torch.float32, memory_forgetting=False)
    assert model.writer is not None
    torch.nn.init.normal_(model.writer.query.weight, std=0.25)  # independent of the key, as other linear weights
    memory = random_walk(model, 20, 8)
    assert (memory @ memory.transpose(1, 2)).min().item() > 0.7


def written_with(
    fused: bool, forgetting: Forgetting, dtype: torch.dtype, heads: int, threshold: float
) -> dict[str, torch.Tensor]:
    """The next memory of ragged lanes, one of them without any token, and the gradients of all that made it."""
    config = small_config(
        num_memory_slots=11, memory_forgetting=forgetting, writer_heads=heads, memory_write_threshold=threshold
    )
    torch.manual_seed(3)
    writer, forget = MemoryWriter(config).to(dtype), BiasedMemoryNormalisation(config).to(dtype)
    torch.nn.init.normal_(forget.bias)
    writer.fused = fused
    memory = torch.nn.functional.normalize(torch.randn(LANES, 11, 16, dtype=dtype), dim=-1).requires_grad_()
    x, weights = torch.randn(LANES, LENGTH, 16, dtype=dtype, requires_grad=True), torch.randn(11, 16, dtype=dtype)
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [2], [0]])
    following = forget(writer(memory, x, mask))
    (following * weights).sum().backward()
    found = {"following": following, "memory": memory.grad, "x": x.grad}
    for name, parameter in (*writer.named_parameters(), *forget.named_parameters()):
        if parameter.grad is not None:
            found[name] = parameter.grad
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("forgetting", FORGETTING)
@pytest.mark.parametrize("threshold", [0.0, 0.8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_fused_softmax_is_the_written_out_one(
    forgetting: Forgetting, dtype: torch.dtype, tolerance: float, heads: int, threshold: float
) -> None:
    """Float32 as the order of its sums allows; with masks, and where the share that is overwritten is asked for."""
    fused, plain = (written_with(each, forgetting, dtype, heads, threshold) for each in (True, False))
    assert fused.keys() == plain.keys() and len(plain) >= 6
    assert not torch.equal(fused["memory"], plain["memory"]), "one path was taken twice"
    for name, expected in plain.items():
        error = (fused[name] - expected).abs().max() / expected.abs().max()
        assert error < tolerance, (name, float(error))
    assert fused["x"][2].eq(0).all() and fused["x"][1, 2:].eq(0).all()


def test_a_slot_that_sees_no_token_is_kept_to_the_last_bit_by_the_fused_softmax() -> None:
    writer, memory = writer_of(memory_forgetting="written"), torch.nn.functional.normalize(tokens_of(5), dim=-1)
    writer.fused = True
    written = writer(memory, tokens_of(), torch.zeros(LANES, LENGTH, dtype=torch.bool))
    assert torch.equal(written.memory_BKD, memory)
    assert written.overwritten_BKH is not None and written.overwritten_BKH.eq(0).all()


def test_the_softmax_is_fused_from_so_many_slots_on_in_float32() -> None:
    class Asked(MemoryWriter):
        def attended(self, *arguments: Any) -> Any:
            asked.append(True)
            return super().attended(*arguments)

    for slots, autocast, dtype, expected in (
        (FUSED_SLOTS, False, torch.float32, True),
        (FUSED_SLOTS - 1, False, torch.float32, False),
        (FUSED_SLOTS, True, torch.float32, False),
        (FUSED_SLOTS, False, torch.bfloat16, False),
    ):
        asked: list[bool] = []
        writer, memory = Asked(small_config(num_memory_slots=slots)).to(dtype), torch.randn(1, slots, 16, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            writer(memory, torch.randn(1, 3, 16, dtype=dtype), None)
        assert asked == [True] * expected, (slots, autocast, dtype)
