# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The README.md of an export: what the model is and what its run measured, nothing that was not."""

import json
from pathlib import Path
from typing import Any

from memformer.models.configuration import ModelConfig
from memformer.models.registry import family_of
from memformer.run.directory import RunDirectory


def model_card(checkpoint: Path, model: ModelConfig, state: dict[str, Any], result: dict[str, Any]) -> str:
    """Markdown for an exported model.

    Args:
        checkpoint: Where it comes from, RUN/checkpoints/step-...; figures are read from the run if it is still there.
        model: Its configuration.
        state: The checkpoint's state.json.
        result: What `export` wrote.
    """
    run = RunDirectory(checkpoint.parent.parent)
    rows = {
        "parameters": f"{result['parameters']:,}",
        **model.rows(),
        "segment": f"{model.segment_length} tokens",
        "vocabulary": f"{model.vocab_size:,} (tokenizer.json, SHA-256 {state['tokenizer_sha256'][:16]})",
        "optimizer steps": f"{state['step']:,}",
        "training tokens": f"{state['tokens']:,}",
        "skipped steps": f"{state['skipped_steps']:,}",
    }
    trained = _last(run.metrics, state["step"], lambda row: row["step"] == state["step"])
    if trained:
        rows["training loss at this step"] = f"{trained['loss']:.4f} nats a token"
    scored = _last(run.events, state["step"], lambda row: row["event"] == "evaluation")
    if scored:
        with_memory, without = scored["with_memory"], scored["memory_reset"]
        rows[f"held-out perplexity (step {scored['step']:,})"] = (
            f"{with_memory['perplexity']:.4f} with memory, {without['perplexity']:.4f} with it reset at every segment "
            f"({with_memory['tokens']:,} tokens)"
        )
    difference = result["largest_loss_difference"]
    rows["verified"] = "no" if difference is None else f"losses within {difference:.1e} nats of the trained model's"
    rows["written by"] = ", ".join(f"{name} {version}" for name, version in state["versions"].items())
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {family_of(model).architecture}, {result['parameters']:,} parameters\n\n"
        "A transformer that reads long documents segment by segment and keeps a small memory between them.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"Weights: {', '.join(result['files'])} ({result['dtype']}, {result['bytes']:,} bytes).\n\n"
        '```python\nfrom memformer import load_model\n\nmodel = load_model(".")\n```\n'
    )


def _last(path: Path, step: int, wanted: Any) -> dict[str, Any] | None:
    """The last row of a JSONL file up to a step that is wanted; None if there is none."""
    found = None
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if row.get("step", step + 1) <= step and wanted(row):
                    found = row
            except (ValueError, KeyError, AttributeError):
                continue  # a line that a crash cut off
    return found
