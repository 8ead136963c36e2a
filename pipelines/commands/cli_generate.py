"""The command `quantone generate`: a recording goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Quiet, check, check_codec


def generate(
    prompt: Annotated[Path, typer.Argument(help="Audio to go on from; a few seconds.")],
    output: Annotated[Path, typer.Argument(help="Audio file to write: .wav, .flac, .ogg, .opus or .mp3.")],
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.01, help="Of new sound.")] = 5.0,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest code, 1 is the model's own.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many likeliest codes only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest codes that make up this share.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same sound.")] = 0,
    lm: Annotated[str, typer.Option(help="Bundled name or directory of a language model.")] = "speech_24khz",
    codec: Annotated[str | None, typer.Option(help="Default: the one that the language model names.")] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", "-b", metavar="KBPS", min=0.0, help="Default: all the model has.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="What is said in the prompt and after it, where a model reads.")
    ] = None,
    keep_prompt: Annotated[bool, typer.Option(help="Write the prompt too, in front of what is new.")] = True,
    quiet: Quiet = False,
) -> None:
    """Continue a recording with a token language model.

    Frames become sound as they come; the same seed gives the same file.

    Examples:
      quantone generate prompt.wav longer.wav
      quantone generate prompt.flac new.wav --seconds 10 --temperature 0.9 --top-p 0.95 --seed 7 --no-keep-prompt
      quantone generate prompt.wav said.wav --lm runs/tts/lm --text "Good morning. And how are you?"
    """
    check(prompt.is_file(), f"{prompt}: no such file")
    if codec is not None:
        check_codec(codec)
    from lm_head.sampling import Sampling
    from pipelines.recordings.generate_audio import Continuation, generate_audio

    continuation = Continuation(
        seconds=seconds,
        bandwidth_kbps=bandwidth,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        seed=seed,
        text=text,
        keep_prompt=keep_prompt,
    )
    done = generate_audio(prompt, output, lm=lm, codec=codec, continuation=continuation, progress=not quiet)
    if not quiet:
        typer.echo(
            f"{output}: {done.new_frames} new frames of {done.num_codebooks} levels after {done.prompt_frames}, "
            f"the first after {1000 * done.first_frames_s:.0f} ms, {done.frames_per_second:.0f} frames per second"
        )
