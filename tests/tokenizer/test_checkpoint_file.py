"""Files that nobody vouches for: loading ends in a codec or a CheckpointError, and runs nothing."""

import hashlib
import json
import os
import pickle
import resource
import time
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, tiny_spec
from tokenizer import CheckpointError, export_codec, load_codec, save_codec
from tokenizer.checkpoint_file import MAX_BYTES, checked_tensors, read_json, read_torch_file


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Bytes of a tiny EnCodec file, and the identity of its codec."""
    path = tmp_path_factory.mktemp("original") / "mine.th"
    codec = make_codec(tiny_spec("mirrored"))
    export_codec(codec, path, layout="encodec")
    return path.read_bytes(), codec.sha256


def test_a_hash_in_the_name_is_checked(original, tmp_path):
    """Names like encodec_24khz-d7cc33bc.th promise the start of the file's sha256; the right one loads."""
    content, sha256 = original
    good = tmp_path / f"mine-{hashlib.sha256(content).hexdigest()[:8]}.th"
    good.write_bytes(content)
    assert load_codec(good).sha256 == sha256
    (tmp_path / "mine-01234567.th").write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt or incomplete download"):
        load_codec(tmp_path / "mine-01234567.th")


class Malicious:
    """Unpickled by a trusting reader, it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "beside weights", "in a directory"])
def test_code_in_a_file_is_not_run(how, tmp_path):
    """Nothing happens but an error that says so."""
    trap, path = tmp_path / "owned", tmp_path / "mine.th"
    content = {"encoder.model.0.conv.conv.weight": torch.zeros(1), "metadata": Malicious(trap)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    elif how == "in a directory":
        (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
        torch.save(content, tmp_path / "pytorch_model.bin")
        path = tmp_path
    else:
        content = content if how == "beside weights" else Malicious(trap)
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(CheckpointError, match=r"holds code beside its weights\. It was not run"):
        load_codec(path)
    assert not trap.exists()


def test_the_trap_works():
    """What the test above guards against would happen to a reader that trusts the file."""
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(Malicious("/tmp")))  # noqa: S108, S301 - it exists, so nothing is made


@given(cut=st.floats(0, 1, exclude_max=True), flips=st.lists(st.integers(0, 10**9), max_size=3))
@settings(max_examples=60, deadline=None)
def test_cut_and_altered_files_are_refused_or_harmless(original, cut, flips, tmp_path_factory):
    """Any prefix, with any bytes changed, is an error of ours; never a crash, a hang, or NaN in weights."""
    path = tmp_path_factory.mktemp("cut") / "mine.th"
    content = bytearray(original[0][: int(cut * len(original[0]))] if cut < 0.9 else original[0])
    for flip in flips:
        if content:
            content[flip % len(content)] ^= 1 + flip % 255
    path.write_bytes(content)
    try:
        codec = load_codec(path)
    except CheckpointError:
        return
    assert all(bool(torch.isfinite(value).all()) for value in codec.state_dict().values())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "not a torch checkpoint"),
        (b"hello", "not a torch checkpoint"),
        (b"PK\x03\x04" + b"\x00" * 100, "damaged, cut off"),
        (pickle.dumps([1, 2]), "not a torch checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "not a torch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not a torch checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_kind_are_refused(content, reason, tmp_path):
    """Pages of errors saved as weights, pointers of git LFS, noise."""
    (tmp_path / "mine.th").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path / "mine.th")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds list"),
        (torch.zeros(1), "holds Tensor"),
        ({}, "neither an EnCodec"),
        ({1: torch.zeros(1)}, "neither an EnCodec"),
        ({"encoder.model.0.x": 1}, "is int, not a tensor"),
        ({"encoder.model.0.x": torch.zeros(1), 1: 1}, "no state dict"),
        ({"encoder.model.0.x": torch.zeros(1)}, "fewer than three convolutions"),
        ({"state_dict": 1, "metadata": {"kwargs": {}}}, "no state dict"),
        ({"best_state": {}, "xp.cfg": "a: 1"}, "audiocraft.*not guessed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_torch_files_of_another_kind_are_refused(content, reason, tmp_path):
    """Valid files of torch that hold something else."""
    torch.save(content, tmp_path / "mine.th")
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path / "mine.th")


@pytest.mark.parametrize("name", ["mine.th", "config.json", "model.safetensors", "pytorch_model.bin"])
def test_oversized_files_are_not_read(name, tmp_path):
    """Eight gibibytes and a byte, of which none is on the disk: refused at once."""
    save_codec(make_codec(tiny_spec("seanet")), tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
        (tmp_path / "model.safetensors").unlink()
    with (tmp_path / name).open("ab") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match=f"{MAX_BYTES + 1} bytes, at most"):
        load_codec(tmp_path / name if name == "mine.th" else tmp_path)


def rezipped(content, path, change):
    """The archive of a torch file with its entries written anew."""
    (path.parent / "x.zip").write_bytes(content)
    with zipfile.ZipFile(path.parent / "x.zip") as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            change(entry)
            new.writestr(entry, data, compress_type=entry.compress_type)


def test_compressed_archives_are_refused(original, tmp_path):
    """torch.save stores; a compressed archive is a bomb, or made by something else."""

    def compress(entry):
        entry.compress_type = zipfile.ZIP_DEFLATED

    rezipped(original[0], tmp_path / "mine.th", compress)
    with pytest.raises(CheckpointError, match="compressed archive"):
        load_codec(tmp_path / "mine.th")
    rezipped(original[0], tmp_path / "stored.th", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_codec(tmp_path / "stored.th").sha256 == original[1]


def test_archives_that_claim_too_much_are_not_unpacked(original, tmp_path):
    """The sum of the declared sizes is looked at first."""
    with zipfile.ZipFile(tmp_path / "mine.th", "w") as archive:
        for index in range(3):
            archive.writestr(f"archive/data/{index}", b"x")
            archive.infolist()[-1].file_size = 2**32 - 2**8
    with pytest.raises(CheckpointError, match="unpacks to"):
        load_codec(tmp_path / "mine.th")


def legacy_bomb():
    """A state dict of one number, seen as a tensor of two to the forty."""
    return torch.zeros(1).expand(2**20, 2**20)


@pytest.mark.parametrize(
    "tensor",
    [
        legacy_bomb(),
        torch.zeros(2**40, device="meta"),
        torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (2**20, 2**20), check_invariants=True
        ),
    ],
    ids=["expanded", "meta", "sparse"],
)
def test_tensors_that_are_larger_than_their_file_are_refused(tensor, tmp_path):
    """A few bytes can stand for terabytes: nothing of the kind is copied, added up or converted."""
    torch.save({"encoder.model.0.conv.conv.weight": tensor}, tmp_path / "mine.th")
    with pytest.raises(CheckpointError, match=r"claims more values|not a plain tensor|damaged"):
        load_codec(tmp_path / "mine.th")


def test_one_storage_cannot_be_many_tensors():
    """Each is honest, all together claim more than a file may hold."""
    shared = torch.zeros(2**20)
    state = OrderedDict((f"key{index}", shared) for index in range(MAX_BYTES // 2**22 + 1))
    with pytest.raises(CheckpointError, match="claims more values"):
        checked_tensors(state, "here")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"{", "config.json"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "config.json"),
        (b'{"a":' * 100000, "config.json"),
        (b'{"format": ' + b"9" * 10000 + b"}", "config.json"),
    ],
    ids=["empty", "cut", "list", "not text", "deep", "long number"],
)
def test_bad_json_is_refused(content, reason, tmp_path):
    """Of any kind, by the name of the file."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        load_codec(tmp_path)


