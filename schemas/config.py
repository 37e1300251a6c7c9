"""Parameters of the three jobs, with bounds and descriptions, for command lines and flows."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from schemas.layout import safe_name

Resize = Literal["nearest", "bilinear", "area"]

File = Annotated[str, AfterValidator(os.path.expanduser)]
"""The path of a file, with ``~`` expanded, or the name of a built-in one."""


class JobConfig(BaseModel):
    """A job's parameters: immutable, and hashed into what the job publishes."""

    # JSON, in which a model's configuration is stored, has no infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def sha256(self) -> str:
        """Hash of all parameters that may change what is published."""
        return hashlib.sha256(self.model_dump_json(exclude=self._unhashed()).encode()).hexdigest()

    def _unhashed(self) -> set[str]:
        return set()


class SourceConfig(JobConfig):
    """Where a job finds images and masks, and how it reads them."""

    layout: File = Field(
        "lyft",
        min_length=1,
        description="Where images and masks lie: lyft, carla, cityscapes, camvid, or a YAML file.",
    )
    images: str = Field(
        "", description="Pattern of images in place of a layout, e.g. 'rgb/{id}.jpg'."
    )
    masks: str = Field(
        "", description="Pattern of their masks, e.g. 'semantic/{id}_L.png'; goes with images."
    )
    pairs: File = Field(
        "",
        description="CSV or Parquet list in place of a layout: columns image and mask, paths below "
        "the source, and perhaps split and group.",
    )
    inventory: str = Field(
        "",
        description="CSV or Parquet table of the source's files, or the manifest.json of an S3 "
        "Inventory, in place of listing the source: columns path (or key) and size.",
    )
    archives: Literal["skip", "open"] = Field(
        "skip",
        description="Whether .zip and .tar files below the source are skipped, like other files "
        "that are no images, or opened: each is a folder of its files.",
    )
    mask_encoding: str = Field(
        "auto",
        pattern=r"^(auto|red|grey|index|colour|channel:(red|green|blue|alpha))$",
        description="Where a mask holds the class: red, grey, index, colour, channel:blue and so "
        "on; auto: red, grey or colour, whichever fits.",
    )
    void: str = Field(
        "",
        pattern=r"^(\d{1,3}(,\d{1,3})*)?$",
        description="Mask values that belong to no class, beside the taxonomy's, e.g. 255.",
    )
    image_channels: Literal["rgb", "bgr"] = Field(
        "rgb", description="Order of an image's channels; bgr puts red and blue back."
    )
    max_file_mib: int = Field(
        256, ge=1, description="Files with more MiB are rejected before they are read."
    )
    max_pixels: int = Field(
        64_000_000, ge=1, description="Images with more pixels are rejected before decoding."
    )

    def _unhashed(self) -> set[str]:
        # What was made before there was the parameter ``archives`` keeps its hash.
        return {"inventory", *(["archives"] if self.archives == "skip" else [])}

    @model_validator(mode="after")
    def _check_source(self) -> SourceConfig:
        if bool(self.images) != bool(self.masks):
            raise ValueError("images and masks are patterns that go together")
        if self.pairs and self.images:
            raise ValueError("pairs names each image and mask, so no patterns go with it")
        if self.pairs and self.inventory:
            raise ValueError("pairs names each image and mask, so no inventory goes with it")
        if any(int(value) > 255 for value in self.void.split(",") if value):
            raise ValueError("void: expected mask values from 0 to 255")
        return self


