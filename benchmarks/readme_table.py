# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Draws the README's table of results from the newest result files, so that it cannot drift from them.

python benchmarks/readme_table.py           rewrites the table in README.md
python benchmarks/readme_table.py --check   exit code 1 if it is not what the files give
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import at_best_rate
from benchmarks.common import ROOT, markdown_table
from benchmarks.task_evaluation import NAMES, WINDOW, shares, shown

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"


def newest(kind: str) -> tuple[Path, dict[str, Any]]:
    """The newest result file of a kind, such as cpu-replay; the date stands first in its name."""
    path = max(RESULTS.glob(f"*-{kind}.json"))
    return path, json.loads(path.read_text())


KEPT = {
    "copy": "Copying 4 symbols",
    "recall": "Recalling one of 4 pairs",
    "needle": "A digit told once in a book",
    "needle-inside": "A digit told inside a book",
    "counting": "Counting what somebody in a book holds",
}
PEERS = ("peers-text", "peers-text-128", "peers-code-128")


def exists(kind: str) -> bool:
    """Whether there is a result of a kind."""
    return any(RESULTS.glob(f"*-{kind}.json"))


def rows() -> list[list[str]]:
    """What was measured, the figure, what it is compared with, the file."""
    replay_path, replay = newest("cpu-replay")
    overhead_path, overhead = newest("cpu-overhead")
    data_path, data = newest("cpu-data")
    start_path, start = newest("cpu-quickstart")
    steps = sorted(overhead["rows"], key=lambda row: row["step_vs_bare"])
    figures = replay["summary"]
    case = "4_16_T8"
    filled, short = data["throughput"]["1"], data["short"]
    library = "webdataset iterator + lanes"
    return [
        *(reading_rows() if exists("cpu-reading") else []),
        *(gpu_rows() if exists("gpu-step") else []),
        *(book_rows() if exists("gpu-backbone-books") else []),
        *(inference_rows() if exists("cpu-inference") else []),
        [
            "Speed of memory replay, 4+16 layers, 8 segments",
            f"{figures[f'speed_vs_bptt_{case}']:.3f} of full BPTT's",
            f"arithmetic limit {figures[f'speed_limit_{case}']:.3f}; gradient checkpointing "
            f"{figures[f'checkpointing_speed_vs_bptt_{case}']:.3f}",
            link(replay_path),
        ],
        [
            "What it keeps for the backward",
            f"{figures[f'memory_vs_bptt_{case}']:.3f} of full BPTT's",
            f"{figures[f'memory_vs_limit_{case}']:.3f} of the limit, one segment's graph + T·B·K·D",
            link(replay_path),
        ],
        *(training_rows() if exists("cpu-training-peers") else []),
        [
            "The whole training step",
            f"{steps[0]['step_vs_bare']:.3f} to {steps[-1]['step_vs_bare']:.3f} of a bare torch loop's time",
            "ZeRO 0 and 1, 1.7 M and 6.6 M parameters; aim: at most 1.05",
            link(overhead_path),
        ],
        [
            "Filling 64 lanes x 512 tokens from tar shards",
            f"{filled['tar, again']['mtok_per_second']:.0f} million tokens/s, "
            f"{filled['tar, again']['of_flat']:.2f} of bare copying",
            f"webdataset's own iterator {filled[library]['mtok_per_second']:.0f}; documents shorter than a segment: "
            f"{short['tar, again']['mtok_per_second']:.0f} and {short[library]['mtok_per_second']:.0f}",
            link(data_path),
        ],
        *(communication_rows() if exists("communication") else []),
        *(pixel_rows() if exists("cpu-pixels") else []),
        *(row for kind in PEERS if exists(f"cpu-{kind}") for row in peer_rows(kind)),
        *(row for kind in ("long-text", "long-text-code") if exists(f"cpu-{kind}") for row in horizon_rows(kind)),
        *(task_rows() if exists("cpu-task-evaluation") else []),
        *(row for task in KEPT if exists(f"cpu-memory-{task}") for row in memory_rows(task)),
        [
            "`make train`: 17 books as bytes, 2 CPU processes",
            f"loss {start['first_loss']:.2f} → {start['last_loss']:.2f} nats in {start['seconds']:.0f} s",
            f"held-out perplexity {start['perplexity_with_memory']:.3f} with memory, "
            f"{start['perplexity_memory_reset']:.3f} with it reset at every segment",
            link(start_path),
        ],
        *passkey_rows(start_path, start),
    ]


