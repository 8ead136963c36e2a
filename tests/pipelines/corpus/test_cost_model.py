"""What a job will cost follows from what a run showed: the estimate of a run's own corpus is the run itself."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import tokenize_corpus
from pipelines.cli import main
from pipelines.corpus.cost_model import Corpus, MeasuredRates, Prices, estimate_cost
from pipelines.datasets.parts import PartFormat, encode_part, measure_part
from tests.pipelines.token_rows import token_row
from tokenizer import load_codec

FREE = Prices(machine_hour=0.0, storage_gb_month=0.0, thousand_reads=0.0, thousand_writes=0.0)


def test_the_estimate_of_a_runs_own_corpus_is_the_run(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """Time and bytes of ten clips: what is predicted for as many hours is what they took and what lies on disk."""
    summary = tokenize_corpus(speech_folder, tmp_path / "tokens", codec=tiny_codec_dir, progress=False, num_workers=1)
    rates = MeasuredRates.of_run(summary)
    estimate = estimate_cost(Corpus(hours=summary.audio_seconds / 3600), rates, FREE)
    assert estimate.machine_hours * 3600 == pytest.approx(summary.wall_seconds)
    assert estimate.hours_per_machine_hour == pytest.approx(summary.real_time_factor)
    stored = 0
    for path in (tmp_path / "tokens" / "parts").glob("*.parquet"):
        group = pq.read_metadata(path).row_group(0)
        columns = (group.column(index) for index in range(group.num_columns))
        stored += sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("codes_"))
    assert estimate.stored_gb * 1e9 == pytest.approx(stored)


def test_codes_take_what_the_codec_says():
    """Half an hour of random codes, the hardest to store, at four levels: within 2 % of the estimate."""
    codec = load_codec("speech_24khz")
    frames, levels = 1800 * 75, 4
    codes = np.random.default_rng(0).integers(0, 1024, (levels, frames), dtype=np.uint16)
    rows = [token_row(f"{start}", codes[:, start : start + 750]) for start in range(0, frames, 750)]
    part = encode_part(rows, PartFormat(spec=codec.spec, num_codebooks=levels, card=codec.card()))
    rates = MeasuredRates.of_codec(codec.spec, 100.0, levels)
    assert measure_part(part, rows).code_bytes * 2 == pytest.approx(rates.stored_per_hour, rel=0.02)


def test_the_start_of_every_machine_is_paid():
    rates = MeasuredRates(audio_per_second=100.0, stored_per_hour=5e6, start_s=360.0)
    few, many = (
        estimate_cost(Corpus(hours=1000.0, num_machines=count), rates, Prices(machine_hour=2.0)) for count in (1, 10)
    )
    assert few.machine_hours == pytest.approx(10.1)
    assert many.machine_hours == pytest.approx(11.0)
    assert many.wall_hours == pytest.approx(1.1)
    assert (few.machines, many.machines) == (pytest.approx(20.2), pytest.approx(22.0))
    assert few.stored_gb == many.stored_gb == pytest.approx(5.0)


def test_storage_and_requests_have_their_price():
    rates = MeasuredRates(audio_per_second=100.0, stored_per_hour=5e6)
    prices = Prices(machine_hour=0.0, storage_gb_month=0.02, months=12.0, thousand_reads=0.5, thousand_writes=5.0)
    estimate = estimate_cost(Corpus(hours=1000.0, num_inputs=4000), rates, prices)
    assert estimate.storage == pytest.approx(5.0 * 0.02 * 12)
    assert estimate.requests == pytest.approx(4000 * 0.0005 + 3 * 1000 * 0.005)
    assert estimate.total == pytest.approx(estimate.storage + estimate.requests)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MeasuredRates(audio_per_second=0.0, stored_per_hour=1.0),
        lambda: Prices(machine_hour=-1.0),
        lambda: Corpus(num_machines=0),
        lambda: Corpus(hours=0.0),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match=r"must|cannot|has"):
        make()


def test_the_command_is_a_calculator(capsys):
    arguments = ["--rate", "100", "--price", "2", "--hours", "1000", "--start-s", "360", "--machines", "10"]
    assert main(["bench", "cost", *arguments]) == 0
    shown = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:] if line.strip())
    figures = {name.strip(): float(figure.replace(",", "")) for name, figure in shown.items()}
    assert figures["machine-hours"] == 11.0
    assert figures["machines"] == 22.0
    assert figures["tokens at rest, GB"] == pytest.approx(5.5, abs=0.05)
    assert main(["bench", "cost", "--rate", "100", "--price", "2", "--codec", "nothing"]) == 2
