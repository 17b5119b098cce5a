"""The figures of `make bench` on thinking, on a tiny random policy: what is counted, not how fast."""

import numpy as np
import pytest

from dtvla.policy.bundle.loading import Bundle
from dtvla.policy.options import DecisionOptions
from dtvla.policy.policy import Policy
from tools.benchmarks import thinking
from tools.benchmarks.graph import BenchReport
from tools.benchmarks.thinking import RecordedObservation


@pytest.fixture(scope="module")
def looks(random_bundle_path):
    """Six looks of one episode that change a little, with what the policy plainly thinks."""
    policy = Policy.load(random_bundle_path, options=DecisionOptions(drafts=False))
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 64, 64, 3))
    found = []
    for i in range(6):
        image = np.clip(image + rng.integers(-4, 5, image.shape), 0, 255)
        images = dict(zip(("agentview", "wrist"), image.astype(np.uint8), strict=True))
        found.append(
            RecordedObservation(images, "pick", policy.decide(images, "pick").thought_ids, first=i == 0)
        )
    return found


def test_drafts_are_compared_with_plain_thinking_decision_by_decision(random_bundle_path, looks):
    report = thinking.measure(random_bundle_path, looks)
    plain, drafts = report.modes["plain"], report.modes["drafts"]
    assert (plain.accepted, plain.passes) == (0.0, 13.0), "twelve words and the action pass"
    assert drafts.words_changed == drafts.actions_changed == 0
    assert 0 < drafts.accepted < 1
    assert drafts.passes < plain.passes
    assert report.modes["no thought"].passes == 1
    assert {len(row.latency_ms) for row in report.modes.values()} == {2}
    assert "kept" in str(thinking.table(report).columns[2].header)


def test_dictated_words_are_kept_as_they_were_when_they_were_thought(random_bundle_path, looks):
    thought = thinking.measure(random_bundle_path, looks)
    dictated = thinking.measure(random_bundle_path, looks, scripted=True)
    assert dictated.modes["drafts"].words_changed == 0
    assert dictated.modes["drafts"].accepted == thought.modes["drafts"].accepted
    assert dictated.modes["drafts"].passes == thought.modes["drafts"].passes


def test_a_thought_that_loses_words_is_dictated_to_its_end(random_bundle_path):
    """`make bench` ended in a zip of unequal lengths where a thought got shorter."""
    layout = Bundle.load(random_bundle_path).spec.layout
    words = thinking.DictatedSampler(layout)
    words.dictate([4, 40, 41, 42, 43, 44, 5, 6])
    words.dictate([4, 40, 50, 5, 6])
    logits = np.zeros((7, layout.vocab_size), np.float32)
    taken = words.words(logits)
    assert [next(taken) for _ in range(3)] == [4, 40, 50]
    assert len(words.guesses(logits[3:])) == 2, "as many as there are words"


def test_the_curves_have_a_point_for_every_length_and_make_a_picture(random_bundle_path, looks, tmp_path):
    lengths = (5, 9, 12)
    curves = thinking.by_length(random_bundle_path, looks[0], accepted=0.8, lengths=lengths, repeats=2)
    assert {name: len(values) for name, values in curves.items()} == dict.fromkeys(
        ("reference", "plain", "drafts", "background"), 3
    )
    thinking.plot(curves, tmp_path / "latency.png", "tiny", lengths)
    assert (tmp_path / "latency.png").stat().st_size > 5000


def test_a_report_without_thoughts_has_no_target_for_them(random_bundle_path, looks):
    report = BenchReport(
        "here", memory_mb=dict.fromkeys(("policy_node", "controller_node", "libero_bridge_node"), 1)
    )
    assert "drafts_of_masked" not in report.figures()
    report.thoughts.append(thinking.measure(random_bundle_path, looks))
    assert report.figures()["drafts_of_masked"] == report.thoughts[0].of_masked
