"""What a policy sees through and how it decides. Imports nothing heavy: command lines show these choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dtvla.errors import InputError

# The cameras of the family's policies, in the order in which the model sees them.
CAMERAS = ("agentview", "wrist")

# The paper compares them. "hybrid" thinks, then acts in one parallel pass; "autoregressive" acts token by
# token; "masked" and "random" keep the thinking prompt but put an empty or a random thought; "none" leaves
# the thinking prompt out too, as empty thoughts look in training.
Decoding = Literal["hybrid", "autoregressive", "masked", "random", "none"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)

# "plain" writes thoughts token by token, "drafts" tries the last one first (the same words), "lagging" acts
# on the thought about the image before (`dtvla.policy.async_thinking.LaggingPolicy`).
Thinking = Literal["plain", "drafts", "lagging"]

# What runs a bundle. "auto" takes TensorRT engines where the bundle has some for this machine, else ONNX
# Runtime on the CPU; "onnxruntime-..." are its other providers (`dtvla.policy.backends.execution_providers`).
BackendName = Literal[
    "auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "tensorrt"
]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


@dataclass(frozen=True)
class DecisionOptions:
    """How a policy decides.

    Attributes:
        decoding: one of the variants that the paper compares.
        drafts: take the last thoughts as drafts of the next one (faster, the same words).
        temperature: 0 takes the likeliest words and actions, above 0 draws them.
        action_temperature: that of actions, if it is another one than that of words.
        seed: of draws and of the words of "random" thoughts; `Policy.reset` starts them over.
        thought_tokens: most tokens of a thought, when fewer than the bundle's cap.
        thought_seconds: after so long a decision closes its thought and acts.
    """

    decoding: Decoding = "hybrid"
    drafts: bool = True
    temperature: float = 0.0
    action_temperature: float | None = None
    seed: int = 0
    thought_tokens: int | None = None
    thought_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.decoding not in DECODINGS:
            raise InputError(f"Unknown decoding {self.decoding!r}; choose one of {', '.join(DECODINGS)}.")
        if self.thought_tokens is not None and self.thought_tokens < 1:
            raise InputError(f"thought_tokens is {self.thought_tokens}; a thought has at least one token.")
        if self.thought_seconds is not None and not self.thought_seconds > 0:
            raise InputError(f"thought_seconds is {self.thought_seconds}; it must be above 0.")
