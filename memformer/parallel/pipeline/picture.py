# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Draws a schedule as SVG, from the object that is executed.

python -m memformer.parallel.pipeline.picture docs/pipeline_schedule.svg
python -m memformer.parallel.pipeline.picture docs/pipeline_layer_memories.svg --layer-memories
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from memformer.models.family_record import LayerFlops
from memformer.parallel.pipeline.schedule import ReplaySchedule
from memformer.parallel.pipeline.split import Work, balanced_split, replay_schedule
from memformer.parallel.pipeline.tasks import ADVANCE, DECODE, DECODE_BACKWARD, REPLAY, REPLAY_BACKWARD

COLOURS = {
    ADVANCE: ("#cfe3f5", "pass 1, without graph"),
    REPLAY: ("#7db4e0", "pass 2: again, with graph"),
    REPLAY_BACKWARD: ("#2f6ea8", "its backward, with the memory's gradient"),
    DECODE: ("#f6d9ae", "decoder"),
    DECODE_BACKWARD: ("#d98c2b", "its backward"),
}
LEFT, WIDTH, ROW, GAP, TOP = 64, 1100, 30, 8, 46


def example() -> ReplaySchedule:
    """A model of 4 + 14 layers on 4 stages, 3 groups of lanes, rollouts of 4 segments of 512 tokens."""
    # Of a Memformer of width 512 with 32 slots and 8,000 token ids, in matrix products of [512, 512] and [512, 512].
    product = 512**3
    encoder, writer, decoder, head = 130 * product // 4, 9 * product // 2, 40 * product, 125 * product // 4
    advanced = LayerFlops(encoder, advance=encoder)
    flops = [advanced] * 3 + [LayerFlops(encoder, writer, encoder + writer)]
    flops += [LayerFlops(decoder)] * 13 + [LayerFlops(decoder, head)]
    work = Work(tuple(flops), encoder_layers=4, segments=4, recomputed=False)
    return replay_schedule(balanced_split(work, 4), work, micro_batches=3)


def example_of_layer_memories() -> ReplaySchedule:
    """A language model of 16 equal layers with memories of their own on 4 stages, one group of lanes, 8 segments."""
    work = Work((LayerFlops(100, advance=100),) * 16, encoder_layers=16, segments=8, recomputed=False, rows=(1,) * 16)
    return replay_schedule(balanced_split(work, 4), work, micro_batches=1)


def svg(schedule: ReplaySchedule) -> str:
    """The schedule as an SVG document: a row a stage, a box a task, its width the time it takes."""
    layout, scale = schedule.layout, WIDTH / schedule.makespan
    p, m, t = layout.stages, layout.micro_batches, layout.segments
    height = TOP + p * (ROW + GAP) + 66
    title = (
        f"{p} stages, micro-batch{f'es a .. {chr(96 + m)}' if m > 1 else ' a'}, segments 0 .. {t - 1}: stages wait "
        f"{100 * schedule.bubble:.0f} % of the time (1F1B over whole rollouts: {100 * (p - 1) / (m + p - 1):.0f} %)"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 16}" height="{height}" '
        f'viewBox="0 0 {LEFT + WIDTH + 16} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="15">{title}</text>',
    ]
    for stage, intervals in enumerate(schedule.timeline.intervals):
        top = TOP + stage * (ROW + GAP)
        parts.append(f'<text x="8" y="{top + 19}">stage {stage}</text>')
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{ROW}" fill="#f2f2f2"/>')
        for task, start, end in intervals:
            if task.kind not in COLOURS:
                continue  # begin and end take no time
            x, width = LEFT + start * scale, (end - start) * scale
            ahead = task.kind in (DECODE, DECODE_BACKWARD) and schedule.is_early(task)
            edge = 'stroke="#a02020" stroke-width="1.6"' if ahead else 'stroke="white" stroke-width="0.6"'
            parts.append(
                f'<rect x="{x:.1f}" y="{top + 1}" width="{max(0.5, width - 0.8):.1f}" height="{ROW - 2}" '
                f'fill="{COLOURS[task.kind][0]}" {edge}/>'
            )
            if width > 16:
                ink = "white" if task.kind == REPLAY_BACKWARD else "black"
                label = f"{chr(97 + task.micro_batch)}{task.segment}"
                parts.append(
                    f'<text x="{x + width / 2:.1f}" y="{top + 19}" text-anchor="middle" fill="{ink}">{label}</text>'
                )
    below, x = TOP + p * (ROW + GAP) + 18, LEFT
    drawn = {interval.task.kind for intervals in schedule.timeline.intervals for interval in intervals}
    for colour, words in (each for kind, each in COLOURS.items() if kind in drawn):
        parts.append(f'<rect x="{x}" y="{below - 11}" width="14" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="{below}">{words}</text>')
        x += 60 + 6.2 * len(words)
    of_decoder = "red edge: decoded ahead, from the encoder's output of pass 1; " if DECODE in drawn else ""
    note = f"{of_decoder}grey: waiting; time runs to the right"
    parts.append(f'<text x="{LEFT}" y="{below + 26}">{note}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Draws an example."""
    parser = argparse.ArgumentParser(description="Draw the pipeline's schedule.")
    parser.add_argument("out", type=Path, help="SVG file to write")
    parser.add_argument("--layer-memories", action="store_true", help="of layers with memories of their own")
    options = parser.parse_args(argv)
    schedule = example_of_layer_memories() if options.layer_memories else example()
    options.out.write_text(svg(schedule), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