def passkey_rows(path: Path, start: dict[str, Any]) -> list[list[str]]:
    """The demonstration at the end of `make train`; none in files of before there was one."""
    if "passkeys_with_memory" not in start:
        return []
    return [
        [
            "`make train`, then: a digit told once among sentences, trained on 160 bytes, asked for in 1,600",
            f"{start['passkeys_with_memory']:.0%} right",
            f"memory reset: {start['passkeys_memory_reset']:.0%}, chance 10%; all of it {start['seconds']:.0f} s",
            link(path),
        ]
    ]


def reading_rows() -> list[list[str]]:
    """What a document costs that is read, and then answers."""
    path, values = newest("cpu-reading")
    rows, sizes = values["document"], values["sizes"]
    share = [row["read_over_all"] for row in values["prices"]]
    lengths = " and ".join(str(row["segment_length"]) for row in values["prices"])
    over = {row["model"]: f"{row['over_ours']:.1f}" for row in rows}
    kept = {row["model"]: row["kept_bytes"] for row in rows}
    return [
        [
            f"Reading a token, {sizes['prices'].partition(',')[0]}, segments of {lengths} tokens",
            " and ".join(f"{each:.3f}" for each in share) + " of running all layers",
            "the decoder runs for what is answered alone; aim: at most 0.2",
            link(path),
        ],
        [
            f"Reading {sizes['tokens']:,} tokens and answering {sizes['answer']}, "
            f"{sizes['document'].partition(' layers')[0]} layers, width 128",
            f"a KV cache's time is {over['KV cache']}, Transformer-XL's {over['Transformer-XL']}, RMT's {over['RMT']} "
            "times ours",
            f"kept to answer again: {kept['Memformer'] / 1024:.0f} KiB; the KV cache "
            f"{kept['KV cache'] / 2**20:,.0f} MiB",
            link(path),
        ],
    ]


def gpu_rows() -> list[list[str]]:
    """Whole training steps of a GPU, and the memory of rollouts there."""
    path, values = newest("gpu-step")
    parts = values["parts"]

    def speed(name: str) -> str:
        return f"{parts[name]['tokens_per_second']:,.0f}"

    def share(name: str) -> str:
        return f"{parts[name]['mfu']:.1%}"

    flat = {row["num_segments"]: row for row in parts["flat"]["rows"]}
    longest, full = max(flat), max(segments for segments, row in flat.items() if "bptt_bytes" in row)
    rollouts = f"{flat[1]['replay_bytes'] / 2**20:,.0f} and {flat[longest]['replay_bytes'] / 2**20:,.0f} MiB"
    planned = [part["planned_bytes"] / part["peak_bytes"] - 1 for part in parts.values() if part.get("planned_bytes")]
    written = {row["model"]: row["milliseconds_a_token"] for row in parts["generation"]["rows"] if row["batch"] == 1}
    return [
        [
            "Training 350M and 1.3B on one H100, bf16, ZeRO 1, 8 lanes x 8 segments x 1,024 tokens",
            f"{speed('train-350m-compiled')} and {speed('train-1.3b-compiled')} tokens/s, MFU "
            f"{share('train-350m-compiled')} and {share('train-1.3b-compiled')}",
            f"layers not compiled: {speed('train-350m')} and {speed('train-1.3b')}; 1.3B with all that saves bytes: "
            f"{speed('train-1.3b-lean')}, {share('train-1.3b-lean')}",
            link(path),
        ],
        [
            "What `memformer plan` says of their memory",
            f"{min(planned):+.1%} to {max(planned):+.1%}",
            "of what the H100 allocated at most",
            link(path),
        ],
        [
            "A token written there, 350M, bf16, after any number of tokens",
            f"{written['Memformer']:.1f} ms",
            f"decoder of as many layers with a KV cache of 1,000 tokens {written['KV cache of 1,000']:.1f}, of 131,000 "
            f"{written['KV cache of 131,000']:.1f}; ours without CUDA graphs {written['Memformer, no graph']:.0f}",
            link(path),
        ],
        [
            f"Memory of a rollout of 1 and of {longest} segments there, 350M, 2 lanes",
            rollouts,
            f"full BPTT, {full} segments: {flat[full]['bptt_bytes'] / 2**20:,.0f} MiB",
            link(path),
        ],
    ]


