"""One training step: what flows into each slot, on one and on many devices."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrobust import objectives, train
from jaxrobust.aggregation import all_reduce, codecs, rules
from jaxrobust.typing import Objective

EIGHT = jax.devices()


def run(experiment, devices, steps=3):
    trainer = train.prepare_training(experiment, train.make_mesh(devices))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(jax.random.key(1)))
    rows = []
    for _ in range(steps):
        state, reduction, metrics = trainer.step(state, reduction, source, ())
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, reduction, rows


def recording(axis):
    """The exact mean, keeping what every worker brought to it."""

    def update(updates, state, params=None):
        del state, params
        flat, unravel = ravel_pytree(updates)
        return unravel(jax.lax.pmean(flat, axis)), jax.lax.all_gather(flat, axis)

    return optax.GradientTransformation(lambda params: jnp.zeros((8, ravel_pytree(params)[0].size)), update)


def test_gradients_of_workers_differ_before_they_are_reduced(experiment):
    _, reduction, _ = run(replace(experiment, reduce=recording("data")), EIGHT, steps=1)
    brought = np.asarray(reduction)[0]
    distances = np.linalg.norm(brought[:, None] - brought[None], axis=-1)[~np.eye(8, dtype=bool)]
    assert distances.min() > 0.01 * np.linalg.norm(brought, axis=-1).mean()
    # The control: with replication checks the local gradient is already the sum over the axis.
    mesh = train.make_mesh(EIGHT)

    def grad(w, x):
        return jax.grad(lambda w: jnp.sum(w * x))(w)[None]

    specs = {"mesh": mesh, "in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P("data")}
    x = jnp.arange(8.0)
    np.testing.assert_array_equal(jax.shard_map(grad, check_vma=False, **specs)(jnp.float32(1), x), np.arange(8.0))
    np.testing.assert_array_equal(jax.shard_map(grad, check_vma=True, **specs)(jnp.float32(1), x), np.full(8, 28.0))


def run_groups(experiment, devices_per_worker, **options):
    reduce = all_reduce("data", inner_axis="member", inner_workers=devices_per_worker, **options)
    grouped = replace(experiment, reduce=reduce, devices_per_worker=devices_per_worker)
    trainer = train.prepare_training(grouped, train.make_mesh(EIGHT, devices_per_worker))
    state, reduction = trainer.init()
    source = trainer.place(experiment.data.init(jax.random.key(1)))
    for _ in range(3):
        state, reduction, metrics = trainer.step(state, reduction, source, ())
    return state, metrics


def test_devices_of_one_worker_average_exactly_and_see_the_same_batch(experiment):
    alone, _, _ = run(experiment, EIGHT)
    grouped, _ = run_groups(experiment, 2)
    chex.assert_trees_all_close(grouped.params, alone.params, rtol=1e-5, atol=1e-6)
    # The control: a rule that drops whole workers gives something else, and with codes a chip sends a part.
    codec, key = codecs.qsgd_inf(8, 64), jax.random.key(0)
    other, metrics = run_groups(experiment, 2, rule=rules.median(), codec=codec, broadcast_codec=codec, key=key)
    whole = run(replace(experiment, reduce=all_reduce("data", codec=codec, broadcast_codec=codec, key=key)), EIGHT)[2]
    assert optax.tree.norm(optax.tree.sub(other.params, alone.params)) > 1e-3
    assert float(metrics["bits"]) < 0.6 * whole[-1]["bits"]


def test_a_mesh_without_the_members_is_refused(experiment):
    grouped = replace(experiment, devices_per_worker=2)
    with pytest.raises(ValueError, match="mesh must have 2 devices along the axis member"):
        train.prepare_training(grouped, train.make_mesh(EIGHT))
    with pytest.raises(ValueError, match="devices_per_worker must divide the 8 devices, got 3"):
        train.make_mesh(EIGHT, 3)
    with pytest.raises(ValueError, match="reduction must span the axes"):
        train.prepare_training(replace(grouped, reduce=all_reduce("data")), train.make_mesh(EIGHT, 2))
    with pytest.raises(ValueError, match="devices_per_worker must be 1 where a device plays 2 workers"):
        replace(grouped, workers_per_device=2)


def test_a_step_is_traced_once_however_long_the_run(experiment):
    @chex.assert_max_traces(n=1)
    def losses(prepared, keys, model, params, state, batch):
        return experiment.objective.losses(prepared, keys, model, params, state, batch)

    objective = Objective(experiment.objective.prepare, losses)
    run(replace(experiment, objective=objective), EIGHT[:2], steps=5)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(experiment):
    whole, _, rows = run(experiment, EIGHT[:2])
    parts, _, in_parts = run(replace(experiment, accumulation=4), EIGHT[:2])
    chex.assert_trees_all_close(whole.params, parts.params, atol=1e-5)
    assert rows[0]["loss"] == pytest.approx(in_parts[0]["loss"], rel=1e-5)
    assert in_parts[0]["queries"] == 4 * rows[0]["queries"]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(whole.params, run(experiment, EIGHT[:2], steps=2)[0].params, atol=1e-5)


def test_several_workers_on_a_device_are_as_many_devices(experiment):
    codec = {"codec": codecs.qsgd(bits=4, bucket_size=64), "rule": rules.median(), "key": jax.random.key(3)}
    apart, own, rows = run(replace(experiment, reduce=all_reduce("data", **codec)), EIGHT)
    nested = replace(experiment, reduce=all_reduce(("data", "worker"), **codec), workers_per_device=4)
    together, own_together, rows_together = run(nested, EIGHT[:2])
    chex.assert_trees_all_close(apart.params, together.params, atol=1e-5)
    # A fingerprint tells one rounding from another.
    memories = [state._replace(own=state.own._replace(fingerprint=0)) for state in (own, own_together)]
    chex.assert_trees_all_close(*jax.device_get(memories), atol=1e-5)
    assert rows[0]["bits"] == rows_together[0]["bits"]


def test_a_reduction_that_leaves_workers_out_is_refused(experiment):
    with pytest.raises(ValueError, match="must span the axes"):
        run(replace(experiment, reduce=all_reduce("data", rule=rules.median()), workers_per_device=4), EIGHT[:2])


def test_the_devices_must_divide_the_batch(experiment):
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of 8 .* got 36: take 32"):
        train.prepare_training(replace(experiment, batch_size=36), train.make_mesh(EIGHT))


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch_size", -1), ("seed", -2), ("accumulation", 0), ("log_every", 0)]
)
def test_numbers_out_of_range_are_refused(experiment, field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value}"):
        replace(experiment, **{field: value})


def test_a_coupled_objective_takes_no_rule_but_the_mean(experiment):
    coupled = objectives.cross_entropy()._replace(coupled=True)
    replace(experiment, objective=coupled)
    with pytest.raises(ValueError, match="coupled objective needs the mean"):
        replace(experiment, objective=coupled, reduce=all_reduce("data", rule=rules.median()))


def test_sample_weights_scale_the_losses(experiment):
    def halved(state, step, rows, size):
        batch = experiment.data.batch(state, step, rows, size)
        return batch._replace(weight=batch.weight / 2)

    half = replace(experiment, data=experiment.data._replace(batch=halved))
    _, _, (whole_row,) = run(experiment, EIGHT[:1], steps=1)
    _, _, (half_row,) = run(half, EIGHT[:1], steps=1)
    assert half_row["loss"] == pytest.approx(whole_row["loss"] / 2, rel=1e-6)
    assert half_row["gradient_norm"] == pytest.approx(whole_row["gradient_norm"] / 2, rel=1e-5)


def test_moving_average_by_hand(experiment):
    average = train.moving_average(decay=0.5, warmup=1)
    history = [jnp.float32(x) for x in (0.0, 1.0, 2.0, 4.0)]
    kept = history[0]
    expected = history[0]
    for step, params in enumerate(history[1:]):
        kept = average(jnp.int32(step), kept, params)
        share = 0.0 if step < 1 else min(0.5, step / (9 + step))
        expected = share * expected + (1 - share) * params
        assert float(kept) == pytest.approx(float(expected), rel=1e-6)
    state, _, _ = run(replace(experiment, average=average), EIGHT[:1])
    leaf = jax.tree.leaves(state.average)[0]
    assert not np.allclose(leaf, jax.tree.leaves(state.params)[0], atol=1e-7)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        train.moving_average(decay=1)


def test_all_roots_of_a_runs_randomness_differ():
    roots = train.keys_of_run(3)
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in (*roots, jax.random.key(3))}
    assert len(data) == len(roots) + 1
