"""The commands `quantone train ...`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidth, check, check_codec, check_dataset

train = typer.Typer(help="Train a model by a recipe.", no_args_is_help=True)


@train.callback()
def _group() -> None:
    """Train a model by a recipe."""


@train.command("codec")
def train_codec_command(
    recipe: Annotated[str, typer.Argument(help="Bundled recipe or YAML file.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Folder of audio, tar shard or .jsonl manifest; may be repeated.")
    ],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Checkpoint, log and the finished codec go here.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Overrides the recipe's number of steps.")] = None,
    init_from: Annotated[str | None, typer.Option(help="Fine-tune this codec instead of starting afresh.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="That share each batch: one a GPU, or so many CPUs.")] = 1,
    data_workers: Annotated[int, typer.Option(min=0, help="Processes that read audio beside each of them.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch in each.")] = None,
) -> None:
    """Train a codec; interrupted, the same command goes on from the last checkpoint.

    Examples:
      quantone train codec speech_24khz --data speech/ --run-dir runs/speech
      quantone train codec my_recipe.yaml --data a/ --data b.jsonl --run-dir runs/mine --steps 500
      quantone train codec speech_24khz --init-from speech_24khz --data my_voice/ --run-dir runs/voice
      quantone train codec encodec_24khz --data /shared/audio --run-dir /shared/runs/e --processes 16
    """
    for source in data:
        check(source.exists() or bool(glob.glob(str(source))), f"--data {source}: no such file or directory")  # noqa: PTH207
    if init_from is not None:
        check_codec(init_from)
    from pipelines.training.train_codec import train_codec
    from pipelines.training.training_run import TrainingRun

    run = TrainingRun(
        run_dir=run_dir,
        steps=steps,
        init_from=init_from,
        num_processes=processes,
        data_workers=data_workers,
        threads=threads,
    )
    typer.echo(f"codec: {train_codec(recipe, data, run)}")


@train.command("lm")
def train_lm_command(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET...", help="Token datasets of one codec: directories or s3:// URIs."),
    ],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Checkpoint, log and the finished model go here.")],
    recipe: Annotated[str, typer.Option(help="Bundled recipe or YAML file.")] = "lm_speech_24khz",
    bandwidth: Bandwidth = None,
    transcripts: Annotated[
        Path | None,
        typer.Option(help="For models that read: .jsonl whose rows name an utterance and say its text."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Overrides the recipe's number of steps.")] = None,
    init_from: Annotated[str | None, typer.Option(help="Fine-tune this model instead of starting afresh.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="That share each batch: one a GPU, or so many CPUs.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch in each.")] = None,
) -> None:
    """Train a token language model; interrupted, the same command goes on from the last checkpoint.

    Examples:
      quantone train lm tokens/ --run-dir runs/lm
      quantone train lm tokens/ more_tokens/ --recipe my_lm.yaml --run-dir runs/mine --steps 500
      quantone train lm s3://bucket/tokens --bandwidth 6 --run-dir runs/lm6
      quantone train lm my_voice/ --init-from runs/lm/lm --run-dir runs/voice --steps 300
      quantone train lm tokens/ --recipe lm_tts_24khz --transcripts manifest.jsonl --run-dir runs/tts
    """
    for dataset in datasets:
        check_dataset(dataset)
    check(transcripts is None or transcripts.is_file(), f"--transcripts {transcripts}: no such file")
    from pipelines.training.train_lm import train_lm
    from pipelines.training.training_run import TrainingRun

    run = TrainingRun(
        run_dir=run_dir, steps=steps, init_from=init_from, num_processes=processes, data_workers=0, threads=threads
    )
    typer.echo(f"language model: {train_lm(recipe, datasets, run, bandwidth_kbps=bandwidth, transcripts=transcripts)}")
