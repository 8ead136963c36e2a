"""The language models of the `encodec` package in our hands: their files, and their evaluation."""

import pytest
import torch
from torch.nn import functional

from lm_head.arithmetic_coder import original_cdfs
from lm_head.encodec_lm import OriginalLM, export_encodec_lm, load_encodec_lm, original_tensors
from lm_head.token_lm import LMConfig, TokenLM
from tests.lm_head.encodec_models import original_lm
from tokenizer import CheckpointError

CONTEXT = 20  # frames, so that the window moves in a short test


def saved(tensors, folder):
    path = folder / "lm.th"
    torch.save(tensors, path)
    return path


def loaded(reference, folder, context_frames=CONTEXT):
    return load_encodec_lm(saved(reference.state_dict(), folder), context_frames=context_frames)


def random_codes(num_codebooks, codebook_size, num_frames):
    return torch.randint(codebook_size, (num_codebooks, num_frames), generator=torch.Generator().manual_seed(1))


def stepwise(reference, codes):
    """Probabilities [K, V] of each frame of codes [K, T], as the package's own compression asks for them."""
    frame, states, offset = torch.zeros(1, len(codes), 1, dtype=torch.int64), None, 0
    with torch.no_grad():
        for t in range(codes.shape[1]):
            probabilities, states, offset = reference(frame, states, offset)
            yield probabilities[0, :, :, 0].T
            frame = 1 + codes[None, :, t : t + 1]


def ours_stepwise(lm, codes):
    original = OriginalLM(lm)
    probabilities, state = original.begin(len(codes))
    yield probabilities
    for frame in codes.T[:-1]:
        probabilities, state = original.step(frame, state)
        yield probabilities


@pytest.mark.parametrize(
    ("sizes", "levels"),
    [({"num_codebooks": 3, "codebook_size": 1024, "dim": 200, "num_layers": 5}, 2), ({"codebook_size": 16}, 4)],
    ids=["as released", "small"],
)
def test_probabilities_are_those_of_the_package(sizes, levels, tmp_path):
    """From the package's weights, TokenLM gives its probabilities within 1e-5, at once and frame by frame."""
    reference = original_lm(**sizes, context_frames=CONTEXT)
    lm = loaded(reference, tmp_path)
    codes = random_codes(levels, reference.card, 2 * CONTEXT + 3)
    with torch.no_grad():
        shifted = functional.pad(codes[None, :, :-1] + 1, (1, 0))
        expected = reference(shifted)[0].permute(0, 3, 2, 1)  # [1, T, K, V]
        at_once = lm(codes[None]).softmax(dim=-1)
    assert expected.max() > 0.1, "the test says nothing about even probabilities"
    torch.testing.assert_close(at_once, expected, atol=1e-5, rtol=0)
    logits, state = lm.begin(1, levels)
    for t, probabilities in enumerate(stepwise(reference, codes)):
        torch.testing.assert_close(logits[0, 0].softmax(dim=-1), probabilities, atol=1e-5, rtol=0)
        logits, state = lm.step(codes[None, :, t : t + 1], state)


@pytest.mark.parametrize(
    ("sizes", "levels"),
    [({"num_codebooks": 4, "dim": 200, "num_layers": 5}, 2), ({"num_codebooks": 8}, 8), ({"codebook_size": 16}, 1)],
    ids=["as released", "8 levels", "1 level of 4"],
)
def test_the_stepwise_evaluation_is_the_packages_to_the_last_bit(sizes, levels, tmp_path):
    """Equal floats, hence equal CDFs, before, at and behind the end of the window."""
    from encodec.quantization.ac import build_stable_quantized_cdf

    reference = original_lm(**sizes, context_frames=CONTEXT)
    codes = random_codes(levels, reference.card, 2 * CONTEXT + 3)
    ours = ours_stepwise(loaded(reference, tmp_path), codes)
    for expected, actual in zip(stepwise(reference, codes), ours, strict=True):
        assert torch.equal(expected, actual)
        for pdf, cdf in zip(expected, original_cdfs(actual), strict=True):
            assert build_stable_quantized_cdf(pdf, 24, check=False).tolist() == cdf.tolist()


def test_a_state_can_be_continued_more_than_once(tmp_path):
    """Steps leave the state that they start from as it was."""
    original = OriginalLM(loaded(original_lm(codebook_size=16), tmp_path))
    _, state = original.begin(2)
    frame = torch.tensor([3, 15])
    first, _ = original.step(frame, state)
    original.step(torch.tensor([0, 0]), state)
    assert torch.equal(original.step(frame, state)[0], first)


def test_an_evaluation_keeps_the_weights_that_it_began_with(tmp_path):
    """It copies them: training may go on, and a stream that has begun goes on as it began."""
    lm = loaded(original_lm(codebook_size=16), tmp_path)
    original = OriginalLM(lm)
    before, _ = original.begin(2)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(1.0)
    assert torch.equal(original.begin(2)[0], before)
    assert not torch.equal(OriginalLM(lm).begin(2)[0], before)


