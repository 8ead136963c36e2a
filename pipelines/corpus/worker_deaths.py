"""Why a Ray worker ended: deaths told from mistakes, and the error row of an input that workers die of."""

from __future__ import annotations

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from pipelines.corpus.bundle_reader import error_class
from pipelines.datasets.parts import ErrorRow
from pipelines.inputs.sources import SourceFile

_DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, ObjectLostError, TaskCancelledError, NodeDiedError)
_MEMORY_WORDS = ("OutOfMemory", "out of memory", "memory pressure", "low on memory")


def cause_of(error: RayError) -> BaseException:
    """What was raised on the worker, or the error itself."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def worker_died(error: RayError) -> bool:
    """Whether the process or machine went away under the task, as against an exception that its code raised."""
    return isinstance(cause_of(error), _DEATHS)


def raised_in_start(error: RayError) -> bool:
    """Whether an actor did not start because its own code raised, as against being lost on the way."""
    cause = cause_of(error)
    return not worker_died(error) or (isinstance(cause, RayActorError) and cause.actor_init_failed)


def reason_of(error: RayError) -> str:
    """Class and message in one line."""
    cause = cause_of(error)
    lines = str(cause).strip().splitlines() or [repr(cause)]
    return f"{type(cause).__name__}: {lines[-1]}"  # of a remote traceback, the last line says what happened


def death_row(file: SourceFile, doing: str, error: RayError, tries: int) -> ErrorRow:
    """The row of an input that could not be done alone either."""
    cause = cause_of(error)
    if not worker_died(error):
        return ErrorRow(file.id, file.uri, error_class(cause), str(cause) or repr(cause))
    name = type(cause).__name__
    if isinstance(cause, OutOfMemoryError) or any(words in str(cause) for words in _MEMORY_WORDS):
        message = f"{doing} it took more memory than there was, {tries} times: {name}"
        return ErrorRow(file.id, file.uri, "out_of_memory", message)
    return ErrorRow(file.id, file.uri, "killed_worker", f"the worker {doing} it died {tries} times: {name}")