@pytest.mark.parametrize("how", ["directory", "pipe", "missing"])
def test_what_is_no_file_is_not_read(how, tmp_path):
    """A pipe would block, a directory has no bytes."""
    path = tmp_path / "config.json"
    if how == "directory":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "spec",
    [
        {"family": "seanet", "network": {"num_filters": 2**24, "strides": [2] * 16}, "hop_length": 2**16},
        {"family": "seanet", "network": {"num_filters": 2**10, "strides": [2] * 12}, "hop_length": 2**12},
        {"family": "patch", "network": {"width": 2**24, "hidden_width": 2**24}, "hop_length": 320},
        {"family": "patch", "network": {"encoder_blocks": 2**24}, "hop_length": 320},
        {"family": "patch", "network": {"patch_width": 2**24}, "hop_length": 2**24},
        {"family": "dac", "network": {"encoder_width": 2**24, "strides": [2] * 16}, "hop_length": 2**16},
        {"family": "seanet", "network": {"strides": [8]}, "hop_length": 8, "num_codebooks": 2**24},
        {"family": "seanet", "network": {"strides": [8], "num_residual_layers": 64}, "hop_length": 8},
    ],
    ids=str,
)
def test_absurd_sizes_fail_fast_and_cheap(spec, tmp_path):
    """Shapes are compared on tensors without memory: no config can make the reader allocate what the file has not."""
    save_codec(make_codec(tiny_spec("patch")), tmp_path)
    whole = {"sample_rate": 24000, "num_codebooks": 4, "codebook_size": 16, **spec}
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "name": "x", "spec": whole}))
    started, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load_codec(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 * 1024  # KiB
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "passwd"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "model-00001-of-00002.safetensors"),
    ],
    ids=str,
)
def test_bad_indexes_are_refused(index, reason, tmp_path):
    """Missing shards, and names that point out of the directory, of which only the last part counts."""
    save_codec(make_codec(tiny_spec("seanet")), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_codec(tmp_path)
    assert "etc" not in str(caught.value)