@pytest.mark.parametrize(("levels", "expected"), [(32, 262), (16, 525), (4, 262)])
def test_the_context_is_that_of_the_released_models(levels, expected, tmp_path):
    """3.5 s, which the file does not say: 16 levels are the 48 kHz model's, at twice the frames per second."""
    path = saved(original_lm(levels, 16).state_dict(), tmp_path)
    assert load_encodec_lm(path).config.context_frames == expected
    assert load_encodec_lm(path).config.num_codebooks == levels
    assert load_encodec_lm(path, context_frames=77).config.context_frames == 77


def test_the_package_loads_what_is_exported(tmp_path):
    """Its LMModel takes the file as its own, and predicts with it what our evaluation does."""
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(num_codebooks=3, codebook_size=16, dim=16, num_layers=2, hidden_dim=64, context_frames=9))
    export_encodec_lm(lm, tmp_path / "lm.th")
    reference = original_lm(3, 16, context_frames=9, seed=1)
    reference.load_state_dict(torch.load(tmp_path / "lm.th", weights_only=True))
    codes = random_codes(3, 16, 5)
    for expected, actual in zip(stepwise(reference, codes), ours_stepwise(lm, codes), strict=True):
        assert torch.equal(expected, actual)


def test_export_inverts_loading(tmp_path):
    """The same tensors under the same names, and no byte more than they take."""
    reference = original_lm(32, 16)
    path = saved(reference.state_dict(), tmp_path)
    export_encodec_lm(load_encodec_lm(path), tmp_path / "again.th")
    again = torch.load(tmp_path / "again.th", weights_only=True)
    assert again.keys() == reference.state_dict().keys()
    assert all(torch.equal(value, again[key]) for key, value in reference.state_dict().items())
    assert (tmp_path / "again.th").stat().st_size < 1.01 * path.stat().st_size


def _without(key):
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


def _with(key, change):
    return lambda tensors: tensors | {key: change(tensors.get(key))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("emb.0.weight"), "missing emb.0.weight"),
        (_without("emb.2.weight"), "missing.*emb.2.weight"),
        (_without("linears.1.bias"), "missing.*linears.1.bias"),
        (_without("transformer.layers.0.linear1.weight"), "missing transformer.layers.0.linear1.weight"),
        (_without("transformer.layers.1.norm2.bias"), "missing.*norm2.bias"),
        (_with("extra", lambda _: torch.zeros(2)), "not of this codec.*extra|unknown.*extra"),
        (_with("linears.1.weight", lambda value: value[:-1]), r"linears.1.weight is \[15, 16\]"),
        (_with("emb.0.weight", lambda value: value[:, :-1]), "dim 15"),
        (_with("emb.0.weight", lambda value: value[0]), "not a matrix"),
        (_with("emb.0.weight", lambda value: value[:1]), "codebook_size must be positive"),
        (_with("emb.1.weight", lambda value: value.long()), "not of floats"),
        (_with("emb.1.weight", lambda value: value * torch.nan), "NaN"),
        (_with("emb.1.weight", lambda value: value.double() * 1e300), "infinite"),
        (_with("emb.1.weight", lambda _: [1.0]), "not a tensor"),
        (lambda _: {}, "missing emb.0.weight"),
        (lambda _: [1, 2], "no state dict"),
    ],
)
def test_files_are_checked(change, reason, tmp_path):
    """Missing, unknown, misshapen or useless tensors: an error that names the file and what is wrong."""
    path = saved(change(dict(original_lm(codebook_size=16).state_dict())), tmp_path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_encodec_lm(path)
    assert str(path) in str(caught.value)


def test_files_that_hold_code_are_not_run(tmp_path):
    """A pickled module is refused, as is a file whose name promises another hash."""
    with pytest.raises(CheckpointError, match="holds code"):
        load_encodec_lm(saved(original_lm(codebook_size=16), tmp_path))
    path = saved(original_lm(codebook_size=16).state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="corrupt or incomplete download"):
        load_encodec_lm(path.rename(tmp_path / "encodec_lm_24khz-1608e3c0.th"))


def test_models_that_the_layout_cannot_hold_are_not_exported(tmp_path):
    """Heads and period are not in the file: with others than the original's, it would predict something else."""
    small = {"num_codebooks": 2, "codebook_size": 16, "dim": 16, "num_layers": 1, "hidden_dim": 32}
    for config in (LMConfig(**small, num_heads=4), LMConfig(**small, max_period=100.0)):
        with pytest.raises(CheckpointError, match="8 heads and a period of 10000"):
            export_encodec_lm(TokenLM(config), tmp_path / "lm.th")
        with pytest.raises(CheckpointError, match="8 heads"):
            original_tensors(TokenLM(config))
    with pytest.raises(CheckpointError, match="sha256"):
        export_encodec_lm(TokenLM(LMConfig(**small)), tmp_path / "lm-01234567.th")
    assert not list(tmp_path.iterdir())
