"""ADM's Inception graph in TensorFlow: images -> features (formats.md M8). Takes seconds to import.

Letters as in network.py: D = 2048 features, S = 17 * 17 * 7 spatial ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from evaluation.features.network import SPATIAL_CHANNELS, Inception, inception_file, too_little_memory
from evaluation.options import GRAPH_URL
from runtime.errors import UserError

INPUT, POOLED, SPATIAL, LOGITS = "ExpandDims:0", "pool_3:0", "mixed_6/conv:0", "softmax/logits/MatMul"


class TensorFlowInception(Inception):
    """The frozen graph, ready to compute; by default of the user's cache. UserError if the file is not the graph.

    ``pinned`` is the SHA-256 that the user wants it to have.
    """

    def __init__(self, graph_path: str | Path | None, pinned: str | None = None) -> None:
        path, self.sha256 = inception_file(graph_path, GRAPH_URL, "--inception_graph", pinned)
        definition = tf.compat.v1.GraphDef()
        try:
            definition.ParseFromString(path.read_bytes())
        except DecodeError as error:
            wrong = f"{path} is damaged or no frozen TensorFlow graph ({error}); remove it to fetch it"
            raise UserError(wrong) from error
        self.versions = {"tensorflow": tf.__version__}
        self.on_gpu = bool(tf.config.list_physical_devices("GPU"))
        with tf.Graph().as_default() as graph:
            self._images = tf.compat.v1.placeholder(tf.float32, (None, None, None, 3))
            try:
                pooled, spatial, logits = tf.import_graph_def(
                    definition, {INPUT: self._images}, [POOLED, SPATIAL, LOGITS], name=""
                )
            except ValueError as error:
                raise UserError(f"{path} is not ADM's Inception graph: {' '.join(str(error).split())}") from error
            self._outputs = pooled, spatial[..., :SPATIAL_CHANNELS]
            self._rows, self._columns = (tf.compat.v1.placeholder(tf.float32, (None, None)) for _ in range(2))
            self._halves = _distances(self._rows, self._columns, tf.float16)
            self._singles = _distances(self._rows, self._columns, tf.float32)
            # Not all of a GPU's memory at once: others may use it too.
            config = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
            self._session = tf.compat.v1.Session(graph=graph, config=config)
            self.class_weights = self._session.run(logits.inputs[1])

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            outputs = self._session.run(self._outputs, {self._images: images.astype(np.float32)})
        except tf.errors.ResourceExhaustedError as error:
            raise too_little_memory(len(images)) from error
        pooled, spatial = (array.reshape(len(images), -1) for array in outputs)
        return pooled, spatial

    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As in the base: computed in float16, as ADM does, unless that overflows.

        Rounding to 11 bits decides which images are inside a manifold; another library adds up in another order and
        has other figures in the second digit.
        """
        feed = {self._rows: rows, self._columns: columns}
        distances = self._session.run(self._halves, feed)
        if not np.isfinite(distances).all():
            distances = self._session.run(self._singles, feed)
        return np.maximum(distances, 0, out=distances)


def _distances(rows: Any, columns: Any, kind: Any) -> Any:
    """The squared distances in a precision, as float32; rounding may leave small ones below 0."""
    rows, columns = tf.cast(rows, kind), tf.cast(columns, kind)
    norms = [tf.reduce_sum(tf.square(features), axis=1) for features in (rows, columns)]
    products = tf.matmul(rows, columns, transpose_b=True)
    return tf.cast(norms[0][:, None] - 2 * products + norms[1][None], tf.float32)
