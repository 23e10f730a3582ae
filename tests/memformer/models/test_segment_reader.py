# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Documents of any lengths side by side, each at its own place, are each what they are alone; a state goes on there.

Alone and token by token a reader is held to the teacher-forced model elsewhere (test_generation.py, test_reader.py).
Tolerance in float64 1e-11 (logits of size 1; 1.05e-12 was seen): a batch has its products summed in another order,
layer by layer. Where the same calls are made with the same shapes, what is compared is equal to the last bit.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from memformer import Memformer, MemformerConfig
from memformer.inference.generation import draw, generate, read_texts, reader_of
from memformer.models import graphed, registry, segment_reader
from memformer.models.protocol import Reader
from memformer.models.segment_reader import ReadingState
from tests.memformer.models.backbone.examples import config_of, make
from tests.memformer.models.second_family import FAMILY, RecurrentConfig

S, START = 4, 30
TOKENS = torch.randint(0, START, (4, 41), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": START + 1, "start_token_id": START, "segment_length": S}


def memformer(slots: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = MemformerConfig(2, 3, d_model=16, num_heads=2, d_ff=24, num_memory_slots=slots, **SIZES, **changes)
    return Memformer(sizes).double().eval().requires_grad_(False)


def backbone(kind: str, memory: str) -> Any:
    return make(config_of(kind, memory, segment_length=S), moved=0.5).eval().requires_grad_(False)


def second() -> Any:
    torch.manual_seed(0)
    registry.register(FAMILY)
    return FAMILY.build(RecurrentConfig(**SIZES)).double().eval().requires_grad_(False)


MODELS: dict[str, Callable[[], Any]] = {
    "memformer": lambda: memformer(3),
    "memformer without memory": lambda: memformer(0),
    "memformer with an overlap": lambda: memformer(3, overlap=3, block="modern"),
    "associative": lambda: backbone("llama", "associative"),
    "slots": lambda: backbone("gpt2", "slots half-way"),
    "tokens": lambda: backbone("gpt_neox", "tokens"),
    "another family": second,
}


@functools.cache
def model_of(name: str) -> Any:
    return MODELS[name]()


@functools.cache
def alone(name: str) -> torch.Tensor:
    """Logits [B, n + 1, V] behind the first 0 to n tokens of each document, read by itself, one token after another."""
    found = []
    for document in TOKENS:
        reader = reader_of(model_of(name))
        rows = [reader.logits[0]]
        for token in document:
            reader.read(token[None, None])
            rows.append(reader.logits[0])
        found.append(torch.stack(rows))
    return torch.stack(found)


def read_on(reader: Reader, places: list[int], counts: Sequence[int]) -> list[int]:
    """Reads the next so many tokens of each document; the places behind them."""
    behind = [place + count for place, count in zip(places, counts, strict=True)]
    read_texts(reader, [TOKENS[row, a:b].tolist() for row, (a, b) in enumerate(zip(places, behind, strict=True))])
    return behind


def expected(name: str, places: Sequence[int]) -> torch.Tensor:
    return alone(name)[torch.arange(len(places)), list(places)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_documents_at_different_places_are_each_as_alone(name: str, seed: int) -> None:
    """Pieces of 0 to 6 tokens each, logits asked for now and then: segments begin and end at different times."""
    source = torch.Generator().manual_seed(seed)
    reader, places, asked = reader_of(model_of(name), 4), [0] * 4, 0
    for _ in range(11):
        counts = torch.randint(0, 7, (4,), generator=source).tolist()
        places = read_on(reader, places, [min(count, 41 - at) for count, at in zip(counts, places, strict=True)])
        if int(torch.randint(0, 3, (1,), generator=source)):
            torch.testing.assert_close(reader.logits, expected(name, places), rtol=0, atol=1e-11)
            asked += 1
    assert asked > 3 and len(set(places)) > 1


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_continued_side_by_side_as_each_alone(name: str) -> None:
    """Drawn, over several borders of segments, from prompts of which one is empty and one ends with a segment."""
    model, options = model_of(name), {"temperature": 3.0, "top_k": 9}
    prompts = [TOKENS[0, :0].tolist(), TOKENS[1, :3].tolist(), TOKENS[2, : 2 * S].tolist(), TOKENS[3, :13].tolist()]
    reader = reader_of(model, 4)
    read_texts(reader, prompts)
    found = list(draw(reader, START, 14, seed=5, **options))
    for row, prompt in enumerate(prompts):
        by_itself = list(generate(model, prompt, 14, seed=5 + row, **options))
        assert [tokens[row] for tokens in found] == by_itself and len(set(by_itself)) > 2


@pytest.mark.parametrize("name", MODELS)
def test_a_state_goes_on_where_its_reader_was(name: str) -> None:
    """To the last bit where nothing of the segment was decoded, else to rounding; and again from the same state."""
    model = model_of(name)
    reader = reader_of(model, 4)
    places = read_on(reader, [0] * 4, [0, 3, 9, 20])
    state = reader.state
    kept = ReadingState(state.memory.clone(), state.context.clone(), state.tokens.clone(), state.known, state.counts)
    behind = read_on(reader, places, [5, 5, 2, 6])
    for _ in range(2):
        other = reader_of(model, 4)
        other.restore(state)
        assert read_on(other, places, [5, 5, 2, 6]) == behind
        assert torch.equal(other.logits, reader.logits)
    torch.testing.assert_close(reader.logits, expected(name, behind), rtol=0, atol=1e-11)
    other.restore(reader.state)
    torch.testing.assert_close(other.logits, reader.logits, rtol=0, atol=1e-11)
    ends = [read_on(each, behind, [7, 1, 3, 4]) for each in (reader, other)]
    for each in (reader, other):
        torch.testing.assert_close(each.logits, expected(name, ends[0]), rtol=0, atol=1e-11)
    for field in ("memory", "context", "tokens"):
        assert torch.equal(getattr(state, field), getattr(kept, field)), "a reader has changed the state it was given"


@pytest.mark.parametrize("name", MODELS)
def test_forks_change_neither_their_source_nor_one_another(name: str) -> None:
    """One document, four continuations of other tokens, while the source reads on by itself."""
    model = model_of(name)
    source = reader_of(model)
    source.read(TOKENS[:1, :10])
    forks, plain = reader_of(model, 4), reader_of(model)
    forks.restore(source.state.rows([0] * 4))
    for token in range(10, 10 + 2 * S):
        forks.read(TOKENS[:, token : token + 1])
        assert forks.logits is not None
    source.read(TOKENS[:1, 10:21])
    torch.testing.assert_close(source.logits[0], alone(name)[0, 21], rtol=0, atol=1e-11)
    for row in range(4):
        plain = reader_of(model)
        plain.read(torch.cat([TOKENS[:1, :10], TOKENS[row : row + 1, 10 : 10 + 2 * S]], 1))
        torch.testing.assert_close(forks.logits[row], plain.logits[0], rtol=0, atol=1e-11)


def counted(layers: Sequence[torch.nn.Module]) -> tuple[list[int], list[Any]]:
    """Inputs of each call of the layers, as they come."""
    ran: list[int] = []
    hooks = [each.register_forward_hook(lambda _, inputs, __: ran.append(inputs[0].shape[1])) for each in layers]
    return ran, hooks


@pytest.mark.parametrize("name", [name for name in MODELS if name != "another family"])
def test_one_more_token_at_fixed_shapes_is_what_it_is_at_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU launches as one graph: the whole room with a mask, where else the inputs so far are taken.

    Run as it is written, twice as by what records it; documents at different places, through the ends of
    their segments. The weights of what is masked are 0: the tolerance is this file's.
    """
    model, steps = model_of(name), []

    def twice(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def stepped(*inputs: torch.Tensor) -> torch.Tensor:
            steps.append(step(*inputs))
            return step(*inputs)

        return stepped

    monkeypatch.setattr(segment_reader, "Graphed", twice)
    found = {}
    for fixed in (False, True):
        monkeypatch.setattr(segment_reader, "graphs_run", lambda device, fixed=fixed: fixed)
        reader = reader_of(model, 3)
        read_texts(reader, [TOKENS[0, :13].tolist(), TOKENS[1, :12].tolist(), TOKENS[2, :6].tolist()])
        logits = [reader.logits]
        for i, token in enumerate(TOKENS[:3, 10:26].T):
            reader.read(token[:, None], [1, int(i % 5 != 1), int(i % 4 != 2)])  # of some there is none
            logits.append(reader.logits)
        reader.read(TOKENS[:3, 26:29])  # several at once, then one
        logits.append(reader.logits)
        reader.read(TOKENS[:3, 29:30])
        found[fixed] = torch.stack([*logits, reader.logits])
        assert bool(steps) == fixed
    assert len(steps) >= 12
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["memformer", "slots"])
def test_segments_at_fixed_shapes_are_what_they_are_otherwise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = model_of(name), []

    def counted(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *inputs: read.append(0) or function(*inputs)  # type: ignore[func-returns-value]

    monkeypatch.setattr(segment_reader, "Graphed", counted)
    memories = []
    for fixed in (False, True):
        monkeypatch.setattr(segment_reader, "graphs_run", lambda device, fixed=fixed: fixed)
        reader = reader_of(model, 4)
        reader.read(TOKENS[:, : 4 * S + 1])
        memories.append(reader.state.memory)
    assert len(read) == 3  # the first segment begins the documents
    assert torch.equal(*memories)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["memformer", "associative", "slots"])
def test_a_graph_gives_what_the_layers_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in float64: recorded, and played again in the next segments."""
    monkeypatch.setattr(graphed, "PLAIN_CALLS", 2)
    model, found = copy.deepcopy(model_of(name)).to("cuda"), []
    for fixed in (False, True):
        reader: Any = reader_of(model, 2)
        assert reader.fixed
        reader.fixed = fixed
        logits = []
        for token in TOKENS[:2, :14].T.to("cuda"):
            reader.read(token[:, None])
            logits.append(reader.logits)
        reader.read(TOKENS[:2, 14:].to("cuda"))
        found.append(torch.stack([*logits, reader.logits]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-11)


def test_reading_runs_no_decoder_and_answering_one_segment_of_it() -> None:
    model = model_of("memformer")
    encoded, first = counted(model.encoder)
    decoded, others = counted([each.ff_norm for each in model.decoder])
    reader = reader_of(model)
    for piece in TOKENS[:1, : 6 * S + 2].split(5, 1):
        reader.read(piece)
    assert (encoded, decoded) == ([S] * 6 * 2, [])
    assert reader.logits is reader.logits
    assert (encoded, decoded) == ([S] * 7 * 2, [3] * 3)  # start and two tokens, once
    reader.read(TOKENS[:1, :2])
    assert (encoded, decoded) == ([S] * 7 * 2, [3] * 3), "the end of a segment needs nothing that was not computed"
    for hook in (*first, *others):
        hook.remove()


def test_a_backbone_reads_with_the_layers_that_its_memory_depends_on() -> None:
    """Also the end of a segment of which logits were asked for."""
    model = model_of("slots")
    depth = model.memory.depth
    assert depth < len(model.stack)
    ran, hooks = counted(model.stack[depth:])
    reader = reader_of(model)
    reader.read(TOKENS[:1, : 5 * S + 1])
    assert not ran
    assert reader.logits is not None
    decoded = len(ran)
    reader.read(TOKENS[:1, : 2 * S])
    assert decoded and len(ran) == decoded
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("rows", "counts"), [(1, None), (2, [1]), (2, [1, 4]), (2, [-1, 1])], ids=["rows", "counts", "beyond", "below"]
)
def test_other_numbers_of_rows_or_tokens_are_refused(rows: int, counts: list[int] | None) -> None:
    reader = reader_of(model_of("memformer"), 2)
    with pytest.raises(ValueError, match="give 2 rows and counts up to their length"):
        reader.read(TOKENS[:rows, :3], counts)


def test_a_state_of_other_sizes_is_refused() -> None:
    state = reader_of(model_of("memformer"), 2).state
    for reader in (reader_of(model_of("memformer"), 3), reader_of(model_of("memformer"), 2, S + 1)):
        with pytest.raises(ValueError, match=r"a state of \[B, K, C, S\] = \[2, 3, 16, 4\] is not of this reader's"):
            reader.restore(state)
