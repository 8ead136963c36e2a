"""RetryPolicy: how often and after how long a client tries again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Pauses that double, with full jitter: clients that failed together do not come back together.

    Source: Exponential backoff and jitter, M. Brooker, AWS Architecture Blog, 2015.
    """

    retries: int = 3  # after the first attempt
    first_s: float = 0.1
    longest_s: float = 5.0
    random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must not be negative: {self.retries}")

    def pause_s(self, failures: int, retry_after_s: float | None = None) -> float | None:
        """Seconds until the next attempt; None where there is none.

        Args:
            failures: attempts that have failed, at least 1.
            retry_after_s: what the service asked for; the pause is never shorter.
        """
        if failures > self.retries:
            return None
        longest = min(self.longest_s, self.first_s * 2 ** (failures - 1))
        return (retry_after_s or 0.0) + self.random.uniform(0.0, longest)
