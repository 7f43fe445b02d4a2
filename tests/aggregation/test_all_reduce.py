"""All-reduce: the same under every kind of mapped axis, and nothing but the mean where the mean is asked for."""

import copy
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust.aggregation import ReduceState, Reduction, all_reduce, codecs, exact_mean, rules
from jaxrobust.typing import Codec, Rule

WORKERS, KEY = 8, jax.random.key(3)
BOTH = ("data", "worker")
QSGD = codecs.qsgd(bits=3, bucket_size=8)
# Tells workers apart: a permutation of them changes the result.
NUMBERED = rules.stateless(lambda key, columns, alive, axis: (jnp.arange(1.0, 9.0) @ columns, jnp.arange(1.0, 9.0)))


def gradients():
    first, second = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(first, (WORKERS, 3, 5)), "b": jax.random.normal(second, (WORKERS, 4))}


def stacked(state):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *jnp.shape(leaf))), state)


def make(axis, **options):
    reduce = all_reduce(axis, key=KEY, **options)
    return reduce, stacked(reduce.init(jax.tree.map(lambda leaf: leaf[0], gradients())))


def run_vmap(**options):
    reduce, state = make("data", **options)
    return jax.jit(jax.vmap(reduce.update, axis_name="data"))(gradients(), state)


def each(update, gradients, state):
    """The update of the one worker that a shard holds."""
    found = update(*jax.tree.map(lambda leaf: leaf[0], (gradients, state)))
    return jax.tree.map(lambda leaf: leaf[None], found)


def run_shard_map(**options):
    reduce, state = make("data", **options)
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = functools.partial(each, reduce.update)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return jax.jit(mapped)(gradients(), state)


def run_nested(**options):
    reduce, state = make(BOTH, **options)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    local = jax.vmap(reduce.update, axis_name="worker")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return jax.jit(mapped)(gradients(), state)


def run_pmap(**options):
    reduce, state = make("data", **options)
    return jax.pmap(reduce.update, axis_name="data")(gradients(), state)


RUNS = {"vmap": run_vmap, "shard_map": run_shard_map, "nested": run_nested, "pmap": run_pmap}


def vector_of(tree, worker=0):
    return np.concatenate([np.asarray(tree["b"][worker]), np.asarray(tree["w"][worker]).reshape(-1)])


@functools.cache
def by_hand(codec, rule, order=range(WORKERS), step=0):
    trees = jax.device_get(gradients())
    rows = []
    for worker in order:
        vector = vector_of(trees, worker)
        key = jax.random.fold_in(jax.random.fold_in(KEY, step), worker)
        wire, _ = jax.jit(codec.encode)(key, vector, codec.init(vector.size))
        rows.append(codec.decode(wire, ())[: vector.size])
    return rule.apply(None, jnp.stack(rows), jnp.ones(WORKERS, bool), (), None)[0]


@pytest.mark.parametrize("run", RUNS)
def test_mean_of_the_workers(run):
    reduced, _ = RUNS[run]()
    reduced = jax.device_get(reduced)
    for name, leaf in gradients().items():
        for worker in range(WORKERS):
            np.testing.assert_allclose(reduced[name][worker], leaf.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("run", "rule"), [("vmap", rules.median()), *((run, NUMBERED) for run in RUNS)])
def test_same_codes_and_order_under_every_axis(run, rule):
    reduced, state = jax.device_get(RUNS[run](codec=QSGD, rule=rule))
    # Keys and codes must be the same: any other code moves a coordinate by a whole level.
    np.testing.assert_allclose(vector_of(reduced), by_hand(QSGD, rule), rtol=1e-5, atol=1e-5)
    for worker in range(1, WORKERS):
        np.testing.assert_array_equal(vector_of(reduced, worker), vector_of(reduced))
    assert state.shared.count.tolist() == [1] * WORKERS
    # Three buckets filled up to eight, of 24 and 32 bits; a result of eight slices of eight coordinates.
    assert state.shared.bits.tolist() == [7 / 8 * 8 * (24 + 32 + 8 * 32)] * WORKERS


