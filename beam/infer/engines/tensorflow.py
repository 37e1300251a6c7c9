"""TensorFlow engine: predicts with the ``.keras`` file itself, on a GPU if there is one."""

from __future__ import annotations

import contextlib
from typing import Any

from beam.infer.engines.base import Compiled, Engine, Predicted, Runtime
from beam.infer.model_uri import ResolvedModel
from runtime.errors import UserError, first_line
from runtime.imports import import_tensorflow
from schemas.classes import UInt8Array


class TensorFlowEngine(Engine):
    """The Keras network as one compiled function, loaded in Keras's safe mode."""

    def __init__(self, model: ResolvedModel, runtime: Runtime) -> None:
        self._tf = import_tensorflow()
        # A process that has already used TensorFlow can no longer change these settings.
        with contextlib.suppress(RuntimeError):
            for gpu in self._tf.config.list_physical_devices("GPU"):
                self._tf.config.experimental.set_memory_growth(gpu, True)
            if not runtime.shared:
                self._tf.config.threading.set_intra_op_parallelism_threads(runtime.threads)
                self._tf.config.threading.set_inter_op_parallelism_threads(1)
        # With TensorFloat-32, a GPU would round the factors of float32 products to 10 bits.
        self._tf.config.experimental.enable_tensor_float_32_execution(False)
        import keras

        try:
            self._network = keras.saving.load_model(model.keras_file, compile=False, safe_mode=True)
        except Exception as error:
            # Keras raises many types on files that it did not write.
            raise UserError(
                f"model file {model.keras_file!r} cannot be loaded: {first_line(error)}"
            ) from error
        _compute_in(self._network, runtime.precision)
        super().__init__(model, runtime)

    def _logits_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        return tuple(self._network.compute_output_shape(shape))

    def _compile(self, shape: tuple[int, int, int, int]) -> Compiled:
        tf, network = self._tf, self._network

        def head(images: Any) -> Any:
            logits = network(images, training=False)
            if self._flip:
                straight, mirrored = tf.split(tf.cast(logits, tf.float32), 2)
                logits = _mean_logits(tf, straight, tf.reverse(mirrored, [2]))
            if self._upscale > 1:
                size = [side * self._upscale for side in logits.shape[1:3]]
                logits = tf.image.resize(tf.cast(logits, tf.float32), size)
            return _ids_and_confidences(tf, logits)

        compiled = tf.function(head, input_signature=[tf.TensorSpec(shape, tf.uint8)])

        def call(images: UInt8Array) -> Predicted:
            ids, confidence = compiled(images)
            return ids.numpy(), confidence.numpy()

        return call


def _mean_logits(tf: Any, one: Any, other: Any) -> Any:
    """Logits of the mean probabilities of two tensors of logits."""
    if one.shape[-1] == 1:
        mean = (tf.sigmoid(one) + tf.sigmoid(other)) / 2
        return tf.math.log(mean) - tf.math.log1p(-mean)
    return tf.math.log((tf.nn.softmax(one) + tf.nn.softmax(other)) / 2)


def _ids_and_confidences(tf: Any, logits: Any) -> Any:
    """Class ids, uint8, and highest probabilities, float32, of logits (…, classes).

    A single logit separates two classes: the second where it is positive.
    """
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        logits = logits[..., 0]
        return tf.cast(logits > 0, tf.uint8), tf.sigmoid(tf.abs(logits))
    # The highest softmax probability alone.
    highest = tf.reduce_max(logits, axis=-1)
    confidence = tf.exp(highest - tf.reduce_logsumexp(logits, axis=-1))
    return tf.cast(tf.argmax(logits, axis=-1), tf.uint8), confidence


def _compute_in(network: Any, precision: str) -> None:
    """Sets the dtype in which the layers compute; weights and the last layer stay float32."""
    policy = precision if precision == "float32" else f"mixed_{precision}"
    for layer in getattr(network, "layers", ()):
        layer.dtype_policy = policy
        _compute_in(layer, precision)
    if layers := getattr(network, "layers", ()):
        layers[-1].dtype_policy = "float32"