class IngestConfig(SourceConfig):
    """How raw pairs become a dataset."""

    name: str = Field("lyft", description="Name of the dataset.", pattern=r"^[a-z][a-z0-9_]{0,62}$")
    height: int = Field(192, ge=0, le=8192, description="Height in pixels; 0: the source's.")
    width: int = Field(256, ge=0, le=8192, description="Width in pixels; 0: the source's.")
    resize: Resize = Field(
        "area", description="How images are resized; masks always by nearest neighbour."
    )
    taxonomy: File = Field("carla-0.8", description="Name of a taxonomy, or its YAML file.")
    taxonomy_check: Literal["on", "off"] = Field(
        "on", description="Stop if the masks look like another numbering of the same classes."
    )
    validation: float = Field(0.1, ge=0, lt=1, description="Share of the validation split.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of the test split.")
    split_by: Literal["block", "folder", "image"] = Field(
        "block",
        description="What one split keeps together: consecutive frames, folders or images.",
    )
    block_length: int = Field(10, ge=1, le=100_000, description="Consecutive frames in a block.")
    group: str = Field(
        "",
        description="Regular expression; images are in one split if the same text of their ids "
        "matches it, or its first parentheses, e.g. '^(drive_[0-9]+)'.",
    )
    given_splits: Literal["keep", "strict", "ignore"] = Field(
        "keep",
        description="Splits that a list or folders named train, val or test give: keep them and "
        "report leaks, keep them unless they leak, or ignore them.",
    )
    max_leak: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of evaluation images with a near-duplicate in another split above which "
        "nothing is published. With 0, images that would leak are left out, unless their splits "
        "are given; with more, none is.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split and of the record order.")
    shard_mib: int = Field(64, ge=1, le=4096, description="Target size of a shard in MiB.")
    max_reject_fraction: float = Field(
        0.01, ge=0, le=1, description="Share of rejects above which nothing is published."
    )
    max_doubtful_fraction: float = Field(
        0.25, ge=0, le=1, description="Share of doubtful pairs above which nothing is published."
    )

    @model_validator(mode="after")
    def _check(self) -> IngestConfig:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for train")
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"group: expected a regular expression: {error}") from error
        if (self.height == 0) != (self.width == 0):
            raise ValueError("height and width are both 0 (the source's size) or both positive")
        return self


_TARGET_STEPS, _EPOCH_BOUNDS = 2_700, (18, 90)
"""Few images need many epochs: docs/training.md has the figures; the notebooks have 18 to 40."""


