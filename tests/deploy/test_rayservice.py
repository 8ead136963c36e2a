"""The files of the service: what Ray Serve, KubeRay and Kubernetes take, and periods of grace that nest."""

import copy
import dataclasses
import os
import subprocess

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from tests.deploy.manifests import locked_version, pod_templates, read_schema, read_yaml

SERVE = read_yaml("serve/serve.yaml")
RAYSERVICE = read_yaml("serve/rayservice.yaml")
APPLICATION = SERVE["applications"][0]
DEPLOYMENT = APPLICATION["deployments"][0]
PODS = dict(pod_templates(RAYSERVICE))
SCHEMA = {**read_schema("rayservice.schema.json"), "$defs": read_schema("rayjob.schema.json")["$defs"]}
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def validate(rayservice):
    Draft202012Validator(SCHEMA).validate(rayservice)
    for _, template in pod_templates(rayservice):
        Draft202012Validator(read_schema("kubernetes_pod.schema.json")).validate(template)


def arguments():
    from pipelines.serving.serve_arguments import ServeArguments

    return ServeArguments.from_dict(APPLICATION["args"])


def variables(pod):
    (container,) = pod["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_ray_serve_takes_the_file():
    """By the schema of the installed Ray, which knows every field of a deployment."""
    from ray.serve.schema import ServeDeploySchema

    read = ServeDeploySchema.model_validate(copy.deepcopy(SERVE))
    assert [application.name for application in read.applications] == ["quantone"]
    known = set(type(read.applications[0].deployments[0]).model_fields)
    assert DEPLOYMENT.keys() <= known
    assert APPLICATION.keys() <= set(type(read.applications[0]).model_fields)
    assert SERVE.keys() <= set(type(read).model_fields)
    assert SERVE["http_options"].keys() <= set(type(read.http_options).model_fields)


def test_the_names_are_those_of_the_code():
    """The application's builder, and the deployment that it makes."""
    from ray._common.utils import import_attr

    from pipelines.serving import serve_app

    assert import_attr(APPLICATION["import_path"]) is serve_app.build_app
    assert DEPLOYMENT["name"] == serve_app.DEPLOYMENT_NAME
    assert APPLICATION["name"] == serve_app.APP_NAME


def test_the_limits_are_those_that_follow_from_the_arguments(monkeypatch):
    """The file states what the code would set for these arguments, so that a reader sees it and may change both."""
    from pipelines.serving.serve_app import HAPROXY, deployment_limits

    monkeypatch.setenv(HAPROXY, "1")
    limits = deployment_limits(arguments())
    limits["backpressure_config"] = limits["backpressure_config"].model_dump()
    assert {name: DEPLOYMENT[name] for name in limits} == limits


def test_the_file_names_no_router(monkeypatch):
    """Ray Serve refuses one behind HAProxy; where there is none, the code brings the router that keeps sessions."""
    from pipelines.serving.serve_app import HAPROXY, SESSION_ROUTER, deployment_limits

    assert "request_router_config" not in DEPLOYMENT
    monkeypatch.delenv(HAPROXY, raising=False)
    assert deployment_limits(arguments())["request_router_config"].request_router_class == SESSION_ROUTER


def test_nobody_waits_without_a_limit():
    """Every queue is bounded, and autoscaling begins while there are still free slots."""
    engine = arguments().engine
    assert DEPLOYMENT["max_queued_requests"] > 0
    assert DEPLOYMENT["max_ongoing_requests"] > engine.max_streams + engine.max_queued
    assert DEPLOYMENT["autoscaling_config"]["target_ongoing_requests"] < engine.max_streams
    assert DEPLOYMENT["autoscaling_config"]["min_replicas"] >= 2


def test_periods_of_grace_nest():
    """A stream that has just begun plays to its end whatever is replaced: replica, proxy, pod or cluster."""
    stream_s = arguments().service.max_audio_s
    replica_s = DEPLOYMENT["graceful_shutdown_timeout_s"]
    assert stream_s < replica_s
    for pod in PODS.values():
        assert int(variables(pod)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > replica_s
    assert PODS["replicas"]["spec"]["terminationGracePeriodSeconds"] > replica_s
    assert RAYSERVICE["spec"]["rayClusterDeletionDelaySeconds"] > replica_s


def test_the_manifest_is_what_kuberay_and_kubernetes_take():
    """Every field is one that exists, of the type that it has."""
    validate(RAYSERVICE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serveConfig"), "applications: []"),
        (("spec", "upgradeStrategy", "type"), "Rolling"),
        (("spec", "rayClusterDeletionDelaySeconds"), "660"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplica"), 8),
        (
            ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "readinesProbe"),
            {},
        ),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_the_schemas_see_mistakes(path, value):
    """A misspelt field or a value of another type would be dropped or refused by the cluster: here it fails."""
    broken = copy.deepcopy(RAYSERVICE)
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        validate(broken)


def test_both_files_serve_the_same():
    """What was tried with `serve run` is what Kubernetes gets."""
    assert yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"]) == SERVE


@every_pod
def test_pods_run_without_rights(pod):
    """No root, no way to become it, no capability."""
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@every_pod
def test_the_token_comes_from_a_secret(pod):
    """Replicas find it in their environment; no file holds it."""
    from pipelines.serving.serve_arguments import TOKEN_VARIABLE

    (container,) = pod["spec"]["containers"]
    assert {"secretRef": {"name": "quantone-serve"}} in container["envFrom"]
    assert TOKEN_VARIABLE not in variables(pod)
    assert RAYSERVICE["spec"]["rayClusterConfig"]["authOptions"]["mode"] == "token"


@every_pod
def test_haproxy_stands_in_front_and_keeps_sessions_together(pod):
    """On every node, reachable from other nodes, and balancing by what the clients send."""
    from ray.serve._private.constants import SERVE_SESSION_ID

    environment = variables(pod)
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["RAY_SERVE_DEFAULT_HTTP_HOST"] == SERVE["http_options"]["host"]
    assert environment["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"] == f"hdr({SERVE_SESSION_ID})"


@every_pod
def test_variables_are_ones_that_ray_reads(pod):
    """A misspelt variable would be ignored, and show months later."""
    from pathlib import Path

    import ray.serve._private.constants as constants

    text = Path(constants.__file__).read_text(encoding="utf-8")
    assert [name for name in variables(pod) if f'"{name}"' not in text] == []


def test_requests_reach_pods_that_can_answer_alone():
    """Readiness asks the proxy, liveness only the node: a replica that loads its codec must not have its pod killed."""
    (container,) = PODS["replicas"]["spec"]["containers"]
    ready, alive = (" ".join(container[probe]["exec"]["command"]) for probe in ("readinessProbe", "livenessProbe"))
    port = SERVE["http_options"]["port"]
    assert f":{port}/-/healthz" in ready
    assert f":{port}" not in alive
    assert {"containerPort": port, "name": "serve"} in container["ports"]
    assert RAYSERVICE["spec"]["excludeHeadPodFromServeSvc"] is True


@pytest.mark.parametrize(
    ("pages", "naps"),
    [
        (["streams{a} 0.0", ""], 0),
        (["streams{a} 3.0\nray_quantone_serve_active_streams{b} 0.0", "streams{a} 0.0"], 1),
        ([None], 0),
    ],
    ids=["idle", "busy", "no endpoint"],
)
def test_a_pod_that_is_taken_away_waits_for_its_streams(tmp_path, pages, naps):
    """The command itself, with a wget that shows these metrics: it ends with the last stream, and never hangs."""
    for number, page in enumerate(pages):
        text = "" if page is None else f"ray_quantone_serve_active_{page}\n"
        (tmp_path / f"page{number}").write_text(text)
    script = {
        "wget": f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n; cat {tmp_path}/page$n",
        "sleep": f"echo nap >> {tmp_path}/naps",
    }
    for name, body in script.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (container,) = PODS["replicas"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path}, timeout=20, capture_output=True, text=True)
    assert done.returncode == 0
    taken = (tmp_path / "naps").read_text().count("nap") if (tmp_path / "naps").exists() else 0
    assert taken == naps


def test_replicas_fit_into_the_pods():
    """As many CPUs as the most replicas want are there when all pods are; two pods from the start."""
    (group,) = RAYSERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = int(container["resources"]["requests"]["cpu"])
    wanted = DEPLOYMENT["autoscaling_config"]["max_replicas"] * DEPLOYMENT["ray_actor_options"]["num_cpus"]
    assert group["maxReplicas"] * cpus >= wanted
    assert group["minReplicas"] >= 2


def test_all_pods_have_one_image_with_the_locked_ray():
    """Ray refuses to join nodes of other versions."""
    images = {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]}
    assert len(images) == 1
    assert RAYSERVICE["spec"]["rayClusterConfig"]["rayVersion"] == locked_version("ray")


def test_arguments_of_the_file_are_read_whole():
    """Nothing of `args` is left out on the way to a replica."""
    read = arguments()
    flat = {"codecs": list(read.codecs), "device": read.device}
    flat |= dataclasses.asdict(read.engine) | dataclasses.asdict(read.service)
    assert {name: flat[name] for name in APPLICATION["args"]} == APPLICATION["args"]
