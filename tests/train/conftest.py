"""A small experiment that trains in a second, to be varied by `dataclasses.replace`."""

import optax
import pytest

from jaxrobust import attacks, data, geometry, models, objectives, train


@pytest.fixture(scope="session")
def digits():
    return data.digits()


@pytest.fixture
def experiment(digits):
    ball = geometry.linf()
    return train.Experiment(
        model=models.mlp(10, widths=(32,)),
        data=digits.train,
        test=digits.test,
        objective=objectives.trades(ball, 0.1, beta=2.0, steps=3, step_size=0.05),
        optimizer=optax.sgd(0.1, momentum=0.9),
        evaluate=attacks.accuracy({"pgd-3": attacks.pgd(ball, 0.1, steps=3)}, examples=64, batch_size=64),
        steps=12,
        batch_size=32,
        log_every=1,
    )
