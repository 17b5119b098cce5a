"""The node table, its parameter files and the parameter schemas belong together."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from dtvla.bringup.graph import (
    GRAPH,
    GraphOptions,
    managed,
    overrides,
    parameter_files,
    remappings,
    selected,
)
from dtvla.bringup.launcher import command
from dtvla.nodes.common.parameters import SCHEMAS, Parameter, Refusal, validate
from dtvla.resources import resource

OPTIONS = GraphOptions(bundle=Path("bundle"), record=True, markers=True)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_parameter_file_of_a_node_holds_exactly_its_schema_with_the_defaults(name: str) -> None:
    content = yaml.safe_load(resource(f"config/{name}.yaml").read_text())
    values = content[f"/**/{name}"]["ros__parameters"]
    assert values == {parameter.name: parameter.default for parameter in SCHEMAS[name]}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_parameter_file_explains_every_parameter_with_unit_and_bounds(name: str) -> None:
    text = resource(f"config/{name}.yaml").read_text()
    for parameter in SCHEMAS[name]:
        unit = f" {parameter.unit}" if parameter.unit else ""
        assert f"# {parameter.sentence} [{parameter.bounds}{unit}]\n    {parameter.name}:" in text


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_defaults_of_a_schema_pass_it(name: str) -> None:
    validate(SCHEMAS[name], {parameter.name: parameter.default for parameter in SCHEMAS[name]})


def test_every_override_names_a_parameter_of_its_node() -> None:
    for name, values in overrides(OPTIONS).items():
        known = {parameter.name for parameter in SCHEMAS[name]} | {"use_sim_time"}
        assert set(values) <= known


def test_every_node_of_the_table_exists_and_the_world_comes_alive_last() -> None:
    for node in GRAPH:
        assert importlib.util.find_spec(node.module) is not None
    assert selected(OPTIONS)[-1].name == "libero_bridge_node"


def test_options_choose_the_nodes() -> None:
    bare = GraphOptions(bundle=Path(), simulator=False, console=False)
    assert [node.name for node in selected(bare)] == ["controller_node", "policy_node"]


def test_of_a_graph_on_several_machines_each_runs_its_own_nodes() -> None:
    bridge = GraphOptions(bundle=Path(), only="libero_bridge_node")
    assert managed(bridge) == {"libero_bridge_node": 60.0}
    assert overrides(bridge)["lifecycle_manager_node"] == {"nodes": "libero_bridge_node=60"}
    others = GraphOptions(bundle=Path(), only="policy_node, controller_node,console_node")
    assert [node.name for node in selected(others)] == ["console_node", "controller_node", "policy_node"]
    assert list(managed(others)) == ["controller_node", "policy_node"]


@pytest.mark.parametrize("only", ["libero_bridge", "recorder_node", "policy_node;controller_node"])
def test_a_name_that_is_no_node_of_the_graph_is_refused_with_those_that_are(only: str) -> None:
    """The recorder is one only with `record`: left out in silence, it would be missed too late."""
    with pytest.raises(ValueError, match=f"only names '{only}'; .*: console_node, controller_node, policy"):
        GraphOptions(bundle=Path(), only=only)


def test_a_command_line_quotes_what_yaml_would_misread() -> None:
    node = next(node for node in GRAPH if node.name == "policy_node")
    line = command(node, {"bundle": "it's/1.0", "use_sim_time": True, "threads": 2})
    assert line[-6:] == ["-p", "bundle:='it''s/1.0'", "-p", "use_sim_time:=true", "-p", "threads:=2"]
    assert str(parameter_files(node)[0]) in line


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (Parameter("speed_m_s", 1.0, "", "m/s", 0.0, 2.0), 3.0, "0 to 2 m/s"),
        (Parameter("speed_m_s", 1.0, "", "m/s", 0.0, 2.0), float("nan"), "0 to 2 m/s"),
        (Parameter("speed_m_s", 1.0, "", "m/s", 0.0), -1.0, "at least 0 m/s"),
        (Parameter("count", 1, ""), 1.5, "must be int"),
        (Parameter("count", 1, ""), True, "must be int"),
        (Parameter("flag", True, ""), 1, "must be bool"),
        (Parameter("mode", "a", "", choices=("a", "b")), "c", "one of a, b"),
        (Parameter("name", "a", ""), None, "must be str"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(
    parameter: Parameter, value: object, words: str
) -> None:
    with pytest.raises(Refusal, match=f"'{parameter.name}'.*{words}"):
        parameter.check(value)


def test_a_whole_number_is_good_enough_for_a_float() -> None:
    assert Parameter("speed_m_s", 1.0, "").check(2) == 2.0


def test_simulated_robots_in_namespaces_have_a_clock_each_and_real_ones_share_time() -> None:
    """Two simulators published one /clock, and each controller saw time jump to and fro."""
    for node in GRAPH:
        options = GraphOptions(bundle=Path(), namespace="left")
        assert ("/clock", "clock") in remappings(node, options)
        for shared in (GraphOptions(bundle=Path(), simulator=False, namespace="left"), OPTIONS):
            assert not remappings(node, shared)


def test_the_arms_driver_may_call_its_topics_otherwise() -> None:
    options = GraphOptions(
        bundle=Path(), simulator=False, robot="fr3", arm="target_pose=/arm/goal, ee_pose=tcp"
    )
    for node in GRAPH:
        assert remappings(node, options) == [("target_pose", "/arm/goal"), ("ee_pose", "tcp")]


@pytest.mark.parametrize(
    "arm", ["target_pose", "target_pose=", "policy/action_chunk=/x", "target_pose=/a b-c"]
)
def test_only_topics_of_the_arm_are_renamed(arm: str) -> None:
    with pytest.raises(ValueError, match="arm has"):
        GraphOptions(bundle=Path(), arm=arm)
