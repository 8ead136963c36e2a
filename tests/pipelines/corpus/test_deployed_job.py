"""The command inside the Kubernetes manifest is one that works: it is taken out of it and run."""

import shlex

import polars as pl
import pytest
import s3fs

from pipelines import open_dataset
from pipelines.cli import main
from tests.deploy.manifests import read_yaml

# What a test has not: the buckets of the manifest, a GPU, and time for the bundled codec.
PLACEHOLDER = "s3://CORPUS"


def command_for(bucket, codec):
    """The entry point of the manifest, on a bucket of the test, with a tiny codec on CPUs."""
    program, *arguments = shlex.split(read_yaml("corpus/rayjob.yaml")["spec"]["entrypoint"])
    assert program == "quantone"
    replaced = {"--codec": str(codec), "--gpus-per-worker": "0"}
    for option, value in replaced.items():
        arguments[arguments.index(option) + 1] = value
    return [argument.replace(PLACEHOLDER, bucket) for argument in arguments]


@pytest.mark.usefixtures("ray_session")
def test_the_command_of_the_manifest_makes_a_dataset_and_goes_on_with_it(bucket, speech_folder, tiny_codec_dir, capsys):
    """Audio in S3 becomes a dataset in S3. The next try of the RayJob finds nothing left to do, and succeeds."""
    s3fs.S3FileSystem().put(str(speech_folder), f"{bucket}/speech", recursive=True)
    command = command_for(bucket, tiny_codec_dir)
    assert main(command) == 0, capsys.readouterr().err
    rows = open_dataset(f"{bucket}/tokens").select("id", pl.col("codes_00").list.len()).collect()
    wavs = list(speech_folder.rglob("*.wav"))
    assert rows.height == len(wavs) == 10
    assert rows["codes_00"].min() > 0
    capsys.readouterr()
    assert main(command) == 0
    assert "10 done before" in capsys.readouterr().out