def test_the_second_step_has_keys_of_its_own():
    reduce, state = make("data", codec=QSGD, rule=NUMBERED)
    update = jax.jit(jax.vmap(reduce.update, axis_name="data"))
    for step in range(2):
        reduced, state = update(gradients(), state)
        expected = by_hand(QSGD, NUMBERED, step=step)
        np.testing.assert_allclose(vector_of(jax.device_get(reduced)), expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(by_hand(QSGD, NUMBERED, step=1 - step), expected, rtol=1e-2)


def test_the_rule_draws_with_a_key_that_no_worker_has():
    """Number N in place of a worker's."""

    def told(key, columns, alive, axis):
        bits = jax.random.bits(key, (), jnp.uint32) >> 8
        return jnp.full(columns.shape[1], bits.astype(jnp.float32)), jnp.ones(WORKERS)

    reduce, state = make("data", codec=QSGD, rule=rules.stateless(told))
    update = jax.jit(jax.vmap(reduce.update, axis_name="data"))
    for step in range(2):
        reduced, state = update(gradients(), state)
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), number) for number in range(WORKERS + 1)]
        bits = [float(jax.random.bits(key, (), jnp.uint32) >> 8) for key in keys]
        assert vector_of(reduced).tolist() == [bits[WORKERS]] * 19
        assert bits[WORKERS] not in bits[:WORKERS]


def test_another_order_of_workers_would_be_caught():
    transposed = np.arange(WORKERS).reshape(4, 2).T.reshape(-1)
    assert not np.allclose(
        by_hand(QSGD, NUMBERED), by_hand(QSGD, NUMBERED, order=tuple(transposed.tolist())), rtol=1e-2
    )


def collectives(jaxpr, found):
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if any(
            word in name for word in ("psum", "pmax", "pmin", "all_gather", "all_to_all", "permute", "reduce_scatter")
        ):
            found.append((name, [variable.aval for variable in equation.invars]))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            collectives(inner, found)
    return found


def traced(**options):
    reduce, state = make("data", **options)
    one = jax.tree.map(lambda leaf: leaf[0], (gradients(), state))
    return collectives(jax.make_jaxpr(reduce.update, axis_env=[("data", WORKERS)])(*one).jaxpr, []), one[1]


def test_exact_mean_is_one_pmean_of_each_leaf():
    found, _ = traced()
    assert {name.removesuffix("_invariant") for name, _ in found} == {"psum"}
    assert sum(len(avals) for _, avals in found) == 2
    assert exact_mean("data").averages
    assert not all_reduce("data", rule=rules.median()).averages
    assert all_reduce("data", codec=QSGD, key=KEY).averages


def test_only_packed_messages_travel():
    found, _ = traced(codec=QSGD, broadcast_codec=QSGD, rule=rules.median())
    by_kind = {
        word: [aval for name, avals in found if name.startswith(word) for aval in avals if aval.dtype != bool]
        for word in ("all_to_all", "all_gather", "psum")
    }
    for word in ("all_to_all", "all_gather"):
        assert {aval.dtype.name for aval in by_kind[word]} == {"uint8", "float32"}
    # One of eight buckets of three bytes and a scale each: out it goes as eight, back as one.
    sizes = {word: sum(aval.size * aval.dtype.itemsize for aval in avals) for word, avals in by_kind.items()}
    assert sizes["all_to_all"] == 8 * (3 + 4)
    assert sizes["all_gather"] == 3 + 4
    assert all(aval.size <= WORKERS for aval in by_kind["psum"])
    # The control: without codes whole vectors travel.
    plain, _ = traced(rule=rules.median())
    assert max(aval.size for name, avals in plain if name == "all_to_all" for aval in avals) == 24


def test_a_worker_that_is_not_finite_is_left_out_and_counted():
    for rule in (rules.mean(), rules.median()):
        reduce, state = make("data", codec=QSGD, rule=rule)
        sick = gradients()
        sick["b"] = sick["b"].at[5, 0].set(jnp.nan)
        reduced, after = jax.jit(jax.vmap(reduce.update, axis_name="data"))(sick, state)
        assert np.isfinite(vector_of(reduced)).all()
        assert after.shared.dropped.tolist() == [1] * WORKERS
    reduce, state = make("data")
    reduced, _ = jax.vmap(reduce.update, axis_name="data")(sick, state)
    assert np.isnan(reduced["b"][0, 0])


