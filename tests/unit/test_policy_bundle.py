"""A bundle is verified as a whole: nothing changed, missing or unknown is ever run."""

import json
import shutil

import pytest

from dtvla.errors import BundleError
from dtvla.policy.bundle.loading import Bundle, sealed
from dtvla.policy.policy import Policy

FILES = ("policy.json", "tokenizer.json", "vision.onnx", "decoder.onnx")


@pytest.fixture
def bundle(random_bundle_path, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(random_bundle_path, tmp_path / "bundle")


def edit(bundle, change):
    """Changes policy.json and seals it again, so that only the content can be at fault."""
    path = bundle / "policy.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_bytes(sealed(data))


def test_a_sound_bundle_loads_with_its_spec_and_fingerprint(bundle):
    loaded = Bundle.load(bundle)
    assert loaded.spec.layout.horizon == 10
    assert set(loaded.files) == set(FILES) - {"policy.json"}
    assert len(loaded.fingerprint) == 64


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.37, 0.99])
def test_one_flipped_byte_in_any_file_is_refused_with_the_file_named(bundle, name, where):
    content = bytearray((bundle / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_with_the_file_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.load(bundle)


def test_a_path_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such directory"):
        Bundle.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"has no policy\.json"):
        Bundle.load(tmp_path)


def set_in(path, value):
    """A change of one field, given by its path."""

    def change(data):
        *way, last = path
        for key in way:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["schema_version"], 2, "schema_version is 2"),
        (["family"], "openvla", "family is 'openvla'"),
        (["norm_stats", "action", "q99"], [-1.0] * 7, "q99 is not above q01 in dimension 0"),
        (["norm_stats", "action", "q01"], [0.0] * 6, r"norm_stats\.action\.q01 has shape \[6\]"),
        (["norm_stats", "action"], {}, r"norm_stats\.action\.q01 is missing"),
        (["norm_stats"], {}, r"norm_stats\.action is missing"),
        (["layout", "bins"], 0, r"layout\.bins is 0"),
        (["layout", "think"], 5, "share one id"),
        (["layout", "vocab_size"], "many", r"layout\.vocab_size is 'many'"),
        (["cameras"], [], "cameras must be a list"),
        (["cameras", 0, "rotation_deg"], 45, r"cameras\[0\]\.rotation_deg"),
        (["cameras", 0, "name"], "wrist", "the same name"),
        (["execute_steps"], 11, "execute_steps is 11"),
        (["control_period_s"], 0, "control_period_s is 0"),
        (["control_period_s"], True, "control_period_s is True"),
        (["gripper", "open_value"], 1.0, "gripper closes and opens"),
        (["image", "std"], 0.0, r"image\.std"),
        (["colour"], "red", "unknown field colour"),
        (["files", "../weights"], "00", "plain file names"),
        (["prompt_prefix"], None, "prompt_prefix is None"),
        (["precision"], "int3", "precision is 'int3'"),
        (["typical_thoughts"], "go on", "typical_thoughts must be a list"),
        (["typical_thoughts"], ["go"] * 65, "more than 64 thoughts"),
        (["typical_thoughts"], ["go" * 2001], "more than 4000 characters"),
        (["typical_thoughts"], ["go </think>"], "typical_thoughts: go </think> holds a token reserved"),
        (["cache_length"], 80, "cache_length is 80, but the pictures take"),
    ],
)
def test_a_wrong_field_is_refused_by_its_path(bundle, path, value, sentence):
    edit(bundle, set_in(path, value))
    with pytest.raises(BundleError, match=sentence):
        Bundle.load(bundle)


@pytest.mark.parametrize("key", ["layout", "image", "norm_stats", "files", "thought_cap", "decode_shift"])
def test_a_missing_field_is_refused_by_name(bundle, key):
    edit(bundle, lambda data: data.pop(key))
    with pytest.raises(BundleError, match=f"{key}"):
        Bundle.load(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_policy_json_that_is_no_json_object_is_refused(bundle, text):
    (bundle / "policy.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"policy\.json"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["image", "size"], 42, r"vision\.onnx: the size of `pixels` \(image"),
        (["layout", "image_tokens"], 9, r"vision\.onnx: the size of `features`"),
        (["layout", "bins"], 63, r"decoder\.onnx: the size of `action_logits`"),
        (["layout", "vocab_size"], 400, r"decoder\.onnx: the size of `think_logits`"),
    ],
)
def test_graphs_that_do_not_fit_policy_json_are_refused(bundle, path, value, sentence):
    edit(bundle, set_in(path, value))
    with pytest.raises(BundleError, match=sentence):
        Policy.load(bundle)


def test_a_tokenizer_with_other_ids_is_refused(bundle):
    edit(bundle, set_in(["layout", "think"], 20))
    with pytest.raises(BundleError, match=r"tokenizer\.json.*<think>"):
        Bundle.load(bundle)


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(ValueError, match="Unknown backend 'cuda'"):
        Policy.load(bundle, backend="cuda")
