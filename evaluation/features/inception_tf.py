"""ADM's Inception graph in TensorFlow: images -> features (method.md Sec. 9).

Letters: B images, H, W their sides in pixels, D = 2048 features, S = 17 * 17 * 7 spatial ones, K classes.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from evaluation.features.download import fetched
from evaluation.features.network import Inception
from runtime.errors import UserError
from runtime.files import hash_file

GRAPH_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb"
INPUT, POOLED, SPATIAL, LOGITS = "ExpandDims:0", "pool_3:0", "mixed_6/conv:0", "softmax/logits/MatMul"
SPATIAL_CHANNELS = 7


class TensorFlowInception(Inception):
    """The frozen graph, ready to compute; by default that of ``default_graph``.

    Raises:
        UserError: TensorFlow is missing, or the file is not the graph.
    """

    def __init__(self, graph_path: str | Path | None) -> None:
        path = Path(graph_path or default_graph())
        tf = _import_tensorflow()
        definition = _read_definition(tf, path)
        self.sha256 = hash_file(path)
        self.versions = {"tensorflow": tf.__version__}
        with tf.Graph().as_default() as graph:
            self._images = tf.compat.v1.placeholder(tf.float32, (None, None, None, 3))
            try:
                pooled, spatial, logits = tf.import_graph_def(
                    definition, {INPUT: self._images}, [POOLED, SPATIAL, LOGITS], name=""
                )
            except ValueError as error:
                raise UserError(f"{path} is not ADM's Inception graph: {' '.join(str(error).split())}") from error
            self._outputs = pooled, spatial[..., :SPATIAL_CHANNELS]
            self._features = tuple(tf.compat.v1.placeholder(tf.float32, (None, None)) for _ in range(2))
            self._halves, self._singles = (_distances(tf, *self._features, kind) for kind in (tf.float16, tf.float32))
            # Not all of a GPU's memory at once: others may use it too.
            config = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
            self._session = tf.compat.v1.Session(graph=graph, config=config)
            self.class_weights = self._session.run(logits.inputs[1])

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (B, D) and spatial ones (B, S), float32, of images (B, H, W, 3) uint8."""
        outputs = self._session.run(self._outputs, {self._images: images.astype(np.float32)})
        pooled, spatial = (array.reshape(len(images), -1) for array in outputs)
        return pooled, spatial

    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n, m) float32 of features (n, D), (m, D): computed in float16, as ADM does, unless that overflows.

        Rounding to 11 bits decides which images are inside a manifold; another library adds up in another order and
        has other figures in the second digit.
        """
        feed = dict(zip(self._features, (rows, columns), strict=True))
        distances = self._session.run(self._halves, feed)
        if not np.isfinite(distances).all():
            distances = self._session.run(self._singles, feed)
        return np.maximum(distances, 0, out=distances)


def _distances(tf: Any, rows: Any, columns: Any, kind: Any) -> Any:
    """The squared distances in a precision, as float32; rounding may leave small ones below 0."""
    rows, columns = tf.cast(rows, kind), tf.cast(columns, kind)
    norms = [tf.reduce_sum(tf.square(side), axis=1) for side in (rows, columns)]
    products = tf.matmul(rows, columns, transpose_b=True)
    return tf.cast(norms[0][:, None] - 2 * products + norms[1][None], tf.float32)


def _import_tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or it reports every CPU feature it found
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"TensorFlow is missing ({error}); pip install -r requirements.txt") from error
    return tf


def _read_definition(tf: Any, path: Path) -> Any:
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is damaged or no frozen TensorFlow graph ({error}); remove it to fetch it") from error
    return definition


def default_graph() -> Path:
    """ADM's graph in the user's cache, fetched the first time."""
    return fetched(GRAPH_URL, "--inception_graph")
