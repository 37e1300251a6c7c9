#!/bin/sh
# A Beam runner can be given a program for its workers, but no arguments for that program.
exec "$WORKER_PYTHON" -m beam.runners.boot "$@"
