"""A policy node that trusts a key takes a bundle signed with it, and refuses any other on configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import Probe, active

from dtvla.nodes.lifecycle.graph_client import BringUpError
from dtvla.policy.bundle.signing import make_keys, sign

pytestmark = pytest.mark.ros


def test_only_a_signed_bundle_is_configured(
    probe: Probe, domain: int, random_bundle_path: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(random_bundle_path, tmp_path / "bundle")
    parameters = {"bundle": str(bundle), "trusted_key": str(make_keys(tmp_path / "key"))}
    with pytest.raises(BringUpError, match=r"could not configure: The bundle .* is not signed"):
        active("policy_node", probe, domain, tmp_path, **parameters)
    probe.expect(lambda: "policy_node" not in probe.node.get_node_names(), "the refused node does not go")
    probe.reports.clear()
    sign(bundle, tmp_path / "key")
    with active("policy_node", probe, domain, tmp_path, **parameters):
        assert not probe.complaint("policy_node")
