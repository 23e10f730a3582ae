# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`compile: auto`: where it compiles, what it says where it does not, and that a compiler that fails ends no run."""

import functools
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.config

from memformer.config.schema import Config, parse_config
from memformer.engine.compilation import compile_model, keep_whole_files_alone, kept_in, why_plain
from tests.memformer.examples import full_segment, random_memory, small_model
from tests.simulated_gpu.runs import BACKBONE

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def config_of(**sections: Any) -> Config:
    return parse_config({"run_dir": "r", "data": {"path": "d"}, **sections}, "test")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All that torch's compiler for GPUs asks for, though there is none here; the folder of Python's headers."""
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "triton" or spec(name, *rest))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    return tmp_path


@pytest.fixture
def settings() -> Iterator[None]:
    """Those of the compiler, which a run changes, are put back."""
    with torch._dynamo.config.patch(suppress_errors=False, recompile_limit=8):  # type: ignore[attr-defined]
        yield


@pytest.mark.usefixtures("compiler")
def test_auto_compiles_on_gpus_where_it_was_timed() -> None:
    assert why_plain(config_of(), GPU) is None
    assert why_plain(config_of(parallel={"zero_stage": 2}, activation_checkpointing={"mode": "full"}), GPU) is None
    assert "for GPUs" in str(why_plain(config_of(), CPU))
    untried: tuple[dict[str, Any], ...] = (
        {"model": {"dropout": 0.1}},
        {"model": BACKBONE},
        {"parallel": {"zero_stage": 3}},
        {"parallel": {"tensor": 2}},
        {"parallel": {"pipeline": 2}},
        {"parallel": {"segment": 2}},
        {"parallel": {"zero_stage": 1, "offload_optimizer": "cpu"}},
    )
    for sections in untried:
        said = str(why_plain(config_of(**sections), GPU))
        assert "was not timed" in said and "set it to true" in said, sections


def test_auto_needs_a_compiler(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (compiler / "Python.h").unlink()
    assert "needs Python.h" in str(why_plain(config_of(), GPU))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "needs a C compiler" in str(why_plain(config_of(), GPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "needs a GPU of compute capability" in str(why_plain(config_of(), GPU))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package triton" in str(why_plain(config_of(), GPU))


@pytest.mark.parametrize("device", [GPU, CPU], ids=["gpu", "cpu"])
def test_what_is_asked_for_is_done(device: torch.device) -> None:
    assert why_plain(config_of(compile=True, parallel={"zero_stage": 3}), device) is None
    assert why_plain(config_of(compile=False), device) == "compile is false"


@pytest.mark.usefixtures("settings")
def test_with_auto_a_compiler_that_fails_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=failing))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model, segment = small_model(), full_segment(2, 8)
    memory = random_memory(model, 2)
    expected = model(segment, memory)
    compile_model(model, config_of(run_dir=str(tmp_path)), GPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    assert all(map(torch.equal, model(segment, memory), expected))


@pytest.mark.usefixtures("settings")
def test_a_folder_that_the_environment_names_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    nothing = SimpleNamespace(config=SimpleNamespace(dropout=0), layers=list, modules=list)
    compile_model(nothing, config_of(), GPU)  # type: ignore[arg-type]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.usefixtures("settings")
def test_what_an_earlier_run_of_the_process_set_is_not_the_next_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch._dynamo.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    nothing = SimpleNamespace(config=SimpleNamespace(dropout=0), layers=list, modules=list)
    for run, asked in (("first", "auto"), ("second", True)):
        config = config_of(run_dir=str(tmp_path / run), compile=asked)
        compile_model(nothing, config, GPU)  # type: ignore[arg-type]
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / run / "compiled")
        assert torch._dynamo.config.suppress_errors == (asked == "auto")


def test_the_folder_that_torch_names_itself_is_none_of_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch writes its default into the environment when its compiler is loaded, which in a run comes first."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert kept_in(config_of(run_dir=str(tmp_path)), GPU) == str(tmp_path / "compiled")
    assert kept_in(config_of(run_dir=str(tmp_path)), CPU) == cache_dir()


def test_a_compiler_that_is_killed_leaves_nothing_under_the_name_of_a_whole_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through what torch itself calls, by one that writes a half and then the other."""
    from torch._inductor import cpp_builder, exc

    monkeypatch.setattr(cpp_builder, "run_compile_cmd", cpp_builder.run_compile_cmd)
    keep_whole_files_alone()
    keep_whole_files_alone()
    compiler, library = tmp_path / "c++", tmp_path / "a library.so"
    command = shlex.join([str(compiler), "-shared", "-o", str(library), "source.cpp"])
    compiler.write_text('#!/bin/sh\nprintf half > "$3"\nkill -9 $$\n')
    compiler.chmod(0o755)
    with pytest.raises(exc.CppCompileError):
        cpp_builder.run_compile_cmd(command, str(tmp_path))
    assert not library.exists()
    compiler.write_text('#!/bin/sh\nprintf half > "$3"\nprintf whole >> "$3"\n')
    cpp_builder.run_compile_cmd(command, str(tmp_path))
    assert library.read_text() == "halfwhole" and sorted(tmp_path.iterdir()) == [library, compiler]
    assert cpp_builder.CppBuilder.build.__globals__["run_compile_cmd"] is cpp_builder.run_compile_cmd
