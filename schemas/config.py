"""Parameters of the three jobs: bounded, described, the same on command lines and in flows."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Resize = Literal["nearest", "bilinear", "area"]


class JobConfig(BaseModel):
    """A job's parameters: immutable, and hashed into what the job publishes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def sha256(self) -> str:
        """Hash of all parameters."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class IngestConfig(JobConfig):
    """How raw pairs become a dataset."""

    name: str = Field("lyft", description="Name of the dataset.", pattern=r"^[a-z][a-z0-9_]{0,62}$")
    height: int = Field(96, ge=0, le=8192, description="Height in pixels; 0 keeps the source's.")
    width: int = Field(128, ge=0, le=8192, description="Width in pixels; 0 keeps the source's.")
    resize: Resize = Field(
        "nearest", description="How images are resized; masks always by nearest neighbour."
    )
    taxonomy: str = Field("carla-0.8", description="Name of a taxonomy, or its YAML file.")
    validation: float = Field(0.1, ge=0, lt=1, description="Share of the validation split.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of the test split.")
    split_by: Literal["block", "folder", "image"] = Field(
        "block", description="What stays together in one split: a run of frames, a folder, nothing."
    )
    block_length: int = Field(10, ge=1, le=100_000, description="Consecutive frames in a block.")
    seed: int = Field(0, ge=0, description="Seed of the split and of the record order.")
    shard_mib: int = Field(64, ge=1, le=4096, description="Most MiB a shard should hold.")
    max_pixels: int = Field(
        64_000_000, ge=1, description="Images with more pixels are rejected before decoding."
    )
    max_reject_fraction: float = Field(
        0.01, ge=0, le=1, description="Share of rejects above which nothing is published."
    )

    @model_validator(mode="after")
    def _check(self) -> IngestConfig:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for train")
        if (self.height == 0) != (self.width == 0):
            raise ValueError("height and width are both 0 (the source's size) or both positive")
        return self


class TrainConfig(JobConfig):
    """How a dataset becomes a registered model."""

    model_name: str = Field(
        "lyft-unet", description="Registered name.", pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"
    )
    epochs: int = Field(18, ge=1, le=1000, description="Passes over the train split.")
    batch_size: int = Field(32, ge=1, le=4096, description="Images in a step.")
    filters: int = Field(32, ge=1, le=512, description="Filters of the first block.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of the two deepest blocks.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate.")
    seed: int = Field(0, ge=0, description="Seed of weights, dropout and shuffling.")
    alias: str = Field(
        "champion", description="Alias that the version gets.", pattern=r"^[A-Za-z0-9_-]{1,63}$"
    )

    @field_validator("alias")
    @classmethod
    def _check_alias(cls, alias: str) -> str:
        if alias == "latest" or re.fullmatch(r"v\d+", alias):
            raise ValueError("latest and v<number> name versions in MLflow")
        return alias


class InferConfig(JobConfig):
    """How a model's predictions become tables."""

    split: Literal["all", "train", "validation", "test"] = Field(
        "all", description="Split of a dataset to predict; a folder of PNGs has none."
    )
    source_name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]{0,63}$",
        description="Name of the source in the tables; the dataset's or the folder's by default.",
    )
    taxonomy: str = Field("carla-0.8", description="Taxonomy of a plain .keras file.")
    height: int = Field(
        0, ge=0, le=8192, description="Input height; 0: as trained, 96 for a plain .keras file."
    )
    width: int = Field(
        0, ge=0, le=8192, description="Input width; 0: as trained, 128 for a plain .keras file."
    )
    engine: Literal["auto", "openvino", "tensorflow"] = Field(
        "auto", description="What predicts; auto: TensorFlow on a GPU, OpenVINO on a CPU."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the network's inner sums; auto: the fastest that the processor has."
    )
    batch_size: int = Field(
        0, ge=0, le=1024, description="Images in one call of the model; 0 chooses by engine."
    )
    part_mib: float = Field(
        128, gt=0, le=4096, description="Most MiB that a Parquet file should hold."
    )
    row_group_mib: int = Field(32, ge=1, le=1024, description="Most MiB in a row group.")
    max_pixels: int = Field(
        64_000_000, ge=1, description="Images with more pixels are rejected before decoding."
    )

    @model_validator(mode="after")
    def _check(self) -> InferConfig:
        if (self.height == 0) != (self.width == 0):
            raise ValueError("height and width are both 0 (as trained) or both positive")
        return self
