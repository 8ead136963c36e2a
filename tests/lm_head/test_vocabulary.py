"""Vocabularies: ids of a language model, and sequences of audio and text that can be taken apart again."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_head.layouts import LAYOUTS, make_layout
from lm_head.vocabulary import ORDERS, SpecialTokens, Vocabulary
from tokenizer import CodesError

CODES = torch.tensor([[1, 2, 3], [4, 5, 6]])  # K 2, T 3
TEXT = torch.tensor([7, 9])


def small(name, offset=100):
    """Two levels of 8 entries behind 100 ids of text, and special ids from 200 on."""
    layout = make_layout(name, num_codebooks=2, codebook_size=8)
    return Vocabulary(layout, offset, SpecialTokens.placed(200))


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("flatten", [200, 101, 112, 102, 113, 103, 114, 201, 202, 7, 9, 203]),
        ("coarse_first", [200, 101, 102, 103, 112, 113, 114, 201, 202, 7, 9, 203]),
    ],
)
def test_what_a_sequence_looks_like(name, ids):
    """Audio between its special ids, then the text between its own."""
    assert small(name).sequence(CODES, TEXT, "audio_text").tolist() == ids


def test_what_a_sequence_of_levels_looks_like():
    """A row for each step: what is no audio stands at level 0, and padding below it."""
    padding = 204
    audio = [[101, 108], [102, 104], [103, 105], [108, 106]]
    said = [[step, padding] for step in (202, 7, 9, 203)]
    sequence = small("delay").sequence(CODES, TEXT, "text_audio").tolist()
    assert sequence == [*said, [200, padding], *audio, [201, padding]]


@st.composite
def vocabularies(draw):
    """Any layout, with the audio anywhere and special ids before, behind or on both sides of it."""
    layout = make_layout(
        draw(st.sampled_from(sorted(LAYOUTS))),
        num_codebooks=draw(st.integers(1, 9)),
        codebook_size=draw(st.sampled_from([1, 2, 16, 1024])),
    )
    offset = draw(st.integers(10, 70000))
    behind = offset + layout.vocabulary_size
    named = draw(st.dictionaries(st.sampled_from(["begin_of_audio", "end_of_text"]), st.integers(5, 9), max_size=2))
    if len(set(named.values())) < len(named):
        named = {}
    return Vocabulary(layout, offset, SpecialTokens.placed(behind + draw(st.integers(0, 3)), named))


def codes_for(vocabulary, num_frames, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (vocabulary.layout.num_codebooks, num_frames)
    return torch.randint(vocabulary.layout.codebook_size, shape, generator=generator)


@settings(deadline=None)
@given(
    vocabulary=vocabularies(),
    order=st.sampled_from(ORDERS),
    num_frames=st.integers(0, 12),
    text=st.lists(st.integers(0, 4), max_size=6),
    seed=st.integers(0, 99),
)
def test_codes_and_text_come_back_from_any_sequence(vocabulary, order, num_frames, text, seed):
    """Exactly, with every id below the size of the vocabulary, also out of several clips in a row with padding."""
    codes = codes_for(vocabulary, num_frames, seed)
    said = None if order == "audio" else torch.tensor(text, dtype=torch.int64)
    sequence = vocabulary.sequence(codes, said, order)
    assert int(sequence.max()) < vocabulary.size
    assert int(sequence.min()) >= 0
    padding = vocabulary.steps([vocabulary.special_tokens.padding])
    several = torch.cat([sequence, padding, sequence, padding])
    found = vocabulary.find_audio(several)
    assert len(found) == 2
    assert all(torch.equal(some, codes) for some in found)
    assert [some.tolist() for some in vocabulary.find_text(several)] == ([] if said is None else [text, text])


@settings(deadline=None)
@given(vocabulary=vocabularies(), num_frames=st.integers(0, 12), seed=st.integers(0, 99))
def test_bare_audio_can_be_undone(vocabulary, num_frames, seed):
    """Without special tokens a sequence is the codes of one clip."""
    bare = Vocabulary(vocabulary.layout, vocabulary.offset)
    codes = codes_for(bare, num_frames, seed)
    assert torch.equal(bare.codes(bare.audio(codes)), codes)
    (found,) = bare.find_audio(bare.sequence(codes))
    assert torch.equal(found, codes)
    assert bare.find_text(bare.sequence(codes)) == []


@settings(deadline=None)
@given(vocabulary=vocabularies(), cut=st.integers(0, 60), seed=st.integers(0, 99))
def test_audio_that_breaks_off_gives_the_frames_that_are_whole(vocabulary, cut, seed):
    """The first frames, as many as have all their levels; none can be told where the finest level comes last."""
    codes = codes_for(vocabulary, 6, seed)
    sequence = vocabulary.sequence(codes)[: cut + 1]
    name, levels, steps = vocabulary.layout.name, len(codes), len(sequence) - 1
    ended = int(sequence.reshape(len(sequence), -1)[-1, 0]) == vocabulary.special_tokens.end_of_audio
    if not ended:
        with pytest.raises(CodesError, match="no end_of_audio"):
            vocabulary.find_audio(sequence)
    if name == "coarse_first" and not ended:
        with pytest.raises(CodesError, match="break off"):
            vocabulary.find_audio(sequence, unfinished=True)
        return
    (found,) = vocabulary.find_audio(sequence, unfinished=True)
    whole = {"flatten": steps // levels, "parallel": steps, "delay": max(0, steps - levels + 1)}
    assert torch.equal(found, codes if ended else codes[:, : whole[name]])


@settings(deadline=None)
@given(vocabulary=vocabularies())
def test_a_vocabulary_survives_json(vocabulary):
    """What is written beside tokens gives the same vocabulary back."""
    bare = Vocabulary(vocabulary.layout, vocabulary.offset)
    for one in (vocabulary, bare):
        assert Vocabulary.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_special_ids_have_places():
    """Those that are named where they are wanted, the others one after another, around them."""
    placed = SpecialTokens.placed(10, {"end_of_audio": 3, "padding": 11})
    assert placed.to_dict() == {
        "begin_of_audio": 10,
        "end_of_audio": 3,
        "begin_of_text": 12,
        "end_of_text": 13,
        "padding": 11,
    }
    with pytest.raises(ValueError, match="'begin' is not one of begin_of_audio"):
        SpecialTokens.placed(10, {"begin": 3})


@pytest.mark.parametrize(
    ("offset", "special", "message"),
    [
        (-1, None, "begin at 0"),
        (0, SpecialTokens.placed(15), "15 is one of the audio ids, 0 to 15"),
        (0, SpecialTokens.placed(20, {"padding": 20, "end_of_text": 20}), "of their own"),
        (5, SpecialTokens.placed(30, {"padding": -1}), "begin at 0"),
    ],
)
def test_an_id_means_one_thing(offset, special, message):
    """Audio and special ids do not overlap."""
    with pytest.raises(ValueError, match=message):
        Vocabulary(make_layout("flatten", num_codebooks=2, codebook_size=8), offset, special)


@pytest.mark.parametrize("text", [[101], [200], [-1], [1.5]], ids=str)
def test_text_must_not_look_like_audio(text):
    """An id of the tokenizer that means something else here is refused, not exported."""
    with pytest.raises(CodesError, match="text"):
        small("flatten").sequence(CODES, torch.tensor(text), "audio_text")


def test_orders_and_vocabularies_go_together():
    """Text needs an order that has it, and special tokens."""
    with pytest.raises(ValueError, match="takes no text"):
        small("flatten").sequence(CODES, TEXT, "audio")
    with pytest.raises(ValueError, match="needs text"):
        small("flatten").sequence(CODES, None, "audio_text")
    with pytest.raises(ValueError, match="audio, audio_text, text_audio"):
        small("flatten").sequence(CODES, TEXT, "text")
    with pytest.raises(ValueError, match="nothing tells text from audio"):
        Vocabulary(make_layout("flatten", num_codebooks=2, codebook_size=8)).sequence(CODES, TEXT, "audio_text")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([200, 101], "no end_of_audio"),
        ([101, 201], "not begun"),
        ([200, 200, 201], "not ended"),
        ([200, 101, 7, 201], "flatten"),  # text inside audio
        ([200, 112, 101, 201], "flatten"),  # levels swapped
        ([[200, 101], [201, 201]], r"are \[N\]"),
    ],
    ids=str,
)
def test_sequences_of_no_codes_are_refused(ids, message):
    """Never noise: an error that says where."""
    with pytest.raises(CodesError, match=message):
        small("flatten").find_audio(torch.tensor(ids))


@pytest.mark.parametrize("ids", [[202, 7], [202, 101, 203], [7, 203]], ids=str)
def test_text_ends_and_is_text(ids):
    """A stretch of text that is none is refused as audio is."""
    with pytest.raises(CodesError, match="text"):
        small("flatten").find_text(torch.tensor(ids))


@pytest.mark.parametrize("plain", [{}, {"layout": "flatten", "num_codebooks": 2, "codebook_size": 8, "offset": 0}, []])
def test_what_describes_no_vocabulary_is_refused(plain):
    """A card that lacks something is an error."""
    with pytest.raises(ValueError, match="no vocabulary"):
        Vocabulary.from_dict(plain)
