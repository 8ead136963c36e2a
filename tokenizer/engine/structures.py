"""The structures of kernels/program.h, as ctypes has them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from enum import IntEnum


class Kind(IntEnum):
    """Operations of a program."""

    MATRIX = 0
    LSTM = 1
    DEPTHWISE = 2
    LAYER_NORM = 3
    GROUP_NORM = 4
    SPECTRUM = 5
    OVERLAP_ADD = 6
    FEW_COLUMNS = 7


class Activation(IntEnum):
    """What an operation does to its result on the way out."""

    NONE = 0
    ELU = 1
    GELU = 2


class Result(IntEnum):
    """What a run says."""

    DONE = 0
    TOO_SHORT = 1
    NO_MEMORY = 2


class BufferStruct(Structure):
    """Rows that operations read and write."""

    _fields_ = (
        ("width", c_int32),
        ("left", c_int32),
        ("right", c_int32),
        ("narrow", c_int32),
        ("whole", c_int32),
        ("mirrored", c_int32),
        ("state", c_int64),
    )


class SegmentStruct(Structure):
    """A part of a window."""

    _fields_ = (("buffer", c_int32), ("row", c_int32), ("length", c_int32))


class OperationStruct(Structure):
    """One step of a program."""

    _fields_ = (
        *((name, c_int32) for name in ("kind", "activation", "group", "block", "input", "second", "output", "active")),
        *((name, c_int32) for name in ("num_segments", "stride", "up", "extra", "trim", "columns")),
        *((name, c_int32) for name in ("statistics", "second_statistics", "layers", "length")),
        *((name, c_int32) for name in ("recurrent_bytes", "windows", "units")),
        ("state", c_int64),
        ("segments", POINTER(SegmentStruct)),
        *((name, c_void_p) for name in ("weights", "unit_weights", "unit_scales", "column_scales", "bias")),
        *((name, POINTER(c_void_p)) for name in ("layer_scales", "layer_weights", "layer_compact", "layer_biases")),
        *((name, c_void_p) for name in ("gain", "shift", "second_gain", "second_shift")),
    )


class CallStruct(Structure):
    """One run of a program."""

    _fields_ = (
        ("operations", POINTER(OperationStruct)),
        ("buffers", POINTER(BufferStruct)),
        *((name, c_int32) for name in ("num_operations", "num_buffers", "num_statistics", "start", "narrow_input")),
        *((name, c_int64) for name in ("streams", "rows", "state_size")),
        *((name, c_void_p) for name in ("input", "output", "state", "next_state")),
    )


class SearchStruct(Structure):
    """One search of codes."""

    _fields_ = (
        ("packed", POINTER(c_void_p)),
        *((name, c_int32) for name in ("narrow", "levels", "entries", "width")),
        ("pitch", c_int64),
        *((name, c_void_p) for name in ("norms", "lengths", "centres", "codebooks")),
        *((name, c_void_p) for name in ("starts", "entry_scales", "longest", "roundings")),
        ("frames", c_int64),
        *((name, c_void_p) for name in ("latents", "codes")),
    )


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the functions of kernels/dispatch.cpp."""
    for level in (library.quantone_best_level, library.quantone_usual_level):
        level.argtypes = ()
        level.restype = c_int32
    library.quantone_packed_floats.argtypes = (c_int32, c_int32, c_int32)
    library.quantone_packed_floats.restype = c_int64
    library.quantone_pack.argtypes = (c_int32, c_void_p, c_int32, c_int32, c_int32, c_void_p)
    library.quantone_pack.restype = None
    library.quantone_compact_floats.argtypes = (c_int32, c_int32, c_int32, c_int32)
    library.quantone_compact_floats.restype = c_int64
    library.quantone_pack_compact.argtypes = (c_int32, c_void_p, c_int32, c_int32, c_int32, c_void_p)
    library.quantone_pack_compact.restype = None
    library.quantone_unpack_fixed.argtypes = (c_int32, c_void_p, c_int32, c_int32, c_void_p)
    library.quantone_unpack_fixed.restype = None
    library.quantone_output_rows.argtypes = (c_int32, POINTER(CallStruct), c_int64)
    library.quantone_output_rows.restype = c_int64
    library.quantone_run.argtypes = (c_int32, POINTER(CallStruct))
    library.quantone_run.restype = c_int32
    library.quantone_search.argtypes = (c_int32, POINTER(SearchStruct))
    library.quantone_search.restype = c_int32
