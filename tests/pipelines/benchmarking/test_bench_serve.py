"""The benchmark of the service: its callers count what happens, and its figures are what they counted."""

import dataclasses
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.benchmarking.bench_batching import bench_batching
from pipelines.benchmarking.bench_listeners import find_real_time_streams, most_that, spoken_codes, time_first_packets
from pipelines.benchmarking.bench_overload import Overload
from pipelines.benchmarking.bench_requests import Target, Utterance, bench_requests
from pipelines.benchmarking.bench_serve import bench_serve
from pipelines.benchmarking.bench_servers import ServerProcess, empty_app, listen_alone
from pipelines.benchmarking.load_connections import http_request
from pipelines.benchmarking.request_load import FAILED, ClosedLoad, OpenLoad
from pipelines.benchmarking.stream_load import RealTimeLoad
from pipelines.cli import main
from pipelines.decoding.decode_engine import EngineSettings
from pipelines.serving.http_server import bound_socket
from pipelines.serving.serve_arguments import ServeArguments
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.engines import HeldCodec
from tests.pipelines.running_service import running_service
from tests.pipelines.service_calls import app_of
from tokenizer import QuantoneError

SPEC = dataclasses.replace(tiny_spec("patch"), sample_rate=600)  # 75 frames a second, as real codecs have


class Here:
    """A load generator without a process of its own."""

    def run(self, load):
        return load.run()


def address_of(url):
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


@pytest.fixture(scope="module")
def codec():
    return make_codec(SPEC)


@pytest.fixture(scope="module")
def served(codec):
    """The address of a service."""
    with running_service(app_of(codec)) as url:
        yield address_of(url)


@given(st.integers(0, 700), st.integers(1, 600))
def test_the_search_ends_near_the_most_that_holds(most, limit):
    """Never above it, below by a few percent at most, and not beyond what may be tried."""
    tried = []

    def holds(count):
        tried.append(count)
        return count <= most

    found = most_that(holds, limit)
    assert max(tried) <= limit
    assert found <= min(most, limit)
    assert min(most, limit) - found <= max(1, 0.06 * found)
    assert len(tried) < 25


def test_callers_who_wait_count_their_answers(served):
    """As many as the service says; with what an answer says of itself."""
    request = Utterance.of(SPEC, 0.2).decode_request
    outcomes = ClosedLoad(address=served, request=request, callers=3, seconds=0.3).run()
    assert {(one.status, one.num_bytes, one.has_retry_after) for one in outcomes} == {(200, 15 * 8 * 2, False)}
    assert all(0 <= one.at < 0.3 and one.seconds > 0 for one in outcomes)
    assert len(outcomes) > 3


def test_callers_who_do_not_wait_come_at_their_rate():
    """However slow the answers are; those who are refused are told when to come again, and all are counted."""
    held = HeldCodec()
    request = Utterance.of(held.codec.spec, 0.01).decode_request
    with running_service(app_of(held.codec, engine=EngineSettings(max_queued=2))) as url, held.held():
        threading.Timer(1.5, held._free.set).start()
        outcomes = OpenLoad(address=address_of(url), request=request, per_second=100.0, seconds=1.0).run()
    assert 60 < len(outcomes) < 140
    accepted = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status == 429]
    assert len(accepted) == 10  # eight at once, and two in the queue
    assert len(accepted) + len(refused) == len(outcomes)
    assert all(one.has_retry_after for one in refused)
    assert all(one.at + one.seconds > 1.3 for one in accepted)


def test_who_gets_no_answer_is_counted():
    """Nobody listens, or the server ends in the middle: no exception, and no answer that never was."""
    with bound_socket("127.0.0.1", 0) as silent:
        address = silent.getsockname()
    outcomes = OpenLoad(address=address, request=http_request("GET", "/"), per_second=50.0, seconds=0.2).run()
    assert {one.status for one in outcomes} == {FAILED}


def test_requests_take_turns_with_an_empty_application(served):
    """Each kind at each number of callers; the empty one reads as much, and answers as much."""
    utterance = Utterance.of(SPEC, 0.5)
    with running_service(empty_app(utterance.num_bytes)) as url:
        targets = {
            "empty": Target(address_of(url), utterance.posted_to("/")),
            "decode": Target(served, utterance.decode_request),
        }
        speeds = bench_requests(Here(), "uvicorn", targets, (1, 4), 0.2, 2)
        once = [ClosedLoad(address=t.address, request=t.request, callers=1, seconds=0.01) for t in targets.values()]
        sizes = {load.run()[0].num_bytes for load in once}
    assert [(one.request, one.callers) for one in speeds] == [("empty", 1), ("decode", 1), ("empty", 4), ("decode", 4)]
    assert all(0 < one.p50_s <= one.p99_s and one.per_second > 0 for one in speeds)
    assert sizes == {utterance.num_bytes}


def test_a_wrong_answer_ends_the_benchmark(served):
    """Errors are answered fast: they must not count."""
    with pytest.raises(QuantoneError, match=r"answered \[404\] instead of 200"):
        bench_requests(Here(), "uvicorn", {"wrong": Target(served, http_request("GET", "/nowhere"))}, (1,), 0.1, 1)


