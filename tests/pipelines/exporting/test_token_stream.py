"""Token datasets for PyTorch: every row once over ranks and workers, and a resume that is exact wherever it happens."""

import functools
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lm_head.layouts import LAYOUTS
from pipelines import storage
from pipelines.exporting.export_sequences import SequenceSettings
from pipelines.exporting.token_stream import StreamSettings, TokenStream, collate_tokens
from tests.pipelines.exports import bytes_below, write_small, write_tokenizer
from tokenizer import DatasetError

LENGTHS = (5, 1, 9, 12, 3, 7, 2, 8, 6, 4, 11)


@pytest.fixture(scope="module")
def dataset(tiny_codec_dir, tmp_path_factory):
    """Eleven utterances in four parts."""
    root = tmp_path_factory.mktemp("stream") / "tokens"
    return str(root), write_small(root, tiny_codec_dir, LENGTHS, rows_per_part=3)


def stream_of(dataset, sequences=None, **settings):
    return TokenStream(dataset[0], sequences, StreamSettings(**settings))


def plain(item):
    """An item as values that can be compared."""
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in item.items()}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("seed", [None, 0])
def test_every_row_comes_once_and_gives_its_codes_back(dataset, layout, seed):
    """In any layout, stored order or shuffled."""
    stream = stream_of(dataset, SequenceSettings(layout=layout, num_codebooks=3), seed=seed)
    items = list(stream)
    names = [item["id"] for item in items]
    assert sorted(names) == sorted(dataset[1])
    assert (names == list(dataset[1])) == (seed is None)
    for item in items:
        assert item["input_ids"].dtype == torch.int64
        (codes,) = stream.card.vocabulary.find_audio(item["input_ids"])
        assert np.array_equal(codes, dataset[1][item["id"]][:3])


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (3, 2), (20, 0)])
def test_every_row_comes_once_over_all_ranks_and_workers(dataset, world_size, num_workers):
    """None twice, none lost, also where there are more ranks than rows."""
    names = []
    for rank in range(world_size):
        stream = stream_of(dataset, seed=0, rank=rank, world_size=world_size)
        loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
        names += [item["id"] for item in loader]
    assert sorted(names) == sorted(dataset[1])


def test_workers_read_from_s3(dataset, bucket):
    """Also where the process that forked them has read from there before."""
    for name, content in bytes_below(dataset[0]).items():
        storage.commit(f"{bucket}/tokens{name}", content)
    stream = TokenStream(f"{bucket}/tokens", settings=StreamSettings(seed=0))
    names = [item["id"] for item in stream]
    assert names == [item["id"] for item in stream_of(dataset, seed=0)]
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(item["id"] for item in loader) == sorted(names)


@pytest.mark.parametrize(("uneven", "each"), [("drop", 3), ("repeat", 4)])
def test_ranks_may_have_equally_many_rows(dataset, uneven, each):
    """Of eleven rows three ranks get three each, or four and one of them twice."""
    names = [
        [item["id"] for item in stream_of(dataset, seed=0, rank=rank, world_size=3, uneven=uneven)] for rank in range(3)
    ]
    assert [len(own) for own in names] == [each] * 3
    assert len(set(itertools.chain(*names))) == min(3 * each, len(LENGTHS))


@pytest.mark.parametrize("sequence_length", [None, 1, 7, 64, 10_000])
@pytest.mark.parametrize("layout", ["flatten", "delay"])
@pytest.mark.parametrize("seed", [None, 3])
def test_resume_is_exact_at_every_position(dataset, sequence_length, layout, seed):
    """What comes after a state is what would have come, through JSON and in a new stream."""
    arguments = {"seed": seed, "parts_mixed": 2, "rank": 1, "world_size": 2, "sequence_length": sequence_length}
    sequences = SequenceSettings(layout=layout, num_codebooks=2)
    stream = stream_of(dataset, sequences, **arguments)
    states, items = [json.dumps(stream.state_dict())], []
    for item in stream:
        items.append(plain(item))
        states.append(json.dumps(stream.state_dict()))
    assert items
    for number, state in enumerate(states):
        resumed = stream_of(dataset, sequences, **arguments)
        resumed.load_state_dict(json.loads(state))
        assert [plain(item) for item in resumed] == items[number:]


