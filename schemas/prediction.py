"""Rows and pyarrow schemas of the published tables: masks, class_stats, confusion and so on.

Partition columns (model, version, source) are in the folder names, not in the files: readers that
find a column in both refuse it, or take the wrong one.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 5


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


_RUN_ID = _field("run_id", pa.string(), "Key of the runs table: the job that wrote the row")
_IMAGE_ID = _field(
    "image_id", pa.string(), "Path below the source root without suffix and camera folder"
)
_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_SPLIT = _field(
    "split", _CATEGORY, "train, validation or test; null outside a dataset", nullable=True
)

MASKS = pa.schema(
    [
        _IMAGE_ID,
        _field("source_uri", pa.string(), "The source PNG"),
        _SPLIT,
        _field("width", pa.int32(), "Pixels, of the image that was predicted and of its mask"),
        _field("height", pa.int32(), "Pixels, of the image that was predicted and of its mask"),
        _field(
            "mask",
            pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
            "Palette PNG in the class colours; a pixel's value is its class id",
        ),
        _field("mask_size", pa.int32(), "Bytes of the mask's PNG"),
        _field("mean_confidence", pa.float32(), "Mean over pixels of the highest probability"),
        _field(
            "pixel_accuracy",
            pa.float64(),
            "Share of right pixels, void left out; null without truth",
            nullable=True,
        ),
        _field(
            "confusion",
            pa.list_(pa.field("item", pa.int32(), nullable=False)),
            "Pixels by true and predicted class, row after row: true * classes + predicted; "
            "null without truth",
            nullable=True,
        ),
        _field("image_sha256", pa.string(), "Hash of the source PNG's bytes"),
        _field(
            "truth_sha256",
            pa.string(),
            "Hash of the bytes of the mask's PNG, or of a record's mask; null without one",
            nullable=True,
        ),
        _RUN_ID,
    ]
)

CLASS_STATS = pa.schema(
    [
        _IMAGE_ID,
        _SPLIT,
        _field("class_id", pa.int16(), "Class id in the taxonomy"),
        _field("class_name", _CATEGORY, "Class name in the taxonomy"),
        _field("pixel_count", pa.int64(), "Pixels predicted as this class"),
        _field("pixel_fraction", pa.float64(), "pixel_count / (width * height)"),
        _field(
            "mean_confidence",
            pa.float32(),
            "Mean probability of the pixels predicted as this class; null without any",
            nullable=True,
        ),
        _field("true_pixel_count", pa.int64(), "Pixels of this class in the truth", nullable=True),
        _field("intersection", pa.int64(), "Rightly predicted pixels of this class", nullable=True),
        _field("union", pa.int64(), "Pixels of this class in truth or prediction", nullable=True),
        _field("iou", pa.float64(), "intersection / union; null where union is 0", nullable=True),
        _RUN_ID,
    ]
)

CONFUSION = pa.schema(
    [
        _SPLIT,
        _field("true_class_id", pa.int16(), "Class id in the truth"),
        _field("true_class_name", _CATEGORY, "Class name in the truth"),
        _field("predicted_class_id", pa.int16(), "Class id in the prediction"),
        _field("predicted_class_name", _CATEGORY, "Class name in the prediction"),
        _field("pixel_count", pa.int64(), "Pixels of all images of the split, void left out"),
        _RUN_ID,
    ]
)

CLASSES = pa.schema(
    [
        _field("class_id", pa.int16(), "Class id: pixel value of a mask, index of a logit"),
        _field("class_name", pa.string(), "Class name in the taxonomy"),
        _field("color", pa.string(), "Colour in the masks, #rrggbb"),
        _field("taxonomy", pa.string(), "Name of the taxonomy"),
        _field("taxonomy_sha256", pa.string(), "Hash of the taxonomy"),
        _RUN_ID,
    ]
)

RUNS = pa.schema(
    [
        _RUN_ID,
        _field("model_uri", pa.string(), "models:/name/3, runs:/… or the path of a model file"),
        _field("model_sha256", pa.string(), "Hash of the model file"),
        _field("mlflow_run_id", pa.string(), "Training run of the model", nullable=True),
        _field("source_uri", pa.string(), "Folder of the dataset or of the PNGs"),
        _field("dataset_fingerprint", pa.string(), "Dataset that was predicted", nullable=True),
        _field(
            "training_fingerprint", pa.string(), "Dataset the model was trained on", nullable=True
        ),
        _field("taxonomy", pa.string(), "Name of the taxonomy"),
        _field("taxonomy_sha256", pa.string(), "Hash of the taxonomy"),
        _field("engine", pa.string(), "Inference engine: openvino or tensorflow"),
        _field("precision", pa.string(), "Precision inside the network"),
        _field("images_read", pa.int64(), "predicted + rejected"),
        _field("images_predicted", pa.int64(), "Images with rows in masks and class_stats"),
        _field("images_reused", pa.int64(), "Predicted images reused from the run before"),
        _field(
            "images_rejected",
            pa.int64(),
            "Images without a prediction: rows of rejects whose stage is not truth",
        ),
        _field("flow_run_id", pa.string(), "Prefect flow run; null outside a flow", nullable=True),
        _field("started_at", pa.timestamp("us", tz="UTC"), "Start of the job"),
        _field("finished_at", pa.timestamp("us", tz="UTC"), "Just before publishing"),
    ]
)

REJECTS = pa.schema(
    [
        _IMAGE_ID,
        _field("source_uri", pa.string(), "The file"),
        _field("stage", pa.string(), "Where it was rejected: pair, check, read, truth or predict"),
        _field("code", pa.string(), "Reason, stable"),
        _field("message", pa.string(), "What was expected and what was found"),
    ]
)

PREDICTION_REJECTS = pa.schema(
    [
        *REJECTS,
        _field(
            "source_sha256",
            pa.string(),
            "Hash of the file's bytes; null where they were not read",
            nullable=True,
        ),
        _RUN_ID,
    ]
)


SCHEMAS = {
    "classes": CLASSES,
    "masks": MASKS,
    "class_stats": CLASS_STATS,
    "confusion": CONFUSION,
    "rejects": PREDICTION_REJECTS,
    "runs": RUNS,
}
"""Schema of each table, in publishing order: a run's row in ``runs`` comes last."""


def plain(schema: pa.Schema) -> pa.Schema:
    """``schema`` without dictionaries and metadata: the schema of rows before publishing."""
    return pa.schema(
        pa.field(one.name, one.type.value_type if pa.types.is_dictionary(one.type) else one.type)
        for one in schema
    )


def with_footer(schema: pa.Schema, **facts: str | None) -> pa.Schema:
    """``schema`` with facts (fingerprint, model, run …) as key-value metadata for the footer."""
    known = {f"lyft.{key}": value for key, value in facts.items() if value is not None}
    return schema.with_metadata({"lyft.schema_version": str(SCHEMA_VERSION), **known})
