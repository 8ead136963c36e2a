"""The command `quantone evaluate-lm`: how many bits a token language model saves on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Bandwidths, Dataset, Quiet, check_dataset


def evaluate_lm_command(
    lm: Annotated[str, typer.Argument(metavar="LM", help="Bundled name or directory of a language model.")],
    dataset: Dataset,
    bandwidth: Bandwidths = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many utterances.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write everything as JSON.")] = None,
    quiet: Quiet = False,
) -> None:
    """Bits per code by level, beside raw packing and the codes' own frequencies; sizes of real streams.

    Utterances are cut into blocks of ten seconds that start afresh, as `quantone compress` cuts them.
    With a model in integers, which can code, each utterance is compressed at each bandwidth, and the bytes are counted.

    Examples:
      quantone evaluate-lm speech_24khz tokens/
      quantone evaluate-lm runs/lm/lm tokens/ --bandwidth 3 --limit 100 -o bits.json
    """
    check_dataset(dataset)
    from rich.console import Console

    from lm_head.lm_checkpoint import has_integer_form, load_coder, load_token_lm
    from pipelines.evaluating.lm_evaluation import evaluate_lm
    from pipelines.evaluating.lm_evaluation_table import lm_evaluation_table

    model = load_token_lm(lm)
    coder = load_coder(lm) if has_integer_form(lm) else None
    evaluation = evaluate_lm(
        model, dataset, bandwidths_kbps=bandwidth or None, limit=limit, coder=coder, shown=not quiet
    )
    typer.echo(evaluation.describe())
    Console().print(lm_evaluation_table(evaluation))
    if output is not None:
        evaluation.write(output)
