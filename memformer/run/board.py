# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`Board`: TensorBoard's events of a run, written like the run's other records.

torch's `SummaryWriter` writes in a thread that ends at the first write that fails, with a traceback, and every later
call raises that error. So the library's records and messages go through an `Appender` here.
"""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from memformer.run.appending import Appender


class Board:
    """One event file of a run.

    Args:
        folder: RUN/tensorboard; made if missing.
        first_step: The step that comes next; TensorBoard drops what an earlier life wrote from there on.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        now = time.time()
        # The name that TensorBoard looks for, and takes the order of several files from: as text, hence the zeros.
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{int(now % 1 * 1e6):06d}"
        self._file = Appender(folder / name, lines=False)
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        version, begin = "brain.Event:2", event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(file_version=version), self._event(step=first_step, session_log=begin))

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by tag."""
        parts = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(self._event(step=step, summary=self._summary(value=parts)))

    def add_text(self, tag: str, words: str, step: int) -> None:
        """A text in Markdown."""
        from torch.utils.tensorboard.summary import text

        self._write(self._event(step=step, summary=text(tag, words)))  # type: ignore[no-untyped-call]

    def add_figure(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure as an image of a step."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png.getvalue())
        self._write(self._event(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, image=image)])))

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _write(self, *events: Any) -> None:
        for event in events:
            event.wall_time = time.time()
            self._records.write(event.SerializeToString())
        self._file.append(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()
