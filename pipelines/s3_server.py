"""The S3 server that the environment names: one connection to it, whether it answers, and its errors in plain words.

Credentials, region and endpoint come from the standard AWS environment variables (`AWS_ENDPOINT_URL` names another
server than Amazon's), on every machine that reads or writes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def filesystem() -> Any:
    """The one connection pool for all that this process does with S3."""
    return _filesystem_of(os.getpid())


@functools.cache
def _filesystem_of(_process: int) -> Any:  # a forked process cannot use its parent's: the thread behind it is gone
    import s3fs

    # Listings must not be cached: other processes write the parts that this one looks for.
    return s3fs.S3FileSystem(endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None, use_listings_cache=False)


def is_reachable(uri: str) -> bool:
    """Whether the server of an s3:// URI answers at all, be it with a refusal."""
    from botocore.exceptions import BotoCoreError

    try:
        filesystem().call_s3("head_bucket", Bucket=uri.removeprefix("s3://").partition("/")[0])
    except (PermissionError, FileNotFoundError):
        return True
    except (OSError, BotoCoreError):
        return False
    return True


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Say where it was and what to look at: s3fs gives the server's reason alone, and not even that of a HEAD."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except PermissionError as error:
        hint = "Access denied or unknown: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"
        raise PermissionError(f"{uri}: the S3 server refuses ({error}). {hint}") from error.__cause__
    except BotoCoreError as error:  # no server there, no keys: no OSErrors of their own
        raise ConnectionError(f"{uri}: {error}; check AWS_ENDPOINT_URL and the keys") from error


def status_of(error: OSError) -> int | None:
    """The HTTP status behind an error of S3, None where there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def polars_options() -> dict[str, str]:
    """S3 settings of the environment in the words of Polars' `storage_options`."""
    names = {
        "AWS_ACCESS_KEY_ID": "aws_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
        "AWS_SESSION_TOKEN": "aws_session_token",
        "AWS_DEFAULT_REGION": "aws_region",
        "AWS_REGION": "aws_region",
        "AWS_ENDPOINT_URL": "aws_endpoint_url",
    }
    options = {option: os.environ[name] for name, option in names.items() if os.environ.get(name)}
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options
