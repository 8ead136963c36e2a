"""What bounds a service over HTTP: sizes, times, and who may call it."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Limits of the service; every one has an error that names it."""

    max_body_bytes: int = 32 * MIB  # of one request: as declared, as counted, and after inflating
    max_held_bytes: int = 512 * MIB  # of bodies, codes and waveforms of all requests at once; more are turned away
    max_audio_s: float = 600.0  # of sound, that one request may decode or encode
    read_timeout_s: float = 10.0  # of a body that does not come; slow ones get more by MIN_BYTES_PER_S
    write_timeout_s: float = 10.0  # of an answer that is not read
    drain_timeout_s: float = 60.0  # at the end of the service, for what is running
    resume_window_s: float = 10.0  # in which a stream can be taken up again after its connection was lost
    token: str | None = None  # that callers must show as "Authorization: Bearer ..."; None for no token
    cors_origins: tuple[str, ...] = ()  # web pages of other origins that may call; "*" for any

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes", "max_held_bytes", "max_audio_s", "read_timeout_s", "write_timeout_s", "drain_timeout_s"
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.resume_window_s < 0:
            raise ValueError(f"resume_window_s must not be negative: {self.resume_window_s}")
        if self.token is not None and not self.token:
            raise ValueError("an empty token protects nothing: give one with characters, or None for no token")
