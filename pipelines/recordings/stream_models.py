"""Which codec and which language model a compressed stream is for: those that it names, or that the user names."""

from __future__ import annotations

from pathlib import Path

from lm_head.block_coder import BlockCoder
from lm_head.compression import CodecIdentity
from lm_head.encodec_lm import load_encodec_lm
from lm_head.lm_checkpoint import bundled_lms, load_coder, load_token_lm, read_lm_card
from lm_head.qtn import MODEL_DIGITS, QtnHeader
from lm_head.token_lm import TokenLM
from tokenizer import BitstreamError, Codec, bundled_codecs, load_codec

NO_LM = "none"


def codec_to_read(header: QtnHeader, codec: str | None) -> Codec:
    """The codec that the user names, or the bundled one that the stream names.

    Raises:
        BitstreamError: none of the bundled ones.
        CheckpointError: it cannot be loaded.
    """
    if codec is not None:
        return load_codec(codec)
    for name in bundled_codecs():
        bundled = load_codec(name)
        if CodecIdentity.of(bundled).prefix == header.codec:
            return bundled
    raise BitstreamError(
        f".qtn: codes of the codec whose sha256 begins with {header.codec}, which is not bundled: name it with --codec"
    )


def coder_to_write(lm: str | None, codec: Codec) -> BlockCoder | None:
    """The entropy coder that the user names, or the bundled one of the codec; None to pack bits.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if lm is not None:
        return None if lm == NO_LM else load_coder(lm)
    for name in bundled_lms():
        if read_lm_card(name).codec["sha256"] == codec.sha256:
            return load_coder(name)
    return None


def coder_to_read(header: QtnHeader, lm: str | None) -> BlockCoder | None:
    """The entropy coder that the user names, or the bundled one that the stream names; None if it needs none.

    Raises:
        BitstreamError: none of the bundled ones.
        CheckpointError: it cannot be loaded.
    """
    if header.model is None or lm == NO_LM:
        return None
    if lm is not None:
        return load_coder(lm)
    likely = {name: read_lm_card(name).codec["sha256"].startswith(header.codec) for name in bundled_lms()}
    for name in sorted(likely, key=lambda name: not likely[name]):  # those of the stream's codec first
        coder = load_coder(name)
        if coder.identity[:MODEL_DIGITS] == header.model:
            return coder
    raise BitstreamError(f".qtn: coded by model {header.model}, which is not bundled: name it with --lm")


def lm_of_ecdc(lm: str | None) -> TokenLM | None:
    """The language model of an .ecdc: a file of the `encodec` package (.th), or a directory or name of ours.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if lm is None or lm == NO_LM:
        return None
    if Path(lm).suffix == ".th":
        return load_encodec_lm(lm)
    return load_token_lm(lm)
