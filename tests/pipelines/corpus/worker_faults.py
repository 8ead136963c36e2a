"""Readers, encoders and committers that fail on purpose: factories of what a test puts in the place of the real one.

What they return goes to Ray's workers. A marker is a file that a fault makes when it strikes, so that it strikes once.
"""

import ctypes
import errno
import os
import signal
import time
from pathlib import Path

import numpy as np

from pipelines import storage
from pipelines.corpus import bundle_reader, unit_commit
from pipelines.corpus.bundle_reader import file_of
from pipelines.corpus.encoder import Encoder
from pipelines.datasets.parts import ErrorRow

# Moments at which a committer dies.
CUTS = ("before the record", "before the part", "inside the part", "after the part")


def struck(marker):
    """Whether this call is the first to strike."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def mortal_committer(cut, marker, *, with_driver):
    """A committer of a unit with errors that dies at some moment of its work, once; with it, perhaps, who made this."""
    driver = os.getpid()

    def die(*_):
        if with_driver:
            os.kill(driver, signal.SIGKILL)
        os._exit(1)

    def commit(unit, target, *bundles):
        has_errors = any(isinstance(row, ErrorRow) for bundle in bundles for row in bundle.rows)
        if not has_errors or not struck(marker):
            return unit_commit.commit_unit(unit, target, *bundles)
        real = storage.commit
        if cut == "before the record":
            storage.commit = lambda uri, content: die() if "/records/" in uri else real(uri, content)
        elif cut == "before the part":
            storage.create = die
        elif cut == "inside the part":
            storage._link = die
        unit_commit.commit_unit(unit, target, *bundles)
        return die()

    return commit


def slow_committer(before_part_s):
    """A committer that waits between its look for a part and its own try, so that two of them overlap."""

    def commit(unit, target, *bundles):
        real = storage.create

        def create(uri, content):
            time.sleep(before_part_s)
            return real(uri, content)

        storage.create = create
        try:
            return unit_commit.commit_unit(unit, target, *bundles)
        finally:
            storage.create = real

    return commit


def full_committer(disk, num_parts):
    """A committer with room for some parts, as long as a folder that counts them is there."""

    def commit(unit, target, *bundles):
        real = os.fsync

        def fsync(descriptor):
            if Path(disk).exists() and len(list(Path(disk).iterdir())) >= num_parts:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        os.fsync = fsync
        try:
            found = unit_commit.commit_unit(unit, target, *bundles)
        finally:
            os.fsync = real
        if Path(disk).exists():
            Path(disk, str(unit.number)).touch()
        return found

    return commit


def slow_reader(seconds, pids=None):
    """A reader that takes its time, and leaves its process id in a folder while it does."""

    def read(work, settings, pulse=None):
        found = bundle_reader.read_bundle(work, settings, pulse)
        with _Told(pids):
            time.sleep(seconds)
        return found

    return read


def slow_encoder(seconds, pids=None):
    """An encoder that takes its time; likewise."""

    class Slow(Encoder):
        def encode_bundle(self, pulse, *reads):
            found = super().encode_bundle(pulse, *reads)
            with _Told(pids):
                time.sleep(seconds)
            return found

    return Slow


def meeting_encoder(folder, num_expected, patience_s):
    """An encoder that waits until so many are at work at once, each with a file of its node and process in a folder."""

    class Meeting(Encoder):
        def encode_bundle(self, pulse, *reads):
            import ray

            Path(folder, f"{ray.get_runtime_context().get_node_id()}.{os.getpid()}").touch()
            deadline = time.monotonic() + patience_s
            while len(list(Path(folder).iterdir())) < num_expected and time.monotonic() < deadline:
                time.sleep(0.05)
            return super().encode_bundle(pulse, *reads)

    return Meeting


class _Told:
    """Leaves this process's id in a folder for the length of a block."""

    def __init__(self, folder):
        self._path = None if folder is None else Path(folder) / str(os.getpid())

    def __enter__(self):
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._path.touch()

    def __exit__(self, *_):
        if self._path is not None:
            self._path.unlink()


def hanging_reader(names, marker=None):
    """A reader that never gets done with some inputs; {name: how}: sleeping, or with Python's lock held."""

    def hang(how):
        if how is not None and marker is not None:
            struck(marker)
        if how == "sleeps":
            time.sleep(3600)
        elif how == "holds the lock":
            ctypes.PyDLL(None).sleep(3600)

    return _reader_that(lambda name: hang(names.get(name)))


def hungry_reader(name, spared_bytes):
    """A reader that one input makes eat memory as long as this machine has more than some, and then wait."""

    def eat(found):
        if found == name:
            eaten = []
            while free_memory() > spared_bytes:
                eaten.append(np.ones(2**26, np.uint8))
                time.sleep(0.02)
            time.sleep(3600)

    return _reader_that(eat)


def free_memory():
    """Bytes that this machine can still give."""
    return memory_sizes()["MemAvailable:"]


def memory_sizes():
    """Of this machine, in bytes, by Linux's names."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: int(size) * 1024 for name, size, *_ in lines}


def starved_reader(name, allowed_bytes):
    """A reader that one input makes ask for more memory than its process may have."""

    def eat(found):
        if found != name:
            return
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + allowed_bytes, before[1]))
        try:
            np.ones(2 * allowed_bytes, np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return _reader_that(eat)


def _reader_that(does):
    """A reader that does something, given the input's id, before it reads an input."""

    def read(work, settings, pulse=None):
        real = bundle_reader._read

        def read_one(reader, item, *rest):
            does(file_of(item).id)
            return real(reader, item, *rest)

        bundle_reader._read = read_one
        try:
            return bundle_reader.read_bundle(work, settings, pulse)
        finally:
            bundle_reader._read = real

    return read
