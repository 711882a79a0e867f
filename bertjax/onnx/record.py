"""The record that an exported ONNX file carries in its metadata, with a digest of everything else in the file.

Protobuf lets two messages be joined by joining their bytes. A file is the model without metadata, and then a message of
metadata alone, so that the record can hold a digest of the bytes before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx

from bertjax.identity import digest_file

_CONTENT, _DATA = "content_sha256", "data_sha256"


def with_record(model: onnx.ModelProto, record: Mapping[str, str], *, data: Path | None) -> bytes:
    """An ONNX file with this record and the digests that `is_untouched` compares.

    Args:
      model: without metadata.
      data: the file of the weights that `model` refers to; None if it holds them.
    """
    body = model.SerializeToString()
    digests = {_CONTENT: hashlib.sha256(body).hexdigest()} | ({_DATA: digest_file(data)} if data else {})
    return body + _tail(dict(record) | digests)


def read_record(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of an ONNX file."""
    return {entry.key: entry.value for entry in model.metadata_props}


def is_untouched(path: Path, record: Mapping[str, str]) -> bool | None:
    """Whether a file, and its weights beside it, are as they were written; None if its record has no digest, as in 0.1.

    Raises:
      OSError: the file cannot be read.
    """
    if _CONTENT not in record:
        return None
    content, tail = Path(path).read_bytes(), _tail(record)
    if not content.endswith(tail):
        return False
    data = Path(f"{path}.data")
    same_data = _DATA not in record or (data.exists() and digest_file(data) == record[_DATA])
    return same_data and hashlib.sha256(memoryview(content)[: -len(tail)]).hexdigest() == record[_CONTENT]


def _tail(record: Mapping[str, str]) -> bytes:
    message = onnx.ModelProto()
    onnx.helper.set_model_props(message, dict(record))
    return message.SerializeToString()
