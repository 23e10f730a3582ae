# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What an optimizer step of a configuration launches, sends and waits for on a GPU, derived without one.

The step runs on a simulated H100 (benchmarks/simulated_gpu): the model, the replay and DeepSpeed are those of a run,
tensors have no numbers. Times are those of a roofline: what the data sheet allows at best. Nothing is measured.

python benchmarks/simulated_step.py configs/parallel/1.3b-on-8.yaml [--processes 8] [--section.field VALUE ...]
    [--out STEM] [--json]

Layers are compiled where a run on such a GPU would compile them (`compile`: auto, true or false). A result file keeps
the rows of other names that it has, so that several configurations can stand side by side.
"""

import argparse
import gc
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.simulated_gpu import library

if __name__ == "__main__":
    if library.missing():
        raise SystemExit(library.missing())
    library.load()  # before torch

import torch

from benchmarks.common import markdown_table, page_head, provenance, tell
from benchmarks.simulated_gpu.device import SimulatedDevice
from benchmarks.simulated_gpu.records import Records, Work
from benchmarks.simulated_gpu.roofline import ATTENTION, H100, MATRIX_PRODUCTS

QUICK = {
    "model": {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64}
    | {"num_memory_slots": 8, "vocab_size": 64},
    "data": {"num_lanes": 16, "segment_length": 16, "num_segments": 3},
    "compile": False,  # it takes longer than all the rest
}
UNSAID = {"run_dir": "unused", "precision": "bf16", "data": {"path": "unused"}, "model": {"vocab_size": 32768}}
"""What a file of a model alone leaves open."""


def configuration(path: Path | None, overrides: Sequence[str]) -> Any:
    """The run: a file, or the smallest one; what neither it nor the command line says is filled in."""
    from memformer.config.files import read_values
    from memformer.config.schema import parse_config

    values = read_values(path, overrides)
    for given in (QUICK if path is None else {}, UNSAID):
        for key, value in given.items():
            values[key] = {**value, **values.get(key, {})} if isinstance(value, dict) else values.get(key, value)
    return parse_config(values, str(path or "the quick run"))


def planned(config: Any, processes: int) -> dict[str, float]:
    """What `memformer plan` expects of the first process: bytes in each moment; before the device is there."""
    from memformer.planning.arrangement import arrange
    from memformer.planning.memory import moments

    model = config.model.completed(config.model.vocab_size, 0, config.data.segment_length)
    found = moments(arrange(config, model, processes), 0)
    return {moment: sum(parts.values()) for moment, parts in found.items()}


def step_of(config: Any, device: SimulatedDevice) -> tuple[Records, dict[str, Any]]:
    """The second optimizer step of a run, lanes full and in the middle of their documents; and what it took.

    Args:
        config: The run, for as many processes as the device was started for.
        device: Follows the memory.
    """
    from benchmarks.simulated_gpu import training
    from memformer.engine.compilation import why_plain
    from memformer.engine.making import make_engine
    from memformer.engine.precision import resolve_precision
    from memformer.models.registry import family_of
    from memformer.models.sizes import count_parameters
    from memformer.processes.group import World
    from memformer.processes.topology import Mesh
    from memformer.replay import Rollout
    from memformer.training.initial_weights import construction_of

    gpu, data, parallel = torch.device("cuda", 0), config.data, config.parallel
    processes = torch.distributed.get_world_size()
    gc.collect()
    others = device.allocated
    world = World(0, processes, 0, gpu, Mesh.of_data(0, processes)).arranged(parallel.tensor, parallel.pipeline)
    model_config = config.model.completed(config.model.vocab_size, 0, data.segment_length)
    with gpu:
        model = family_of(model_config).build(model_config, construction_of(config, model_config, world))
    precision = resolve_precision(config.precision, gpu)
    engine = make_engine(model, config, world, precision)
    gc.collect()
    resting = device.allocated
    lanes, segments = data.num_lanes // world.mesh.data.size, data.most_segments
    tokens = torch.ones(lanes, segments, data.segment_length, dtype=torch.int32)
    lengths = torch.full(tokens.shape[:2], data.segment_length, dtype=torch.int32)
    carry, counted = engine.empty_carry(lanes), float(data.num_lanes * segments * data.segment_length)
    for _ in range(2):
        device.fresh_records()
        with device.during("step"):
            rollout = Rollout.of(tokens, lengths, torch.zeros(tokens.shape[:2], dtype=torch.bool), gpu)
        with device.during("rollout"):
            carry = engine.rollout_backward(rollout, carry, counted, 1).carry
        with device.during("optimizer"):
            engine.step(1e-3)
    records = device.fresh_records()
    engine.close()
    most = records.most_allocated
    reduced = {"reduction": most["reduction"]} if most["reduction"] else {}
    peaks = {"rollout": max(most[phase] for phase in training.ROLLOUT if phase != "reduction"), **reduced}
    sizes = {
        "parameters": count_parameters(model_config),
        "lanes": lanes,
        "num_segments": segments,
        "segment_length": data.segment_length,
        "processes": processes,
        "zero_stage": parallel.zero_stage,
        "precision": precision,
        "compiled": why_plain(config, gpu) is None,
        "allocated_bytes": {
            name: size - others
            for name, size in {"between steps": resting, **peaks, "optimizer": most["optimizer"]}.items()
        },
    }
    return records, sizes


def row_of(name: str, records: Records, sizes: dict[str, Any]) -> dict[str, Any]:
    """A configuration's row of the result file."""
    kinds: dict[str, Work] = {}
    for kernel, work in records.kernels.items():
        kinds.setdefault(kernel.kind, Work()).add(work)
    seconds = sum(work.seconds for work in kinds.values())
    waits = Counter[str]()
    for wait, count in records.waits.items():
        where = f"{wait.place.file} ({wait.place.function})"
        where += f" through {wait.place.through.partition(':')[0]}" if wait.place.through else ""
        waits[f"{wait.phase}: {wait.kind}, {where}"] += count
    return {
        "name": name,
        **sizes,
        "kernels": sum(work.count for work in kinds.values()),
        "tflop": sum(work.flops for work in kinds.values()) / 1e12,
        "gigabytes": sum(work.bytes for work in kinds.values()) / 1e9,
        "milliseconds": 1e3 * seconds,
        "kinds": {
            kind: {"kernels": work.count, "milliseconds": 1e3 * work.seconds, "share": work.seconds / seconds}
            for kind, work in sorted(kinds.items(), key=lambda each: -each[1].seconds)
        },
        "collectives": [
            {"phase": each.phase, "kind": each.kind, "dtype": each.dtype, "calls": calls, "bytes": size}
            for each, (calls, size) in records.collectives.items()
        ],
        "waits": dict(waits),
    }


