# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A backbone spread over tensor-parallel processes answers as the whole model does, and has its gradients.

Two processes, float64: differences are those of the order of summation (1e-12). The vocabulary of 31 does not divide.

Covers: memformer/models/backbone/roles.py, memformer/parallel/tensor/modules.py, memformer/models/heads.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.activations import SavedActivations
from data_pipeline import UserError
from memformer import load_model
from memformer.checkpoints.exporting import export
from memformer.config.schema import parse_config
from memformer.models.backbone import Backbone, BackboneConfig, LoraConfig
from memformer.models.backbone.architectures import SUPPORTED
from memformer.models.backbone.looking import look
from memformer.models.backbone.reader import BackboneReader
from memformer.models.registry import family_of
from memformer.parallel.tensor import SlicedConstruction, shard_model, sharding_of, slice_of, whole_tensor
from memformer.planning.segment_trace import Execution, trace_parts
from memformer.processes.group import World
from memformer.processes.topology import Axis
from memformer.replay import Carry, Segment, memory_replay_backward
from memformer.run import jsonl
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.distributed.test_construction import assert_reads_its_part
from tests.memformer.examples import ragged_rollout
from tests.memformer.models.backbone.examples import MEMORIES, SIZES, START, VOCABULARY
from tests.memformer.models.backbone.test_training import pretrained, settings
from tests.memformer.models.family_runs import assert_alike, assert_resumed, break_off, life, metrics

LENGTH, LANES = 6, 4
EVERYWHERE = LoraConfig(rank=3, alpha=5.0, dropout=0.2, targets=SUPPORTED["llama"].linear)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "associative": ("llama", "associative", {}),  # head and embedding are one
    "adapters": ("llama", "associative", {"lora": EVERYWHERE, "bos_token_id": 5}),
    "slots": ("qwen3", "slots half-way", {}),  # with norms of each head
    "tokens": ("mistral", "tokens", {}),
    "armt": ("qwen2", "armt", {}),  # with biases
}


def config_of(kind: str, memory: str, changes: dict[str, Any]) -> BackboneConfig:
    """Four heads, two of keys and values."""
    sizes = SIZES[kind] | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    if kind == "qwen2":
        del sizes["head_dim"]
    values = {"vocab_size": VOCABULARY, "start_token_id": START, "overlap": 2} | changes
    return BackboneConfig(backbone=sizes, memory=MEMORIES[memory], **values)


