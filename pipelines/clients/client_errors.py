"""What a client of the service raises beside CodesError, AudioError and the errors of the engine."""

from __future__ import annotations

from pipelines.decoding.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError
from tokenizer.errors import AudioError, CodesError, QuantoneError


class ServiceUnreachable(ServiceError):  # noqa: N818 - what the service is
    """Nobody answers at the address, or what answers does not speak the protocol."""


class Unauthorized(ServiceError):  # noqa: N818 - as HTTP's 401 names it
    """The service wants a bearer token, and the client has none or a wrong one."""


class RequestRefused(ServiceError):  # noqa: N818
    """The service does not take the request as it is; the same again would be refused again.

    Args:
        message: the service's own sentence.
        kind: the service's word for it, as `unknown_codec`.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class StreamCut(ServiceError):  # noqa: N818
    """A stream ended before its end, and could not be taken up again: sound is missing.

    Args:
        message: why.
        received_samples: of the utterance, before the cut.
    """

    def __init__(self, message: str, *, received_samples: int) -> None:
        super().__init__(message)
        self.received_samples = received_samples


def service_error(kind: str, message: str, *, retry_after_s: float | None = None) -> QuantoneError:
    """The error that a type in an answer of the service stands for."""
    if kind in ("overloaded", "draining"):
        busy = Draining if kind == "draining" else Overloaded
        return busy(message, retry_after_s=1.0 if retry_after_s is None else retry_after_s)
    named = {
        "invalid_codes": CodesError,
        "invalid_audio": AudioError,
        "deadline_exceeded": DeadlineExceeded,
        "unauthorized": Unauthorized,
        "unavailable": ServiceError,
        "internal_error": ServiceError,
    }
    return named[kind](message) if kind in named else RequestRefused(message, kind=kind)
