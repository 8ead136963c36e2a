"""One Ray for the whole run: starting it costs more than most tests."""

import pytest

from pipelines import ray_session as ray_room


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with two cores that all jobs of this process share."""
    with ray_room.ray_session(num_cpus=2):
        yield
