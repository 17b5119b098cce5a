"""The embedded suite, its expert and its thoughts."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla.evaluation.runner import EvalOptions, evaluate
from dtvla.policy.policy import Policy
from dtvla.resources import default_bundle
from dtvla.sim.env import IDLE_ACTION, SimEnv, list_tasks, upright
from dtvla.sim.expert.scripted_expert import Expert, Phase
from dtvla.sim.suites.embedded import RECEPTACLES, SUITES, TASKS
from dtvla.sim.thoughts import (
    agreement,
    check_thought,
    describe_next,
    describe_offset,
    parse_thought,
    thought,
)
from training.collect import other_labels, record_episode

pytestmark = pytest.mark.sim


def _rollout(
    task: int, seed: int, steps: int, noise: float, suite: str, queue: multiprocessing.Queue
) -> None:
    """Runs the expert in a process of its own: one environment per process."""
    env = SimEnv(suite, task, render=False)
    obs = env.reset(seed)
    expert = Expert(env.scene)
    expert.reset(obs)
    rng = np.random.default_rng(seed)
    errors = []
    while obs.step < steps and not obs.success:
        action = expert.act(obs)
        errors.append(check_thought(thought(expert, obs), obs))
        action[:3] = np.clip(action[:3] + noise * rng.normal(size=3), -1, 1)
        obs = env.step(action)
    places = {name: position.tolist() for name, position in obs.objects.items()}
    queue.put((obs.success, errors, env.state().tolist(), places))


def in_a_process(function, *arguments):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    process.start()
    result = queue.get(timeout=240)
    process.join()
    return result


def rollout(task: int, seed: int, steps: int = 260, noise: float = 0.0, suite: str = "embedded"):
    return in_a_process(_rollout, task, seed, steps, noise, suite)


def _detour(queue: multiprocessing.Queue) -> None:
    env = SimEnv("embedded", 0, image_size=32)
    queue.put(record_episode(env, 200_001, every=2, detours=True))


def test_a_detour_ends_above_the_right_object_and_is_labelled_with_it_all_the_way():
    """In other episodes whatever is under the gripper is the target."""
    episode = in_a_process(_detour)
    assert all("The green block is" in text and "move above it" in text for text in episode["thoughts"])
    hand, target = episode["truth"][:, 0, :2], episode["truth"][:, 1, :2]
    distance = np.linalg.norm(hand - target, axis=1)
    assert distance[-1] < 0.05
    assert distance.max() > 0.10


def _other_way(queue: multiprocessing.Queue) -> None:
    """Labels for the other instructions half-way to the block, and what their experts do when they drive."""
    env = SimEnv("embedded", 0, image_size=32, render=False)
    home = env.reset(4)
    said = []
    for other in TASKS[1:]:
        obs = env.reset(4)
        driving, wanted = Expert(env.scene), Expert(other)
        driving.reset(home)
        wanted.reset(home)
        before = obs
        for _ in range(12):
            action = driving.act(obs)
            before, obs = obs, env.step(action)
        movement = obs.ee_position - before.ee_position
        thoughts, chunks = other_labels(env, driving, obs, action, movement, home)
        index = TASKS[1:].index(other)
        done = []
        for _ in range(10):
            done.append(wanted.act(obs))
            if len(done) == 1:
                said.append((thoughts[index], thought(wanted, obs)))
            obs = env.step(done[-1])
        said[-1] += (chunks[index].tolist(), np.array(done).tolist())
    queue.put(said)


def test_a_picture_is_labelled_with_what_the_experts_of_the_other_instructions_would_do():
    """Nobody drives there, so their ten actions are predicted: they must be what driving gives."""
    for claimed, true, predicted, driven in in_a_process(_other_way):
        assert claimed == true
        difference = np.abs(np.array(predicted) - np.array(driven))
        # At 6 cm from the target the expert goes down all at once; a step early or late differs much.
        assert difference.mean() < 0.03
        assert (difference > 0.12).mean() < 0.03


def _same_object(queue: multiprocessing.Queue) -> None:
    """Label and other label of the same object on the way to it, at it and above its receptacle."""
    env = SimEnv("embedded_tray", 0, render=False)
    home = obs = env.reset(5)
    expert = Expert(env.scene)
    expert.reset(home)
    seen = {}
    while not obs.success and obs.step < env.info.max_steps:
        action = expert.act(obs)
        thoughts, chunks = other_labels(env, expert, obs, action, np.zeros(3), home)
        near = [thing for thing in SUITES["embedded_tray"].tasks if thing is not env.scene]
        index = [task.name for task in near].index("red_block_tray")
        seen[expert.phase] = (thought(expert, obs), thoughts[index], np.abs(chunks[index][0] - action).max())
        obs = env.step(action)
    places = {name: float(obs.objects[f"emb_{name}_1"][0]) for name in ("basket", "tray")}
    queue.put((seen, places))


def test_the_same_object_gets_the_same_label_until_its_receptacle_matters():
    """A fresh expert is behind by a phase: asked for the other one, it would never close the gripper."""
    seen, places = in_a_process(_same_object)
    for phase in (Phase.REACH, Phase.LOWER, Phase.GRASP):
        own, other, difference = seen[phase]
        assert own == other
        assert difference < 1e-6
    assert "close the gripper" in seen[Phase.GRASP][1]
    first, second = sorted(places, key=places.__getitem__)
    own, other, _ = seen[Phase.CARRY]
    assert other == ""
    assert own.startswith(f"From back to front: {first}, {second}. The red block is in the gripper.")


def _learner_drives(queue: multiprocessing.Queue) -> None:
    policy = Policy.load(default_bundle(), threads=1)
    queue.put(record_episode(SimEnv("embedded", 2), 200_001, every=5, policy=policy))


def test_when_the_learner_drives_every_picture_still_gets_the_experts_label():
    episode = in_a_process(_learner_drives)
    assert len(episode["thoughts"]) == len(episode["frames"]) > 5
    assert all("The can is" in text for text in episode["thoughts"])
    assert np.isfinite(episode["actions"]).all()


@pytest.mark.parametrize(
    ("suite", "task"),
    [(name, number) for name, suite in SUITES.items() for number in range(len(suite.tasks))],
    ids=[task.name for suite in SUITES.values() for task in suite.tasks],
)
def test_the_expert_solves_every_task_although_its_hand_shakes(suite, task):
    success, errors, _, _ = rollout(task, seed=3, noise=0.2, suite=suite)
    assert success
    assert all(error is not None and error < 0.012 for error in errors), (
        "a thought is off by more than rounding"
    )


def test_one_seed_gives_one_trajectory_to_the_last_bit():
    assert rollout(0, seed=5, steps=25)[2] == rollout(0, seed=5, steps=25)[2]


def _second_episode(queue: multiprocessing.Queue) -> None:
    env = SimEnv("embedded", 0, render=False)
    states = []
    for seed in (7, 8, 7):
        env.reset(seed)
        for _ in range(12):
            env.step(np.array([0.2, 0, -0.3, 0, 0, 0, 1.0]))  # closes the gripper, which a reset must forget
        states.append(env.state().tolist())
    queue.put(states)


def test_an_episode_does_not_depend_on_how_the_one_before_ended():
    """Bug: robosuite's fingers kept their last command through a soft reset."""
    first, _, again = in_a_process(_second_episode)
    assert first == again


