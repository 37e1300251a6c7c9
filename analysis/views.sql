-- The tables of `python -m beam.infer` as DuckDB views. `make analyse` loads them; without Python:
--
--   SET VARIABLE predictions = 'outputs/predictions';
--   .read analysis/views.sql
--
-- All have the partition columns model, version (text, e.g. v3) and source, and run_id, the key of
-- runs. A query that filters on model, version or source reads only the matching partitions.

-- Times are shown in UTC, as in the files, not in the time zone of the machine that reads them.
SET TimeZone = 'UTC';

-- DuckDB 2.0.0 loses the filter on a partition column when it turns a window into a join: sums
-- OVER (PARTITION BY ...) then read the files of all partitions.
SET disabled_optimizers = 'window_self_join';

CREATE OR REPLACE MACRO published(name) AS TABLE
FROM read_parquet(
    getvariable('predictions') || '/' || name || '/**/*.parquet',
    hive_partitioning = true,
    hive_types = {'model': VARCHAR, 'version': VARCHAR, 'source': VARCHAR},
    -- A partition written by an earlier version may lack a column, which is then null.
    union_by_name = true
);

-- One row per image: mask.bytes is a palette PNG of class ids, confusion the image's own matrix.
CREATE OR REPLACE VIEW masks AS FROM published('masks');

-- One row per image and class, including classes with zero pixels.
CREATE OR REPLACE VIEW class_stats AS FROM published('class_stats');

-- One row per partition: the job that wrote it, its model, its dataset, its counts.
CREATE OR REPLACE VIEW runs AS FROM published('runs');

-- One row per class of a run's taxonomy: name and colour.
CREATE OR REPLACE VIEW classes AS FROM published('classes');

-- Pixels by split, true class and predicted class; no rows if no truth is known.
CREATE OR REPLACE VIEW confusion AS FROM published('confusion');

-- Inputs that could not be read or predicted, with the reason.
CREATE OR REPLACE VIEW rejects AS FROM published('rejects');

-- The former name of rejects; many readers skip names with an underscore as hidden.
CREATE OR REPLACE VIEW _rejects AS FROM rejects;

-- One row per image: quality of its mask, confidence and variety of its classes.
--   mean_iou       over the classes in the truth or prediction of this image
--   worst_class    the class with the lowest IoU; on ties, the one with the largest union
--   classes_found  classes with at least one predicted pixel
--   class_entropy  of the predicted class shares, in bits: 0 for a single class
CREATE OR REPLACE VIEW image_quality AS
WITH of_classes AS (
    SELECT
        model, version, source, run_id, image_id,
        avg(iou) AS mean_iou,
        min(iou) AS worst_iou,
        arg_min(class_name, (iou, -"union", class_id)) FILTER (iou IS NOT NULL) AS worst_class,
        count(*) FILTER (pixel_count > 0) AS classes_found,
        -sum(pixel_fraction * log2(pixel_fraction)) FILTER (pixel_count > 0) AS class_entropy
    FROM class_stats
    GROUP BY ALL
)
SELECT
    model, version, source, run_id, split, image_id, source_uri, width, height,
    pixel_accuracy, mean_iou, worst_class, worst_iou,
    mean_confidence, classes_found, class_entropy
-- The partition columns are in the join so that a filter on them prunes the files of both tables.
FROM masks JOIN of_classes USING (model, version, source, run_id, image_id);
