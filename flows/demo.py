"""The whole pipeline once, on this machine alone: ``make demo``.

Runs the flow on embedded defaults: Prefect's ephemeral server, MLflow on SQLite, Beam's local
runner on all cores. Everything it writes lies below one folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from schemas.cli import run_main
from schemas.config import IngestConfig, TrainConfig
from schemas.errors import UserError


def main(arguments: Sequence[str]) -> str:
    """The command line; returns what the person reads at the end."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m flows.demo", description=__doc__
    )
    parser.add_argument("--raw", help="your images; synthetic scenes are drawn without")
    parser.add_argument("--output", default="outputs", help="root of all outputs")
    parser.add_argument("--scenes", type=int, default=160, help="synthetic scenes to draw")
    parser.add_argument("--epochs", type=int, default=24)
    args = parser.parse_args(arguments)
    if args.raw is not None and not Path(args.raw).is_dir():
        raise UserError(f"RAW={args.raw!r}: there is no such folder")
    started = time.monotonic()
    output = Path(args.output).absolute()
    _embed_prefect(output)

    from flows.ingest_train_infer import ingest_train_infer
    from flows.scenes import write_scenes
    from flows.summary import class_rows, class_summary, draw_examples, text_table

    raw = args.raw or write_scenes(str(output / "raw/synthetic"), args.scenes)
    tracking_uri = f"sqlite:///{output}/mlflow/mlflow.db"
    results = ingest_train_infer(
        source=str(Path(raw).absolute()),
        output=str(output),
        tracking_uri=tracking_uri,
        ingest_config=IngestConfig(name="lyft" if args.raw else "synthetic"),
        train_config=TrainConfig(
            model_name="lyft-unet" if args.raw else "synthetic-unet",
            epochs=args.epochs,
        ),
    )
    picture = output / f"{results.partition.replace('/', '-').replace('=', '-')}.png"
    draw_examples(results.dataset, results.predictions, results.partition, picture)
    table = text_table(class_rows(class_summary(results.predictions, results.partition)))
    tables = f"{results.predictions}/class_stats/**/*.parquet"
    sql = f"FROM '{tables}' SELECT class_name, avg(pixel_fraction) GROUP BY ALL ORDER BY 2 DESC"
    return f"""
{table}

dataset   {results.dataset}
model     {results.model}  in {tracking_uri}
tables    {results.predictions}
picture   {picture}
took      {time.monotonic() - started:.0f} s; what has not changed is reused next time

Next, try
  .venv/bin/mlflow ui --backend-store-uri {tracking_uri}
  .venv/bin/python -m beam.infer --model {results.model} --source FOLDER_OF_PNGS \\
      --output {results.predictions} --tracking_uri {tracking_uri}
  .venv/bin/python -c "import duckdb; duckdb.sql(\\"{sql}\\").show()\""""


def _embed_prefect(output: Path) -> None:
    """Keeps Prefect's server inside this process and its state below the output folder."""
    home = output / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ.pop("PREFECT_API_URL", None)


if __name__ == "__main__":
    sys.exit(run_main(main))
