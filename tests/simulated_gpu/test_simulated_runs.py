# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Whole runs on a simulated GPU: nothing of the device's work lies on the host, the host waits only where it is known
to, collectives carry what `memformer plan` says, and every number has the precision that it should have.

No GPU is needed; benchmarks/simulated_gpu says what stands in for one, rules.py what is allowed. What these tests do
not see: numbers, races between streams, and whether a kernel exists for a dtype.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_gpu import library
from memformer.planning.arrangement import arrange
from memformer.planning.memory import stage_memory
from memformer.planning.traffic import traffic_by_stage
from tests import ROOT
from tests.simulated_gpu import rules
from tests.simulated_gpu.runs import CASES, LENGTH, SAVED, WORLD, config_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.missing() is not None, reason=str(library.missing())),
]
READING = ("memformer reads", "backbone reads")
PLANNED = ("zero0", "zero1", "zero3", "tensor", "pipeline", "backbone", "backbone, pipeline")
"""Of these cases the plan is made; the others have the traffic of one of them."""
WAITS_OF_A_STEP = {"zero0": 1, "zero1": 1, "zero3": 1, "compiled": 1, "tensor": 1, "pipeline": 1, "asked in between": 1}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each run has recorded, by its name."""
    out = tmp_path_factory.mktemp("simulated") / "records.json"
    words = [sys.executable, "-m", "tests.simulated_gpu.cases", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def of(records: dict[str, Any], name: str) -> dict[str, Any]:
    """One run's records; its traceback where it failed, as it does where a tensor of the host meets the device."""
    assert "error" not in records[name], records[name]["error"]
    found: dict[str, Any] = records[name]
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_only_where_it_is_known_to(name: str, records: dict[str, Any]) -> None:
    """In particular nowhere in a rollout, but for DeepSpeed's stream of reductions at the end of ZeRO 3's."""
    record = of(records, name)
    assert rules.unlisted(rules.waits(record), rules.WAITS) == []
    inside = [row for row in rules.waits(record, rules.ROLLOUT) if row[0] != "reduction"]
    assert inside == []
    if name in WAITS_OF_A_STEP:
        assert sum(row[-1] for row in rules.waits(record)) == WAITS_OF_A_STEP[name]


@pytest.mark.parametrize("name", CASES)
def test_the_host_computes_nothing_in_a_rollout(name: str, records: dict[str, Any]) -> None:
    """A tensor that was left there, and is computed there, would be no error but slow."""
    assert [row for row in of(records, name)["host_work"] if row[0] in (*rules.ROLLOUT, "optimizer")] == []


@pytest.mark.parametrize("name", PLANNED)
def test_collectives_carry_what_is_planned(name: str, records: dict[str, Any], tmp_path: Path) -> None:
    """To the byte, in the rollout and the optimizer's step; what is agreed on beside them is below 1 kB."""
    record, config = of(records, name), config_of(name, tmp_path, tmp_path)
    planned = traffic_by_stage(config, config.model.completed(257, 256, LENGTH), WORLD)[0]
    messages = Counter({"isend": sum(planned["pipeline"].values())})
    expected = planned["data"] + planned["tensor"] + planned["replica"] + messages
    assert rules.sent(record, (*rules.ROLLOUT, "optimizer")) == expected
    if name in WAITS_OF_A_STEP:
        assert 0 < rules.sent(record, ("step",)).total() < 1000


@pytest.mark.parametrize("name", CASES)
def test_numbers_have_the_precision_that_they_should(name: str, records: dict[str, Any]) -> None:
    """No float64 but in sums that are to have it, and no matrix product of a step in float32."""
    record = of(records, name)
    assert rules.unlisted([row[1:3] + row[4:] for row in rules.float64_kernels(record)], rules.FLOAT64) == []
    assert rules.unlisted([row[1:3] + row[4:] for row in rules.float32_products(record)], rules.FLOAT32_PRODUCTS) == []
    assert any(row[2] == "matrix products" for row in record["kernels"])
    assert any(row[2] == "attention" for row in record["kernels"])


