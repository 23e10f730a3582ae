# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A document read along diagonals has the memory and the losses of one segment after another.

Tolerance in float64 1e-12 of the largest number, in float32 1e-4: the same products in other batches.

Covers: memformer/models/backbone/stacked.py, memformer/replay/windows.py
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from data_pipeline import DocumentIndex, SegmentStream
from memformer import MemformerConfig
from memformer.inference.perplexity import evaluate
from memformer.models.backbone import Backbone, LoraConfig
from memformer.models.backbone.reader import BackboneReader
from memformer.models.backbone.stacked import NotStackable, Stack, side_by_side
from memformer.models.backbone.wavefront import BackboneWavefront
from memformer.models.registry import NotBuilt, wavefronts_of
from memformer.replay import Carry, DecoderGroups, Rollout, Segment, bptt_backward, windowed_replay_backward
from tests.books import small_dataset
from tests.memformer.models.backbone.examples import SIZES, START, config_of, make

LENGTH = 5
KINDS = ["associative", "armt", "one layer"]


def tokens_of(count: int, ragged: bool, lanes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of documents that begin with the first; ragged: one ends and begins in between, and one is over before."""
    tokens = torch.arange(lanes * count * LENGTH).view(lanes, count, LENGTH) * 7 % START
    lengths, resets = torch.full((lanes, count), LENGTH), torch.zeros(lanes, count, dtype=torch.bool)
    resets[:, 0] = True
    if ragged:
        lengths[0, 1], resets[0, 2] = 3, True
        lengths[1, count - 2], lengths[1, count - 1] = 1, 0
    return tokens, lengths, resets


def segments_of(count: int, ragged: bool = False, lanes: int = 2) -> list[Segment]:
    rollout = Rollout.of(*tokens_of(count, ragged, lanes))
    carry = Carry.empty(torch.zeros(lanes, 1, 1), LENGTH)
    return [rollout.segment(t, carry) for t in range(count)]


def in_turn(
    model: Backbone, segments: Sequence[Segment], memory: torch.Tensor, carried: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor]:
    losses = []
    for segment in segments:
        found, following = model.losses(segment, memory)
        losses.append(found)
        memory = following if carried else memory
    return losses, memory


def begun(model: Backbone, lanes: int = 2) -> torch.Tensor:
    """A memory that holds something."""
    memory = model.initial_memory(lanes)
    return memory + 0.1 * torch.randn(memory.shape, generator=torch.Generator().manual_seed(3)).to(memory)


def differs(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def held(model: Backbone, segments: list[Segment], tolerance: float) -> None:
    """To one segment after another: losses and memory, of both ways of reading."""
    memory = begun(model)
    before = memory.clone()
    wavefront = BackboneWavefront(model)
    losses, expected = in_turn(model, segments, memory)
    found = list(wavefront.losses(iter(segments), memory))
    assert [each is None for _, each in found] == [True] * (len(segments) - 1) + [False]
    assert differs(torch.stack([each for each, _ in found]), torch.stack(losses)) < tolerance
    assert found[-1][1] is not None and differs(found[-1][1], expected) < tolerance
    assert differs(wavefront.advance(segments, memory), expected) < tolerance
    assert torch.equal(memory, before), "what was given is not changed"


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("memory", KINDS)
def test_it_is_one_segment_after_another_for_every_kind_of_model(kind: str, memory: str) -> None:
    """More segments than layers, with grouped queries, norms of heads, biases and a start token of the backbone's."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        held(make(config_of(kind, memory, bos_token_id=3), dtype, moved=0.1).eval(), segments_of(7, True), tolerance)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("overlap", [0, 2, LENGTH])
def test_any_number_of_segments_and_any_overlap(count: int, ragged: bool, overlap: int) -> None:
    model = make(config_of(memory="armt", overlap=overlap), moved=0.1).eval()
    held(model, segments_of(count, ragged and count > 2), 1e-12)


def test_full_segments_take_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of documents the attention is plainly causal, which has the faster kernels."""
    model, masks = make(config_of(), moved=0.1).eval(), []
    wavefront, segments = BackboneWavefront(model), segments_of(6)[1:]
    forward = wavefront._blocks.module.forward
    monkeypatch.setattr(
        wavefront._blocks.module,
        "forward",
        lambda x, attention_mask, **more: (masks.append(attention_mask), forward(x, attention_mask, **more))[1],
    )
    found = wavefront.advance(segments, begun(model))
    assert masks == [None] * (5 + 3 - 1), "T + N - 1 runs of the layers"
    with torch.no_grad():
        assert differs(found, in_turn(model, segments, begun(model))[1]) < 1e-12


@torch.no_grad()
def test_a_memory_that_is_not_carried_is_read_by_every_segment() -> None:
    model, segments = make(config_of(), moved=0.1).eval(), segments_of(6, True)
    memory = begun(model)
    found = [each for each, _ in BackboneWavefront(model).losses(segments, memory, carried=False)]
    losses, _ = in_turn(model, segments, memory, carried=False)
    assert differs(torch.stack(found), torch.stack(losses)) < 1e-12
    assert differs(torch.stack(found), torch.stack(in_turn(model, segments, memory)[0])) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_are_applied(kind: str) -> None:
    lora = LoraConfig(rank=2, dropout=0.5)
    held(make(config_of(kind, lora=lora), moved=0.1).eval(), segments_of(5, True), 1e-12)


@torch.no_grad()
def test_weights_in_bfloat16() -> None:
    """As an export in bf16 is loaded: rounded where one segment after another is, to 3 % of the largest number (0 was
    seen; kernels of other processors sum otherwise), where bfloat16 itself is off by 6 %. The memory is float32."""
    model, segments = make(config_of(), torch.float32, moved=0.1).eval().to(torch.bfloat16), segments_of(5, True)
    memory = begun(model)
    found, turns = BackboneWavefront(model).advance(segments, memory), in_turn(model, segments, memory)[1]
    assert (memory.dtype, found.dtype) == (torch.float32, torch.float32)
    assert differs(found, turns) < 0.03 < differs(turns, in_turn(model.float(), segments, memory)[1])


@torch.no_grad()
def test_the_weights_are_stored_once_and_may_change() -> None:
    model = make(config_of(), moved=0.1).eval()
    names, values = zip(*((name, each.clone()) for name, each in model.named_parameters()), strict=True)
    wavefront, segments = BackboneWavefront(model), segments_of(4)
    wavefront.advance(segments, begun(model))
    assert all(torch.equal(model.get_parameter(name), value) for name, value in zip(names, values, strict=True))
    maps = [layer.block.mlp.up_proj.weight for layer in model.layers()]  # type: ignore[union-attr]
    assert len({each.untyped_storage().data_ptr() for each in maps}) == 1  # type: ignore[union-attr]
    assert wavefront._blocks.module.mlp.up_proj._kinds["weight"].whole.data_ptr() == maps[0].data_ptr()  # type: ignore
    for change in (lambda each: each.mul_(1.5), lambda each: setattr(each, "data", each.data * 0.5)):
        for parameter in model.parameters():
            change(parameter)
        found = wavefront.advance(segments, begun(model))
        assert differs(found, in_turn(model, segments, begun(model))[1]) < 1e-12


def test_what_lies_side_by_side_stays_where_it_is() -> None:
    parameters = [torch.nn.Parameter(torch.full((2, 3), float(n))) for n in range(3)]
    whole = side_by_side(parameters)
    again = side_by_side(parameters)
    assert again.data_ptr() == whole.data_ptr() and torch.equal(again, whole)
    assert torch.equal(whole[:, 0, 0], torch.arange(3.0))
    apart = side_by_side(parameters[::-1])
    assert torch.equal(apart[:, 0, 0], torch.tensor([2.0, 1.0, 0.0]))


@pytest.mark.parametrize("memory", ["slots", "tokens"])
def test_a_memory_that_all_layers_wait_for_is_refused(memory: str) -> None:
    config = config_of(memory=memory)
    line = f"memory.kind is {memory}: all layers wait for it, and a wavefront needs matrices of each layer's own"
    for refused in (wavefronts_of(config).check, lambda config: wavefronts_of(config).build(make(config))):
        with pytest.raises(ValueError, match=line):
            refused(config)
    with pytest.raises(NotBuilt, match="not built for family memformer, all of whose layers wait for one memory"):
        wavefronts_of(MemformerConfig())
    wavefronts_of(config_of()).check(config_of())
    assert isinstance(wavefronts_of(config_of()).build(make(config_of())), BackboneWavefront)


def test_layers_that_differ_are_refused() -> None:
    config = config_of("gpt2")
    config = dataclasses.replace(config, backbone=config.backbone | {"scale_attn_by_inverse_layer_idx": True},
        pretrained="elsewhere")  # fmt: skip
    with pytest.raises(ValueError, match=r"GPT2Attention.scaling differs from layer to layer, so no diagonal"):
        BackboneWavefront(make(config))
    model: Any = make(config_of(memory="one layer"))
    model.stack[1].block.mlp.up_proj = torch.nn.Linear(16, 23)
    with pytest.raises(ValueError, match="differs from layer to layer"):
        BackboneWavefront(model)
    model.stack[1].block.mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match="layers differ in what stands in the place of LlamaMLP"):
        BackboneWavefront(model)


def test_weights_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(NotStackable, match="weights of Embedding are not known"):
        Stack([torch.nn.Embedding(2, 3), torch.nn.Embedding(2, 3)])


class Counted:
    """A wavefront that says how many segments of how many rows it was given at once."""

    def __init__(self, wavefront: BackboneWavefront) -> None:
        self._wavefront = wavefront
        self.given: list[tuple[int, int]] = []

    def advance(self, segments: list[Segment], memory: torch.Tensor) -> torch.Tensor:
        self.given.append((len(segments), len(memory)))
        return self._wavefront.advance(segments, memory)


@pytest.mark.parametrize("kind", ["associative", "armt"])
def test_a_reader_reads_whole_segments_through_it(kind: str) -> None:
    """Whatever was read and asked before, and where documents differ in length: logits and state of one in turn. To
    1e-11 here: over dozens of segments the rule of ARMT, which divides by a sum, makes more of what was rounded."""
    model = make(config_of(memory=kind, segment_length=LENGTH), moved=0.1).eval()
    plain, ours = BackboneReader(model, 3), BackboneReader(model, 3)
    ours.wavefront = counted = Counted(BackboneWavefront(model))
    tokens = torch.arange(3 * 60).view(3, 60) * 7 % START
    for start, counts in ((0, [3, 27, 60]), (7, [53, 2, 12]), (20, [0, 0, 9]), (11, [40, 40, 40])):
        for reader in (plain, ours):
            reader.read(tokens[:, start:], [min(each, 60 - start) for each in counts])
        assert torch.equal(ours.state.tokens, plain.state.tokens) and torch.equal(
            ours.state.context, plain.state.context
        )
        assert (ours.state.known, ours.state.counts) == (plain.state.known, plain.state.counts)
        assert differs(ours.state.memory, plain.state.memory) < 1e-11
        assert differs(ours.logits, plain.logits) < 1e-11
    # 27 and 60 tokens: five segments of both, then the seven that the longer one has left.
    assert counted.given[:2] == [(5, 2), (7, 1)] and len(counted.given) > 3


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DocumentIndex:
    """Documents of uneven length."""
    folder = tmp_path_factory.mktemp("documents")
    return DocumentIndex.load(small_dataset(folder, 3, 1_600) / "train")


@pytest.mark.parametrize(("lanes", "from_token", "most"), [(1, 0, None), (2, 0, None), (2, 100, None), (2, 0, 19)])
def test_evaluation_through_it_is_that_of_one_in_turn(
    index: DocumentIndex, lanes: int, from_token: int, most: int | None
) -> None:
    """Documents that end within a batch and begin there, and a batch that the last of them ends before, or that has
    more segments than are asked for."""
    config = config_of(vocab_size=257, start_token_id=256, segment_length=24)
    model, found = make(config, moved=0.1).eval(), []
    for together in (1, 16):
        with SegmentStream(index, num_lanes=lanes, segment_length=24, num_segments=together, epochs=1) as stream:
            wavefront = BackboneWavefront(model) if together > 1 else None
            more = {"from_token": from_token, "max_segments": most, "wavefront": wavefront}
            scores = evaluate(model, stream, model.device, **more)  # type: ignore[arg-type]
        found.append({mode: score.report() for mode, score in scores.items()})
    if most:
        assert found[0]["with_memory"]["tokens"] == lanes * most * 24
    for mode, report in found[0].items():
        assert report["loss"] == pytest.approx(found[1][mode]["loss"], rel=1e-12)
        for row, other in zip(report["by_position"], found[1][mode]["by_position"], strict=True):
            assert row == pytest.approx(other, rel=1e-12)
    assert found[0]["with_memory"]["loss"] != pytest.approx(found[0]["memory_reset"]["loss"], rel=1e-6)


def gradients(model: Backbone, backward: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Of a ragged rollout of 7 segments, and its result."""
    model.zero_grad()
    tokens, lengths, resets = tokens_of(7, True)
    result = backward(Rollout.of(tokens, lengths, resets), Carry.empty(begun(model).detach(), LENGTH))
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}, result


