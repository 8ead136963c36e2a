"""Which codecs there are, and what each one takes and gives: a table for the terminal and the same for the docs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table

from tokenizer import Codec, CodecSpec, bundled_codecs, load_codec
from tokenizer.presets import PRESETS

_HEADINGS = ("codec", "Hz", "ch", "frames\n/ s", "code\nbooks", "kbps", "latency\nms", "params\nM")


@dataclass(frozen=True, slots=True)
class CodecRow:
    """One codec in numbers."""

    name: str
    spec: CodecSpec
    latency_s: float
    num_parameters: int

    def cells(self) -> tuple[str, ...]:
        """What the table says, in the order of its headings."""
        spec = self.spec
        return (
            self.name,
            str(spec.sample_rate),
            str(spec.channels),
            f"{float(spec.frame_rate):.3g}",
            f"{spec.num_codebooks}x{spec.codebook_size}",
            " ".join(f"{kbps:.3g}" for kbps in spec.bandwidths_kbps),
            f"{self.latency_s * 1000:.{1 if self.latency_s < 0.1 else 0}f}",
            f"{self.num_parameters / 1e6:.1f}",
        )


def codec_rows() -> list[CodecRow]:
    """The bundled codecs, then the presets whose weights are brought or trained."""
    bundled = {name: load_codec(name).spec for name in bundled_codecs()}
    specs = bundled | {name: spec for name, spec in PRESETS.items() if name not in bundled}
    rows = []
    for name, spec in specs.items():
        with torch.device("meta"):  # sizes only
            codec = Codec(spec, name=name)
        rows.append(CodecRow(name, spec, codec.algorithmic_latency_s, codec.num_parameters))
    return rows


def codecs_table() -> Table:
    """For a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "codec" else "right", no_wrap=True)
    for row in codec_rows():
        table.add_row(*row.cells())
    return table


def codecs_markdown() -> str:
    """For docs/which_codec.md."""
    headings = tuple(heading.replace("\n", " ") for heading in _HEADINGS)
    lines = [headings, tuple("---" for _ in headings), *(row.cells() for row in codec_rows())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(codecs_markdown(), end="")
