"""Small datasets to export, and readers of what was exported that know nothing of how it was written."""

import io
import json
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.datasets.parts import part_name
from tests.pipelines.token_datasets import write_codes

BYTE_IDS = 256  # of the byte tokenizer


def random_codes(lengths, num_codebooks=4, codebook_size=16, seed=0):
    """Codes [K, T] by id, of these lengths."""
    rng = np.random.default_rng(seed)
    return {f"u/{n}.x.wav": rng.integers(0, codebook_size, (num_codebooks, t)) for n, t in enumerate(lengths)}


def write_small(root, codec_dir, lengths, *, texts=None, rows_per_part=4):
    """A dataset of utterances of these lengths, with a column `text` if texts are given; returns codes by id."""
    codes = random_codes(lengths)
    write_codes(root, codec_dir, codes, rows_per_part=rows_per_part)
    if texts is not None:
        values = iter(texts)

        def with_text(table):
            column = pa.array([next(values) for _ in range(table.num_rows)], pa.string())
            return table.append_column("text", column)

        for number in range(len(list(Path(root, "parts").iterdir()))):
            rewrite_part(root, number, with_text)
    return codes


def rewrite_part(root, number, change):
    """A part as another tool may have written it: a changed table, in row groups of two, without a commit record."""
    path = Path(root, "parts", part_name(number))
    pq.write_table(change(pq.read_table(path)), path, row_group_size=2, write_page_checksum=True)
    shutil.rmtree(Path(root, "records"), ignore_errors=True)


def write_tokenizer(path, **changes):
    """A tokenizer.json whose ids are bytes, or characters for bytes; returns its path."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    Path(path).write_text(json.dumps(json.loads(tokenizer.to_str()) | changes))
    return str(path)


def text_ids(tokenizer, text):
    """The ids of a text, by the package itself."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(tokenizer).encode(text, add_special_tokens=False).ids


def read_exported(out, file_format):
    """Ids of every sequence in order, with the utterance's id where the format has it."""
    readers = {"parquet": read_parquet, "webdataset": read_tars, "megatron": read_megatron}
    return readers[file_format](Path(out))


def read_parquet(out):
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [(row["id"], np.array(row["input_ids"])) for row in rows]


def read_tars(out):
    rows = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member)) for member in tar]
            for (ids_name, ids), (facts_name, facts) in zip(members[::2], members[1::2], strict=True):
                assert (ids_name, facts_name) == (f"{len(rows):012d}.npy", f"{len(rows):012d}.json")
                rows.append((json.load(facts)["id"], np.lib.format.read_array(io.BytesIO(ids.read()))))
    return rows


def read_megatron(out):
    """By the format alone: header, lengths, pointers, documents."""
    content = (out / "tokens.idx").read_bytes()
    magic, version, kind, num_sequences, num_documents = struct.unpack_from("<9sQBQQ", content)
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    dtype = {4: np.dtype("<i4"), 8: np.dtype("<u2")}[kind]
    lengths = np.frombuffer(content, "<i4", num_sequences, 34)
    pointers = np.frombuffer(content, "<i8", num_sequences, 34 + 4 * num_sequences)
    documents = np.frombuffer(content, "<i8", num_documents, 34 + 12 * num_sequences)
    assert len(content) == 34 + 12 * num_sequences + 8 * num_documents
    assert documents.tolist() == list(range(num_sequences + 1))
    data = (out / "tokens.bin").read_bytes()
    assert len(data) == lengths.sum() * dtype.itemsize
    spans = zip(lengths.tolist(), pointers.tolist(), strict=True)
    return [(None, np.frombuffer(data, dtype, length, pointer)) for length, pointer in spans]


def bytes_below(root):
    """Content of all files below a directory, by their paths in it."""
    names = [file.uri for file in storage.list_files(str(root))]
    return {name[len(str(root)) :]: storage.read_bytes(name) for name in names}
