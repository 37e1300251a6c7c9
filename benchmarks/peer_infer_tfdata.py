"""Peer of infer in one process: tf.data reads, Keras predicts, the same rows go to two files."""

import sys
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from inputs import network_size

from beam.infer.model_uri import resolve_model
from beam.infer.pictures import Picture, Prediction
from beam.infer.table_rows import rows_of
from schemas.config import InferConfig
from schemas.example import parsing_spec
from schemas.prediction import CLASS_STATS, MASKS, plain


def decode(image_id, data):
    image = tf.io.decode_png(data, channels=3)
    pixels = tf.cast(tf.image.resize(image, network_size(), "nearest"), tf.uint8)
    return image_id, pixels, tf.shape(image)


def read_pngs(source: Path):
    """Ids, pixels and sizes of PNGs; their truth is not known."""
    paths = tf.data.Dataset.from_tensor_slices(sorted(map(str, source.glob("CameraRGB/*.png"))))
    return paths.map(lambda path: (*decode(path, tf.io.read_file(path)), 0), tf.data.AUTOTUNE)


def read_records(source: Path):
    """Ids, pixels, sizes and truth of a dataset's records."""

    def parse(record):
        example = tf.io.parse_single_example(record, parsing_spec())
        truth = tf.io.decode_png(example["mask"], channels=1)[..., 0]
        return *decode(example["id"], example["image"]), truth

    files = sorted(map(str, source.glob("*.tfrecord-*")))
    return tf.data.TFRecordDataset(files).map(parse, tf.data.AUTOTUNE)


def main(source: str, output: str, model_file: str, _workers: str) -> None:
    with_truth = Path(source, "manifest.json").exists()
    images = (read_records if with_truth else read_pngs)(Path(source)).batch(16)
    network = keras.saving.load_model(model_file, compile=False)
    model = resolve_model(model_file, InferConfig(), "")
    masks, classes = [], []
    for names, batch, sizes, truths in images.prefetch(tf.data.AUTOTUNE):
        logits = network.predict_on_batch(batch)
        highest = logits.max(axis=-1, keepdims=True)
        confidence = 1 / np.exp(logits - highest).sum(axis=-1)
        ids = logits.argmax(axis=-1).astype(np.uint8)
        known = (one.numpy() for one in (names, sizes, truths))
        batched = zip(ids, confidence, *known, strict=True)
        for found, sure, name, (height, width, _), truth in batched:
            one = name.decode()
            size, true = (int(width), int(height)), truth if with_truth else None
            picture = Picture(one, one, one, None, *size, found, true, "")
            mask, columns = rows_of(Prediction(picture, found, sure), model, "run")
            masks.append(mask)
            classes.append(columns)
    merged = {name: [v for one in classes for v in one[name]] for name in CLASS_STATS.names}
    Path(output).mkdir(parents=True)
    for name, table in (
        ("masks", pa.Table.from_pylist(masks, schema=plain(MASKS))),
        ("class_stats", pa.table(merged, schema=plain(CLASS_STATS))),
    ):
        pq.write_table(table, f"{output}/{name}.parquet", compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