def _dealt(suite: str, queue: multiprocessing.Queue) -> None:
    env = SimEnv(suite, 0, render=False)
    queue.put(
        [{name: place.tolist() for name, place in env.reset(seed).objects.items()} for seed in range(5)]
    )


@pytest.mark.parametrize("suite", list(SUITES))
def test_the_seed_deals_objects_and_receptacles_to_different_places(suite):
    """Neither what is picked up nor where it goes has a place of its own."""
    dealt = in_a_process(_dealt, suite)
    receptacles = {f"{name}_1" for name, _ in SUITES[suite].receptacles}
    for kind in (receptacles, dealt[0].keys() - receptacles):
        orders = {tuple(sorted(kind, key=lambda name: places[name][0])) for places in dealt}
        assert len(orders) > 1 or len(kind) == 1
    if len(receptacles) == 2:
        gaps = [abs(places["emb_basket_1"][0] - places["emb_tray_1"][0]) for places in dealt]
        assert min(gaps) > 0.175, "basket and tray stand apart"


def _heights(seeds: tuple[int, ...], queue: multiprocessing.Queue) -> None:
    env = SimEnv("embedded_tray", 0, render=False)
    found = {}
    for seed in seeds:
        places = env.reset(seed).objects
        found[seed] = [float(places[f"{name}_1"][2]) for name in RECEPTACLES]
    queue.put(found)


def test_no_seed_deals_a_receptacle_into_the_other():
    """Found by an evaluation: seed 10,042 failed for all tasks, its basket was flung through the room."""
    as_ever, met = 10_001, (10_042, 10_063, 10_067, 10_093)
    heights = in_a_process(_heights, (as_ever, *met))
    for seed in met:
        assert heights[seed] == pytest.approx(heights[as_ever], abs=2e-3), f"seed {seed}: not on the table"


