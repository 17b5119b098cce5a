"""The attention nodes of decoder.onnx, read the way TensorRT's parser reads them.

It looks for a plugin by op type, `plugin_namespace` and `plugin_version`, for a function by op type alone.
A function whose value names meet names of the graph is skipped. Both must hold in one file.
"""

from collections import Counter

import onnx
import pytest
from onnx import AttributeProto, TensorProto

from model_export.onnx.export import export_decoder
from model_export.onnx.hybrid_attention import DOMAIN, OPERATOR, PLUGIN_VERSION
from model_export.sample import byte_tokenizer, random_config, random_model

ATTRIBUTES = {
    "scale": AttributeProto.FLOAT,
    "plugin_namespace": AttributeProto.STRING,
    "plugin_version": AttributeProto.STRING,
}


@pytest.fixture(scope="module", params=[(2, 1), (3, 4)], ids=lambda p: f"{p[0]} layers, {p[1]} key heads")
def exported(request, tmp_path_factory):
    """A model and its decoder graph."""
    layers, key_heads = request.param
    raw = random_config(byte_tokenizer())
    raw["text_config"].update(num_hidden_layers=layers, num_key_value_heads=key_heads)
    model = random_model(raw, seed=layers)
    path = tmp_path_factory.mktemp("nodes") / "decoder.onnx"
    export_decoder(model, path)
    return model, onnx.load(str(path))


@pytest.fixture(scope="module")
def graph(exported):
    return exported[1].graph


@pytest.fixture(scope="module")
def body(exported):
    (function,) = exported[1].functions
    return function


def attention_nodes(graph):
    return [node for node in graph.node if node.domain == DOMAIN]


def values_of(holder):
    """All names of values that a graph or a function makes or takes."""
    return {name for node in holder.node for name in (*node.input, *node.output)} - {""}


def test_the_graph_passes_onnxs_full_check(exported):
    onnx.checker.check_model(exported[1], full_check=True)


def test_there_is_one_attention_node_for_every_layer(exported, graph):
    nodes = attention_nodes(graph)
    assert len(nodes) == exported[0].config.text.layers
    assert {node.op_type for node in nodes} == {OPERATOR}
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.name for node in nodes)


def test_every_attention_node_names_its_plugin_with_the_types_the_parser_reads(exported, graph):
    for node in attention_nodes(graph):
        attributes = {attribute.name: attribute for attribute in node.attribute}
        assert {name: attribute.type for name, attribute in attributes.items()} == ATTRIBUTES
        assert attributes["plugin_namespace"].s == DOMAIN.encode()
        assert attributes["plugin_version"].s == PLUGIN_VERSION.encode()
        assert attributes["scale"].f == pytest.approx(exported[0].config.text.head_dim ** -0.5)


def test_every_attention_node_takes_its_layers_updated_cache_and_the_one_mask(graph):
    for layer, node in enumerate(attention_nodes(graph)):
        queries, *rest = node.input
        assert rest == [f"key_{layer}_out", f"value_{layer}_out", "bounds"]
        assert queries not in {value.name for value in graph.input}
        assert len(node.output) == 1


def test_every_cache_is_written_by_one_scatter_from_input_to_output(exported, graph):
    """TensorRT makes a KVCacheUpdate of it only between an input and an output of the network."""
    scatters = [node for node in graph.node if node.op_type == "TensorScatter"]
    layers = exported[0].config.text.layers
    names = {f"{kind}_{layer}" for kind in ("key", "value") for layer in range(layers)}
    assert {(node.input[0], node.output[0]) for node in scatters} == {(name, f"{name}_out") for name in names}
    assert len(scatters) == 2 * layers
    assert names <= {value.name for value in graph.input}
    assert {f"{name}_out" for name in names} <= {value.name for value in graph.output}
    assert all(node.input[2] == "write_index" for node in scatters)


def test_the_mask_is_int32_and_the_indices_are_int64(graph):
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    assert types["bounds"] == TensorProto.INT32
    assert {types[name] for name in ("ids", "write_index", "think_rows", "act_rows")} == {TensorProto.INT64}


def test_all_names_of_the_function_are_its_own(graph, body):
    """Bug: onnxscript's own names in it, `tmp` and `return_val`, had no prefix."""
    signature = [*body.input, *body.output]
    assert len(signature) == len(set(signature))
    own = values_of(body) | set(signature)
    assert {name for name in own if not name.startswith("dt_")} == set()
    taken = values_of(graph) | {tensor.name for tensor in graph.initializer}
    taken |= {value.name for value in (*graph.input, *graph.output)}
    assert own & taken == set()


def test_the_function_makes_every_value_once(body):
    made = Counter(name for node in body.node for name in node.output)
    assert [name for name, times in made.items() if times > 1] == []
    assert values_of(body) <= {*made, *body.input}


def test_the_function_is_the_nodes_operator_with_its_attributes_as_defaults(exported, body):
    assert (body.domain, body.name) == (DOMAIN, OPERATOR)
    assert {entry.name: entry.type for entry in body.attribute_proto} == ATTRIBUTES
    versions = {entry.domain: entry.version for entry in exported[1].opset_import}
    assert versions[DOMAIN] == 1
    assert {entry.domain: entry.version for entry in body.opset_import}[""] == versions[""]
