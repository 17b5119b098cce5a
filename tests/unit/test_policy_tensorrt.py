"""Engines that are built and run here: skipped without TensorRT, cuda-python and an NVIDIA GPU.

    .venv/bin/python -m pytest tests/unit/test_policy_tensorrt.py

Nothing stands in for TensorRT: what these tests do not see on a machine with a GPU has not been seen.
"""

import shutil

import numpy as np
import pytest

from dtvla.errors import BundleError
from dtvla.policy.backends.cuda_device import gpu, libraries
from dtvla.policy.backends.tensorrt import TensorRTBackend
from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from dtvla.policy.token_layout import NEVER, Bounds


@pytest.fixture(scope="module")
def bundle(random_bundle_path, tmp_path_factory):
    """A bundle with engines for this machine's GPU."""
    try:
        gpu(libraries().cuda)
    except BundleError as error:
        pytest.skip(f"{str(error).split('. ')[0]}; on a machine with a GPU: make gpu-check")
    from model_export.engine import bundle_engines

    path = shutil.copytree(random_bundle_path, tmp_path_factory.mktemp("engines") / "bundle")
    assert bundle_engines.main(path, timing_cache=path.parent / "timing") == 0
    assert (path.parent / "timing").stat().st_size > 0
    return path


@pytest.fixture(scope="module")
def backend(bundle):
    return TensorRTBackend(Bundle.load(bundle))


def look(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 255, (28, 28, 3), np.uint8) for name in ("agentview", "wrist")}


def test_auto_takes_the_engines_and_says_on_which_gpu(bundle):
    policy = Policy.load(bundle)
    assert isinstance(policy.backend, TensorRTBackend)
    assert gpu(libraries().cuda).name in policy.runs_on


def test_all_phases_agree_with_torch(backend):
    from model_export.parity import check_parity
    from model_export.sample import byte_tokenizer, random_config, random_model

    model = random_model(random_config(byte_tokenizer()), seed=0)
    for seed in range(3):
        for result in check_parity(model, backend, seed):
            assert result.difference < 5e-4, result.phase


@pytest.mark.parametrize("options", [DecisionOptions(), DecisionOptions(drafts=False)])
def test_decisions_are_those_of_onnx_runtime(bundle, options):
    policies = [Policy.load(bundle, name, options=options) for name in ("tensorrt", "onnxruntime")]
    for seed in range(4):
        here, there = (policy.decide(look(seed), "pick up the bowl") for policy in policies)
        assert here.thought_ids.tolist() == there.thought_ids.tolist()
        np.testing.assert_allclose(here.raw_actions, there.raw_actions, atol=1e-6)


def test_a_captured_step_reads_the_token_and_the_mask_of_its_own_turn(backend):
    prompt = np.arange(20, 40)
    words = np.array([50, 51, 52, 53, 54, 55])
    whole = np.concatenate([prompt, words])
    n = len(prompt)
    one_pass = backend.decode(
        whole, Bounds(n, NEVER, len(whole), 0), think_rows=range(n, len(whole))
    ).think.copy()
    backend.clear()
    backend.decode(prompt, Bounds(n, NEVER, n, 0), think_rows=(n - 1,))
    for t in range(len(words)):  # the first runs, the second is captured, the others are launched
        step = backend.decode(words[t : t + 1], Bounds(n, NEVER, n + t + 1, n + t), think_rows=(0,)).think[0]
        np.testing.assert_allclose(step, one_pass[t], atol=5e-4)


def test_a_sibling_has_a_cache_of_its_own(backend):
    other = backend.sibling()
    prompt, n = np.arange(20, 40), 20
    first = backend.decode(prompt, Bounds(n, NEVER, n, 0), think_rows=(n - 1,)).think.copy()
    other.decode(prompt[::-1].copy(), Bounds(n, NEVER, n, 0), think_rows=(n - 1,))
    step = Bounds(n, NEVER, n + 1, n)
    mine = backend.decode(np.array([50]), step, think_rows=(0,)).think.copy()
    theirs = other.decode(np.array([50]), step, think_rows=(0,)).think
    assert np.abs(mine - theirs).max() > 1e-3
    np.testing.assert_array_equal(
        first, backend.decode(prompt, Bounds(n, NEVER, n, 0), think_rows=(n - 1,)).think
    )


def test_features_of_an_earlier_look_are_refused(backend):
    pixels = np.zeros((2, 3, 28, 28), np.float32)
    old = backend.encode(pixels)
    new = backend.encode(pixels + 0.5)
    assert np.asarray(new).shape == (len(new), backend.features_on_host(new).shape[1])
    with pytest.raises(ValueError, match="encode the images again"):
        backend.decode(np.arange(20, 40), Bounds(20, NEVER, 20, 0), features=old, think_rows=(19,))


def test_rows_beyond_the_cache_are_refused(backend):
    with pytest.raises(ValueError, match="exceed the cache"):
        backend.decode(np.array([9]), Bounds(3, NEVER, 513, 512), think_rows=(0,))