def test_no_entry_of_the_lists_is_left_over(records: dict[str, Any]) -> None:
    found = [of(records, name) for name in CASES]
    for allowed, rows in (
        (rules.WAITS, [row[-2] for each in found for row in rules.waits(each)]),
        (rules.FLOAT64, [row[-2] for each in found for row in rules.float64_kernels(each)]),
        (rules.FLOAT32_PRODUCTS, [row[-2] for each in found for row in rules.float32_products(each)]),
    ):
        there = {(file, function, through) for file, _, function, through in rows}
        assert [each for each in allowed if each[:3] not in there] == []


def test_runs_went_where_they_should(records: dict[str, Any]) -> None:
    """Evaluated, compared and skipped: the runs that are to do so have."""
    assert {"evaluation", "step_times"} <= set(of(records, "looked at")["events"])
    assert "skip" in of(records, "skipped")["events"]
    between = [
        row[-2] for row in of(records, "asked in between")["collectives"] if row[:2] == ["rollout", "gloo all_reduce"]
    ]
    assert between == [2], "of three segments"
    assert [name for name in CASES if "save" in of(records, name)["events"]] == list(SAVED)
    grouped, whole = (sum(row[-1] for row in of(records, name)["kernels"]) for name in ("fp16, lane groups", "zero1"))
    assert grouped > 1.4 * whole


def test_a_save_in_the_background_is_copied_to_pinned_memory_that_the_next_save_has_again(
    records: dict[str, Any], tmp_path: Path
) -> None:
    """The second of two saves: no wait for its copies but in the thread that writes them, and no new pinned memory.

    The first has as much as is planned, and a batch a little.
    """
    record = of(records, "looked at")
    assert record["events"].count("save") == 2
    of_saving = [row for row in record["waits"] if row[2][0] == "memformer/checkpoints/saving.py"]
    assert {(row[0], row[1]) for row in of_saving} == {("beside", "event.synchronize")}
    first, second = record["pinned"]
    config = config_of("looked at", tmp_path, tmp_path)
    host = stage_memory(arrange(config, config.model.completed(257, 256, LENGTH), WORLD), 0)[1]
    assert host["copy of a save"] == pytest.approx(first, rel=0.05)
    assert second < 100, "flags of a larger batch"


def test_weights_are_cast_once_a_rollout(records: dict[str, Any]) -> None:
    """Whatever the number of its segments and groups of lanes: the maps', by one call; the head's, that is tied, in it.

    So is a gradient that begins a sum; others are added to it as they are, in 16 bits.
    """
    maps = (2 * 4 + 2 + 3) + (2 * 4 + 2)  # attention and reader, feed-forward, writer; attention twice, feed-forward
    for name in ("zero1", "fp16, lane groups"):
        found = Counter[tuple[str, str]]()
        for phase, operation, kind, *_, count in of(records, name)["kernels"]:
            if operation in ("_to_copy", "_foreach_copy_") and kind in (
                "casts of weights",
                "accumulation of weight gradients",
            ):
                found[phase, kind] += count
        assert found["rollout", "casts of weights"] == 1, name
        assert (found["pass 1", "casts of weights"], found["segment forward", "casts of weights"]) == (0, 1), name
        assert found["segment backward", "accumulation of weight gradients"] == maps, name