def exact_norm_classes(model: nn.Module) -> None:
    """transformers computes RMS norms in float32 whatever it is given; from here on in what it is given."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * scaled

    for kind in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        kind.forward = forward  # type: ignore[assignment]


def model_of(config: BackboneConfig) -> Backbone:
    """The same at every call, away from the zeros that it starts with."""
    torch.manual_seed(0)
    model = Backbone(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def answers(model: Backbone) -> dict[str, torch.Tensor]:
    """Of a model, whole or in parts, to everything that is asked of it; its gradients are left in it."""
    found: dict[str, torch.Tensor] = {}
    rollout = ragged_rollout(LANES, 3, LENGTH)
    carry = Carry.empty(model.initial_memory(LANES), LENGTH)
    model.eval()
    with torch.no_grad():
        segment = rollout.segment(0, carry)
        found["losses"], memory = model.losses(segment, carry.memory)
        found["logits"], found["memory"] = model.logits(rollout.segment(1, carry), memory)
        looked = look(model, rollout.segment(1, carry), memory)
        for name, figure in looked.figures.items():
            found[f"figure {name}"] = figure.part
        if looked.slots is not None:
            found["self weights"], found["left"], _ = looked.slots
        reader = BackboneReader(model, 2, LENGTH)
        reader.read(rollout.tokens[:2].flatten(1)[:, : LENGTH + 3])
        found["next token"] = reader.logits
    model.train()
    result = memory_replay_backward(model, rollout, carry, denominator=17.0, seed=3)
    found["training losses"] = result.segment_losses
    found["carried"] = result.carry.memory
    return found


def compare(world: World, name: str, train: str) -> dict[str, float]:
    """Largest difference to the whole model, by what was asked."""
    config, axis = config_of(*CASES[name]), world.arranged(world.size, 1).mesh.tensor
    plain, parts = model_of(config), model_of(config)
    exact_norm_classes(plain)
    shard_model(parts, axis)
    for model in (plain, parts):
        for each, parameter in model.named_parameters():
            parameter.requires_grad_(family_of(config).trains(train, each))
    expected, got = answers(plain), answers(parts)
    errors = {each: float((got[each] - expected[each]).abs().max()) for each in expected}
    for (each, whole), (_, part) in zip(plain.named_parameters(), parts.named_parameters(), strict=True):
        assert (whole.grad is None) == (part.grad is None), each
        if whole.grad is not None and part.grad is not None:
            assert whole.grad.abs().max() > 0, each
            gradient = whole_tensor(part, axis, part.grad)
            errors[f"gradient of {each}"] = float((gradient - whole.grad).abs().max())
    return errors


def beside_the_plan(world: World, name: str) -> dict[str, float]:
    """What the first process, whose part is planned, has more than the plan says: bytes that autograd keeps of a full
    segment, and parameters."""
    config, mesh = config_of(*CASES[name]), world.arranged(world.size, 1).mesh
    torch.manual_seed(0)
    model = Backbone(config)
    shard_model(model, mesh.tensor)
    full, first = torch.full((LANES,), LENGTH), model.initial_memory(LANES)
    tokens = torch.randint(0, START, (LANES, LENGTH))
    segment = Segment(tokens, full, tokens, full, torch.zeros(LANES, dtype=torch.bool), False, False)
    with SavedActivations([*model.parameters(), tokens]) as saved:
        given = model(segment, first.detach().clone().requires_grad_())
        kept = saved.live_bytes
    del given
    if mesh.tensor.rank:
        return {}
    planned = trace_parts(config, Execution(LANES, LENGTH, world.size, "fp32")).of(config.layer_counts())
    numbers = sum(shape.numel * count for shape, count in planned.parameters.items())
    own = sum(parameter.numel() for parameter in model.parameters())
    return {"kept": kept - sum(planned.saved.values()), "parameters": own - numbers}


def compare_all(world: World) -> dict[str, dict[str, float]]:
    """By case, and `planned`."""
    found = {"planned": beside_the_plan(world, "slots")}
    found |= {name: compare(world, name, "all") for name in CASES}
    return found | {"lora": compare(world, "adapters", "lora"), "memory": compare(world, "slots", "memory")}


@pytest.fixture(scope="module")
def compared() -> list[dict[str, dict[str, float]]]:
    """By rank and case."""
    return run_distributed(compare_all, 2)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", [*CASES, "lora", "memory"])
def test_answers_and_gradients_equal_those_of_the_whole_model(
    name: str, compared: list[dict[str, dict[str, float]]]
) -> None:
    for rank in compared:
        wrong = {asked: error for asked, error in rank[name].items() if not error < 1e-12}
        assert not wrong
        assert len(rank[name]) > 12


@pytest.mark.slow
@pytest.mark.distributed
def test_the_plan_is_of_what_a_process_has(compared: list[dict[str, dict[str, float]]]) -> None:
    """To the byte and to the number."""
    assert compared[0]["planned"] == {"kept": 0, "parameters": 0}


@pytest.mark.parametrize("name", CASES)
def test_parts_are_cut_from_the_plain_weights(name: str) -> None:
    """Bit for bit while the model is drawn; and of stored tensors each process reads its rows or columns alone."""
    config = config_of(*CASES[name])
    torch.manual_seed(5)
    whole = dict(Backbone(config).named_parameters())
    for axis in (Axis(0, 2), Axis(1, 2)):
        torch.manual_seed(5)
        construction = SlicedConstruction(axis, sharding_of(config))
        model = Backbone(config, construction)
        shard_model(model, axis)
        for each, parameter in model.named_parameters():
            part, expected = slice_of(parameter), whole[each]
            if part is not None:
                expected = expected.narrow(part.dim, part.start, part.stop - part.start)
            assert torch.equal(parameter, expected), each
        maps = {each: parameter for each, parameter in model.named_parameters() if parameter.dim() == 2}
        whole_maps = {each for each, parameter in maps.items() if slice_of(parameter) is None}
        assert all("memory." in each or ".reader.query." in each or ".lora_" in each for each in whole_maps)
        assert (model.head.weight is model.embedding.weight) == bool(config.tied())
        assert_reads_its_part(model, construction)


def test_a_plan_of_transformers_that_says_something_else_is_refused() -> None:
    """A style that is not built; a parameter of which it says nothing."""
    model: Any = Backbone(config_of(*CASES["slots"]))
    plan = model.stack[1].plan
    for changed, words in (
        (plan | {"self_attn.k_norm": "sequence_parallel"}, "self_attn.k_norm is cut by the style sequence_parallel"),
        ({name: style for name, style in plan.items() if "q_norm" not in name}, "how self_attn.q_norm.weight is cut"),
    ):
        model.stack[1].plan = changed
        with pytest.raises(ValueError, match=f"^backbone: .*{words}.*: set parallel.tensor to 1$"):
            shard_model(model, Axis(0, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set, a pretrained directory and the runs lie."""
    made = tmp_path_factory.mktemp("tensor")
    small_dataset(made)
    pretrained(made, num_attention_heads=4, num_key_value_heads=2)
    return made


