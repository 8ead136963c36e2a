"""The KubeRay manifest of a corpus job: valid, and safe to apply as it is."""

import copy
import json

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.deploy.manifests import locked_version, pod_templates, read_schema, read_yaml

RAYJOB = read_yaml("corpus/rayjob.yaml")
JOB_SCHEMA = Draft202012Validator(read_schema("rayjob.schema.json"))
POD_SCHEMA = Draft202012Validator(read_schema("kubernetes_pod.schema.json"))
PODS = dict(pod_templates(RAYJOB))
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def validate(rayjob):
    JOB_SCHEMA.validate(rayjob)
    for _, template in pod_templates(rayjob):
        POD_SCHEMA.validate(template)


def test_the_manifest_is_what_kuberay_and_kubernetes_take():
    """Every field is one that exists, of the type that it has."""
    validate(RAYJOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "quantone"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "upscalingMode"), "Fast"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 8),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "container"), []),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "ports"), [8080]),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_the_schemas_see_mistakes(path, value):
    """A misspelt field or a number where a string belongs would be dropped or refused by the cluster: here it fails."""
    broken = copy.deepcopy(RAYJOB)
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        validate(broken)


@every_pod
def test_pods_run_without_rights(pod):
    """No root, no way to become it, no capability."""
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    for container in pod["spec"]["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@every_pod
def test_credentials_come_from_a_secret(pod):
    """Driver and workers both reach S3, and the manifest holds no key."""
    for container in pod["spec"]["containers"]:
        assert {"secretRef": {"name": "quantone-s3"}} in container["envFrom"]
        assert "env" not in container
    assert "AWS_SECRET" not in json.dumps(RAYJOB)


@every_pod
def test_memory_is_bounded_and_the_object_store_fits_in(pod):
    """A pod without a limit takes its node down; shared memory counts towards the limit."""
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "shared-memory")
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108 - in the pod
    size, limit = volume["emptyDir"]["sizeLimit"], container["resources"]["limits"]["memory"]
    assert int(size.removesuffix("Gi")) <= int(limit.removesuffix("Gi")) / 2


def test_all_nodes_have_one_image_with_the_locked_ray():
    """Ray refuses to join nodes of other versions, and codes may differ between versions of torch."""
    images = {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]}
    assert len(images) == 1
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == locked_version("ray")


def test_the_cluster_is_guarded_and_goes_when_the_job_is_done():
    """Nobody else runs code there, and nothing is paid for idle GPUs."""
    spec = RAYJOB["spec"]
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] <= 300


def test_the_autoscaler_can_reach_what_the_command_asks_for():
    """As many encoders as GPUs when all pods are there, and a GPU there when the job starts."""
    command = RAYJOB["spec"]["entrypoint"].split()
    wanted = int(command[command.index("--num-workers") + 1])
    share = float(command[command.index("--gpus-per-worker") + 1])
    groups = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = [
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for group in groups
    ]
    assert RAYJOB["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    most = sum(group["maxReplicas"] * count for group, count in zip(groups, gpus, strict=True))
    first = sum(group["replicas"] * count for group, count in zip(groups, gpus, strict=True))
    assert wanted * share == most
    assert first >= share
