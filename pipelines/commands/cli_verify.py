"""The command `quantone verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.cli_arguments import Dataset, Quiet
from pipelines.commands.cli_outcome import FAILED


def verify(
    dataset: Dataset,
    num_threads: Annotated[
        int | None, typer.Option("--num-threads", "-j", min=1, help="Threads that read; default: as the machine has.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find every flipped bit, missing or foreign part and lost input of a dataset, and what to do about each.

    Reads everything once. Each problem is one line, and exit code 1 says that there is one.

    Examples:
      quantone verify tokens/
      quantone verify s3://bucket/tokens --num-threads 16
      quantone verify tokens/ --json | jq -r '.problems[].where'
    """
    from pipelines.datasets.verify import verify_dataset

    found = verify_dataset(dataset, num_threads=num_threads, progress=not (quiet or as_json))
    if as_json:
        typer.echo(found.to_json())
    else:
        for problem in found.problems:
            typer.echo(str(problem))
        if not quiet:
            typer.echo(f"{dataset}: {found.summary()}")
    if not found.ok:
        raise typer.Exit(FAILED)