def test_compiled_layers_do_and_send_what_plain_ones_do(records: dict[str, Any]) -> None:
    """The default on GPUs: the same collectives and products; what lies between products is fused, weights are cast
    once a rollout, and nothing of a layer is left that torch's compiler did not see."""
    plain, compiled = of(records, "zero1"), of(records, "compiled")
    assert rules.collectives(compiled) == rules.collectives(plain)
    counts = [Counter[tuple[str, str]](), Counter[tuple[str, str]]()]
    for count, record in zip(counts, (plain, compiled), strict=True):
        for phase, operation, kind, *_, number in record["kernels"]:
            count[phase, "products" if kind in ("matrix products", "attention") else kind] += number
            count[phase, operation] += number
    for phase in ("pass 1", "segment forward", "segment backward"):
        assert counts[1][phase, "products"] == counts[0][phase, "products"] > 0
        assert any(kind.startswith("fused: norms") for where, kind in counts[1] if where == phase)
        assert counts[1][phase, "fused: casts of weights and their gradients"] == 0
        if phase != "segment backward":  # in which plain ones cannot be told from those of activations
            assert counts[1][phase, "casts of weights"] == counts[0][phase, "casts of weights"]
        assert (
            counts[1][phase, "gelu"] == counts[1][phase, "gelu_backward"] == counts[1][phase, "rotary positions"] == 0
        )
    assert counts[1]["rollout", "casts of weights"] == counts[0]["rollout", "casts of weights"] > 0
    fewer = [sum(row[-1] for row in record["kernels"] if row[0] in rules.ROLLOUT) for record in (compiled, plain)]
    assert fewer[0] < 0.85 * fewer[1]


@pytest.mark.parametrize("name", READING)
def test_reading_and_generating_ask_the_device_for_nothing_but_tokens(name: str, records: dict[str, Any]) -> None:
    """Three of them. Where prompts differ in length the host puts their places on the device, which is a wait each."""
    record = of(records, name)
    asked = [row for row in record["waits"] if not row[1].startswith("copy to the device")]
    assert [(row[1], row[2][0], row[-1]) for row in asked] == [("copy to the host", "", 3)]
    assert record["kernels"] and [row for row in record["kernels"] if "float64" in row[3]] == []
    allowed = rules.FLOAT32_PRODUCTS
    assert rules.unlisted([row[1:3] + row[4:] for row in rules.float32_products(record, ["read"])], allowed) == []


def test_the_device_sees_what_it_should(records: dict[str, Any]) -> None:
    """Each fault, made on purpose: tensors left on the host are refused, waits and work counted once each."""
    found = of(records, "faults")
    for name, said in found["said"].items():
        assert "the CPU" in said, f"{name}: {said}"
    expected = ["item", "item", "tolist", "index by a mask", "nonzero", "copy to the host", "copy to the device",
                "copy to the device from pageable memory", "copy to pageable memory of the host"]  # fmt: skip
    assert Counter({row[1]: row[-1] for row in found["waits"]}) == Counter(expected)
    assert found["asked"] == len(expected)
    assert found["nowhere"] == ["meta", "meta"], "what has no numbers takes no memory"
    assert [row[1] for row in found["host_work"]].count("mul") == 1
    (collective,) = found["collectives"]
    assert collective[1:3] == ["all_reduce", "float32"] and collective[-2:] == [1, 64]
    products = [row for row in found["kernels"] if row[1] == "mm"]
    assert [(row[3], row[-1]) for row in products] == [(["float64"], 3)]  # the forward, and two in the backward


def test_what_is_not_listed_is_told(records: dict[str, Any]) -> None:
    """A wait in a function of the model, one too many in a listed one, a product that autocast has missed."""
    place = ["memformer/models/memformer/memory.py", 7, "forward", ""]
    assert "forward" in rules.unlisted([["pass 1", "item", place, 1]], rules.WAITS)[0]
    listed = [*rules.WAITS[0][:1], 1, *rules.WAITS[0][1:3]]
    assert rules.unlisted([["step", "tolist", listed, 1]], rules.WAITS) == []
    assert "2 times a step, 1 allowed" in rules.unlisted([["step", "tolist", listed, 2]], rules.WAITS)[0]
    product = ["pass 1", "mm", "matrix products, float32", ["float32"], place, 1]
    assert rules.float32_products({"kernels": [product]}) == [product]
