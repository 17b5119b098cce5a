"""The rule by which nodes are brought alive, without ROS: the test gives the answers and moves the clock."""

from __future__ import annotations

import pytest

from dtvla.nodes.common.parameters import Refusal
from dtvla.nodes.lifecycle.bring_up import (
    ASK_S,
    LAST_WORDS_S,
    START_TIMEOUT_S,
    TRANSITION_TIMEOUT_S,
    BringUp,
    LifecycleRequest,
    PrimaryState,
)

GET_STATE, CONFIGURE, ACTIVATE = LifecycleRequest
STEP_S = 0.25


class Graph:
    """Some nodes under the rule, and everything that it asked and said."""

    def __init__(self, *nodes: str, heartbeat_s: float = 10.0) -> None:
        self.said: list[str] = []
        self.rule = BringUp(self.said.append)
        self.asked: list[tuple[str, LifecycleRequest]] = []
        self.now_s = 100.0
        self.rule.begin(nodes, dict.fromkeys(nodes, heartbeat_s))

    def passes(self, seconds: float, *reporting: str) -> None:
        """Time passes, in which some nodes report that they are well."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for name in reporting:
                self.rule.reports(name)
            self.asked += self.rule.step(self.now_s)

    def is_in(self, name: str, state: int) -> None:
        self.asked += self.rule.state_is(name, state)

    def moved(self, name: str, success: bool = True) -> None:
        self.rule.has_moved(name, success)
        self.passes(STEP_S)

    def come_alive(self, *nodes: str) -> None:
        for name in nodes:
            self.is_in(name, PrimaryState.UNCONFIGURED)
        for name in nodes:
            self.moved(name)
        for name in nodes:
            self.moved(name)
        assert not self.rule.busy

    def changes(self) -> list[tuple[str, LifecycleRequest]]:
        """What was asked, but for states."""
        return [each for each in self.asked if each[1] is not GET_STATE]


def test_all_are_configured_at_once_and_activated_in_order() -> None:
    graph = Graph("ear", "mouth")
    graph.passes(1.0)
    graph.is_in("mouth", PrimaryState.UNCONFIGURED)
    graph.is_in("ear", PrimaryState.UNCONFIGURED)
    assert graph.changes() == [("mouth", CONFIGURE), ("ear", CONFIGURE)]
    graph.moved("mouth")
    assert ("mouth", ACTIVATE) not in graph.asked, "the other one is still to be configured"
    graph.moved("ear")
    assert graph.changes()[2:] == [("ear", ACTIVATE)]
    graph.moved("ear")
    assert graph.changes()[3:] == [("mouth", ACTIVATE)]
    assert graph.rule.busy
    graph.moved("mouth")
    assert not graph.rule.busy
    assert graph.said == ["activating ear", "activating mouth"]
    assert graph.rule.take_failure() == ""


def test_a_node_is_asked_for_its_state_again_and_again_until_it_answers() -> None:
    """Discovery may know a killed predecessor only: a request sent to that one is lost."""
    graph = Graph("policy")
    graph.passes(4 * ASK_S)
    assert graph.asked.count(("policy", GET_STATE)) == 4
    graph.is_in("policy", PrimaryState.UNCONFIGURED)
    graph.passes(4 * ASK_S)
    assert graph.asked.count(("policy", GET_STATE)) == 4


def test_what_somebody_else_has_begun_is_not_done_again() -> None:
    graph = Graph("first", "second")
    graph.is_in("first", PrimaryState.ACTIVE)
    graph.is_in("second", PrimaryState.INACTIVE)
    graph.passes(STEP_S)
    assert graph.changes() == [("second", ACTIVATE)]


def test_a_node_in_a_transition_of_somebody_else_is_asked_again() -> None:
    graph = Graph("policy")
    graph.is_in("policy", 10)  # configuring
    assert graph.changes() == []
    graph.passes(1.0)
    graph.is_in("policy", PrimaryState.INACTIVE)
    graph.passes(STEP_S)
    assert graph.changes() == [("policy", ACTIVATE)]


def test_a_node_that_does_not_come_is_named_after_its_time() -> None:
    graph = Graph("policy")
    graph.passes(START_TIMEOUT_S)
    assert graph.rule.busy
    graph.passes(2 * STEP_S)
    assert graph.rule.take_failure() == (
        "policy did not appear within 60 s. Does its process run, in the same ROS domain and namespace?"
    )
    assert not graph.rule.busy
    assert graph.rule.take_failure() == "", "it is said once"


@pytest.mark.parametrize("verb", ["configure", "activate"])
def test_a_transition_that_takes_too_long_is_named(verb: str) -> None:
    graph = Graph("policy")
    graph.is_in("policy", PrimaryState.UNCONFIGURED)
    if verb == "activate":
        graph.moved("policy")
    graph.passes(TRANSITION_TIMEOUT_S + 1.0, "policy")
    assert graph.rule.take_failure() == f"policy was asked to {verb} and did not answer within 120 s."


def test_a_node_that_refuses_is_quoted_even_when_its_sentence_comes_after_the_refusal() -> None:
    graph = Graph("policy")
    graph.rule.reports("policy", "An older complaint.")
    graph.passes(1.0)
    graph.is_in("policy", PrimaryState.UNCONFIGURED)
    graph.passes(1.0)
    graph.moved("policy", success=False)
    assert graph.rule.take_failure() == ""
    graph.rule.reports("policy", "policy could not configure: /nowhere is not a policy bundle.")
    graph.passes(STEP_S)
    assert graph.rule.take_failure() == "policy could not configure: /nowhere is not a policy bundle."


def test_a_node_that_refuses_without_a_word_is_named() -> None:
    graph = Graph("policy")
    graph.is_in("policy", PrimaryState.UNCONFIGURED)
    graph.moved("policy", success=False)
    graph.passes(LAST_WORDS_S + 2 * STEP_S, "policy")
    assert graph.rule.take_failure() == "policy refused to start; its log says why."


def test_a_node_that_was_shut_down_cannot_come_back() -> None:
    graph = Graph("policy")
    graph.is_in("policy", PrimaryState.FINALIZED)
    assert "has been shut down" in graph.rule.take_failure()


def test_an_active_node_that_falls_silent_is_told_of_until_it_reports_again() -> None:
    graph = Graph("policy", heartbeat_s=3.0)
    graph.come_alive("policy")
    graph.passes(10.0, "policy")
    assert graph.rule.silent == {}
    graph.passes(2.5)
    assert graph.rule.silent == {}
    graph.passes(1.0)
    assert graph.rule.silent == {"policy": "policy has not reported for 3 s"}
    graph.passes(1.0, "policy")
    assert graph.rule.silent == {}
    assert graph.said[-1] == "policy reports again."


def test_a_node_may_be_silent_while_it_loads() -> None:
    """The launcher used to kill a policy that loaded for longer than its heartbeat, with --respawn."""
    graph = Graph("policy", heartbeat_s=3.0)
    graph.rule.reports("policy")
    graph.is_in("policy", PrimaryState.UNCONFIGURED)
    graph.passes(60.0)
    assert graph.rule.silent == {}
    graph.moved("policy")
    graph.moved("policy")
    graph.passes(2.0)
    assert graph.rule.silent == {}


def test_a_pause_of_our_own_is_nobodys_silence_and_nobodys_delay() -> None:
    """A launcher that was stopped in the terminal used to take its nodes for dead."""
    graph = Graph("policy", "bridge", heartbeat_s=3.0)
    graph.is_in("policy", PrimaryState.ACTIVE)
    graph.passes(1.0, "policy")
    graph.now_s += 3600.0
    graph.passes(STEP_S)
    assert graph.rule.silent == {}
    assert graph.rule.take_failure() == "", "bridge has its time to appear"


def test_a_new_process_in_the_place_of_a_killed_one_is_noticed_and_comes_alive() -> None:
    graph = Graph("policy", "bridge")
    assert not graph.rule.is_new("policy", {b"a"})
    graph.come_alive("policy", "bridge")
    assert not graph.rule.is_new("policy", {b"a"})
    assert not graph.rule.is_new("policy", set()), "discovery has lost it"
    assert not graph.rule.is_new("policy", {b"a"}), "and found it again"
    assert graph.rule.is_new("policy", {b"a", b"b"}), "the killed one is still known"
    graph.asked.clear()
    graph.rule.begin(["policy"])
    graph.passes(STEP_S)
    assert graph.asked == [("policy", GET_STATE)]
    assert not graph.rule.is_new("policy", {b"b"}), "it is the one that is awaited"
    graph.come_alive("policy")
    assert graph.changes() == [("policy", CONFIGURE), ("policy", ACTIVATE)]


def test_a_process_that_discovery_shows_late_is_not_a_second_one() -> None:
    graph = Graph("policy")
    graph.come_alive("policy")
    assert not graph.rule.is_new("policy", {b"a"})


def test_two_that_were_started_anew_keep_their_order() -> None:
    graph = Graph("first", "second", "third")
    graph.come_alive("first", "second", "third")
    graph.asked.clear()
    graph.rule.begin(["third"])
    graph.rule.begin(["first"])
    for name in ("third", "first"):
        graph.is_in(name, PrimaryState.UNCONFIGURED)
        graph.moved(name)
    assert graph.changes()[-1] == ("first", ACTIVATE)


def test_after_a_failure_the_others_are_still_watched_and_a_new_attempt_is_possible() -> None:
    graph = Graph("controller", "policy", heartbeat_s=3.0)
    graph.is_in("controller", PrimaryState.ACTIVE)
    graph.passes(START_TIMEOUT_S + 1.0, "controller")
    assert "policy did not appear" in graph.rule.take_failure()
    graph.passes(4.0)
    assert set(graph.rule.silent) == {"controller"}
    graph.rule.begin(["policy"])
    graph.come_alive("policy")


def test_answers_about_a_node_that_nobody_manages_change_nothing() -> None:
    graph = Graph("policy")
    graph.rule.reports("stranger", "Something is wrong.")
    graph.rule.has_moved("stranger", True)
    graph.is_in("stranger", PrimaryState.UNCONFIGURED)
    assert not graph.rule.is_new("stranger", {b"a"})
    assert graph.changes() == []


def test_the_parameter_nodes_lists_names_in_order_with_the_silence_that_each_may_keep() -> None:
    from dtvla.nodes.lifecycle.lifecycle_manager_node import parse_nodes

    assert parse_nodes("controller_node, libero_bridge_node=60,") == {
        "controller_node": 10.0,
        "libero_bridge_node": 60.0,
    }


@pytest.mark.parametrize("text", ["", " , ", "a=", "a=-1", "a=0", "a=1.2.3", "a,a", "/left/a", "a b-c"])
def test_another_list_of_nodes_is_refused_in_words(text: str) -> None:
    from dtvla.nodes.lifecycle.lifecycle_manager_node import parse_nodes

    with pytest.raises(Refusal, match="Parameter 'nodes'"):
        parse_nodes(text)