def run_of(root: Path, name: str, tensor: int, train: str) -> dict[str, Any]:
    """A run, without dropout; with adapters on what is cut by rows and by columns where `train` says so."""
    lora = {"lora": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"]}} if train == "lora" else {}
    values = settings(root, name, 1, dropout=0.0, **lora)
    values["training"]["train"], values["parallel"]["tensor"] = train, tensor
    return values


TRAINED = ("all", "lora")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Path]:
    """Of one process and of two that share its layers."""
    found = {}
    for tensor in (1, 2):
        every = [run_of(root, f"{train}-{tensor}", tensor, train) for train in TRAINED]
        assert run_distributed(life, tensor, *every) == [[0] * len(every)] * tensor
        found |= {Path(each["run_dir"]).name: Path(each["run_dir"]) for each in every}
    return found


@pytest.mark.slow
@pytest.mark.distributed
class TestRuns:
    """From a pretrained directory to an export, with the memory that a resume takes up."""

    @pytest.mark.parametrize("train", TRAINED)
    def test_two_processes_train_like_one(self, runs: dict[str, Path], train: str) -> None:
        """Tolerance: tests/memformer/models/family_runs.py; of the figures of the memory 1 %."""
        assert_alike(runs[f"{train}-1"], runs[f"{train}-2"])
        figures = [metrics(runs[f"{train}-{tensor}"])[-1]["memory"] for tensor in (1, 2)]
        assert figures[0].keys() == figures[1].keys() >= {"norm", "rank", "read"}
        for name, by_layer in figures[0].items():
            assert figures[1][name] == pytest.approx(by_layer, rel=1e-2), name

    def test_resumes_are_equal_to_the_last_bit_and_another_topology_goes_on(
        self, root: Path, runs: dict[str, Path]
    ) -> None:
        """Two processes after two; one after two, and two after one."""
        again, other = {}, {}
        for train in TRAINED:
            for tensor, into in ((2, again), (2, other), (1, other)):
                name = f"{train}-{tensor}-{'again' if into is again else 'other'}"
                break_off(runs[f"{train}-{tensor}"], name)
                into[name] = run_of(root, name, tensor if into is again else 3 - tensor, train)
        to_two = [other[f"{train}-1-other"] for train in TRAINED]
        to_one = [other[f"{train}-2-other"] for train in TRAINED]
        assert run_distributed(life, 2, *again.values(), *to_two) == [[0] * 4] * 2
        assert run_distributed(life, 1, *to_one) == [[0] * 2]
        for train in TRAINED:
            assert_resumed(f"{train}-2-again", runs[f"{train}-2"])
            for tensor in (1, 2):
                copy = root / f"{train}-{tensor}-other"
                assert_alike(copy, runs[f"{train}-1"])
                resumed = [each for each in jsonl.records(copy / "events.jsonl") if each["event"] == "resume"]
                assert f"tensor {tensor} -> {3 - tensor}" in str(resumed[-1]["changes"])

    @pytest.mark.parametrize("train", TRAINED)
    def test_exports_are_those_of_one_process(self, root: Path, runs: dict[str, Path], train: str) -> None:
        """The same tensors; verified against the losses that the run had itself, and equal to those of one process to
        the order of summation (1e-4 of the largest weight; seen: 1e-6)."""
        exported = []
        for tensor in (1, 2):
            done = export(runs[f"{train}-{tensor}"], root / f"export-{train}-{tensor}")
            assert done["largest_loss_difference"] < 1e-5
            exported.append(load_model(root / f"export-{train}-{tensor}").state_dict())
        one, two = exported
        assert one.keys() == two.keys()
        for name, tensor_of_one in one.items():
            assert float((tensor_of_one - two[name]).abs().max()) < 1e-4 * float(tensor_of_one.abs().max() + 1e-3), name


