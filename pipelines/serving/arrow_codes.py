"""Codes as Arrow: one row of a token dataset, as an IPC stream or file.

`codes_00`, `codes_01` ... are lists of integers, one column for each level, as datasets store them; `num_samples` and
`scales` count where they are there, other columns do not.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.datasets.parts import level_column
from pipelines.serving.codes_body import MAX_SCALES, CodesBody, CodesLimits, stacked_levels
from pipelines.serving.service_errors import bad_request, invalid_argument
from tokenizer import CodesError

_FILE_MAGIC = b"ARROW1\0\0"  # a file is a stream between this and a footer
# What pyarrow, and what is done with its answers here, raises for bytes that lie; ValueError is also its ArrowInvalid.
_DAMAGE = (pa.ArrowException, ValueError, LookupError, OSError, EOFError, StopIteration, struct.error)
_FILE_END = 10  # bytes behind the footer
_MAX_COLUMNS = 1000
_ONE_ROW = "one row of codes is decoded at a time: these are several record batches, or none"
# Fields of Message.fbs and File.fbs of Apache Arrow. pyarrow checks these FlatBuffers, but does not show all of them.
_HEADER_OF_MESSAGE, _COMPRESSION_OF_BATCH, _BATCHES_OF_FOOTER = 2, 3, 3


def read_arrow_codes(body: bytes, limits: CodesLimits) -> CodesBody:
    """Read one row.

    Raises:
        RequestError: not Arrow, damaged, compressed, or not one row.
        CodesError: codes that are not lists of integers, equally long; columns of codes are missing.
    """
    try:
        return _read(_only_batch(body), limits)
    except _DAMAGE as error:
        text = str(error)[:200] or type(error).__name__
        raise bad_request(f"the body is not an Arrow IPC stream or file, or damaged: {text}") from error


def write_arrow_codes(codes: NDArray[np.integer], fields: dict[str, Any]) -> bytes:
    """Fields and codes [K, T] as one row, an IPC stream."""
    columns = {name: pa.array([value]) for name, value in fields.items()}
    for level, values in enumerate(codes):
        columns[level_column(level)] = pa.array([values.astype(np.uint16)], pa.list_(pa.uint16()))
    batch = pa.record_batch(columns)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(stream.getvalue())


def _read(batch: Any, limits: CodesLimits) -> CodesBody:
    batch.validate(full=True)
    if batch.num_rows != 1:
        raise bad_request(f"one row of codes is decoded at a time, these are {batch.num_rows}")
    levels = [name for name in map(level_column, range(limits.max_levels + 1)) if name in batch.schema.names]
    if levels != [level_column(level) for level in range(len(levels))]:
        raise CodesError(f"columns of codes are codes_00, codes_01 and so on, without gaps: these are {levels}")
    limits.check_levels(len(levels))
    codes = stacked_levels([_values(batch, name, pa.types.is_integer) for name in levels], limits)
    return CodesBody(codes, _options(batch))


def _only_batch(body: bytes) -> Any:
    if body.startswith(_FILE_MAGIC):
        schema, message = _only_message_of_file(body)
    else:
        schema, message = _only_message_of_stream(body)
    if len(schema) > _MAX_COLUMNS:
        raise bad_request(f"a row has at most {_MAX_COLUMNS} columns here, not {len(schema)}")
    if message.type != "record batch":
        raise bad_request(f"a record batch is read here, not a {message.type}: write columns without dictionaries")
    metadata = message.metadata.to_pybytes()
    header = _target(metadata, _field(metadata, _target(metadata, 0), _HEADER_OF_MESSAGE))
    if _field(metadata, header, _COMPRESSION_OF_BATCH):
        # its buffers say how large they will get, and Arrow believes them before it has seen a byte
        raise bad_request("compressed Arrow is not read here: write it without compression")
    return pa.ipc.read_record_batch(message, schema)


def _only_message_of_stream(body: bytes) -> tuple[Any, Any]:
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    first = messages.read_next_message()
    if first.type != "schema":  # pyarrow reads it as one without asking, and the process is gone
        raise bad_request(f"an Arrow IPC stream begins with a schema, not with a {first.type}")
    schema = pa.ipc.read_schema(first)
    message = messages.read_next_message()
    try:
        messages.read_next_message()
    except StopIteration:
        return schema, message
    raise bad_request(_ONE_ROW)


def _only_message_of_file(body: bytes) -> tuple[Any, Any]:
    """The one batch that the footer of a file lists; what else lies in the file does not count."""
    file = pa.ipc.open_file(pa.py_buffer(body))  # checks the footer
    if file.num_record_batches != 1:
        raise bad_request(_ONE_ROW)
    footer_bytes = struct.unpack_from("<I", body, len(body) - _FILE_END)[0]
    footer = body[len(body) - _FILE_END - footer_bytes :]
    blocks = _target(footer, _field(footer, _target(footer, 0), _BATCHES_OF_FOOTER))
    offset = struct.unpack_from("<q", footer, blocks + 4)[0]  # behind the number of blocks
    if not 0 <= offset < len(body):
        raise bad_request("the Arrow file says that its batch lies outside of it")
    return file.schema, pa.ipc.read_message(pa.py_buffer(body[offset:]))


def _field(data: bytes, table: int, slot: int) -> int:
    """Where a field of a FlatBuffer's table stands, 0 for none: a table begins with the distance to their list."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * slot >= struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, fields + 4 + 2 * slot)[0])
    return table + offset if offset else 0


def _target(data: bytes, at: int) -> int:
    """What an offset points to."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _values(batch: Any, name: str, is_kind: Any) -> NDArray[Any]:
    """The list in a column."""
    kind = batch.schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not is_kind(kind.value_type):
        raise CodesError(f"column {name} has the wrong type: {str(kind)[:60]}")
    values = batch.column(name)[0].values
    if values is None or values.null_count:
        raise CodesError(f"column {name} has nulls")
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _options(batch: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "num_samples" in batch.schema.names:
        options["num_samples"] = batch.column("num_samples")[0].as_py()
    if "scales" in batch.schema.names and batch.column("scales")[0].is_valid:
        scales = _values(batch, "scales", pa.types.is_floating)
        if len(scales) > MAX_SCALES:
            raise invalid_argument(f"scales: at most {MAX_SCALES}, not {len(scales)}")
        options["scales"] = scales.tolist()
    return options