def test_an_endless_stream_resumes_in_any_epoch(dataset):
    """Every epoch has another order, and blocks go across its end without padding."""
    arguments = {"seed": 1, "repeat": True, "sequence_length": 50}
    stream, states, items = stream_of(dataset, **arguments), [], []
    for item in itertools.islice(stream, 20):
        items.append(plain(item))
        states.append(stream.state_dict())
    assert states[-1]["epoch"] > 1
    padding = stream.card.vocabulary.special_tokens.padding
    assert not any(padding in item["input_ids"] for item in items)
    for number, state in enumerate(states[:-1]):
        resumed = stream_of(dataset, **arguments)
        resumed.load_state_dict(state)
        assert [plain(item) for item in itertools.islice(resumed, 19 - number)] == items[number + 1 :]


def test_epochs_have_orders_of_their_own(dataset):
    """set_epoch chooses; the same epoch is the same again; a place that was loaded is kept in its own epoch."""
    stream, orders = stream_of(dataset, seed=0), []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([item["id"] for item in stream])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == sorted(dataset[1])
    stream.set_epoch(1)
    for _ in zip(range(4), stream, strict=False):
        state = stream.state_dict()
    resumed = stream_of(dataset, seed=0)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert [item["id"] for item in resumed] == orders[1][4:]
    resumed.set_epoch(0)
    assert [item["id"] for item in resumed] == orders[0]


def test_a_new_iteration_begins_anew(dataset):
    """Breaking off loses nothing but the place, which only a state keeps."""
    stream = stream_of(dataset)
    first = [item["id"] for item in itertools.islice(stream, 3)]
    assert [item["id"] for item in itertools.islice(stream, 3)] == first


@pytest.mark.parametrize("layout", ["flatten", "parallel"])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_blocks_are_the_sequences_end_to_end(dataset, layout, length):
    """With the borders of documents, and padding behind the last one only."""
    sequences = SequenceSettings(layout=layout)
    stream = stream_of(dataset, sequences, sequence_length=length)
    blocks = list(stream)
    whole = torch.cat([item["input_ids"] for item in stream_of(dataset, sequences)])
    ids = torch.cat([block["input_ids"] for block in blocks])
    documents = torch.cat([block["document_ids"] for block in blocks])
    assert {len(block["input_ids"]) for block in blocks} == {length}
    assert torch.equal(ids[: len(whole)], whole)
    assert (ids[len(whole) :] == stream.card.vocabulary.special_tokens.padding).all()
    assert (documents == -1).sum() == len(ids) - len(whole) < length
    begins = ids.reshape(len(ids), -1)[:, 0] == stream.card.vocabulary.special_tokens.begin_of_audio
    for block, begin in zip(blocks, begins.split(length), strict=True):
        positions, inside = block["position_ids"], block["document_ids"] >= 0
        assert ((positions == 0) | ~begin).all()  # a document begins at 0
        starts = (positions == 0) & inside
        assert (starts.cumsum(0) - 1)[inside].tolist() == block["document_ids"][inside].tolist()
    whole_blocks = list(stream_of(dataset, sequences, sequence_length=length, keep_last=False))
    assert len(whole_blocks) == len(whole) // length


def test_batches_are_padded(dataset):
    """The mask says where sequences end."""
    stream = stream_of(dataset, SequenceSettings(layout="delay"))
    padding = stream.card.vocabulary.special_tokens.padding
    collate = functools.partial(collate_tokens, padding=padding)
    for batch in DataLoader(stream, batch_size=4, collate_fn=collate):
        for name, ids, mask in zip(batch["id"], batch["input_ids"], batch["attention_mask"], strict=True):
            (codes,) = stream.card.vocabulary.find_audio(ids[mask])
            assert np.array_equal(codes, dataset[1][name])
            assert (ids[~mask] == padding).all()


@pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")  # torchdata's own, with torch 2.13
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("sequence_length", [None, 40])
def test_torchdata_resumes_workers(dataset, num_workers, sequence_length):
    """StatefulDataLoader asks each worker for its state, and goes on exactly."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        stream = stream_of(dataset, seed=0, rank=0, world_size=1, sequence_length=sequence_length)
        return stateful.StatefulDataLoader(stream, batch_size=None, num_workers=num_workers)

    items = [plain(item) for item in loader()]
    assert len(items) > 6
    for number in range(0, len(items), 5):
        first = loader()
        begun = [plain(item) for item in itertools.islice(first, number)]
        state = pickle.loads(pickle.dumps(first.state_dict()))  # noqa: S301 - our own
        second = loader()
        second.load_state_dict(state)
        assert begun + [plain(item) for item in second] == items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"rank": 1}, "rank 0 of 2 there, 1 of 2 here"),
        ({"world_size": 3}, "rank 0 of 2 there, 0 of 3 here"),
        ({"sequence_length": 8}, "sequence_length None there, 8 here"),
        ({"sequences": SequenceSettings(layout="delay")}, "sequences"),
    ],
    ids=str,
)
def test_a_state_of_another_stream_is_refused(dataset, change, message):
    """It would not be the next items that come."""
    arguments = {"seed": 0, "rank": 0, "world_size": 2}
    state = stream_of(dataset, **arguments).state_dict()
    with pytest.raises(ValueError, match=message):
        stream_of(dataset, **(arguments | change)).load_state_dict(state)
    with pytest.raises(ValueError, match="another stream"):
        stream_of(dataset, **arguments).load_state_dict({})


def test_text_comes_with_the_audio(tiny_codec_dir, tmp_path):
    """As in an export; rows without it are skipped, and resume counts them."""
    pytest.importorskip("tokenizers")
    texts = ("a b", None, "c", None, "d", "e")
    write_small(tmp_path / "tokens", tiny_codec_dir, (2, 3, 1, 4, 5, 2), texts=texts)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    sequences = SequenceSettings(order="text_audio", text_tokenizer=tokenizer, without_text="skip")
    stream = TokenStream(tmp_path / "tokens", sequences)
    names = []
    for item in stream:
        names.append(item["id"])
        again = TokenStream(tmp_path / "tokens", sequences)
        again.load_state_dict(stream.state_dict())
        assert names + [other["id"] for other in again] == [f"u/{number}.x.wav" for number in (0, 2, 4, 5)]
    loader = DataLoader(TokenStream(tmp_path / "tokens", sequences), batch_size=None, num_workers=2)
    assert sorted(item["id"] for item in loader) == sorted(names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uneven": "cut"}, "keep, drop, repeat"),
        ({"parts_mixed": 0}, "positive"),
        ({"sequence_length": 0}, "positive"),
        ({"seed": -1}, "negative"),
        ({"rank": 0}, "both"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
    ],
    ids=str,
)
def test_settings_are_checked(settings, message):
    """When they are made."""
    with pytest.raises(ValueError, match=message):
        StreamSettings(**settings)


def test_what_could_never_give_anything_is_refused(dataset, tiny_codec_dir, tmp_path):
    """No padding for a last block; no rows; an endless search."""
    bare = SequenceSettings(bare=True)
    with pytest.raises(ValueError, match="keep_last=False"):
        stream_of(dataset, bare, sequence_length=8)
    assert len(list(stream_of(dataset, bare, sequence_length=8, keep_last=False))) == 4 * sum(LENGTHS) // 8
    with pytest.raises(ValueError, match="epoch -1"):
        stream_of(dataset).set_epoch(-1)
    write_small(tmp_path / "empty", tiny_codec_dir, (0, 0))
    with pytest.raises(DatasetError, match="the 2 rows of worker 0 of rank 0 give no sequence"):
        next(iter(TokenStream(tmp_path / "empty", settings=StreamSettings(repeat=True))))