@pytest.mark.parametrize(
    ("model", "others", "words"),
    [
        (
            {"backbone": {"num_key_value_heads": 1}},
            {},
            "model.backbone.num_key_value_heads is 1, which parallel.tensor 2 does not divide: choose a multiple of 2",
        ),
        (
            {"backbone": {"num_attention_heads": 5}},
            {},
            "model.backbone.num_attention_heads is 5, which parallel.tensor",
        ),
        ({"backbone": {"intermediate_size": 25}}, {}, "model.backbone.intermediate_size is 25, which parallel.tensor"),
        ({"backbone": {"num_key_value_heads": "2"}}, {}, "backbone.num_key_value_heads is 2: give a whole number"),
        ({"dropout": 0.1}, {}, "model.dropout is 0.1: the processes of parallel.tensor share the attention"),
        ({"memory": {"kind": "slots", "num_heads": 1}}, {}, "model.memory.num_heads is 1, which parallel.tensor 2"),
        (
            {"memory": {"rule": "armt", "d_key": 1, "layers": [0]}, "backbone": {"hidden_size": 20}},
            {"parallel": {"tensor": 4}, "activation_checkpointing": {"partition_activations": True}},
            "parallel.tensor 4 does not divide the 126 numbers of a lane's memory (6 x 21): set it to false",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    model: dict[str, Any], others: dict[str, Any], words: str
) -> None:
    sizes = SIZES["llama"] | {"num_attention_heads": 4, "num_key_value_heads": 4}
    values = {"run_dir": "unused", "data": {"path": "unused"}, "parallel": {"tensor": 2}} | others
    values["model"] = {"family": "backbone"} | model | {"backbone": sizes | model.get("backbone", {})}
    with pytest.raises(UserError) as refused:
        parse_config(values, "run.yaml")
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_an_architecture_for_which_it_is_not_built_is_refused_by_name(kind: str) -> None:
    values = {"run_dir": "unused", "data": {"path": "unused"}, "parallel": {"tensor": 2}}
    values["model"] = {"family": "backbone", "backbone": SIZES[kind]}
    with pytest.raises(UserError, match=rf"model_type is {kind}, for which parallel.tensor .* choose one of llama, qw"):
        parse_config(values, "run.yaml")
