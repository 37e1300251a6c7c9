#!/bin/sh
# PostgreSQL's image runs this once, on an empty volume: each server owns a database and cannot connect
# to the other's. The file must be executable, or the image sources it into its own shell.
set -eu

own_database() {
    psql --quiet --set=ON_ERROR_STOP=1 --set=name="$1" --set=password="$2" \
        --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

own_database prefect "$PREFECT_DB_PASSWORD"
own_database mlflow "$MLFLOW_DB_PASSWORD"
