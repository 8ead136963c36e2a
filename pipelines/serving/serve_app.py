"""The service as an application of Ray Serve: replicas, each with a codec, a decode engine and the whole app in it.

`serve run pipelines.serving.serve_app:build_app` and deploy/serve/serve.yaml build it. A request goes to a replica and
stays there: no second process stands between codes and sound. Imported after Ray has its settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from starlette.types import ASGIApp

from pipelines.serving.ray_mirror import RayMirror
from pipelines.serving.serve_arguments import ServeArguments, load_engines
from pipelines.serving.service import create_app
from pipelines.serving.service_metrics import ServiceMetrics

APP_NAME = "quantone"
RETRY_AFTER_S = 1
CONSTRUCTOR_RETRIES = 3  # of Ray's 20: a codec or a device that is not there comes no nearer by trying
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


class TokensToSound:
    """One replica; `bound` makes it answer HTTP.

    Args:
        arguments: codecs, device and limits.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        self._settings = arguments.service_settings()
        self._metrics = ServiceMetrics(RayMirror())
        self._engines = load_engines(arguments, self._metrics)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, made where it runs: engines do not travel between processes."""
        return create_app(self._engines, self._settings, self._metrics)

    def check_health(self) -> None:
        """What Ray Serve asks every few seconds; a replica that fails three times is replaced.

        Raises:
            RuntimeError: the model thread of a codec is dead or stuck.
        """
        for name, engine in self._engines.items():
            health = engine.health()
            if not health.ok:
                raise RuntimeError(f"codec {name!r}: {health.reason}")


DEPLOYMENT_NAME = TokensToSound.__name__


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """What `serve run` and the `import_path` of a file call.

    Args:
        args: see `ServeArguments.from_dict`.

    Raises:
        ValueError: an unknown argument, or a wrong value.
    """
    return bound(ServeArguments.from_dict(args))


def bound(
    arguments: ServeArguments, *, num_replicas: int = 1, num_cpus: float = 1, num_gpus: float = 0
) -> serve.Application:
    """The application with limits that follow from the arguments; a file can set others for its deployment.

    Args:
        arguments: codecs, device and limits of each replica.
        num_replicas: processes that serve.
        num_cpus: that Ray counts for each.
        num_gpus: likewise.
    """
    options: dict[str, Any] = deployment_limits(arguments) | {
        "name": DEPLOYMENT_NAME,
        "num_replicas": num_replicas,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_constructor_retry_count": CONSTRUCTOR_RETRIES,
    }
    deployment: serve.Deployment = serve.deployment(**options)(serve.ingress()(TokensToSound))
    return deployment.bind(arguments)


def deployment_limits(arguments: ServeArguments) -> dict[str, Any]:
    """Options of the deployment: what a replica takes at once, how it is watched, how long it may take to stop."""
    engine = arguments.engine
    at_once = len(arguments.codecs) * (engine.max_streams + engine.max_queued)
    limits: dict[str, Any] = {
        # The app itself says 429 when its slots are taken, with a typed error. Serve's own limits stand behind that:
        # they hold what comes in one moment, and what asks for health and metrics.
        "max_ongoing_requests": at_once + 32,
        "max_queued_requests": at_once,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "graceful_shutdown_timeout_s": arguments.stop_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 5.0,
    }
    if os.environ.get(HAPROXY) != "1":  # which does it by itself, and Ray Serve refuses both
        # Requests with one x-session-id go to one replica, which is where a lost stream can be resumed.
        router: dict[str, Any] = {"request_router_class": SESSION_ROUTER}
        limits["request_router_config"] = RequestRouterConfig(**router)
    return limits