@pytest.mark.parametrize("kind", SIZES)
def test_gradients_are_those_of_back_propagation_through_time(kind: str) -> None:
    """Any window, with and without a second run of each diagonal, at every tied or frozen parameter."""
    model = make(config_of(kind, "one layer" if kind == "qwen3" else "associative"), moved=0.1)
    for parameter in [each for each in model.parameters() if each.dim() == 1][:2]:
        parameter.requires_grad_(False)
    expected, result = gradients(model, lambda *given: bptt_backward(model, *given, denominator=50.0))
    for window, recompute in ((1, False), (3, True), (7, False)):
        cell = BackboneWavefront(model, recompute)
        found, ours = gradients(
            model,
            lambda *given, cell=cell, window=window: windowed_replay_backward(
                cell, *given, denominator=50.0, window=window
            ),
        )
        assert found.keys() == expected.keys()
        assert max(differs(found[name], expected[name]) for name in expected if expected[name].any()) < 1e-12
        assert differs(ours.segment_losses, result.segment_losses) < 1e-12
        assert torch.equal(ours.segment_tokens, result.segment_tokens)
        assert differs(ours.carry.memory, result.carry.memory) < 1e-12
        borders = result.memory_gradient_norms[[span[0] - 1 for span in DecoderGroups(7, window).spans[1:]]]
        assert torch.allclose(ours.memory_gradient_norms, borders, rtol=1e-10, atol=0)


