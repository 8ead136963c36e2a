"""What the service can do on this machine: beside an empty one, for listeners in real time, and under overload."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from pipelines.benchmarking.bench_batching import BatchingGain, bench_batching
from pipelines.benchmarking.bench_listeners import (
    FirstPackets,
    RealTimeStreams,
    find_real_time_streams,
    spoken_codes,
    time_first_packets,
)
from pipelines.benchmarking.bench_overload import Overload, bench_overload
from pipelines.benchmarking.bench_requests import RequestSpeed, Target, Utterance, bench_requests
from pipelines.benchmarking.bench_servers import (
    EMPTY_PATH,
    LoadGenerator,
    ServerProcess,
    listen_alone,
    listen_empty,
    listen_on_ray,
    one_core_each,
)
from pipelines.benchmarking.load_connections import http_request
from pipelines.decoding.stream_scheduler import UTTERANCES_AT_ONCE
from pipelines.serving.serve_arguments import ServeArguments
from tokenizer import Codec, CodecSpec, load_codec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """What is measured, and for how long."""

    callers: Sequence[int] = (1, 8, 32)
    request_s: float = 1.5  # of each turn of a kind of request
    rounds: int = 2  # turns of each
    utterance_s: float = 1.0  # of sound in a request
    streams: Sequence[int] = (1, 8)  # at once, where first packets are timed
    chunks: Sequence[int] = (1, 25)  # frames in a message
    packets: int = 200  # first packets of each of those
    real_time_chunks: Sequence[int] = (1, 5)  # frames in a message of listeners in real time
    real_time_s: float = 4.0  # of each trial
    buffer_s: float = 0.1  # that their players wait after the first packet
    most_streams: int = 1024
    batched: Sequence[int] = (1, 8, 32)  # streams
    batch_rounds: int = 3
    queue: int = 64  # requests that may wait, in the overload
    peak_s: float = 8.0
    overload_s: float = 60.0
    ray: bool = False  # also under Ray Serve, behind its own proxy and behind HAProxy

    @classmethod
    def quick(cls) -> ServeBench:
        """All kinds of figures in about a minute: whether it works, and orders of magnitude."""
        return cls(
            request_s=0.5,
            rounds=1,
            packets=40,
            real_time_chunks=(5,),
            real_time_s=1.5,
            batched=(8,),
            batch_rounds=1,
            queue=8,
            peak_s=3.0,
            overload_s=8.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFigures:
    """All that was measured."""

    codec: str
    one_core: bool  # the server had a core for itself, and its callers had others
    utterance_s: float
    requests: list[RequestSpeed]
    first_packets: list[FirstPackets]
    real_time: list[RealTimeStreams]
    batching: list[BatchingGain]
    overload: Overload

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the ratios of the overload."""
        overload = self.overload
        ratios = {name: getattr(overload, name) for name in ("goodput_ratio", "latency_ratio", "memory_growth")}
        plain = dataclasses.asdict(self)
        return plain | {"overload": plain["overload"] | ratios}


def bench_serve(
    codec: str,
    settings: ServeBench = ServeBench(),
    say: Callable[[str], None] = lambda _: None,
) -> ServeFigures:
    """Measure the service of a codec with one thread of the CPU.

    Args:
        codec: anything for `load_codec`.
        settings: what is measured.
        say: called with the name of what begins.

    Raises:
        CheckpointError: no such codec.
        ValueError: the codec has no streams.
        QuantoneError: a server does not start, or the service does not do what is asked of it.
    """
    model = load_codec(codec).with_precision(ServeArguments().precision)  # as the service
    if not model.streamable:
        raise ValueError(f"codec {model.name!r} has no streams")
    server_cores, load_cores = one_core_each()
    with LoadGenerator(load_cores) as load:
        bench = _Bench(codec, model, settings, load, server_cores)
        say("requests")
        requests = bench.requests_alone()
        for haproxy in (False, True) if settings.ray else ():
            say(f"requests under Ray Serve, {'HAProxy' if haproxy else 'proxy in Python'}")
            requests += bench.requests_on_ray(haproxy=haproxy)
        say("streams")
        first_packets, real_time = bench.streams()
        say("batching")
        batching = bench_batching(model, settings.batched, settings.chunks, rounds=settings.batch_rounds)
        say("overload")
        overload = bench.overload()
    return ServeFigures(
        codec=model.name,
        one_core=bool(server_cores),
        utterance_s=settings.utterance_s,
        requests=requests,
        first_packets=first_packets,
        real_time=real_time,
        batching=batching,
        overload=overload,
    )


