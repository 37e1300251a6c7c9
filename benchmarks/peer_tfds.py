"""Peer of ingest: the TFDS builder on FnApiRunner with worker processes."""

import sys
from pathlib import Path

import peer_tfds_builder
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner


def main(source: str, output: str, workers: str) -> None:
    builder = peer_tfds_builder.Lyft(data_dir=output)
    builder.source = source
    options = PipelineOptions(
        ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            beam_runner=FnApiRunner(), beam_options=options
        )
    )
    assert list(Path(output).rglob("*.tfrecord-*"))


if __name__ == "__main__":
    main(*sys.argv[1:])