def test_weights_that_change_before_the_backward_are_noticed() -> None:
    """Of every layer and kind, as torch notices it of plain modules; what is only added, no gradient depends on."""
    model: Any = make(config_of(), moved=0.1)
    segments, memory = segments_of(3), begun(model).detach()
    cell = BackboneWavefront(model)
    cell.side_by_side()
    read = [each for layer in model.layers() for each in layer.parameters()]
    for parameter in (*read, *model.memory.writers.parameters()):
        losses, _, following = cell.scored(segments, memory)
        with torch.no_grad():
            parameter.mul_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (losses.sum() + following.sum()).backward()
    losses, _, following = cell.scored(segments, memory)
    (losses.sum() + following.sum()).backward()


def test_adapters_are_trained_beside_a_frozen_backbone() -> None:
    model = make(config_of(lora=LoraConfig(rank=2)), moved=0.1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name or "memory" in name or "reader" in name)
    expected, _ = gradients(model, lambda *given: bptt_backward(model, *given, denominator=1.0))
    cell = BackboneWavefront(model)
    found, _ = gradients(model, lambda *given: windowed_replay_backward(cell, *given, denominator=1.0, window=4))
    assert found.keys() == expected.keys() and any("lora_B" in name for name in found)
    assert max(differs(found[name], expected[name]) for name in expected) < 1e-12