class _Bench:
    """What every measurement needs."""

    def __init__(
        self, codec: str, model: Codec, settings: ServeBench, load: LoadGenerator, server_cores: Sequence[int]
    ) -> None:
        self._spec: CodecSpec = model.spec
        self._settings, self._load, self._cores = settings, load, server_cores
        self._utterance = Utterance.of(model.spec, settings.utterance_s)
        self._arguments = ServeArguments.from_dict({"codecs": codec, "threads": 1, "drain_timeout_s": 5.0})

    def requests_alone(self) -> list[RequestSpeed]:
        """Two servers, of which only one is asked at a time."""
        with ExitStack() as stack:
            ours = stack.enter_context(ServerProcess(listen_alone, self._arguments, cores=self._cores))
            empty = stack.enter_context(ServerProcess(listen_empty, self._utterance.num_bytes, cores=self._cores))
            return self._requests("uvicorn", ours.address, Target(empty.address, self._utterance.posted_to("/")))

    def requests_on_ray(self, *, haproxy: bool) -> list[RequestSpeed]:
        """Two applications of one Ray Serve, with all cores."""
        with ServerProcess(listen_on_ray, self._arguments, self._utterance.num_bytes, haproxy) as ours:
            empty = Target(ours.address, self._utterance.posted_to(f"{EMPTY_PATH}/"))
            return self._requests("ray, haproxy" if haproxy else "ray", ours.address, empty)

    def streams(self) -> tuple[list[FirstPackets], list[RealTimeStreams]]:
        """A server with more slots than it can serve in real time, and room for those who have just gone."""
        settings = self._settings
        engine = replace(self._arguments.engine, max_streams=2 * max(settings.most_streams, *settings.streams))
        with ServerProcess(listen_alone, replace(self._arguments, engine=engine), cores=self._cores) as server:
            first_packets = [
                time_first_packets(
                    self._load, spoken_codes(server.address, self._spec, frames), streams, settings.packets
                )
                for frames in settings.chunks
                for streams in settings.streams
            ]
            real_time = [
                find_real_time_streams(
                    self._load,
                    spoken_codes(server.address, self._spec, frames),
                    seconds=settings.real_time_s,
                    buffer_s=settings.buffer_s,
                    limit=settings.most_streams,
                )
                for frames in settings.real_time_chunks
            ]
        return first_packets, real_time

    def overload(self) -> Overload:
        """A server as `quantone serve` starts it."""
        engine = replace(self._arguments.engine, max_queued=self._settings.queue)
        with ServerProcess(listen_alone, replace(self._arguments, engine=engine), cores=self._cores) as server:
            return bench_overload(
                self._load,
                server,
                self._utterance.decode_request,
                places=UTTERANCES_AT_ONCE + engine.max_queued,
                peak_s=self._settings.peak_s,
                seconds=self._settings.overload_s,
            )

    def _requests(self, server: str, ours: tuple[str, int], empty: Target) -> list[RequestSpeed]:
        targets = {
            "empty": empty,
            "ready": Target(ours, http_request("GET", "/readyz")),
            "decode": Target(ours, self._utterance.decode_request),
        }
        settings = self._settings
        return bench_requests(self._load, server, targets, settings.callers, settings.request_s, settings.rounds)
