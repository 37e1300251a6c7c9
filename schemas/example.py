"""The tf.train.Example of one sample, written and read from one spec without TensorFlow.

The message is declared in its own descriptor pool, so that it cannot clash with TensorFlow's
registration of the same message; the bytes are the same. TFRecord framing is included.
Sources: tensorflow/core/example/example.proto, tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_type_hints

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from runtime.storage import join, local

_HEADER_BYTES = 12
"""A record's length and its checksum; the record's own checksum of 4 bytes follows it."""


class CorruptRecordError(ValueError):
    """A damaged TFRecord stream or Example; the message says where and what was expected."""


@dataclass(frozen=True, slots=True)
class Example:
    """The contents of one record.

    Attributes:
        image: PNG of the RGB image, uint8 (height, width, 3).
        mask: single-channel PNG of class ids, uint8 (height, width), 255 for void.
        id: path below the source root without suffix and camera folder.
        source_height, source_width: size in pixels before resizing.
        source_sha256: hex digest of the source image's bytes.
    """

    image: bytes
    mask: bytes
    id: str
    source_height: int
    source_width: int
    source_sha256: str


FEATURES: dict[str, Literal["bytes", "str", "int"]] = {
    name: kind.__name__ for name, kind in get_type_hints(Example).items()
}
"""Feature name to its Python type; ``str`` is UTF-8 in a bytes list, ``int`` an int64."""


def encode(example: Example) -> bytes:
    """Serialises to a tf.train.Example with sorted keys; equal examples give equal bytes."""
    message = _Example()
    for name, kind in FEATURES.items():
        value = getattr(example, name)
        feature = message.features.feature[name]
        if kind == "int":
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if kind == "str" else value)
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def parse(record: bytes) -> Example:
    """Reads the example from a serialised tf.train.Example.

    Raises:
        CorruptRecordError: the record is not an Example, or a feature is missing or has another
            type.
    """
    try:
        message = _Example.FromString(record)
    except DecodeError as error:
        raise CorruptRecordError(f"not a tf.train.Example: {error}") from error
    values: dict[str, Any] = {}
    for name, kind in FEATURES.items():
        feature = message.features.feature[name]
        found = feature.int64_list.value if kind == "int" else feature.bytes_list.value
        if len(found) != 1:
            raise CorruptRecordError(
                f"feature {name!r}: expected one {kind} value, found {len(found)}"
            )
        try:
            values[name] = found[0].decode() if kind == "str" else found[0]
        except UnicodeDecodeError as error:
            raise CorruptRecordError(f"feature {name!r}: not UTF-8") from error
    return Example(**values)


def parsing_spec() -> dict[str, Any]:
    """The spec for ``tf.io.parse_single_example``: scalars, tf.string or tf.int64."""
    import tensorflow as tf

    return {
        name: tf.io.FixedLenFeature([], tf.int64 if kind == "int" else tf.string)
        for name, kind in FEATURES.items()
    }


def write_record(stream: IO[bytes], record: bytes) -> int:
    """Appends one TFRecord frame; returns the bytes written."""
    length = struct.pack("<Q", len(record))
    frame = b"".join((length, _masked_crc(length), record, _masked_crc(record)))
    stream.write(frame)
    return len(frame)


def read_records(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yields the records of a TFRecord stream; error messages call the stream ``name``.

    Raises:
        CorruptRecordError: a checksum does not match, or the stream ends inside a record.
    """
    offset = 0
    while header := stream.read(_HEADER_BYTES):
        length = _record_length(header, name, offset)
        body = stream.read(length + 4)
        if len(body) < length + 4 or _masked_crc(body[:length]) != body[length:]:
            raise CorruptRecordError(f"{name}: damaged record at byte {offset}")
        offset += _HEADER_BYTES + len(body)
        yield body[:length]


def read_examples(dataset: str | Path, shard: str) -> Iterator[Example]:
    """Yields the records of a dataset's shard, one at a time: it may be larger than the memory.

    Args:
        dataset: folder or URI of the shard; shard: its file name.

    Raises:
        OSError: there is no such file.
        CorruptRecordError: as for ``read_records`` and ``parse``.
    """
    with local(join(dataset, shard)) as path, open(path, "rb") as file:
        yield from map(parse, read_records(file, shard))


def frame_spans(stream: IO[bytes], name: str) -> Iterator[tuple[int, int]]:
    """Yields the offset and the number of bytes of each frame, without reading the records.

    Each frame is a TFRecord stream of one record.

    Raises:
        CorruptRecordError: the checksum of a length does not match.
    """
    offset = 0
    while header := stream.read(_HEADER_BYTES):
        size = _HEADER_BYTES + _record_length(header, name, offset) + 4
        yield offset, size
        offset = stream.seek(offset + size)


def _record_length(header: bytes, name: str, offset: int) -> int:
    if len(header) < _HEADER_BYTES or _masked_crc(header[:8]) != header[8:]:
        raise CorruptRecordError(f"{name}: damaged record length at byte {offset}")
    (length,) = struct.unpack("<Q", header[:8])
    return int(length)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


_PROTO = """
name: "lyft/example.proto" package: "lyft" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature"
  oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type_name: ".lyft.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: ".lyft.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: ".lyft.Int64List" oneof_index: 0 } }
message_type { name: "Features"
  nested_type { name: "FeatureEntry"
    options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type_name: ".lyft.Feature" } }
  field { name: "feature" number: 1 label: LABEL_REPEATED
          type_name: ".lyft.Features.FeatureEntry" } }
message_type { name: "Example"
  field { name: "features" number: 1 type_name: ".lyft.Features" } }
"""
"""A FileDescriptorProto in text format."""


def _declare_example() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("lyft.Example"))


_Example = _declare_example()
