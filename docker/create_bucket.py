"""Creates the bucket that the environment variable BUCKET names, if it is missing."""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def create_bucket(name: str) -> str:
    """Creates a bucket if it is missing.

    Endpoint and credentials come from the environment, as AWS's tools read them.

    Returns:
        What was done.
    """
    store = boto3.client("s3")
    if name in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
        return f"bucket {name} exists"
    store.create_bucket(Bucket=name)
    return f"bucket {name} created"


if __name__ == "__main__":
    try:
        print(create_bucket(os.environ["BUCKET"]))
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: {error}")
