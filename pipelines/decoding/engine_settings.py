"""What bounds a decode engine, what it says of its health, and who watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of a `DecodeEngine`: memory and waiting times follow from them."""

    max_streams: int = 64  # slots
    max_queued: int = 64  # whole utterances and other work waiting for their turn; more are turned away
    max_backlog_s: float = 10.0  # of sound, per stream: codes that wait, and as much again of samples not read yet
    max_step_frames: int = 32  # that one stream takes in one step
    stuck_after_s: float = 10.0  # of one step, and the engine is not healthy

    def __post_init__(self) -> None:
        for name in ("max_streams", "max_step_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_queued < 0:
            raise ValueError(f"max_queued must not be negative: {self.max_queued}")
        for name in ("max_backlog_s", "stuck_after_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """How a decode engine is."""

    ok: bool
    reason: str  # why it is not well; empty where it is
    active_streams: int
    queued: int  # whole utterances and other work waiting
    last_step_age_s: float = 0.0  # since the step in work began, or since the last one ended


class EngineObserver:
    """Who hears what an engine does. Every method is empty here.

    They are called from the model thread and from callers' loops, some with the engine's lock held: they must be fast,
    must not raise, and must not call the engine.
    """

    def step(self, streams: int, slots: int, frames: int, seconds: float) -> None:
        """One batched step: rows that took part (whole utterances too), slots, frames of each row, its duration."""

    def stream_opened(self) -> None:
        """A slot was taken, by a new stream or a resumed one."""

    def stream_closed(self) -> None:
        """A slot became free: closed, parked or failed."""

    def queued(self, seconds: float) -> None:
        """An utterance or other work began, so long after it was handed in."""

    def rejected(self, kind: str) -> None:
        """A "stream", an "utterance" or "work" was turned away: no slot, a full queue or draining."""

    def expired(self, kind: str) -> None:
        """An "utterance" or "work" was dropped at its deadline."""