def book_rows() -> list[list[str]]:
    """A pretrained model on books, with its memory and without."""
    path, values = newest("gpu-backbone-books")
    _, here = newest("cpu-backbone-books")
    control = next(row for row in here["rows"] if row["variant"] == "associative")
    anybody = 1 - control["own_nats"] / control["gain_nats"]
    found = [row for row in values["rows"] if row["variant"] == "associative"]
    kept = [row["perplexity"] for row in found]
    steps = [row["steps"] for row in found]
    return [
        [
            f"SmolLM2-135M, frozen, its memory alone trained for {min(steps)} to {max(steps)} steps: held-out books",
            f"perplexity {statistics.fmean(kept):.1f} ({min(kept):.1f} to {max(kept):.1f}, {len(kept)} seeds)",
            f"{found[0]['perplexity_memory_reset']:.1f} with the memory reset, which is the model alone at the same "
            f"overlap; on a CPU, after {control['steps']} steps, another book's memory gave {anybody:.0%} of the gain",
            link(path),
        ]
    ]


def communication_rows() -> list[list[str]]:
    """What crosses the network, whatever the rollout's length."""
    path, values = newest("communication")
    figures = values["summary"]
    return [
        [
            f"Bytes sent in a step, 1 to {max(figures['segments'])} segments, ZeRO 0-3",
            f"at most {figures['largest_over_least']:.2f} of each gradient once to its owner and each weight back",
            f"replay buffer of 2 tensor-parallel processes: {figures['partitioned_buffer_of_whole']:.2f} of the whole",
            link(path),
        ]
    ]


def best(rows: list[dict[str, Any]], key: str, figure: str = "perplexity") -> dict[str, float]:
    """A figure by name, of the rows that have it, each at its best learning rate, mean over seeds."""
    rows = [row for row in rows if figure in row]
    return {
        name: statistics.fmean(row[figure] for row in at_best_rate([row for row in rows if row[key] == name]))
        for name in dict.fromkeys(row[key] for row in rows)
    }


def pixel_rows() -> list[list[str]]:
    """The paper's comparison on images, at equal parameters."""
    path, values = newest("cpu-pixels")
    found, carried = best(values["rows"], "name"), best(values["rows"], "name", "carried_numbers")
    ours, modern = "Memformer 2+6, memory 64", "modern Memformer 2+6"
    peer = "Transformer-XL, memory 56, equal parameters"
    return [
        [
            f"Images as {values['sizes']['length']} pixels, equal parameters: perplexity",
            f"{found[ours]:.3f}; with modern blocks {found[modern]:.3f}",
            f"Transformer-XL {found[peer]:.3f}, with modern blocks {found[f'modern {peer}']:.3f}, carrying "
            f"{carried[peer] / carried[ours]:.1f} times as much; without memory: "
            f"{found['Memformer 2+6 without memory']:.3f}",
            link(path),
        ]
    ]


