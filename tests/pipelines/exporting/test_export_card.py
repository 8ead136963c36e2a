"""tokens.json: what turns ids back into codes, also ids that a model made."""

import json

import numpy as np
import pytest
import torch

from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.exporting.export_card import TokenCard, decode_tokens, make_card, read_token_card
from pipelines.exporting.export_sequences import SequenceMaker, SequenceSettings
from tests.pipelines.exports import write_small
from tokenizer import CodesError, DatasetError


@pytest.fixture(scope="module")
def dataset(tiny_codec_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("card") / "tokens"
    write_small(root, tiny_codec_dir, (5, 4))
    return str(root)


def card_of(dataset, **settings):
    info = read_dataset_info(dataset)
    return make_card(SequenceMaker(SequenceSettings(**settings), info), info, dataset, {"format": "parquet"})


def test_a_card_survives_json(dataset):
    """With the codec, its rates, and every id's meaning."""
    card = card_of(dataset, layout="delay", num_codebooks=2, offset=100)
    assert TokenCard.from_json(card.to_json()) == card
    plain = json.loads(card.to_json())
    assert plain["frame_rate"] == 3000.0
    assert plain["codec"]["sha256"] == read_dataset_info(dataset).codec["sha256"]
    assert plain["vocabulary_size"] == 100 + 17 + 5
    assert plain["sequences"]["vocabulary"]["special_tokens"]["begin_of_audio"] == 117


def test_what_a_model_made_is_decoded(dataset):
    """From a tensor, an array or a list, with text around the audio, finished or not."""
    card = card_of(dataset)
    special, codes = card.vocabulary.special_tokens, torch.randint(16, (4, 3))
    ids = torch.cat([torch.tensor([special.padding, special.padding]), card.vocabulary.sequence(codes)])
    for form in (ids, ids.numpy().astype(np.uint16), ids.tolist(), ids.int()):
        assert torch.equal(decode_tokens(form, card), codes)
    cut = ids[: 2 + 1 + 4 * 2 + 3]
    assert torch.equal(decode_tokens(cut, card, unfinished=True), codes[:, :2])
    with pytest.raises(CodesError, match="no end_of_audio"):
        decode_tokens(cut, card)


@pytest.mark.parametrize(("times", "message"), [(0, "0 stretches"), (2, "2 stretches")])
def test_one_stretch_of_audio_is_decoded(dataset, times, message):
    """None is an error, and so are several: Vocabulary.find_audio gives them all."""
    card = card_of(dataset)
    with pytest.raises(CodesError, match=message):
        decode_tokens(card.vocabulary.sequence(torch.zeros(4, 1, dtype=torch.int64)).tolist() * times, card)


def test_ids_are_integers(dataset):
    """Probabilities are no ids."""
    with pytest.raises(CodesError, match="integers"):
        decode_tokens(np.ones(3), card_of(dataset))


def test_where_the_codec_lies_is_no_difference(dataset):
    """The same weights at another place give the same codes."""
    card = card_of(dataset)
    moved = TokenCard.from_json(card.to_json())
    moved.codec["source"] = "elsewhere"
    assert card.describe_difference(moved) is None
    assert "layout: flatten there, delay asked for" in card.describe_difference(card_of(dataset, layout="delay"))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 2}', b'{"format": 1, "frame_rate": 1, "more": 0}'], ids=str
)
def test_a_damaged_card_is_refused(tmp_path, content):
    """It is named, and no vocabulary is guessed."""
    (tmp_path / "tokens.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"tokens.json is damaged|export format 2"):
        read_token_card(tmp_path)


def test_where_no_card_is_there_is_no_export(tmp_path):
    """The error says what was looked for."""
    with pytest.raises(DatasetError, match=r"no export, there is no tokens\.json"):
        read_token_card(tmp_path)
