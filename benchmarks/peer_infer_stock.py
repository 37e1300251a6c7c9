"""Peer of infer: Beam's RunInference with TFModelHandlerNumpy, and WriteToParquet."""

import io
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.parquetio import WriteToParquet
from apache_beam.io.tfrecordio import ReadFromTFRecord
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from inputs import network_size
from PIL import Image

from schemas.classes import load_taxonomy
from schemas.example import parse

SCHEMA = pa.schema([("image_id", pa.string()), ("mask", pa.binary())])
PALETTE = load_taxonomy("carla-0.8").palette
SIZE = network_size()[::-1]


def read(path):
    """Id and size, and pixels at the model's input size."""
    return decoded(Path(path).stem, path)


def read_record(record):
    """The same, from a dataset's record."""
    example = parse(record)
    return decoded(example.id, io.BytesIO(example.image))


def decoded(image_id, file):
    image = Image.open(file).convert("RGB")
    return (image_id, image.size), np.asarray(image.resize(SIZE, Image.Resampling.NEAREST))


def row(keyed):
    """Id, and mask as a palette PNG at the image's size."""
    (image_id, size), result = keyed
    mask = Image.fromarray(np.argmax(result.inference, axis=-1).astype(np.uint8))
    mask.putpalette(PALETTE)
    buffer = io.BytesIO()
    mask.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return {"image_id": image_id, "mask": buffer.getvalue()}


def main(source: str, output: str, model: str, workers: str) -> None:
    paths = sorted(str(path) for path in Path(source).glob("CameraRGB/*.png"))
    options = PipelineOptions(
        ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    )
    handler = TFModelHandlerNumpy(model, load_model_args={"compile": False}, max_batch_size=16)
    with beam.Pipeline(FnApiRunner(), options) as root:
        if paths:
            images = root | beam.Create(paths) | beam.Map(read)
        else:
            images = root | ReadFromTFRecord(f"{source}/*.tfrecord-*") | beam.Map(read_record)
        _ = (
            images
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(row)
            | WriteToParquet(f"{output}/masks", SCHEMA, file_name_suffix=".parquet")
        )


if __name__ == "__main__":
    # Workers unpickle functions by module name, and in a worker this module is never __main__.
    import peer_infer_stock

    peer_infer_stock.main(*sys.argv[1:])
