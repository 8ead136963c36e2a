"""Why a decoding service cannot do something now: the errors that its callers are meant to catch."""

from __future__ import annotations

from tokenizer import QuantoneError


class ServiceError(QuantoneError):
    """What a decoding service cannot do now."""


class Overloaded(ServiceError):  # noqa: N818 - what the service is, as HTTP's 429 names it
    """No stream slot is free, or the queue is full.

    Args:
        message: what is full, and what its limit is.
        retry_after_s: seconds after which another attempt is worth making.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), str(self), self.retry_after_s)  # Ray carries errors from actors to callers


class DeadlineExceeded(ServiceError):  # noqa: N818
    """The deadline passed before the work was done."""


class Draining(Overloaded):
    """The service is shutting down: another replica can take the work."""


class StreamClosed(ServiceError):  # noqa: N818
    """A stream was used after its end, or the engine has stopped."""


def _restored(kind: type[Overloaded], message: str, retry_after_s: float) -> Overloaded:
    return kind(message, retry_after_s=retry_after_s)