class TrainConfig(JobConfig):
    """How a dataset becomes a registered model."""

    model_name: str = Field(
        "lyft-unet",
        description="Registered name.",
        pattern=r"^[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$",
    )
    architecture: str = Field(
        "unet-lite0",
        pattern=r"^unet(-2015|-dropout|-lite0|-[A-Z][A-Za-z0-9]+)?$",
        description="unet-lite0, with an encoder from ImageNet; the notebooks' unet; the paper's "
        "unet-2015; the small unet-dropout; or e.g. unet-MobileNetV2, on that of Keras.",
    )
    encoder_weights: File = Field(
        "imagenet",
        min_length=1,
        description="Initial weights of an encoder: imagenet (installed for unet-lite0; Keras "
        "fetches those of its own), none, or a file.",
    )
    filters: int = Field(
        32, ge=1, le=512, description="Filters of the first block; the notebooks have 32."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout rate.")
    normalisation: Literal["none", "batch", "group"] = Field(
        "batch", description="Normalisation after each 3x3 convolution."
    )
    channels: Literal[1, 3] = Field(3, description="1: greyscale, for unet-dropout only.")
    target: str = Field(
        "",
        description="Classes to separate from all others, e.g. Roads,RoadLines; empty: none.",
    )
    start_from: File = Field("", description="Model whose weights training starts from.")
    epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="Passes over the train split; 0: as many as make 2,700 steps, from 18 to 90.",
    )
    batch_size: int = Field(4, ge=1, le=4096, description="Images in a step.")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="Adam's highest learning rate.")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate after the warm-up: constant, or falling to 0."
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up.")
    clip_norm: float = Field(
        0.0, ge=0, description="Maximum global norm of the gradients; 0: no limit."
    )
    loss: Literal["cross-entropy", "dice", "tversky", "focal"] = Field(
        "dice", description="Loss added to the cross-entropy, if any."
    )
    loss_weight: float = Field(1.0, ge=0, le=100, description="Weight of the added loss.")
    class_weights: Literal["none", "sqrt", "manifest"] = Field(
        "sqrt",
        description="Weights of the classes in the cross-entropy: the manifest's, which balance "
        "them, or their square roots.",
    )
    max_class_weight: float = Field(10.0, gt=0, description="Upper bound of a class weight.")
    logit_adjustment: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the class weights that predictions take back, so that rare classes "
        "are seen less often where they are not.",
    )
    augment: Literal["on", "off"] = Field("on", description="Flip, crop, scale and recolour.")
    crop: float = Field(0.6, gt=0, le=1, description="Smallest side of a crop, as a share.")
    colour: float = Field(
        0.4, ge=0, lt=1, description="Largest change of brightness, contrast and saturation."
    )
    weather: float = Field(
        1.0,
        ge=0,
        le=1,
        description="How much light, air and camera change: gamma, tint, haze, blur, noise.",
    )
    keep: Literal["mean_iou", "loss", "last"] = Field(
        "mean_iou", description="Epoch whose weights are kept: best on validation, or the last."
    )
    patience: int = Field(
        0,
        ge=0,
        description="Epochs without improvement before stopping, by mean_iou if keep is last; 0: "
        "never.",
    )
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "auto", description="auto: 16 bits if the GPU, or else the CPU, is faster at it."
    )
    backend: Literal["auto", "tensorflow", "jax"] = Field(
        "auto", description="Keras's backend; auto: JAX if it has a GPU, else TensorFlow."
    )
    xla: Literal["on", "off"] = Field(
        "off", description="Compile TensorFlow's steps with XLA: slower on CPUs."
    )
    deterministic: Literal["on", "off"] = Field(
        "off", description="Equal weights from equal input, at some cost on GPUs."
    )
    cache_mib: int = Field(
        2048, ge=0, description="Decoded images are kept in memory up to this size in MiB."
    )
    seed: int = Field(0, ge=0, lt=1 << 31, description="Seed of weights, order, augmentation.")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.channels == 1 and self.architecture != "unet-dropout":
            raise ValueError("channels=1 is for architecture=unet-dropout")
        return self

    def for_images(self, images: int) -> TrainConfig:
        """The parameters with ``epochs`` set for a train split of this size, unless they are."""
        if self.epochs:
            return self
        steps = -(-images // self.batch_size)
        fewest, most = _EPOCH_BOUNDS
        epochs = min(most, max(fewest, -(-_TARGET_STEPS // max(1, steps))))
        return self.model_copy(update={"epochs": epochs})


class GateConfig(JobConfig):
    """When a new version takes the champion's place."""

    promote: Literal["gate", "always", "never"] = Field(
        "gate", description="Whether a version becomes champion: if it is better, or regardless."
    )
    margin: float = Field(
        0.005, ge=0, le=1, description="Mean IoU by which it must be better on the test split."
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence level of the bootstrap interval, which must lie above 0.",
    )
    critical: str = Field(
        "",
        description="Classes that must not fall, e.g. Vehicles,Roads; by default those that "
        "taxonomies call vehicles, pedestrians and road.",
    )
    tolerance: float = Field(0.02, ge=0, le=1, description="IoU a critical class may lose.")
    floor: float = Field(
        0.2, ge=0, le=1, description="Mean IoU that a first version needs to become champion."
    )


class InferConfig(SourceConfig):
    """How a model's predictions become tables."""

    split: Literal["all", "train", "validation", "test"] = Field(
        "all", description="Split of a dataset to predict; a folder of PNGs has none."
    )
    source_name: str = Field(
        "",
        pattern=r"^(\w([\w-]{0,61}\w)?)?$",
        description="Name of the source in the tables; the dataset's or the folder's by default.",
    )
    taxonomy: File = Field("carla-0.8", description="Taxonomy of a plain .keras file.")
    height: int = Field(
        0, ge=0, le=8192, description="Input height; 0: as trained, 96 for a plain .keras file."
    )
    width: int = Field(
        0, ge=0, le=8192, description="Input width; 0: as trained, 128 for a plain .keras file."
    )
    windows: Literal["off", "on"] = Field(
        "off",
        description="on: images keep their size, and the network slides over those that are "
        "larger than its input, instead of resizing them.",
    )
    flip: Literal["off", "on"] = Field(
        "off", description="on: mean of the predictions for an image and its mirror image."
    )
    upscale: int = Field(
        1,
        ge=1,
        le=4,
        description="Factor by which logits are scaled up before each pixel's class is chosen: "
        "smoother boundaries in frames larger than the input, for more work.",
    )
    engine: Literal["auto", "openvino", "tensorflow"] = Field(
        "auto", description="Inference engine; auto: TensorFlow on a GPU, OpenVINO on a CPU."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Precision inside the network; auto: the fastest of this machine, whose masks "
        "differ a little from another's.",
    )
    batch_size: int = Field(
        0, ge=0, le=1024, description="Images in one call of the model; 0 chooses by engine."
    )
    max_failed_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of images the network may fail on; above it, nothing is published.",
    )
    part_mib: float = Field(
        128, ge=0.001, le=4096, description="Target size of a Parquet file in MiB."
    )
    row_group_mib: int = Field(32, ge=1, le=1024, description="Target size of a row group in MiB.")

    @model_validator(mode="after")
    def _check(self) -> InferConfig:
        if (self.height == 0) != (self.width == 0):
            raise ValueError("height and width are both 0 (as trained) or both positive")
        if self.windows == "on" and self.upscale > 1:
            raise ValueError("with windows=on, masks have the images' size: expected upscale 1")
        if self.source_name and safe_name(self.source_name) != self.source_name:
            raise ValueError(f"source_name: {self.source_name!r} cannot name a folder")
        return self