def test_listeners_hear_everything_in_real_time(served):
    """As long as their sound is, and no break where the player waits long enough."""
    load = RealTimeLoad(codes=spoken_codes(served, SPEC, 5), streams=6, seconds=1.0, buffer_s=5.0)
    began = time.monotonic()
    outcomes = load.run()
    assert time.monotonic() - began > 0.9
    assert len(outcomes) == 6
    for outcome in outcomes:
        assert outcome.whole
        assert outcome.underruns == 0
        assert outcome.first_packet_s > 0


def test_a_service_that_is_too_slow_holds_nobody(codec, monkeypatch):
    """Its listeners run out of sound although their codes were there: none is held, and the search says why."""
    step = codec.decode_step

    def slow_step(codes, state):
        time.sleep(0.3)
        return step(codes, state)

    monkeypatch.setattr(codec, "decode_step", slow_step)
    with running_service(app_of(codec)) as url:
        codes = spoken_codes(address_of(url), SPEC, 5)
        found = find_real_time_streams(Here(), codes, seconds=1.0, buffer_s=0.05, limit=4)
    assert found.held == 0
    assert found.bound_by in ("service", "load generator")  # the machine may have other things to do
    assert [trial.streams for trial in found.trials] == [1, 1]
    assert all(trial.underruns > 0 for trial in found.trials)


def test_a_search_that_meets_its_limit_says_so(served):
    """It is not the service that was found wanting."""
    found = find_real_time_streams(Here(), spoken_codes(served, SPEC, 25), seconds=0.7, buffer_s=5.0, limit=3)
    assert (found.held, found.bound_by) == (3, "limit")


def test_a_stream_that_is_refused_is_an_error(codec):
    """A slot too few, and no figure is made of it."""
    with running_service(app_of(codec, engine=EngineSettings(max_streams=1))) as url:
        load = RealTimeLoad(codes=spoken_codes(address_of(url), SPEC, 5), streams=2, seconds=0.2, buffer_s=1.0)
        with pytest.raises(QuantoneError, match="all 1 stream slots are taken"):
            load.run()


def test_first_packets_are_timed_beside_others(served):
    """One for each utterance, with others speaking all the while."""
    packets = time_first_packets(Here(), spoken_codes(served, SPEC, 1), streams=3, count=12)
    assert (packets.streams, packets.chunk_frames, packets.count) == (3, 1, 12)
    assert 0 < packets.p50_s <= packets.p99_s


@pytest.mark.parametrize("kind", ["patch", "seanet", "mirrored"])
def test_batching_is_measured_with_every_kind_of_codec(kind):
    """Also where a stream holds samples back; the same streams, together and one after the other."""
    gains = bench_batching(make_codec(tiny_spec(kind)), (1, 4), (1, 5), rounds=1)
    assert [(one.chunk_frames, one.streams) for one in gains] == [(1, 1), (1, 4), (5, 1), (5, 4)]
    assert all(one.gain == pytest.approx(one.together / one.one_at_a_time) for one in gains)


def test_the_growth_of_memory_is_that_of_the_end():
    """What a service takes at first is not a leak; what it still takes in the last quarter is."""
    fields = {field.name: 1 for field in dataclasses.fields(Overload)}
    flat = Overload(**fields | {"memory": [50, 70, 90, 100, 100, 100, 100, 100]})
    leaking = Overload(**fields | {"memory": [100, 110, 120, 130, 140, 150, 160, 170]})
    assert flat.memory_growth == pytest.approx(100 / 95 - 1)
    assert leaking.memory_growth == pytest.approx(165 / 125 - 1)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_all_figures(tmp_path, capsys):
    """Every question has its answer, in words and in the file.

    With the bundled codec: three times what a tiny one can decode is more than one core can even refuse.
    """
    code = main(["bench", "serve", "--quick", "--streams-limit", "4", "--json", str(tmp_path / "f")])
    shown, said = capsys.readouterr()
    assert code == 0, said
    for words in ("time to the first packet", "listeners in real time", "one at a time", "without Retry-After"):
        assert words in shown
    written = json.loads((tmp_path / "f").read_text())
    assert {row["request"] for row in written["requests"]} == {"empty", "ready", "decode"}
    assert written["real_time"][0]["held"] <= 4
    assert written["overload"]["goodput_ratio"] > 0
    assert written["overload"]["other_answers"] == {}


def test_a_codec_without_streams_is_refused(segmented_codec_dir):
    """Before anything starts."""
    with pytest.raises(ValueError, match="has no streams"):
        bench_serve(str(segmented_codec_dir))


def test_a_server_that_cannot_start_says_why():
    """In the process that asked for it, and soon."""
    arguments = ServeArguments.from_dict({"codecs": "nobody_has_this"})
    with pytest.raises(QuantoneError, match=r"did not start: .*nobody_has_this"):
        ServerProcess(listen_alone, arguments)
