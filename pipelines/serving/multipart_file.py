"""The file of a form, as browsers and `curl -F file=@...` send it: one part of a multipart body.

Its file name is not read: nothing that a request names is ever opened. Source: RFC 7578 and RFC 2046, 5.1.
"""

from __future__ import annotations

import re

from pipelines.serving.service_errors import bad_request

_FIELD = "file"
_MAX_PARTS = 32
_MAX_HEADERS = 4096  # bytes, of one part
_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))""", re.IGNORECASE)
_NAME = re.compile(rb"""[\s;]name=(?:"([^"]*)"|([^\s;]+))""", re.IGNORECASE)


def file_of_form(body: bytes, content_type: str) -> bytes:
    """The bytes of the part that is named `file`.

    Args:
        body: the form.
        content_type: the header with the boundary.

    Raises:
        RequestError: not such a form, cut short, or without the part.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise bad_request("multipart/form-data needs a boundary in its Content-Type")
    mark = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1")
    _, *parts = (b"\r\n" + body).split(mark, _MAX_PARTS)
    if not parts or not parts[-1].startswith(b"--"):
        raise bad_request(f"the form has no end, or more than {_MAX_PARTS} parts")
    for part in parts[:-1]:
        head, found, content = part.partition(b"\r\n\r\n")
        if not found or len(head) > _MAX_HEADERS:
            raise bad_request("a part of the form has no headers, or too long ones")
        name = _NAME.search(_disposition(head))
        if name is not None and (name[1] or name[2]) == _FIELD.encode():
            return content
    raise bad_request(f"the form has no part that is named {_FIELD!r}")


def _disposition(head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return value
    return b""
