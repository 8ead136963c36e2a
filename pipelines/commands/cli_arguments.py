"""What several commands accept, and what is refused before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Token dataset: a directory or s3:// URI.")]
Bandwidth = Annotated[
    float | None, typer.Option("--bandwidth", "-b", metavar="KBPS", min=0.0, help="Kilobits per second; default: all.")
]
Bandwidths = Annotated[
    list[float] | None,
    typer.Option("--bandwidth", "-b", metavar="KBPS", help="Kilobits per second; repeat it for several."),
]
Workers = Annotated[
    int | None, typer.Option("--num-workers", "-j", min=1, help="Processes with a codec; default: as the machine has.")
]
Precision = Annotated[
    Literal["exact", "fast", "plain"],
    typer.Option(help="exact: float32; fast: bfloat16 or int16, where CPU or GPU have them; plain: float32 in torch."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary; errors only.")]


class WrongUsageError(typer.BadParameter):
    """An argument that is well formed and yet cannot be meant: a source that is not there, a codec nobody knows."""

    def format_message(self) -> str:
        """The message alone, without "Invalid value" in front."""
        return self.message


def check(condition: bool, message: str) -> None:
    """Stop with exit code 2 unless the condition holds."""
    if not condition:
        raise WrongUsageError(message)


def check_codec(codec: str) -> None:
    """Something that `load_codec` may find: it is loaded, and judged, when it is used."""
    from tokenizer import bundled_codecs
    from tokenizer.hub import is_repository
    from tokenizer.presets import PRESETS

    bundled = bundled_codecs()
    found = Path(codec).exists() or codec in bundled or codec.startswith("hf:") or is_repository(codec)
    if codec in PRESETS:
        check(found, f"codec {codec!r} is a preset without bundled weights: pass the file or directory that has them")
    check(
        found,
        f"no codec {codec!r}: no such file or directory, not owner/name on the Hugging Face hub, "
        f"and the bundled ones are {', '.join(bundled)}",
    )


def check_source(source: str) -> None:
    """A file, directory or glob that has files, local or in S3."""
    from pipelines import storage

    uri = storage.absolute(source)
    found = storage.find_file(uri) or storage.is_directory(uri) or storage.glob_files(uri)
    check(bool(found), f"{source}: no such file or directory")


def check_dataset(dataset: str) -> None:
    """A directory or s3:// URI with a dataset.json."""
    from pipelines import storage
    from pipelines.datasets.dataset_info import FILE_NAME

    uri = storage.absolute(dataset)
    found = storage.find_file(storage.join(uri, FILE_NAME)) is not None
    check(found, f"{dataset}: not a token dataset, there is no {FILE_NAME} in it")
