"""The model thread: takes one turn after the other, and shows for how long it has been at one."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Any

import torch

from pipelines.decoding.decode_steps import Samples, StreamStates
from pipelines.decoding.engine_settings import EngineObserver
from pipelines.decoding.turn_board import StepTask, TurnBoard
from pipelines.decoding.work_items import OtherWork


class ModelThread:
    """Everything that runs on the codec runs here. A turn that raises fails who took part in it, and nothing else."""

    def __init__(
        self, board: TurnBoard, states: StreamStates, observer: EngineObserver, *, slots: int, num_threads: int
    ) -> None:
        """Prepare the thread; `start` starts it.

        Args:
            board: what there is to do.
            states: of the streams; nobody else touches them from now on.
            observer: hears of every step.
            slots: told to the observer beside the rows of each step.
            num_threads: that torch may use in a step.
        """
        self._board, self._states, self._observer, self._slots = board, states, observer, slots
        self._num_threads = num_threads
        self._thread = threading.Thread(target=self._run, name="decode-engine", daemon=True)
        self._began: float | None = None  # when the turn in work began
        self._ended = time.monotonic()  # when the last one ended

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended, and say whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def step_seconds(self) -> float | None:
        """Seconds since the turn in work began; None between turns."""
        began = self._began
        return None if began is None else time.monotonic() - began

    def idle_seconds(self) -> float:
        """Seconds since the last turn ended."""
        return time.monotonic() - self._ended

    def _run(self) -> None:
        reason = "the model thread has ended"
        try:
            torch.set_num_threads(self._num_threads)  # a setting of each thread
            with torch.inference_mode():
                while (task := self._board.next_task()) is not None:
                    self._began = time.monotonic()
                    for change in task.changes:
                        change(self._states)
                    if task.turn is not None:
                        self._take(task.turn, self._began)
                    self._ended, self._began = time.monotonic(), None
        except BaseException as error:
            reason = f"the model thread has died of {type(error).__name__}: {error}"
            raise
        finally:
            self._began = None
            self._board.stop(reason)  # nobody waits for a thread that is gone

    def _take(self, turn: StepTask | OtherWork, began: float) -> None:
        try:
            if isinstance(turn, OtherWork):
                self._work(turn)
            else:
                self._step(turn)
        except Exception as error:  # noqa: BLE001 - whoever took part is told, the others go on
            self._board.failed(turn, error)
        seconds = time.monotonic() - began
        self._board.took(turn, seconds)
        if isinstance(turn, StepTask):
            self._observer.step(len(turn.rows), self._slots, turn.step.frames, seconds)

    def _step(self, task: StepTask) -> None:
        phase: Hashable = None
        owed = 0
        samples: dict[int, Samples]
        if task.step.frames:
            samples, phase, owed = self._states.step(task.codes)
        else:
            samples = self._states.flush(list(task.rows))
        self._board.stepped(task, samples, phase, owed=owed)

    def _work(self, work: OtherWork) -> None:
        nothing: Any = object()
        item = next(work.steps, nothing)
        ended = item is nothing
        size = 0 if ended else work.size_of(item)
        self._board.worked(work, item, size, ended=ended)
