"""The command `quantone serve`: tokens to sound, and sound to tokens, over HTTP and WebSocket."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.cli_arguments import Precision, Quiet, check, check_codec
from pipelines.commands.cli_outcome import INTERRUPTED

if TYPE_CHECKING:
    from pipelines.serving.serve_arguments import ServeArguments
    from pipelines.serving.serve_ray import Replicas
    from tokenizer import CodecSpec

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_command(
    codecs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CODEC]...", help="Names, directories or files; default: speech_24khz."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes any that is free.")] = 8000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Precision = "exact",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of torch; default: all, 1 with --ray.")
    ] = None,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams at once, of each codec and replica.")] = 64,
    max_queued: Annotated[int, typer.Option(min=0, help="Other requests waiting; more get 429.")] = 64,
    max_audio: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Sound of one request.")] = 600.0,
    max_body: Annotated[float, typer.Option(metavar="MIB", min=0.01, help="Size of one request, inflated.")] = 32.0,
    drain: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="To finish in at a stop; default: --max-audio.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web page that may ask from a browser; repeatable.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Replicas under Ray Serve, instead of one process.")
    ] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="Processes, with --ray; default: 1.")] = None,
    gpus_per_replica: Annotated[float | None, typer.Option(min=0, help="With --ray: 1, or a share of a GPU.")] = None,
    address: Annotated[str | None, typer.Option(help="With --ray: a cluster's; default: a local Ray.")] = None,
    haproxy: Annotated[
        bool, typer.Option("--haproxy", help="With --ray: HAProxy in front; several times faster.")
    ] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line for each; without --ray.")] = False,
    quiet: Quiet = False,
) -> None:
    """Serve codecs: codes in, sound out, streaming; and sound in, codes out.

    One process by default. With --ray, replicas that are watched, replaced and rolled; on a cluster rather use
    deploy/serve. A bearer token, where there is to be one, stands in the environment: QUANTONE_SERVE_TOKEN.
    SIGTERM or Ctrl-C lets running requests and streams finish. See docs/serving.md.

    Examples:
      quantone serve
      quantone serve speech_24khz runs/mine/codec --port 9000 --max-streams 16
      QUANTONE_SERVE_TOKEN=... quantone serve --host 0.0.0.0 --device cuda --max-streams 256
      quantone serve --ray --replicas 4 --haproxy
    """
    chosen = codecs or ["speech_24khz"]
    for codec in chosen:
        check_codec(codec)
    only_ray = {"--replicas": replicas, "--gpus-per-replica": gpus_per_replica, "--address": address}
    for option, value in (only_ray | {"--haproxy": haproxy or None}).items():
        check(ray or value is None, f"{option} goes with --ray")
    check(not (ray and log_requests), "--log-requests goes without --ray, which has logs of its own")
    check(not (ray and port == 0), "--ray needs a port: 0 is for one process")
    check(not (haproxy and address), "--haproxy is for a local Ray: on a cluster its nodes decide, see docs/serving.md")
    _check_packages()
    from pipelines.serving.serve_arguments import ServeArguments

    given = {
        "codecs": chosen,
        "device": device,
        "precision": precision,
        "threads": threads,
        "max_streams": max_streams,
        "max_queued": max_queued,
        "max_audio_s": max_audio,
        "max_body_bytes": round(max_body * 2**20),
        "drain_timeout_s": drain,
        "cors_origins": cors_origin,
    }
    arguments = ServeArguments.from_dict({name: value for name, value in given.items() if value is not None})
    stopped_by: signal.Signals | None
    if ray:
        from pipelines.serving.serve_ray import Replicas

        where = Replicas(address=address, count=replicas or 1, gpus_each=gpus_per_replica or 0.0, haproxy=haproxy)
        stopped_by = _on_ray(arguments, where, host, port, quiet=quiet)
    else:
        stopped_by = _in_one_process(arguments, host, port, log_requests=log_requests, quiet=quiet)
    if stopped_by is signal.SIGINT:
        raise typer.Exit(INTERRUPTED)


def _check_packages() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ImportError(f"serving needs {', '.join(missing)}: pip install 'quantone[serve]'")


def _in_one_process(
    arguments: ServeArguments, host: str, port: int, *, log_requests: bool, quiet: bool
) -> signal.Signals | None:
    from pipelines.serving.http_server import HttpServer, bound_socket
    from pipelines.serving.serve_arguments import load_engines
    from pipelines.serving.service import create_app
    from pipelines.serving.service_metrics import ServiceMetrics

    listening = bound_socket(host, port)  # first: a port in use is said at once
    metrics = ServiceMetrics()
    engines = load_engines(arguments, metrics)
    specs = {name: engine.codec.spec for name, engine in engines.items()}

    def say() -> None:
        if not quiet:
            _announce(arguments, specs, host, listening.getsockname()[1])

    app = create_app(engines, arguments.service_settings(), metrics)
    server = HttpServer(
        app,
        on_start=say,
        drain=app.state.drain,
        closing_s=arguments.service.drain_timeout_s,
        headers_s=arguments.service.read_timeout_s,
        log_requests=log_requests,
    )
    server.listen([listening])
    return server.stopped_by


def _on_ray(arguments: ServeArguments, where: Replicas, host: str, port: int, *, quiet: bool) -> signal.Signals:
    from pipelines.serving.serve_ray import serve_on_ray
    from tokenizer import load_codec

    # Before Ray starts: what is wrong with a codec is said in one line, and not by a replica.
    specs = {codec.name: codec.spec for codec in map(load_codec, arguments.codecs)}

    def say() -> None:
        if not quiet:
            _announce(arguments, specs, host, port)

    return serve_on_ray(arguments, where, host, port, say)


def _announce(arguments: ServeArguments, specs: dict[str, CodecSpec], host: str, port: int) -> None:
    """Where it listens, what it serves, what it takes at once, and a line to try."""
    from pipelines.serving.serve_arguments import TOKEN_VARIABLE

    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{reached}:{port}"
    engine, service = arguments.engine, arguments.service
    token = arguments.service_settings().token
    typer.echo(f"serving at {url}  (docs at /docs, metrics at /metrics; Ctrl-C drains and ends)")
    for name, spec in specs.items():
        typer.echo(
            f"  {name}: {spec.sample_rate} Hz, {float(spec.frame_rate):g} frames/s, {spec.num_codebooks} codebooks of "
            f"{spec.codebook_size}, up to {spec.bandwidth_kbps:g} kbps, on {arguments.device}"
        )
    typer.echo(
        f"  at once: {engine.max_streams} streams and {engine.max_queued} requests in the queue; "
        f"a request: {service.max_body_bytes / 2**20:g} MiB and {service.max_audio_s:g} s of sound"
    )
    if not token and host not in LOOPBACK:
        typer.echo(f"  no token: whoever reaches the port can use it; {TOKEN_VARIABLE} sets one")
    secret = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if token else ""
    typer.echo(
        f"  try: curl -s {url}/v1/audio/decode{secret} -H 'Content-Type: application/json' "
        f"""-d '{{"codec": "{name}", "codes": [[12, 7, 3, 9], [5, 1, 8, 2]]}}' -o sound.wav"""
    )