def _pictures(queue: multiprocessing.Queue) -> None:
    """What the cameras show first, what they show of a step that nobody looks at, and what NaN gets."""
    env = SimEnv("embedded", 0, image_size=96)
    images = env.reset(0).images
    unseen = env.step(np.array(IDLE_ACTION), look=False).images
    try:
        env.step(np.array([np.nan] * 7))
        said = ""
    except ValueError as error:
        said = str(error)
    env.close()
    queue.put((images, unseen, said))


def test_pictures_are_upright_and_the_basket_is_on_the_left():
    """A bug of a peer: rotating twice. The robot's mount is at the top, the wooden basket left.

    In a process of its own, as Mesa's LLVM and that of triton (which torch imports) crash in one.
    """
    images, unseen, said = in_a_process(_pictures)
    picture = images["agentview"].astype(int)
    assert picture.shape == (96, 96, 3)
    top, bottom = picture[:24].mean((0, 1)), picture[-24:].mean((0, 1))
    assert np.ptp(top) < 25 < np.ptp(bottom), "grey wall above, brown table below"
    dark = (picture[40:75] < 60).all(-1)  # the inside of the basket's walls
    assert dark[:, :48].sum() > 4 * dark[:, 48:].sum()
    assert images["wrist"].std() > 20
    assert unseen == {}
    assert "7 finite numbers" in said


def test_upright_turns_by_half_a_turn():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (upright(image)[0, 0] == image[1, 1]).all()


def test_an_unknown_suite_or_task_is_named():
    with pytest.raises(ValueError, match="Unknown suite 'mars'"):
        list_tasks("mars")
    with pytest.raises(ValueError, match="tasks 0 to 2"):
        SimEnv("embedded", 9)


@given(offset=st.tuples(*[st.floats(-0.59, 0.59)] * 3), phase=st.sampled_from(list(Phase)))
def test_a_thought_reads_back_as_what_it_was_written_from(offset, phase):
    text = f"The can is {describe_offset(np.array(offset))}. Next: {describe_next(phase)}."
    parsed = parse_thought(text)
    assert parsed.noun == "can"
    assert parsed.phase is phase
    assert np.abs(parsed.offset - offset).max() <= 0.005 + 1e-9


TRUE = "From back to front: can, box. The can is 3 cm left, 2 cm back, 9 cm below. Next: move above it."
CARRIED = "The can is in the gripper. The {} is 9 cm left, 2 cm back, 9 cm below. Next: carry it to the {}."


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (TRUE, set()),
        (TRUE.replace("9 cm", "4 cm"), set()),  # a distance is judged by `check_thought`
        (TRUE.replace("The can", "The green block"), {"target"}),
        (TRUE.replace("left", "right"), {"side"}),
        (TRUE.replace("move above it", "go down to it"), {"phase"}),
        ("", {"target", "side", "phase"}),
    ],
)
def test_a_thought_agrees_with_the_simulator_in_target_side_and_phase(said, wrong):
    assert {key for key, right in agreement(said, TRUE).items() if not right} == wrong


def test_a_thought_that_carries_to_the_wrong_receptacle_does_not_agree_in_its_target():
    wrong = agreement(CARRIED.format("tray", "tray"), CARRIED.format("basket", "basket"))
    assert wrong == {"target": False, "side": True, "phase": True}


def test_the_side_of_what_stands_in_the_middle_is_not_asked_for():
    middle = TRUE.replace("3 cm left", "1 cm right")
    assert agreement(TRUE, middle)["side"]
    assert not agreement(middle, TRUE)["side"]


def test_a_garbled_thought_states_nothing():
    parsed = parse_thought("The the can cm left 12, below.")
    assert parsed.offset is None
    assert parsed.phase is None


def test_every_instruction_names_its_object_and_its_receptacle():
    for task in (task for suite in SUITES.values() for task in suite.tasks):
        assert task.noun in task.language
        assert RECEPTACLES[task.into] in task.language
    assert len({task.language for suite in SUITES.values() for task in suite.tasks}) == 7


def test_an_evaluation_can_give_less_time_than_the_suite():
    (result,) = evaluate(EvalOptions("random", episodes=1, workers=1, max_steps=7))
    assert (result.error, result.steps, result.success) == ("", 7, False)
    with pytest.raises(ValueError, match="--max-steps must be 1 or more"):
        EvalOptions("random", max_steps=0)
