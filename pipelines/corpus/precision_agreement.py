"""How many codes of a reduced precision are those of float32, measured on the bundled speech."""

from __future__ import annotations

from typing import Any

from pipelines.bundled_speech import bundled_speech
from tokenizer import Codec

_SECONDS = 30.0


def measure_agreement(codec: Codec, num_codebooks: int) -> dict[str, Any]:
    """Encode the bundled speech both ways, and compare.

    Args:
        codec: of any precision.
        num_codebooks: levels to compare.

    Returns:
        As JSON types: `fast` and `plain`, what computed the codes; `codes`, how many were compared; `all`, the share of
        equal ones; `by_level`, that of each level.
    """
    speech = bundled_speech(codec.spec, _SECONDS, 1)
    kbps = codec.spec.level_kbps * num_codebooks
    ways = [codec.with_precision("fast"), codec.with_precision("plain")]
    fast, plain = [way.encode(speech, bandwidth_kbps=kbps).codes for way in ways]
    equal = (fast == plain).float()  # [1, K, T]
    return {
        "fast": ways[0].computed_by,
        "plain": ways[1].computed_by,
        "codes": equal.numel(),
        "all": round(equal.mean().item(), 5),
        "by_level": [round(share, 5) for share in equal.mean(dim=(0, 2)).tolist()],
    }