def page(values: dict[str, Any]) -> str:
    """The result file for people."""
    rows = values["rows"]
    names = [row["name"] for row in rows]
    kinds = sorted({kind for row in rows for kind in row["kinds"]}, key=lambda kind: (-_share(rows[-1], kind), kind))
    products = [sum(_share(row, kind) for kind in (MATRIX_PRODUCTS, ATTENTION)) for row in rows]
    table = [
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["lanes x T x S a process", *(_rollout(row) for row in rows)],
        ["processes, ZeRO stage, precision", *(_way(row) for row in rows)],
        ["layers", *("compiled" if row.get("compiled") else "as written" for row in rows)],
        ["kernels launched", *(f"{row['kernels']:,}" for row in rows)],
        ["operations of products and attention, TFLOP", *(f"{row['tflop']:.1f}" for row in rows)],
        ["bytes read and written, GB", *(f"{row['gigabytes']:.1f}" for row in rows)],
        ["milliseconds at best", *(f"{row['milliseconds']:.1f}" for row in rows)],
        ["**matrix products and attention**", *(f"**{100 * each:.1f} %**" for each in products)],
        *([kind, *(f"{100 * _share(row, kind):.1f} %" for row in rows)] for kind in kinds),
        ["allocated between steps, GB", *(_gigabytes(row, "between steps") for row in rows)],
        ["**at most in the rollout, GB**", *(f"**{_gigabytes(row, 'rollout')}**" for row in rows)],
        ["`memformer plan` says", *(_planned(row, "rollout") for row in rows)],
        ["at most in the reduction, after the rollout, GB", *(_gigabytes(row, "reduction") for row in rows)],
        ["`memformer plan` says", *(_planned(row, "reduction") for row in rows)],
        ["at most in the optimizer's step, GB", *(_gigabytes(row, "optimizer") for row in rows)],
    ]
    sent = [
        [row["name"], each["phase"], each["kind"], each["dtype"], each["calls"], f"{each['bytes']:,}"]
        for row in rows
        for each in row["collectives"]
    ]
    waits = [[row["name"], count, place] for row in rows for place, count in row["waits"].items()]
    return "\n".join(
        [
            *page_head("An optimizer step on a simulated GPU: derived, not measured", values),
            "**Simulated.** No GPU was used. A step was run on tensors without numbers; each kernel is counted at what "
            f"the data sheet of an {H100.name} allows at best: {H100.low_flops / 1e12:.0f} TFLOP/s in 16 bits, "
            f"{H100.float32_flops / 1e12:.0f} in float32, {H100.bytes_per_second / 1e12:.2f} TB/s of memory. Real "
            "kernels take longer, matrix products by a third and more; what starting a kernel, collectives and waits "
            "take is not counted. Compiled layers, the default on GPUs, are what torch's Inductor makes of them on "
            "such tensors: its fusion and its code, with kernels that compute nothing and move what it says they do.",
            "",
            markdown_table(["of a step", *names], table),
            "",
            "Shares are of the milliseconds. Kernels of a backward count where their forward was.",
            "",
            "**Collectives**, payload of the first process:",
            "",
            markdown_table(["run", "phase", "collective", "dtype", "calls", "bytes"], sent),
            "",
            "**Where the host waits for the device.** The loop around does not (tests/simulated_gpu/rules.py):",
            "",
            markdown_table(["run", "times", "place"], waits),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def _share(row: dict[str, Any], kind: str) -> float:
    found: float = row["kinds"].get(kind, {"share": 0.0})["share"]
    return found


def _rollout(row: dict[str, Any]) -> str:
    return f"{row['lanes']} x {row['num_segments']} x {row['segment_length']}"


def _way(row: dict[str, Any]) -> str:
    return f"{row['processes']}, {row['zero_stage']}, {row['precision']}"


def _gigabytes(row: dict[str, Any], when: str) -> str:
    found = row["allocated_bytes"].get(when)
    return "" if found is None else f"{found / 1e9:.2f}"


def _planned(row: dict[str, Any], when: str) -> str:
    said, found = row["planned_bytes"].get(when), row["allocated_bytes"].get(when)
    return "" if said is None or found is None else f"{said / 1e9:.2f} ({100 * (said / found - 1):+.1f} %)"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", help="a run, or a model with --section.field for the rest")
    parser.add_argument("--name", help="of the row; default: the file's")
    parser.add_argument("--processes", type=int, default=8, help="default 8")
    parser.add_argument("--quick", action="store_true", help="a tiny model in the place of CONFIG")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md; other rows are kept")
    parser.add_argument("--notes", default="", help="a remark for the result files; kept where not given again")
    options, overrides = parser.parse_known_args(words)
    if (options.config is None) != options.quick:
        parser.error("give a CONFIG, or --quick")
    torch.set_num_threads(1)
    config = configuration(options.config, overrides)
    name = options.name or ("quick" if options.quick else options.config.stem)
    values = provenance(torch.device("cpu")) | {"hardware": f"none: a simulated {H100.name}"}
    path = options.out.with_suffix(".json") if options.out else None
    earlier = json.loads(path.read_text()) if path and path.exists() else {"rows": [], "commands": [], "notes": ""}
    said = {"planned_bytes": planned(config, options.processes), "commit": values["commit"]}
    from benchmarks.simulated_gpu import training

    row = row_of(name, *step_of(config, training.start(options.processes, track_memory=True))) | said
    values["rows"] = [*(each for each in earlier["rows"] if each["name"] != name), row]
    values["commands"] = list(dict.fromkeys([*earlier["commands"], values["command"]]))
    values["notes"] = options.notes or earlier["notes"]
    tell(values, page(values), options)


if __name__ == "__main__":
    main()
