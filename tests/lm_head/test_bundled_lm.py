"""The bundled language model: it belongs to the bundled codec, and reads what was written long ago and elsewhere."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_head import bundled_lms, compress, decompress, load_coder, load_lm, open_qtn, read_lm_card
from tokenizer import BitstreamError, load_codec

NAME = "speech_24khz"
GOLDEN = Path(__file__).parent / "golden" / f"{NAME}.qtn"
GOLDEN_CODES = "cdff0581452f9886421ac110d21398789f032611dcf0238d1d8ab19f06b1d666"


@pytest.fixture(scope="module")
def coder():
    return load_coder(NAME)


def test_it_knows_the_codes_of_the_bundled_codec():
    assert bundled_lms() == [NAME]
    assert read_lm_card(NAME).codec == load_codec(NAME).card()


def test_streams_written_with_it_stay_readable(coder):
    """A file as old as the model. Where this fails users lose recordings: a changed model needs a new name."""
    encoded = decompress(GOLDEN.read_bytes(), coder, codec=load_codec(NAME))
    digest = hashlib.sha256(encoded.codes[0].numpy().astype("<u2").tobytes()).hexdigest()
    assert (tuple(encoded.codes.shape), digest) == ((1, 4, 1200), GOLDEN_CODES)
    assert compress(encoded, load_codec(NAME), coder) == GOLDEN.read_bytes()


def test_every_instruction_set_gives_the_known_answer():
    """`load_coder` refuses a processor that computes otherwise; these all read the same file."""
    script = (
        "import sys, hashlib, torch; torch.set_num_threads(int(sys.argv[2]));"
        "from lm_head import decompress, load_coder;"
        "codes = decompress(open(sys.argv[1], 'rb').read(), load_coder('speech_24khz')).codes[0].numpy();"
        "print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(codes.astype('<u2').tobytes()).hexdigest())"
    )
    found = {}
    for capability, threads in (("default", "2"), ("avx2", "1"), ("avx512", "2")):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-c", script, str(GOLDEN), threads]
        ran = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        name, digest = ran.stdout.split()
        found[name] = digest
    assert set(found.values()) == {GOLDEN_CODES}
    assert len(found) > 1


@pytest.mark.parametrize("num_flips", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_flipped_bits_of_a_file_are_told(coder, num_flips):
    """A sample of what tests/lm_head/test_compression.py does bit by bit with a small coder."""
    data = GOLDEN.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data) * 8, num_flips).tolist():
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(BitstreamError):
            decompress(bytes(damaged), coder)


def test_a_block_is_read_alone(coder):
    reader = open_qtn(GOLDEN.read_bytes(), coder)
    whole = decompress(GOLDEN.read_bytes(), coder).codes[0].numpy()
    assert np.array_equal(reader.block(1), whole[:, 750:])


def test_it_is_a_language_model_too():
    """Real speech costs it far less than the same frames in another order."""
    codes = decompress(GOLDEN.read_bytes(), load_coder(NAME)).codes[..., :400]
    shuffled = codes[..., torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    lm = load_lm(NAME)
    real, mixed = (float(lm.loss(some).bits.mean()) for some in (codes, shuffled))
    assert real < 0.8 * 10
    assert mixed > real + 1.5
