"""The configurations of solver correction: every method is one experiment, and all in the loop take the same steps."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import train
from jaxrobust.report.wording import number

CONFIGS = Path(__file__).parents[1] / "configs"


def fit(equation, directory=None, **flags):
    said = io.StringIO()
    experiment = train.configure(CONFIGS / f"{equation}_correction.py", flags).build()
    return train.fit(experiment, directory, devices=jax.devices()[:1], stream=said), said.getvalue()


def weights(found):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.params)])


def test_errors_are_no_accuracies_in_what_a_run_says(tmp_path):
    found, said = fit("kuramoto_sivashinsky", tmp_path / "run", method="none", horizon=5)
    error = found.evaluated.metrics["rollout_loss"]
    assert f"rollout_loss {error:.4g}, final_loss " in said
    assert "%" not in said.split("rollout_loss")[1].splitlines()[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"After 1 steps: rollout loss {number(error)}, final loss " in page
    assert "rollout loss, test" in page
    # Nothing was corrected, and nothing was trained.
    assert not np.any(found.params["PeriodicConvolution_1"]["kernel"])
    assert 0.01 < error < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("equation", ["kuramoto_sivashinsky", "kolmogorov"])
def test_every_way_through_the_loop_takes_the_same_steps(equation):
    """After one update the loss of the next is that of the first-order method; outside the loop it is not."""
    flags = {"steps": 2, "batch_size": 1, "unroll": 3, "horizon": 3, "learning_rate": 1e-3}
    ways = {"first_order": {}, "interface": {}, "supervised": {}}
    ways |= {"zeroth_order": {}} if equation == "kuramoto_sivashinsky" else {}
    rows, last = {}, {}
    for method in ways:
        found, _ = fit(equation, method=method, **flags)
        rows[method] = found.rows[0]["loss"]
        last[method] = weights(found)
    exact, start = last["first_order"], rows["first_order"]
    for method in set(ways) - {"first_order", "supervised"}:
        assert rows[method] == pytest.approx(start, rel=1e-3)
        # Adam's first steps are signs: a weight whose slope is all but 0 may go either way.
        assert np.mean(np.abs(last[method] - exact) < 1e-4) > 0.98
    assert np.mean(np.abs(last["supervised"] - exact) < 1e-4) < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("equation", ["kuramoto_sivashinsky", "kolmogorov"])
def test_the_peer_trains_the_same_corrector(equation):
    pytest.importorskip("exponax")
    flags = {"method": "first_order", "steps": 2, "batch_size": 1, "unroll": 3, "horizon": 3}
    ours, peers = (fit(equation, exponax=exponax, **flags)[0] for exponax in (False, True))
    assert peers.rows[0]["loss"] == pytest.approx(ours.rows[0]["loss"], rel=1e-3)
    assert peers.evaluated.metrics == pytest.approx(ours.evaluated.metrics, rel=1e-2)
    # Outside the loop the loss is another one, and so are the steps.
    outside = fit(equation, **{**flags, "method": "supervised"})[0]
    assert np.mean(np.abs(weights(peers) - weights(ours)) < 1e-4) > 0.98
    assert np.mean(np.abs(weights(outside) - weights(ours)) < 1e-4) < 0.9
    assert outside.rows[0]["loss"] != pytest.approx(ours.rows[0]["loss"], rel=1e-2)


@pytest.mark.parametrize("equation", ["kuramoto_sivashinsky", "kolmogorov"])
def test_a_peer_that_nothing_would_use_is_refused(equation):
    with pytest.raises(ValueError, match="exponax is for the method first_order, got interface"):
        train.configure(CONFIGS / f"{equation}_correction.py", {"method": "interface", "exponax": True}).build()
