# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Every file of the newest checkpoint damaged in every way: it is named, skipped, and the run goes on from the older;
or, where the weights do not need the file, it is done without.

A full disk is a small tmpfs where root may mount one, and a limit on the size of files where not.
"""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memformer.checkpoints import directory as files
from memformer.processes.group import World
from memformer.run.directory import RunDirectory
from memformer.training import Callback, TrainingState, train
from tests.books import small_dataset
from tests.distributed.processes import run_distributed
from tests.faults.lives import assert_every_token_once, events_of, metrics_of, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 6
RANKS = [f"{folder}/rank-0000{rank}.safetensors" for folder in ("parameters", "lanes") for rank in (0, 1)]
FILES = ["manifest.json", "state.json", *RANKS]
SPARED = ["tokenizer.json", *(f"random/rank-0000{rank}.safetensors" for rank in (0, 1))]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def swap(path: Path) -> None:
    """The same file of the checkpoint before; of the same size for tensors."""
    older = path.parents[len(path.parts) - path.parts.index("checkpoints") - 2] / f"step-{STEPS - 2:08d}"
    relative = path.relative_to(next(p for p in path.parents if p.name.startswith("step-")))
    other = older / relative
    if other.read_bytes() == path.read_bytes():  # equal in all checkpoints: another file's content instead
        other = older / "state.json"
    shutil.copyfile(other, path)


def leave_the_directory(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../config.yaml"] = {"bytes": 1, "sha256": "0"}
    manifest["sha256"] = files._own_checksum(manifest)
    path.write_text(json.dumps(manifest))


def name_a_later_format(path: Path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": files.FORMAT + 1}))


WAYS: list[Callable[[Path], None]] = [truncate, empty, flip, Path.unlink, swap]
DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{f"{way.__name__} {name}": (name, way) for name in FILES for way in WAYS},
    "path outside": ("manifest.json", leave_the_directory),
    "later format": ("manifest.json", name_a_later_format),
    "folder missing": ("parameters", shutil.rmtree),
}
POINTERS = {"nowhere": "step-99999999\n", "outside": "../../..\n", "garbage": "\0\0", "empty": ""}


def prepare(world: World, root: str) -> None:
    train(tiny_config(Path(root), "whole", training={"max_steps": STEPS}, checkpoint={"keep_last": 9}))


def resume_each(world: World, root: str, names: list[str]) -> None:
    for name in names:
        train(tiny_config(Path(root), name, training={"max_steps": STEPS}, checkpoint={"keep_last": 9}))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and a copy for each kind of damage which then was started again."""
    root = tmp_path_factory.mktemp("damage")
    small_dataset(root, characters=3_000)
    run_distributed(prepare, 2, str(root))
    assert len(DAMAGE) >= 30
    for kind, (name, way) in DAMAGE.items():
        shutil.copytree(root / "whole", root / kind)
        way(root / kind / "checkpoints" / f"step-{STEPS:08d}" / name)
    for kind, text in POINTERS.items():
        shutil.copytree(root / "whole", root / kind)
        (root / kind / "checkpoints" / "latest").write_text(text)
    # Each way once for real; for the others, below, that the right checkpoint would be taken.
    run_distributed(resume_each, 2, str(root), RESUMED)
    return root


RESUMED = [f"{way.__name__} {RANKS[i % 4]}" for i, way in enumerate(WAYS)] + ["path outside", "unlink manifest.json"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_older_checkpoint_taken(damaged: Path, tmp_path: Path, kind: str) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(damaged / "whole", run.root)
    name, way = DAMAGE[kind]
    newest = files.step_directory(run, STEPS)
    way(newest / name)
    found, skipped = files.newest_complete(run)
    assert found == files.step_directory(run, STEPS - 2)
    assert len(skipped) == 1 and str(newest) in skipped[0] and Path(name).name in skipped[0], skipped
    if kind == "path outside":
        assert "outside the checkpoint" in skipped[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SPARED)
def test_what_the_weights_do_not_need_is_done_without(
    damaged: Path, tmp_path: Path, name: str, way: Callable[[Path], None]
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(damaged / "whole", run.root)
    newest = files.step_directory(run, STEPS)
    way(newest / name)
    assert files.newest_complete(run) == (newest, [])
    lost = files.lost(newest)
    assert len(lost) == 1 and str(newest / name) in lost[0]


@pytest.mark.parametrize("kind", RESUMED)
def test_the_run_goes_on_as_if_nothing_had_happened(damaged: Path, kind: str) -> None:
    run = RunDirectory(damaged / kind)
    assert [event["step"] for event in events_of(run, "resume")] == [STEPS - 2]
    assert [(event["first"], event["last"]) for event in events_of(run, "steps_repeated")] == [(STEPS - 1, STEPS)]
    assert (run.checkpoints / f"step-{STEPS:08d}.set-aside-1").is_dir(), "what is damaged is kept"
    assert metrics_of(run) == metrics_of(RunDirectory(damaged / "whole"))
    assert_every_token_once(run)
    files.verify(files.step_directory(run, STEPS))


@pytest.mark.parametrize("kind", POINTERS)
def test_a_pointer_that_lies_misleads_nobody(damaged: Path, kind: str) -> None:
    found, skipped = files.newest_complete(RunDirectory(damaged / kind))
    assert found is not None and found.name == f"step-{STEPS:08d}" and not skipped


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """A tmpfs of 6 MB, if this user may mount one."""
    directory.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(directory)]
    mounted = os.getuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def fill_and_train(world: World, root: str, mounted: bool, background: bool) -> str:
    """Six steps; after the checkpoint of step 2 there is no room any more."""
    name = f"small disk/{background}"
    config = tiny_config(
        Path(root), name, training={"max_steps": STEPS}, checkpoint={"background": background}, data={"audit": False}
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Callback):
        def before_save(self, state: TrainingState) -> None:
            if state.progress.step == 4 and world.is_main and mounted:
                with contextlib.suppress(OSError), (Path(config.run_dir) / "filler").open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            if state.progress.step == 4 and not mounted:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        train(config, callbacks=[Filling()])
    except Exception as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if world.is_main:
            (Path(config.run_dir) / "filler").unlink(missing_ok=True)
    return "finished"


def refuse_then_finish(world: World, root: str, mounted: bool) -> list[str]:
    said = [fill_and_train(world, root, mounted, background) for background in (False, True)]
    for background in (False, True):
        config = tiny_config(Path(root), f"small disk/{background}", training={"max_steps": STEPS + 1})
        train(config.model_copy(update={"data": config.data.model_copy(update={"audit": False})}))
    return said


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run(damaged: Path) -> None:
    """Synchronous and in the background: the run trains on to its end, and says at the end that it is not saved."""
    with small_disk(damaged / "small disk") as mounted:
        said = run_distributed(refuse_then_finish, 2, str(damaged), mounted)
        assert said[0] == said[1]
        for message in said[0]:
            assert f"step {STEPS} could not be saved" in message and "make room" in message
        for name in ("False", "True"):
            run = RunDirectory(damaged / "small disk" / name)
            failures = events_of(run, "save_failed")
            assert [event["step"] for event in failures] == [4, 6]
            assert [event["step"] for event in events_of(run, "resume")] == [2]
            assert [row["step"] for row in metrics_of(run)] == list(range(1, STEPS + 2))
            files.verify(files.step_directory(run, STEPS + 1))
            assert not list(run.checkpoints.glob(".*"))
