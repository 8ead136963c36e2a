"""What a dataset says of codes in a reduced precision: the share of them that float32 would have given."""

import json
from types import SimpleNamespace

import pytest
import torch

from pipelines.corpus.corpus_job import tokenize_corpus
from pipelines.corpus.job_settings import JobSettings
from pipelines.corpus.precision_agreement import measure_agreement
from tests.conftest import make_codec, tiny_spec
from tokenizer import DatasetError


class TwoWays:
    """A codec whose precisions differ as a test wants them to."""

    spec = tiny_spec()

    def __init__(self, codes, name="both"):
        self.codes, self.computed_by = codes, name

    def with_precision(self, precision):
        return TwoWays(self.codes[precision], precision)

    def encode(self, _waveform, bandwidth_kbps):
        assert bandwidth_kbps == self.spec.level_kbps * 2
        return SimpleNamespace(codes=self.codes)


def test_the_share_of_equal_codes_is_told_by_level():
    """The first level matters most, and differs least."""
    plain = torch.zeros(1, 2, 8, dtype=torch.int64)
    fast = plain.clone()
    fast[0, 1, :6] = 1
    agreement = measure_agreement(TwoWays({"plain": plain, "fast": fast}), 2)
    assert agreement == {"fast": "fast", "plain": "plain", "codes": 16, "all": 0.625, "by_level": [1.0, 0.25]}


def test_without_kernels_there_is_one_way(monkeypatch):
    """Torch computes both."""
    monkeypatch.setenv("QUANTONE_ENGINE", "plain")
    agreement = measure_agreement(make_codec(tiny_spec()), 3)
    assert (agreement["fast"], agreement["plain"], agreement["all"]) == ("torch", "torch", 1.0)
    assert agreement["by_level"] == [1.0, 1.0, 1.0]


def test_a_dataset_says_what_its_codes_were_computed_with(ray_session, speech_folder, tiny_codec_dir, tmp_path):
    """And codes of another precision are never mixed in; exact ones are those of float32 in torch."""
    for precision in ("exact", "fast"):
        tokenize_corpus(speech_folder, tmp_path / precision, codec=tiny_codec_dir, precision=precision)
    exact, fast = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("exact", "fast"))
    assert (exact["precision"], exact["agreement"]) == ("float32", None)
    assert fast["precision"] == "bfloat16"
    assert 0 < fast["agreement"]["all"] <= 1
    with pytest.raises(DatasetError, match="precision: bfloat16 there, float32 asked for"):
        tokenize_corpus(speech_folder, tmp_path / "fast", codec=tiny_codec_dir)
    again = tokenize_corpus(speech_folder, tmp_path / "exact", codec=tiny_codec_dir, precision="plain")
    assert again.num_skipped == again.num_files


@pytest.mark.parametrize(
    ("settings", "words"), [({"precision": "half"}, "'half' is not one of"), ({"gpus_per_worker": 1.0}, "for CPUs")]
)
def test_precisions_that_there_are_not_are_refused(settings, words):
    """Before anything starts."""
    with pytest.raises(ValueError, match=words):
        JobSettings(**({"precision": "fast"} | settings))
