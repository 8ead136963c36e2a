"""The commands `quantone compress` and `quantone decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, Quiet, check, check_codec

_STREAM = "-"
_COMPRESSED = (".qtn", ".ecdc")
_AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")

LM = Annotated[
    str | None,
    typer.Option("--lm", help="Language model that saves bits, or none to pack them; default: the bundled one."),
]


def compress(
    source: Annotated[str, typer.Argument(metavar="IN", help="Any audio file; - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A .qtn or .ecdc file; - for .qtn to stdout.")],
    codec: Annotated[str, typer.Option(help="Bundled name, directory, file or hub name.")] = "speech_24khz",
    bandwidth: Bandwidth = None,
    lm: LM = None,
    quiet: Quiet = False,
) -> None:
    """An audio file to a compressed token file.

    A .qtn is read on any machine, exactly, or refused. An .ecdc is what the original EnCodec reads.

    Examples:
      quantone compress speech.wav speech.qtn --bandwidth 3
      quantone compress speech.wav speech.qtn --lm none
      ffmpeg -i talk.mp4 -f wav - | quantone compress - - --bandwidth 6 > talk.qtn
      quantone compress music.wav music.ecdc --codec encodec_24khz-d7cc33bc.th --bandwidth 6
    """
    _check_source(source)
    _check_target(target, _COMPRESSED)
    check_codec(codec)
    from pipelines.recordings.compress_file import compress_file

    sizes = compress_file(source, target, codec=codec, bandwidth_kbps=bandwidth, lm=lm)
    if not quiet:
        typer.echo(f"{target}: {sizes}", err=target == _STREAM)


def decompress(
    source: Annotated[str, typer.Argument(metavar="IN", help="A .qtn or .ecdc file; - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A wav, flac, ogg, opus or mp3; - for a wav to stdout.")],
    codec: Annotated[str | None, typer.Option(help="Whose codes they are; default: the bundled one they name.")] = None,
    bandwidth: Bandwidth = None,
    lm: LM = None,
    quiet: Quiet = False,
) -> None:
    """A compressed token file back to audio, at its bandwidth or a lower one.

    Examples:
      quantone decompress speech.qtn speech.wav
      quantone decompress speech.qtn low.flac --bandwidth 1.5
      quantone decompress - - < talk.qtn | ffplay -
      quantone decompress music.ecdc music.wav --codec encodec_24khz-d7cc33bc.th
    """
    _check_source(source)
    _check_target(target, _AUDIO)
    if codec is not None:
        check_codec(codec)
    from pipelines.recordings.compress_file import decompress_file

    sizes = decompress_file(source, target, codec=codec, bandwidth_kbps=bandwidth, lm=lm)
    if not quiet:
        typer.echo(f"{target}: from {sizes}", err=target == _STREAM)


def _check_source(source: str) -> None:
    check(source == _STREAM or Path(source).is_file(), f"{source}: no such file")


def _check_target(target: str, suffixes: tuple[str, ...]) -> None:
    if target == _STREAM:
        return
    check(Path(target).suffix in suffixes, f"{target}: its name must end in {', '.join(suffixes)}, or be -")
    check(Path(target).absolute().parent.is_dir(), f"{target}: no such directory")
