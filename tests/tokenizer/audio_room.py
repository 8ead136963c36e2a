"""A room of its own for bad audio: a child process that reads and tokenizes files, where a crash or a hang is seen."""

import json
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_TOKENIZED = 48_000  # samples of a segment: the codec is not what is tried here
_HEADROOM = 2**30  # bytes that the child may allocate beyond what it holds when it begins


class AudioRoom:
    """The child, started once for many files.

    Args:
        max_calls: read at most so many parts of a file; None to its end.
    """

    def __init__(self, max_calls=None):
        code = "from tests.tokenizer.audio_room import work; work()"
        settings = {"OMP_NUM_THREADS": "1", "MAX_CALLS": str(max_calls or 0)}
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | settings,
        )
        self._answer("its start", 120)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._child.kill()
        self._child.communicate()

    def read(self, path, *, within_s, max_segment_s=30):
        """What came of a file: its `outcome` ("tokens" or the class of the error), `message`, `seconds` and `extra_mb`.

        Fails if the child dies or is silent for longer than `within_s`.
        """
        self._child.stdin.write(json.dumps([str(path), max_segment_s]) + "\n")
        self._child.stdin.flush()
        return self._answer(path, within_s)

    def _answer(self, what, within_s):
        ready, _, _ = select.select([self._child.stdout], [], [], within_s)
        assert ready, f"{what}: hangs for more than {within_s} s"
        line = self._child.stdout.readline()
        assert line, f"{what}: kills the process, exit code {self._child.wait()}"
        return json.loads(line)


def work():
    """In the child: a path and a length of segments a line come in, a result a line goes out."""
    import torch

    from tests.conftest import make_codec, tiny_spec

    torch.set_num_threads(1)
    codec = make_codec(tiny_spec())
    held = _status("VmData:") * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + _HEADROOM, held + _HEADROOM))
    print("{}", flush=True)
    for line in sys.stdin:
        before = _status("VmRSS:")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of this file
        start = time.monotonic()
        outcome, message = _read(codec, *json.loads(line), int(os.environ["MAX_CALLS"]))
        seconds, extra = time.monotonic() - start, (_status("VmHWM:") - before) / 1024
        answer = {"outcome": outcome, "message": message, "seconds": seconds, "extra_mb": extra}
        print(json.dumps(answer), flush=True)


def _read(codec, path, max_segment_s, max_calls):
    import torch

    from pipelines.inputs.segment_reader import read_segments

    try:
        cursor, num_calls, num_codes = None, 0, 0
        with Path(path).open("rb") as stream:
            while cursor is not None or num_calls == 0:
                read = read_segments(stream, codec.spec, max_segment_s=max_segment_s, cursor=cursor)
                for segment in read.segments[:1]:
                    num_codes += codec.encode(torch.from_numpy(segment.waveform[:, :_TOKENIZED])).codes.numel()
                cursor, num_calls = read.rest, num_calls + 1
                if num_calls == max_calls:
                    break
    except Exception as error:  # noqa: BLE001 - which class it is is the question
        return type(error).__name__, str(error)
    return ("tokens" if num_codes else "nothing"), ""


def _status(name):
    """A figure of the process in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