def test_dtypes_are_kept_and_one_trace_serves_all_steps():
    traces = []
    reduce = all_reduce("data", codec=QSGD, rule=rules.median(), key=KEY)
    trees = {"half": gradients()["b"].astype(jnp.bfloat16), "full": gradients()["w"]}

    @jax.jit
    @functools.partial(jax.vmap, axis_name="data")
    def update(tree, state):
        traces.append(0)
        return reduce.update(tree, state)

    state = stacked(reduce.init(jax.tree.map(lambda leaf: leaf[0], trees)))
    found = []
    for _ in range(3):
        reduced, state = update(trees, state)
        found.append(np.asarray(reduced["full"][0]))
    assert (reduced["half"].dtype, reduced["full"].dtype) == (jnp.bfloat16, jnp.float32)
    assert len(traces) == 1
    assert state.shared.count[0] == 3
    # A step has a key of its own.
    assert not np.array_equal(found[0], found[1])


def remembering() -> Codec:
    """Rounds to whole multiples of a level that adapts to the largest value, and remembers its errors."""

    def encode(key, x, state):
        level, memory = state
        wire = jnp.round((x + memory) / level)
        return wire, x + memory - level * wire

    return Codec(
        init=lambda dimension: (jnp.float32(1.0), jnp.zeros(dimension)),
        encode=encode,
        decode=lambda wire, level: level * wire,
        observe=lambda x, state, axis: jax.lax.pmax(jnp.max(jnp.abs(x)), axis),
        adapt=lambda level: level / 4,
    )


def counting() -> Rule:
    """The mean, times the number of steps so far."""
    return Rule(
        init=lambda workers, columns: jnp.float32(1.0),
        apply=lambda key, columns, alive, state, axis: (state * columns.mean(0), state + 1, alive.astype(jnp.float32)),
    )


def test_memories_are_each_workers_own_and_the_rest_is_shared():
    reduce = all_reduce("data", codec=remembering(), rule=counting(), key=KEY, workers=WORKERS)
    rows = gradients()["b"]
    state = stacked(reduce.init(rows[0]))
    # One result for all workers, and known to be one: `out_axes=None` would fail otherwise.
    step = jax.jit(jax.vmap(reduce.update, axis_name="data", out_axes=(None, 0)))
    first, state = step(rows, state)
    level = float(jnp.max(jnp.abs(rows))) / 4
    np.testing.assert_allclose(state.shared.codec, [level] * WORKERS, rtol=1e-6)
    memory = rows - level * jnp.round(rows / level)
    np.testing.assert_allclose(state.own.codec, memory, atol=1e-5)
    assert len(np.unique(np.asarray(state.own.codec), axis=0)) == WORKERS
    second, state = step(rows, state)
    expected = 2 * (level * jnp.round((rows + memory) / level)).mean(0)
    np.testing.assert_allclose(second, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(second, first)
    assert state.own.rule.tolist() == [3.0] * WORKERS


def test_the_second_hop_adapts_and_remembers():
    reduce = all_reduce("data", rule=rules.median(), broadcast_codec=remembering(), key=KEY, workers=WORKERS)
    rows = gradients()["b"]
    state = stacked(reduce.init(rows[0]))
    step = jax.jit(jax.vmap(reduce.update, axis_name="data"))
    first, state = step(rows, state)
    middle = jnp.median(rows, axis=0)
    level = jnp.max(jnp.abs(middle)) / 4
    np.testing.assert_allclose(state.shared.broadcast, [level] * WORKERS, rtol=1e-6)
    expected = level * jnp.round(middle / level)
    np.testing.assert_allclose(first[0], expected, atol=1e-6)
    memory = middle - expected
    np.testing.assert_allclose(state.own.broadcast.reshape(-1)[: memory.size], memory, atol=1e-6)
    second, _ = step(rows, state)
    np.testing.assert_allclose(second[0], level * jnp.round((middle + memory) / level), atol=1e-5)
    # The control: what is remembered changes the next result.
    assert not np.allclose(second[0], first[0])


def test_a_reduction_is_copied_and_changed_like_any_transformation():
    reduce = all_reduce("data", rule=rules.median())
    rows, other = jnp.arange(8.0), reduce._replace(init=reduce.init)
    rebuilt = jax.tree.map(lambda function: function, {"a": reduce})["a"]
    reduce.note = "an attribute of somebody else's"
    for alike in (copy.copy(reduce), copy.deepcopy(reduce), other, rebuilt):
        assert (alike.axis, alike.averages, alike.inner) == (reduce.axis, reduce.averages, reduce.inner)
        reduced, _ = jax.vmap(alike.update, (0, None), axis_name="data")(rows, alike.init(rows[0]))
        np.testing.assert_allclose(reduced, jnp.full(8, 3.5))
    with pytest.raises(TypeError, match="unexpected keyword argument 'rule'"):
        reduce._replace(rule=None)


def test_second_hop_is_rounded_slice_by_slice_and_read_alike():
    reduced, _ = run_shard_map(rule=rules.median(), broadcast_codec=QSGD)
    plain = np.pad(by_hand(codecs.float32(), rules.median()), (0, 5)).reshape(WORKERS, 3)
    step_key, parts = jax.random.fold_in(KEY, 0), []
    for worker, column in enumerate(plain):
        key = jax.random.fold_in(jax.random.fold_in(step_key, WORKERS + 1), worker)
        wire, _ = QSGD.encode(key, column, QSGD.init(3))
        parts.append(QSGD.decode(wire, ())[:3])
    np.testing.assert_allclose(vector_of(reduced), np.concatenate(parts)[:19], rtol=1e-5)
    np.testing.assert_array_equal(vector_of(reduced, 5), vector_of(reduced))
    assert not np.allclose(vector_of(reduced), plain.reshape(-1)[:19], rtol=1e-2)


def test_the_number_of_workers_is_asked_for_where_columns_are_remembered():
    with pytest.raises(ValueError, match="workers must be given for a rule that remembers its columns, got None"):
        all_reduce("data", rule=counting())
    reduce = all_reduce("data", rule=counting(), workers=5)
    with pytest.raises(ValueError, match="workers must be the 8 of the axis data, got 5"):
        jax.vmap(reduce.update, (0, None), axis_name="data")(jnp.zeros(8), reduce.init(jnp.zeros(())))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -1e30])
