"""The list of codecs: printed, and printed the same in the docs."""

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.commands.codec_table import codec_rows, codecs_markdown

DOCS = Path(__file__).parents[3] / "docs" / "which_codec.md"


def test_the_docs_show_what_the_code_has():
    """The table in docs/which_codec.md is the one that the code prints: `python -m pipelines.commands.codec_table`."""
    assert codecs_markdown() in DOCS.read_text(encoding="utf-8")


def test_latencies_and_bandwidths_are_the_papers():
    """13.3 ms for EnCodec and SoundStream at 24 kHz, a second at 48 kHz; bandwidths as in the abstracts."""
    rows = {row.name: row for row in codec_rows()}
    assert rows["encodec_24khz"].latency_s == pytest.approx(0.01333, abs=1e-5)
    assert rows["soundstream_24khz"].latency_s == pytest.approx(0.01333, abs=1e-5)
    assert rows["encodec_48khz"].latency_s == 1.0
    assert rows["encodec_24khz"].spec.bandwidths_kbps == (1.5, 3.0, 6.0, 12.0, 24.0)
    assert rows["encodec_48khz"].spec.bandwidths_kbps == (3.0, 6.0, 12.0, 24.0)
    assert rows["soundstream_24khz"].spec.bandwidths_kbps[1::3] == (3.0, 18.0)
    assert rows["dac_44khz"].spec.bandwidth_kbps == pytest.approx(7.75, abs=0.01)
    assert rows["dac_44khz"].num_parameters == pytest.approx(76.6e6, rel=0.01)


def test_the_command_prints_every_codec_on_80_columns(capsys, monkeypatch):
    """No cell is cut, and it says which ones come with weights."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["codecs"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    for row in codec_rows():
        assert all(cell in shown for cell in row.cells())
    assert "with weights: speech_24khz" in shown
