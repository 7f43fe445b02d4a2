"""Parameters without the cost of drawing them: XLA compiles random numbers slowly on a CPU."""

import jax
import numpy as np
import pytest


@pytest.fixture
def drawn():
    """A function of `(model, inputs, copies)`: every leaf of its params and state, of a scale that hides no mistake.

    Kernels are not 0 and scales not 1; variances are positive. With copies, leaves get a leading axis of them.
    """

    def draw(model, inputs, copies=None):
        generator = np.random.default_rng(1)

        def leaf(shape):
            size = shape.shape if copies is None else (copies, *shape.shape)
            values = generator.normal(0, 0.1, size) if len(shape.shape) > 1 else generator.random(size) + 0.5
            return jax.numpy.asarray(values, shape.dtype)

        return jax.tree.map(leaf, jax.eval_shape(model.init, jax.random.key(0), inputs))

    return draw
