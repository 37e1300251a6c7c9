"""TFRecord and tf.train.Example: round trips, damage, the same bytes as TensorFlow's."""

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.example import (
    FEATURES,
    CorruptRecordError,
    Example,
    encode,
    parse,
    parsing_spec,
    read_records,
    write_record,
)

int64 = st.integers(-(2**63), 2**63 - 1)
examples = st.builds(
    Example,
    image=st.binary(),
    mask=st.binary(),
    id=st.text(st.characters(exclude_categories=["Cs"])),
    source_height=int64,
    source_width=int64,
    source_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(examples)
def test_parse_is_the_inverse_of_encode(example: Example) -> None:
    assert parse(encode(example)) == example
    assert encode(parse(encode(example))) == encode(example)


@given(st.binary())
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptRecordError):
        assert isinstance(parse(data), Example)


@given(st.lists(st.binary(), max_size=5))
def test_records_come_back_in_order(records: list[bytes]) -> None:
    stream = io.BytesIO()
    sizes = [write_record(stream, record) for record in records]
    assert sum(sizes) == len(stream.getvalue())
    stream.seek(0)
    assert list(read_records(stream, "shard")) == records


@given(st.binary(min_size=1), st.data())
def test_a_flipped_bit_in_a_record_is_noticed(record: bytes, data: st.DataObject) -> None:
    stream = io.BytesIO()
    write_record(stream, record)
    damaged = bytearray(stream.getvalue())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(CorruptRecordError, match="shard: damaged record"):
        list(read_records(io.BytesIO(damaged), "shard"))


def test_a_shard_that_ends_inside_a_record_is_noticed() -> None:
    stream = io.BytesIO()
    write_record(stream, b"first")
    whole = len(stream.getvalue())
    write_record(stream, b"second")
    with pytest.raises(CorruptRecordError, match=f"at byte {whole}"):
        list(read_records(io.BytesIO(stream.getvalue()[:-1]), "shard"))


def test_tensorflow_reads_and_writes_the_same_bytes() -> None:
    import tensorflow as tf

    example = Example(b"image", b"mask", "dataA/7 é", 600, 800, "0" * 64)
    parsed = tf.io.parse_single_example(encode(example), parsing_spec())
    for name, kind in FEATURES.items():
        value = parsed[name].numpy()
        assert (value.decode() if kind == "str" else value) == getattr(example, name)

    theirs = tf.train.Example.FromString(encode(example))
    assert theirs.SerializeToString(deterministic=True) == encode(example)
    assert parse(theirs.SerializeToString()) == example


def test_tensorflow_reads_our_framing(tmp_path) -> None:
    import tensorflow as tf

    path = tmp_path / "shard"
    with path.open("wb") as file:
        for record in (b"", b"one", b"x" * 100_000):
            write_record(file, record)
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(path))] == [b"", b"one", b"x" * 100_000]
