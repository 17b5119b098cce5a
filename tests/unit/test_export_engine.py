"""Engines, as far as TensorRT is not needed: shapes that hold every pass, a bundle that is never half new."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from dtvla.errors import PolicyInputError
from dtvla.policy import decoding
from dtvla.policy.backends.cuda_device import Gpu
from dtvla.policy.backends.protocol import Logits, Pass
from dtvla.policy.bundle.engine_files import profile_for
from dtvla.policy.bundle.loading import Bundle, write_bundle
from dtvla.policy.decoding import Sampler, act_one_by_one, act_pass, given_thought, whole_pass
from dtvla.policy.draft_lookup import Drafts
from dtvla.policy.speculative_decoding import ThoughtLimits, ThoughtWriter
from dtvla.policy.token_layout import TokenLayout
from model_export.bundle import new_bundle
from model_export.engine import bundle_engines as command
from model_export.engine.onnx_to_engine import Phases
from model_export.engine.profiles import (
    decoder_profiles,
    decoder_shapes,
    engine_name,
    fix_sizes,
    fixed_sizes,
    longest_pass,
    vision_profiles,
)
from model_export.errors import ExportError
from model_export.sample import random_spec

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = TokenLayout(
    vocab_size=300, image=3, think=4, end_think=5, action=6, end_action=7,
    action_begin=200, bins=64, prompt_end=(10, 11), image_tokens=4,
)  # fmt: skip
HERE = Gpu("NVIDIA H200", "9.0")


def spec(cap=12, cache=512, image_tokens=4):
    made = random_spec(replace(LAYOUT, image_tokens=image_tokens), 28, cap)
    return replace(made, cache_length=cache)


class Watched:
    """A backend that says random words and keeps what it was asked."""

    def __init__(self, layout, length, seed):
        self.cache_length, self.passes = length, []
        self._layout, self._rng = layout, np.random.default_rng(seed)

    def decode(self, ids, bounds, *, features=None, think_rows: Sequence[int] = (), action_rows=()):
        self.passes.append(Pass(ids, bounds, features, think_rows, action_rows))
        think = self._rng.normal(size=(len(think_rows), self._layout.vocab_size)).astype(np.float32)
        think[:, [5, 6, 50, 51]] += 4.0  # closing tags and a few words, so that drafts stand at times
        action = self._rng.normal(size=(len(action_rows), self._layout.bins)).astype(np.float32)
        return Logits(think, action)


def passes_of_a_decision(policy_spec, words, length, seed, row_cost, drafts, variant):
    """Every pass that the runtime makes for one decision."""
    layout = policy_spec.layout
    images = layout.images * layout.image_tokens
    prompt = np.concatenate([np.full(images, layout.image), np.full(words, 40)]).astype(np.int64)
    features = np.zeros((images, 8), np.float32)
    decoding.check_room(layout, prompt, policy_spec.thought_cap, length)
    backend = Watched(layout, length, seed)
    if variant != "hybrid":
        thought = given_thought(layout, variant, np.random.default_rng(seed))
        whole_pass(layout, prompt, features, thought[: policy_spec.thought_cap]).run(backend)
        return backend.passes
    memory = Drafts()
    for thought in drafts:
        memory.remember(thought)
    limits = ThoughtLimits(policy_spec.thought_cap)
    writer = ThoughtWriter(layout, Sampler(layout), limits, memory, row_cost, prompt, features)
    thought = np.array(writer.write(backend), np.int64)
    act_pass(layout, len(prompt), thought).run(backend)
    act_pass(layout, len(prompt), thought, close=False).run(backend)
    act_one_by_one(backend, layout, len(prompt), thought)
    whole_pass(layout, prompt, features, thought).run(backend)  # a thought that is known before
    return backend.passes


@settings(deadline=None)
@given(
    cap=st.sampled_from([4, 12, 128]),
    cache=st.sampled_from([512, 1024]),
    image_tokens=st.sampled_from([1, 16, 100]),
    words=st.integers(1, 300),
    seed=st.integers(0, 1000),
    row_cost=st.sampled_from([0.0, 0.01, 0.3]),
    drafts=st.lists(st.lists(st.sampled_from([4, 50, 51, 5, 6]), max_size=140), max_size=3),
    variant=st.sampled_from(["hybrid", "hybrid", "masked", "none", "random"]),
    spare=st.sampled_from([None, 0, 37]),
)
def test_every_pass_of_the_runtime_fits_a_profile(
    cap, cache, image_tokens, words, seed, row_cost, drafts, variant, spare
):
    policy_spec = spec(cap, cache, image_tokens)
    fewest = 2 * image_tokens + 16 + cap + 2 + 70 + 2
    if variant == "random":
        cap = decoding.RANDOM_WORDS + 3
        policy_spec = replace(policy_spec, thought_cap=cap)
        fewest = 2 * image_tokens + 16 + cap + 74
    rows = longest_pass(policy_spec, None if spare is None else fewest + spare)
    profiles = decoder_profiles(policy_spec, rows)
    try:
        made = passes_of_a_decision(policy_spec, words, rows, seed, row_cost, drafts, variant)
    except PolicyInputError:  # the runtime refuses the prompt before any pass
        return
    for each in made:
        images = 0 if each.features is None else len(each.features)
        profile_for(profiles, len(each.ids), images, len(each.think_rows), len(each.action_rows))


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((1, 0, 1, 0), "think"),
        ((73, 0, 0, 70), "act"),
        ((75, 0, 0, 70), "act"),  # a cut thought: `</think><action>` come with the block
        ((1, 0, 0, 1), "verify"),  # actions one by one
        ((20, 0, 12, 0), "verify"),
        ((128, 0, 12, 70), "verify"),
        ((129, 0, 12, 70), "prefill"),
        ((90, 8, 1, 0), "prefill"),
        ((512, 8, 0, 70), "prefill"),
    ],
)
def test_frequent_passes_get_the_narrow_profiles(sizes, name):
    profiles = decoder_profiles(spec(), 512)
    assert profiles[profile_for(profiles, *sizes)].name == name


def test_a_thinking_step_and_the_action_block_have_kernels_of_their_own_size():
    think, act, verify, _ = decoder_profiles(spec(), 512)
    assert think.rows == (1, 1, 1)
    assert think.think_rows == (1, 1, 1)
    assert act.rows == (73, 73, 75)
    assert verify.rows.high == 128
    assert [profile.rows for profile in vision_profiles(spec())] == [(2, 2, 2)]


def test_shapes_of_a_profile_are_those_of_the_graphs_dynamic_inputs(random_bundle_path):
    decoder = onnx.load(str(random_bundle_path / "decoder.onnx"))
    loaded = Bundle.load(random_bundle_path).spec
    fix_sizes(decoder, fixed_sizes(loaded, "decoder"))
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in decoder.graph.input}
    dynamic = {name for name, shape in dims.items() if 0 in shape}
    hidden = command.hidden_size(random_bundle_path / "decoder.onnx")
    for profile in decoder_profiles(loaded, 512):
        shapes = decoder_shapes(profile, hidden)
        assert set(shapes) == dynamic
        for name, (low, usual, high) in shapes.items():
            assert len(low) == len(usual) == len(high) == len(dims[name])
            for size, fixed in zip(zip(low, usual, high, strict=True), dims[name], strict=True):
                assert list(size) == sorted(size)
                assert fixed in (0, size[0])
    assert dims["key_0"] == [1, 1, 512, 16]


def test_a_graph_with_fixed_sizes_is_still_a_sound_one(random_bundle_path):
    loaded = Bundle.load(random_bundle_path).spec
    for graph in ("vision", "decoder"):
        proto = onnx.load(str(random_bundle_path / f"{graph}.onnx"))
        fix_sizes(proto, fixed_sizes(loaded, graph))
        onnx.checker.check_model(proto)
        left = {d.dim_param for v in proto.graph.input for d in v.type.tensor_type.shape.dim} - {""}
        assert left == (set() if graph == "vision" else {"S", "F", "T", "A"})


@pytest.mark.parametrize("rows", [1, 109, 513])
def test_a_longest_pass_that_holds_no_decision_is_refused_with_the_numbers(rows):
    with pytest.raises(ExportError, match=rf"--max-rows is {rows}; this policy needs 110 rows .* 512\."):
        longest_pass(spec(), rows)
    assert (longest_pass(spec(), None), longest_pass(spec(), 110)) == (512, 110)


def test_an_engine_is_named_after_graph_gpu_and_version():
    assert engine_name("decoder", "NVIDIA H200", "10.16.1") == "decoder.nvidia-h200.trt10.16.1.engine"


@pytest.fixture
def bundle(random_bundle_path, tmp_path):
    return shutil.copytree(random_bundle_path, tmp_path / "bundle")


def put_engines(path, gpu=HERE, version="10.16.1.11", content=b"first"):
    """What `build_engines` does to a bundle, with bytes that pass for an engine."""
    source = Bundle.load(path)
    tables = {"vision": vision_profiles(source.spec), "decoder": decoder_profiles(source.spec, 512)}
    engines = [command.describe(source, graph, table, gpu, version) for graph, table in tables.items()]
    with new_bundle(path) as folder:
        accepted = command.take_over(source, folder, engines)
        for each in engines:
            (folder / each.file).write_bytes(content)
        write_bundle(folder, source.spec, accepted)
    return Bundle.load(path)


def test_engines_are_put_into_a_bundle_and_everything_else_stays(bundle):
    before = Bundle.load(bundle)
    after = put_engines(bundle)
    assert {name: after.files[name] for name in before.files} == dict(before.files)
    assert after.spec.to_json() == before.spec.to_json()
    assert [each.graph for each in after.engines] == ["vision", "decoder"]
    assert {each.precision for each in after.engines} == {before.spec.precision}


def test_engines_built_again_replace_the_old_ones_and_leave_other_machines_alone(bundle):
    put_engines(bundle)
    put_engines(bundle, Gpu("NVIDIA Thor", "11.0"), content=b"thor")
    after = put_engines(bundle, content=b"second")
    assert len(after.engines) == 4
    assert (
        sorted((bundle / each.file).read_bytes() for each in after.engines) == [b"second"] * 2 + [b"thor"] * 2
    )
    newer = put_engines(bundle, version="10.16.2")
    assert len({each.tensorrt for each in newer.engines}) == 2
    assert set(newer.files) == {*newer.files, *(each.file for each in newer.engines)}


def test_the_old_bundle_stays_whole_when_a_build_fails(bundle):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    source = Bundle.load(bundle)

    def fails():
        with new_bundle(bundle) as folder:
            command.take_over(source, folder, [])
            (folder / "decoder.onnx").unlink()  # another name of the same bytes
            raise ExportError("no tactic")

    with pytest.raises(ExportError, match="no tactic"):
        fails()
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    command.replace_file(tmp_path / "made" / "timing", b"one")
    command.replace_file(tmp_path / "made" / "timing", b"two")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "made").iterdir()] == [("timing", b"two")]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_command_fails_with_a_sentence_and_changes_nothing(bundle):
    before = (bundle / "policy.json").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "model_export.engine", str(bundle)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "error: TensorRT engines need TensorRT, which is not here" in said
    assert "10.16.1" in said
    assert "Traceback" not in said
    assert (bundle / "policy.json").read_bytes() == before
    assert "engines" not in json.loads(before)


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["--max-rows", "7"], "--max-rows is 7"), ([], "no policy")]
)
def test_the_command_refuses_before_it_looks_for_tensorrt(bundle, capsys, arguments, sentence):
    path = bundle if arguments else bundle.parent / "none"
    rows = int(arguments[1]) if arguments else None
    assert command.main(path, max_rows=rows) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said.replace("is not a policy", "no policy")


def test_progress_shows_phases_inside_phases_and_ends_on_ctrl_c():
    progress = Progress(disable=True)
    phases = Phases(progress)
    phases.start("Building engine", None, 10)
    phases.start("Tactic selection", "Building engine", 200)
    shown = {task.description: task.total for task in progress.tasks}
    assert shown == {"Building engine": 10, "  Tactic selection": 200}
    assert phases.step("Tactic selection", 9)
    assert progress.tasks[1].completed == 10
    phases.finish("Tactic selection")
    assert [task.description for task in progress.tasks] == ["Building engine"]

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    progress.update = interrupted
    assert not phases.step("Building engine", 1)
    assert phases.cancelled