def with_seeds(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows of what has three seeds: one of a short training is chance, and stands on its page alone."""
    seeds: dict[Any, set[int]] = {}
    for row in rows:
        seeds.setdefault(row[key], set()).add(row["seed"])
    return [row for row in rows if len(seeds[row[key]]) >= 3]


def peer_rows(kind: str) -> list[list[str]]:
    """Other architectures at equal parameters."""
    path, values = newest(f"cpu-{kind}")
    rows = with_seeds(values["rows"], "variant")
    found = best(rows, "variant")
    settings = {
        "memformer": "",
        "memformer-overlap": "with `overlap` ",
        "memformer-overlap-modern": "with `overlap` and modern blocks ",
        "backbone-slots": "one decoder with slots ",
        "backbone-associative": "one decoder with a matrix for its memory ",
    }
    reset = best(rows, "variant", "perplexity_memory_reset")
    ours = [f"{words}{found[name]:.3f} ({reset[name]:.3f})" for name, words in settings.items() if name in found]
    beside = [
        f"{name.replace('memformer-no-slots', 'without slots')}: {each:.3f}"
        for name, each in found.items()
        if name == "memformer-no-slots" or not name.startswith(("memformer", "backbone"))
    ]
    source = "Code" if values["sizes"].get("texts") == "packages" else "Books"
    return [
        [
            f"{source} as bytes, segments of {values['sizes']['segment_length']}, equal parameters: perplexity "
            "(memory reset)",
            "; ".join(ours),
            "; ".join(beside),
            link(path),
        ]
    ]


def horizon_rows(kind: str) -> list[list[str]]:
    """What the memory and its gradient are worth."""
    path, values = newest(f"cpu-{kind}")
    # Of several ways of forgetting the default's; files of before there was a choice have the paper's.
    modes = [row.get("forgetting", "paper") for row in values["rows"]]
    mode = "off" if "off" in modes else "paper"
    slots = [row for row in values["rows"] if row["slots"] and row.get("forgetting", "paper") == mode]
    slots = with_seeds(slots, "horizon")
    if not slots:
        return []
    horizons = sorted({row["horizon"] for row in slots})

    def mean(rows: list[dict[str, Any]], key: str = "perplexity") -> float:
        return statistics.fmean(row[key] for row in rows)

    by_horizon = {each: [row for row in slots if row["horizon"] == each] for each in horizons}
    return [
        [
            f"Perplexity of {values['sizes']['name'].removeprefix('the ').partition(' of ')[0]}, held out, gradient "
            f"through {horizons[0]} and {horizons[-1]} segments",
            f"{mean(by_horizon[horizons[0]]):.3f} and {mean(by_horizon[horizons[-1]]):.3f}",
            f"the latter with its memory reset: {mean(by_horizon[horizons[-1]], 'perplexity_memory_reset'):.3f}; "
            f"trained without slots: {mean([row for row in values['rows'] if not row['slots']]):.3f}",
            link(path),
        ]
    ]


def memory_rows(task: str) -> list[list[str]]:
    """What the memory keeps at 10 times the training length and at the longest distance tested."""
    path, values = newest(f"cpu-memory-{task}")
    trained = values["rows"][0]["training_length"]
    cells = {(cell["trained_as"], cell["variant"], cell["distance"]): cell for cell in values["summary"]}
    furthest: dict[tuple[str, str], int] = {}  # a curve that has come down to chance ends there
    for name, variant, distance in cells:
        furthest[name, variant] = max(distance, furthest.get((name, variant), 0))
    longest = furthest["off", "off"]

    def right(name: str) -> str:
        near, far = cells[name, name, 10 * trained], cells[name, name, longest]
        return f"{near['accuracy']:.1%} ({near['least']:.1%}) and {far['accuracy']:.1%} ({far['least']:.1%})"

    def last(name: str, variant: str) -> float:
        found: float = cells[name, variant, furthest[name, variant]]["accuracy"]
        return found

    beside = f"memory reset: {last('off', 'memory reset'):.0%}, chance {values['rows'][0]['chance']:.0%}"
    if ("paper", "paper") in furthest:
        beside += f"; with the paper's forgetting down to {last('paper', 'paper'):.0%}"
    threshold = "; with `memory_write_threshold: 0.2`"
    if ("off-threshold", "off-threshold") in furthest:
        beside, threshold = f"{beside}{threshold} {right('off-threshold')}", "; so"
    grown = [row for row in values["rows"] if row["variant"].startswith("off-threshold to ")]
    if grown and (most := max(grown, key=lambda row: row["training_length"]))["training_length"] > trained:
        beside += (
            f"{threshold}, trained on documents that grow to {most['training_length']:,} tokens, "
            f"{right(most['variant'])}"
        )
    return [
        [
            f"{KEPT[task]}, trained on {trained} tokens: share right (worst seed) {10 * trained:,} and {longest:,} "
            "tokens on",
            right("off"),
            beside,
            link(path),
        ]
    ]


def task_rows() -> list[list[str]]:
    """The pass key by the project's commands, ten times as far as documents of training reach."""
    path, values = newest("cpu-task-evaluation")
    found = {model: [row for row in values["rows"] if row["model"] == model] for model in NAMES}

    def right(model: str, mode: str = "with_memory") -> str:
        return shown(shares(found[model], 10 * WINDOW, mode))

    return [
        [
            f"A pass key told once, trained on {WINDOW} tokens, asked for in {10 * WINDOW:,}: share right (worst seed "
            f"of {len(found['pretrained'])})",
            f"{right('pretrained')} by a tiny pretrained Llama with an associative memory, {right('memformer')} by a "
            "Memformer",
            f"memory reset: {right('pretrained', 'memory_reset')} and {right('memformer', 'memory_reset')}; a plain "
            f"Transformer that sees the last {WINDOW}: {right('transformer')}; chance 0.10",
            link(path),
        ]
    ]


def inference_rows() -> list[list[str]]:
    """Against Transformer-XL with the longest memory of the paper, and one document of a million tokens."""
    path, values = newest("cpu-inference")
    figures, case, longest = values["summary"], "4_12_reading", 1600
    made = [
        [
            f"Inference memory, Transformer-XL's over ours: 16 layers, width 512, its memory {longest} tokens",
            f"{figures[f'memory_ratio_{case}_{longest}']:.1f}",
            f"{figures[f'memory_ratio_{case}_kept_{longest}']:.1f} where it keeps keys and values; paper: 8.1",
            link(path),
        ],
        [
            "Inference time, the same, one document and eight side by side",
            f"{figures[f'time_ratio_{case}_{longest}']:.2f} and {figures[f'time_ratio_{case}8_{longest}']:.2f}",
            f"{figures[f'time_ratio_{case}_kept_{longest}']:.2f} and "
            f"{figures[f'time_ratio_{case}8_kept_{longest}']:.2f} where it keeps keys and values; paper: 3.2",
            link(path),
        ],
    ]
    contexts = sorted((row["context"], row["peak_bytes"]) for row in values["contexts"] if row["model"] == "Memformer")
    (least, first), (most, last) = contexts[0], contexts[-1]
    made.append(
        [
            f"Reading after {least:,} and after {most:,} tokens, 4+8 layers, width 128",
            f"{first / 2**20:.2f} and {last / 2**20:.2f} MiB beside the parameters",
            f"a KV cache of 12 layers: {cache_mebibytes(values, most):,.0f} MiB",
            link(path),
        ]
    )
    if values["generation"]:
        marks, written = values["generation"]["marks"], values["generation"]["written"]
        made.append(
            [
                f"One document of {marks[-1]['tokens']:,} tokens, the last {written:,} generated",
                f"{marks[-1]['megabytes']:.0f} MB in the process at its end",
                f"{marks[0]['megabytes']:.0f} MB after {marks[0]['tokens']:,} tokens",
                link(path),
            ]
        )
    return made


def cache_mebibytes(values: dict[str, Any], context: int) -> float:
    """Size of a KV cache."""
    rows = (row for row in values["contexts"] if (row["model"], row["context"]) == ("KV cache", context))
    return float(next(rows)["state_bytes"]) / 2**20


def training_rows() -> list[list[str]]:
    """Beside other implementations' replay."""
    path, values = newest("cpu-training-peers")
    rows = [row for row in values["rows"] if row["size"].startswith("4+8")]

    def range_of(method: str) -> str:
        found = [row["our_speed_over_its"] for row in rows if row["method"] == method]
        low, high = f"{min(found):.1f}", f"{max(found):.1f}"
        return low if low == high else f"{low} to {high}"

    def mebibytes(method: str) -> dict[int, float]:
        return {row["num_segments"]: row["allocated_bytes"] / 2**20 for row in rows if row["method"] == method}

    ours, bptt = mebibytes("MRBP"), mebibytes("BPTT")
    longest = max(set(ours) & set(bptt))
    return [
        [
            "Tokens/s of memory replay over RMT's own replay, 4+8 layers, width 128",
            f"{range_of('RMT')} times",
            f"{range_of('RMT, 10 memory tokens')} where it has 10 memory tokens; over PyPI's memformer, every segment "
            f"scored, {range_of('memformer (PyPI), every segment')}; aim: 2",
            link(path),
        ],
        [
            f"Memory of a rollout of 1 and of {longest} segments",
            f"{ours[1]:.1f} and {ours[longest]:.1f} MiB",
            f"full BPTT: {bptt[1]:.1f} and {bptt[longest]:.0f} MiB",
            link(path),
        ],
    ]


def link(path: Path) -> str:
    """A link to a result's page."""
    return f"[{path.stem[:10]}](docs/results/{path.stem[11:]}.md)"


def drawn(readme: str) -> str:
    """The README with its table drawn anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = markdown_table(["measured", "figure", "beside it", "result"], rows())
    note = "Two CPU cores unless a row names a GPU; each row's page has its hardware, commit and command.\n"
    return f"{before}{BEGIN}{table}\n\n{note}{END}{after}"


def main() -> int:
    """Rewrites or checks the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if the table is not up to date"
    )
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    if arguments.check:
        return 0 if drawn(readme) == readme else 1
    path.write_text(drawn(readme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
