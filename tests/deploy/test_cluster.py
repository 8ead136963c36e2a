"""The YAML of Ray's cluster launcher."""

import jsonschema
import pytest

from tests.deploy.manifests import DEPLOY, quantone_commands, read_yaml

NAME = "corpus/cluster.yaml"


def prepared():
    """The configuration as `ray up` completes and checks it before it starts a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read_yaml(NAME))
    validate_config(config)
    return config


def test_ray_takes_the_configuration():
    """By the schema and the checks of the installed Ray."""
    assert prepared()["head_node_type"] == "head"


def test_the_schema_sees_mistakes():
    """A field that Ray does not know is an error before machines are paid for."""
    from ray.autoscaler._private.util import validate_config

    config = prepared()
    config["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(config)


def test_nothing_is_installed_on_the_machines():
    """The image is all there is: what Ray's defaults for AWS would install does not run."""
    config = prepared()
    assert not any(config[f"{when}setup_commands"] for when in ("", "head_", "worker_"))
    assert not config["initialization_commands"]


def test_the_cluster_is_guarded():
    """Every machine gets the token, and nobody outside reaches the head's job server."""
    config = prepared()
    assert config["file_mounts"] == {"/home/quantone/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start


def test_idle_machines_go():
    """Within minutes, and for good: a stopped machine still costs its disk."""
    config = prepared()
    assert config["idle_timeout_minutes"] <= 5
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_command_asks_for_what_the_cluster_can_have():
    """As many encoders as GPUs when all machines are there, and a GPU there when the job starts."""
    gpu = read_yaml(NAME)["available_node_types"]["gpu"]
    (command,) = quantone_commands((DEPLOY / NAME).read_text(encoding="utf-8"))
    wanted = int(command[command.index("--num-workers") + 1])
    share = float(command[command.index("--gpus-per-worker") + 1])
    assert wanted * share == gpu["max_workers"] * gpu["resources"]["GPU"]
    assert gpu["min_workers"] * gpu["resources"]["GPU"] >= share
