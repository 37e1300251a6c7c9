"""One process: tf.data reads and batches, Keras predicts, two Parquet files take the same rows."""

import sys
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from beam.model_uri import resolve_model
from beam.predict import Picture, Prediction
from beam.rows import describe
from schemas.config import InferConfig
from schemas.prediction import CLASS_STATS, MASKS, plain


def decode(path):
    image = tf.io.decode_png(tf.io.read_file(path), channels=3)
    return tf.cast(tf.image.resize(image, (96, 128), "nearest"), tf.uint8), tf.shape(image)


def main(source: str, output: str, model_file: str, _workers: str) -> None:
    paths = sorted(str(path) for path in Path(source).glob("CameraRGB/*.png"))
    images = tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE).batch(16)
    network = keras.saving.load_model(model_file, compile=False)
    model = resolve_model(model_file, InferConfig(), "")
    masks, classes = [], []
    position = 0
    for batch, sizes in images.prefetch(tf.data.AUTOTUNE):
        logits = network.predict_on_batch(batch)
        highest = logits.max(axis=-1, keepdims=True)
        confidence = 1 / np.exp(logits - highest).sum(axis=-1)
        found = zip(logits.argmax(axis=-1).astype(np.uint8), confidence, sizes.numpy(), strict=True)
        for ids, sure, (height, width, _) in found:
            path = paths[position]
            size = int(width), int(height)
            picture = Picture(Path(path).stem, path, path, None, *size, ids, None, "")
            mask, columns = describe(Prediction(picture, ids, sure), model, "run")
            masks.append(mask)
            classes.append(columns)
            position += 1
    merged = {name: [v for one in classes for v in one[name]] for name in CLASS_STATS.names}
    Path(output).mkdir(parents=True)
    for name, table in (
        ("masks", pa.Table.from_pylist(masks, schema=plain(MASKS))),
        ("class_stats", pa.table(merged, schema=plain(CLASS_STATS))),
    ):
        pq.write_table(table, f"{output}/{name}.parquet", compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
