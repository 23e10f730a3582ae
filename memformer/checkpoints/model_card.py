# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The README.md of an export: what the model is and what its run measured, nothing that was not."""

import math
from pathlib import Path
from typing import Any

from memformer.models.configuration import ModelConfig
from memformer.models.family_record import Export
from memformer.models.registry import family_of
from memformer.run import jsonl
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
        "vocabulary": f"{model.vocab_size:,} ({result['tokenizer_file']}, SHA-256 {state['tokenizer_sha256'][:16]})",
        "optimizer steps": f"{state['step']:,}",
        "training tokens": f"{state['tokens']:,}",
        "skipped steps": f"{state['skipped_steps']:,}",
    }
    trained = jsonl.last(run.metrics, lambda row: row.get("step") == state["step"])
    if trained and trained["loss"] is not None:
        rows["training loss at this step"] = f"{trained['loss']:.4f} nats a token"
    scored = jsonl.last(
        run.events, lambda row: row.get("event") == "evaluation" and row.get("step", math.inf) <= state["step"]
    )
    if scored and scored["with_memory"]["perplexity"] is not None:
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
    ) + _for_transformers(family_of(model).export)


def _for_transformers(export: Export | None) -> str:
    """How transformers opens it."""
    if export is None:
        return ""
    plain = "" if export.place is None else " Without `trust_remote_code` it is the language model without its memory."
    return (
        "\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)\n```\n\n'
        f"This runs {export.code_file} of this directory; `load_model` runs nothing of it.{plain}\n"
    )
