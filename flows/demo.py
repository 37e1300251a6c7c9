"""Runs the whole pipeline once, on this machine alone: ``make demo``.

The flow runs on embedded defaults: Prefect's ephemeral server, MLflow on SQLite, and Beam's local
runner on all cores. Everything it writes is below one folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime import storage
from runtime.command_line import Parser, run_main, validated
from runtime.errors import UserError
from runtime.imports import import_quickly
from runtime.table import table
from schemas.config import IngestConfig, TrainConfig

_HEIGHT, _WIDTH = 96, 128
"""Half of the default height and width: a quarter of the time."""


def main(arguments: Sequence[str]) -> str:
    """The command line; returns the summary to print at the end."""
    parser = Parser(prog="python -m flows.demo", description=__doc__)
    parser.add_argument(
        "--raw", help="folder, archive or URI of your images; default: scenes that it draws"
    )
    parser.add_argument("--output", default="outputs", help="root of all outputs")
    parser.add_argument("--scenes", type=int, default=160, help="synthetic scenes to draw")
    parser.add_argument("--epochs", type=int, default=24)
    args = parser.parse_args(arguments)
    raw = None if args.raw is None else storage.absolute(args.raw)
    if raw is not None:
        storage.require_folder(raw, "RAW")
    require_local(args.output)
    train_config = validated(
        TrainConfig, model_name="lyft-unet" if raw else "synthetic-unet", epochs=args.epochs
    )
    started = time.monotonic()
    output = Path(args.output).absolute()
    _embed_prefect(output)

    import_quickly("flows.ingest_train_infer")
    from flows.ingest_train_infer import ingest_train_infer
    from flows.lifecycle.summary import class_rows, class_summary
    from flows.scenes import write_scenes

    source = raw or write_scenes(str(output / "raw/synthetic"), args.scenes)
    tracking_uri = f"sqlite:///{output}/mlflow/mlflow.db"
    results = ingest_train_infer(
        source=source,
        output=str(output),
        tracking_uri=tracking_uri,
        ingest_config=IngestConfig(
            name="lyft" if raw else "synthetic", height=_HEIGHT, width=_WIDTH
        ),
        train_config=train_config,
    )
    rows = class_rows(class_summary(results.predictions, results.partition))
    classes = table(list(rows[0]), [list(row.values()) for row in rows], align_right=True)
    return f"""
{classes}

dataset   {results.dataset}
model     {results.model}  in {tracking_uri}
tables    {results.predictions}
report    {results.report}
picture   {Path(results.report).with_suffix(".png")}
took      {time.monotonic() - started:.0f} s; what has not changed is reused next time

Next, try
  make analyse PREDICTIONS={results.predictions}
  .venv/bin/mlflow ui --backend-store-uri {tracking_uri}
  .venv/bin/python -m beam.infer --model {results.model} --source FOLDER_OF_PNGS \\
      --output {results.predictions} --tracking_uri {tracking_uri}"""


def require_local(output: str) -> None:
    """Raises UserError unless ``output`` is a local folder, where servers can keep their state."""
    if storage.is_remote(output):
        raise UserError(
            f"--output {output!r}: expected a folder of this machine; on a store, run the jobs or "
            "the flow (docs/storage.md)"
        )


def _embed_prefect(output: Path) -> None:
    """Makes Prefect start an ephemeral server, with its state below the output folder."""
    home = output / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    # Prefect's default is 20 s; a busy machine may need twice that.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.pop("PREFECT_API_URL", None)


if __name__ == "__main__":
    sys.exit(run_main(main))