def test_other_quantities_join_by_the_rules_kind(bad):
    metrics = {"loss": jnp.arange(8.0).at[0].set(bad), "mean": jnp.ones((8, 3))}

    def combined(reduce, axis="data"):
        return jax.vmap(lambda tree: reduce.combine(tree, ()), axis_name=axis, out_axes=None)(metrics)

    robust = combined(all_reduce("data", rule=rules.median()))
    assert robust["loss"] == (4.0 if not np.isfinite(bad) else 3.5)
    np.testing.assert_array_equal(robust["mean"], jnp.ones(3))
    assert not abs(combined(exact_mean("data"))["loss"]) < 8


def test_it_is_an_optax_transformation():
    reduce = exact_mean("data")
    assert isinstance(reduce, (optax.GradientTransformationExtraArgs, Reduction))
    init, update = reduce
    assert (init, update) == (reduce.init, reduce.update)
    assert isinstance(init(jnp.zeros(2)), ReduceState)
    chain = optax.chain(reduce, optax.sgd(1.0))
    rows = jnp.arange(8.0)
    updates, _ = jax.vmap(chain.update, in_axes=(0, None), axis_name="data")(rows, chain.init(rows[0]))
    np.testing.assert_array_equal(updates, [-3.5] * 8)


def test_a_rounding_codec_needs_a_key():
    with pytest.raises(ValueError, match="key must be given for a codec other than float32, got None"):
        all_reduce("data", codec=QSGD)
    with pytest.raises(ValueError, match="key must be given"):
        all_reduce("data", broadcast_codec=QSGD)


def test_a_rule_draws_anew_in_each_step_and_alike_on_all_workers():
    first, last = (rules.stateless(lambda k, c, a, x, i=i: (c[i], jnp.zeros(WORKERS))) for i in (0, -1))
    reduce = all_reduce("data", rule=rules.mixtailor([first, last]), key=KEY)
    rows = jnp.arange(8.0)[:, None] * jnp.ones((1, 16))
    state, found = stacked(reduce.init(rows[0])), []
    update = jax.jit(jax.vmap(reduce.update, axis_name="data"))
    for _ in range(20):
        reduced, state = update(rows, state)
        assert len(np.unique(reduced)) == 1
        found.append(float(reduced[0, 0]))
    # Both in twenty steps, but for one chance in half a million.
    assert set(found) == {0.0, 7.0}


def test_wide_numbers_stay_wide():
    with jax.enable_x64(True):
        rows = jnp.array([1e300, 2e300, 3e300])
        reduce = all_reduce("data", rule=rules.median())
        reduced, state = jax.vmap(reduce.update, (0, None), axis_name="data")(rows, reduce.init(rows[0]))
        assert reduced.tolist() == [2e300] * 3
        assert state.shared.dropped.tolist() == [0] * 3
