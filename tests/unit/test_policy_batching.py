"""Several robots decide in shared passes, and each decides what it would alone."""

import numpy as np
import pytest

from dtvla.errors import DecisionStopped, PolicyFault, PolicyInputError
from dtvla.policy.backends.onnxruntime import OnnxRuntimeBackend
from dtvla.policy.backends.onnxruntime_batch import OnnxRuntimeBatch
from dtvla.policy.backends.protocol import Pass
from dtvla.policy.batching import PolicyBatch, Request
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.token_layout import NEVER, Bounds

INSTRUCTIONS = ("pick up the can", "open the top drawer of the cabinet", "go")


@pytest.fixture(scope="module")
def bundle(random_bundle_path):
    return Bundle.load(random_bundle_path)


def look(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("agentview", "wrist")}


@pytest.mark.parametrize(
    "options",
    [
        DecisionOptions(),
        DecisionOptions(drafts=False),
        DecisionOptions(decoding="masked"),
        DecisionOptions(temperature=1.0, seed=4),
        DecisionOptions(thought_tokens=5),
    ],
    ids=["drafts", "plain", "masked", "drawn", "short"],
)
def test_robots_together_decide_what_each_decides_alone(bundle, options):
    """Prompts of different length, thoughts that go on alone, and robots that sometimes do not ask."""
    together = PolicyBatch(Policy.load(bundle.path, options=options), 3)
    alone = [Policy.load(bundle.path, options=options) for _ in INSTRUCTIONS]
    rng = np.random.default_rng(0)
    for turn in range(6):
        asking = [robot for robot in range(3) if turn == 0 or rng.random() < 0.7]
        answers = together.decide(
            {robot: Request(look(10 * robot + turn // 2), INSTRUCTIONS[robot]) for robot in asking}
        )
        assert sorted(answers) == asking
        for robot in asking:
            own = alone[robot].decide(look(10 * robot + turn // 2), INSTRUCTIONS[robot])
            np.testing.assert_array_equal(answers[robot].thought_ids, own.thought_ids)
            np.testing.assert_allclose(answers[robot].raw_actions, own.raw_actions, atol=1e-4)
            assert answers[robot].passes == own.passes


def test_one_robot_with_a_missing_camera_does_not_hold_up_the_others(bundle):
    batch = PolicyBatch(Policy.load(bundle.path), 2)
    answers = batch.decide({0: Request({}, "go"), 1: Request(look(1), "go")})
    assert isinstance(answers[0], PolicyInputError)
    np.testing.assert_array_equal(
        answers[1].raw_actions, Policy.load(bundle.path).decide(look(1), "go").raw_actions
    )


def test_one_robot_that_is_stopped_does_not_stop_the_others(bundle):
    batch = PolicyBatch(Policy.load(bundle.path, options=DecisionOptions(drafts=False)), 2)
    told = []
    answers = batch.decide(
        {
            0: Request(look(0), "go", lambda *_: told.append(1), lambda: len(told) == 2),
            1: Request(look(1), "go"),
        }
    )
    assert isinstance(answers[0], DecisionStopped)
    assert answers[1].thought_ids.size > 2


def test_a_fault_of_one_robot_leaves_no_nan_for_its_next_decision(bundle, monkeypatch):
    batch = PolicyBatch(Policy.load(bundle.path), 2)
    healthy = batch.decide({0: Request(look(0), "go"), 1: Request(look(1), "go")})
    encode = batch._batch.encode

    def blind(pixels):
        features = encode(pixels).copy()
        features[: len(features) // 2] = np.nan
        return features

    monkeypatch.setattr(batch._batch, "encode", blind)
    batch.reset(0)
    batch.reset(1)
    answers = batch.decide({0: Request(look(0), "go"), 1: Request(look(1), "go")})
    assert isinstance(answers[0], PolicyFault)
    np.testing.assert_array_equal(answers[1].raw_actions, healthy[1].raw_actions)
    monkeypatch.setattr(batch._batch, "encode", encode)
    batch.reset(0)
    again = batch.decide({0: Request(look(0), "go")})
    np.testing.assert_array_equal(again[0].raw_actions, healthy[0].raw_actions)


def test_nobody_asking_is_nothing_to_do(bundle):
    assert PolicyBatch(Policy.load(bundle.path), 2).decide({}) == {}


def test_what_cannot_be_batched_is_refused(bundle):
    with pytest.raises(ValueError, match="baseline for one robot"):
        PolicyBatch(Policy.load(bundle.path, options=DecisionOptions(decoding="autoregressive")), 2)
    with pytest.raises(ValueError, match="at least one robot"):
        PolicyBatch(Policy.load(bundle.path), 0)


def test_rows_beyond_the_cache_are_refused(bundle):
    batch = OnnxRuntimeBatch(OnnxRuntimeBackend(bundle.path, bundle.spec), 2, slack=0)
    late = Pass(np.array([40]), Bounds(10, NEVER, 512, 511), think_rows=(0,))
    long = Pass(np.full(30, 40), Bounds(10, NEVER, 30, 0), think_rows=(29,))
    with pytest.raises(ValueError, match="exceed the cache"):
        batch.decode([late, long])
    with pytest.raises(ValueError, match="1 passes for 2 sequences"):
        batch.decode([late])