def test_dropout_is_refused_in_training() -> None:
    model = make(config_of(dropout=0.1))
    with pytest.raises(ValueError, match="a wavefront has no dropout"):
        BackboneWavefront(model).scored(segments_of(2), begun(model))
    BackboneWavefront(model.eval()).scored(segments_of(2), begun(model))


def test_weights_that_others_have_replaced_are_those_that_read() -> None:
    model, segments = make(config_of(), moved=0.1).eval(), segments_of(4)
    wavefront, memory = BackboneWavefront(model), begun(model)
    list(wavefront.losses(segments, memory))
    model.load_state_dict({name: 1.3 * each for name, each in model.state_dict().items()}, assign=True)
    with torch.no_grad():
        expected = in_turn(model, segments, memory)[1]
        assert differs(list(wavefront.losses(segments, memory))[-1][1], expected) < 1e-12  # type: ignore[arg-type]
    block: Any = model.layers()[0]
    block.block.mlp.up_proj = torch.nn.Linear(*reversed(block.block.mlp.up_proj.weight.shape), bias=False)
    with pytest.raises(ValueError, match=r"another than when the wavefront was made: make it anew"):
        wavefront.advance(segments, memory)


def test_autocast_rounds_the_weights_once_a_pass() -> None:
    """Each diagonal multiplies by views of one copy, where a copy of its own would be kept until the backward."""
    model = make(config_of(), torch.float32, moved=0.1)
    shape = model.layers()[0].block.mlp.down_proj.weight.shape  # type: ignore[union-attr]
    kept: set[int] = set()

    def seen(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.shape[1:] in (shape, shape[::-1]):
            kept.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        losses, _, _ = BackboneWavefront(model).scored(segments_of(5), begun(model))
    assert len(kept) == 3, "those of the maps up, down and of the gate"
    losses.sum().backward()
    assert model.layers()[0].block.mlp.down_proj.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_storage_that_an_engine_holds_is_not_left() -> None:
    """Neighbours in one flat tensor are views of it as they are; parameters elsewhere are not moved without leave."""
    model, segments = make(config_of(), moved=0.1).eval(), segments_of(4)
    memory = begun(model)
    with pytest.raises(RuntimeError, match="their storage is an engine's"):
        BackboneWavefront(model, moved=False).advance(segments, memory)
    kinds = BackboneWavefront(model).side_by_side()
    flat = torch.cat([each.detach().flatten() for kind in kinds for each in kind])
    start = 0
    for each in (each for kind in kinds for each in kind):
        each.data = flat[start : start + each.numel()].view_as(each)
        start += each.numel()
    held = BackboneWavefront(model, moved=False)
    with torch.no_grad():
        flat *= 1.1
        assert differs(held.advance(segments, memory), in_turn(model, segments, memory)[1]) < 1e-12
    assert all(each.untyped_storage().data_ptr() == flat.data_ptr() for kind in kinds for each in kind)


def test_a_model_that_has_read_in_inference_mode_can_be_trained() -> None:
    model, rollout = make(config_of(), moved=0.1), Rollout.of(*tokens_of(3, False))
    wavefront = BackboneWavefront(model)
    carry = Carry.empty(model.initial_memory(2).detach(), LENGTH)
    with torch.inference_mode():
        wavefront.advance(segments_of(3), model.initial_memory(2))
    bptt_backward(model, rollout, carry, denominator=9.0, seed=0)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"window is 0: give"):
        windowed_replay_backward(wavefront, rollout, carry, denominator=9.0, window=0)
