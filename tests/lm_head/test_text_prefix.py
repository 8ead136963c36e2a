"""Transcripts in front of frames: always seen, never mixed up between rows."""

import pytest
import torch

from lm_head.text_prefix import SEPARATOR, TextEmbedding
from tests.lm_head.small_language import LEVELS, SIZE, tiny_lm

CODES = torch.randint(SIZE, (2, LEVELS, 30), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["parallel", "delay"])
def lm(request):
    """A model that takes transcripts, and whose frames see 12 before them."""
    return tiny_lm(request.param, text=True).requires_grad_(requires_grad=False)


def test_every_frame_sees_the_transcript(lm):
    """Also those far beyond the window of frames: another letter changes the logits of all."""
    difference = (lm(CODES, text=["ab", "ab"]) - lm(CODES, text=["ab", "ac"])).abs().amax(dim=(2, 3))
    assert difference[0].max() == 0
    assert difference[1].min() > 1e-6


def test_the_window_holds_for_frames_alone(lm):
    """Two layers of 12 frames: what lies further back than they reach is forgotten."""
    other = CODES.clone()
    other[..., 0] = (other[..., 0] + 1) % SIZE
    reach = 2 * 12 + LEVELS + 1
    difference = (lm(CODES, text=["a", "b"]) - lm(other, text=["a", "b"])).abs().amax(dim=(0, 2, 3))
    assert difference[1] > 1e-6
    assert difference[reach:].max() == 0


def test_rows_of_any_lengths_share_a_batch(lm):
    """A short transcript beside a long one is read as if it were alone."""
    texts = ["a", "zwölf Boxkämpfer jagen Viktor"]
    together = lm(CODES, text=texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row : row + 1], lm(CODES[row : row + 1], text=[text]))


def test_no_text_is_an_empty_transcript(lm):
    """None for all rows, or "" in each."""
    assert torch.equal(lm(CODES), lm(CODES, text=["", ""]))


@pytest.mark.parametrize("split", [[30], [1] * 30, [13, 1, 16]], ids=str)
def test_stepwise_is_at_once(split):
    """However frames are cut, the transcript is there."""
    lm = tiny_lm("parallel", text=True)
    texts = ["up", "and down"]
    logits, state = lm.begin(2, LEVELS, text=texts)
    pieces = [logits]
    for piece in CODES.split(split, dim=-1):
        logits, state = lm.step(piece, state)
        pieces.append(logits)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(pieces, dim=1)[:, :-1], lm(CODES, text=texts))


def test_transcripts_are_read_as_utf8():
    """One vector for each byte and one for the end, whatever the script."""
    x, visible = TextEmbedding(8, 10000.0)(["ü", "abc", ""])
    assert x.shape == (3, 4, 8)
    assert visible.sum(dim=1).tolist() == [3, 4, 1]
    assert SEPARATOR == 256


@pytest.mark.parametrize("text", ["up", ["up"], ["up", "up", "up"]], ids=str)
def test_every_row_needs_a_transcript(lm, text):
    """A string is not a list of its letters, and none is left over or shared."""
    with pytest.raises(ValueError, match="one transcript for each of 2 rows"):
        lm(CODES, text=text)
