"""A request inside the engine."""

from tessera_lab.engine.requests import EngineRequest, FinishedRequest, FinishReason


class SequenceState:
    """Its place in the queue, its tokens, and the timestamps that a timeline sets."""

    __slots__ = (
        "admitted_at",
        "arrived_at",
        "base_token_clock",
        "cached",
        "computed",
        "emitted",
        "first_token_at",
        "full_blocks",
        "preemptions",
        "queue_key",
        "request",
        "shared_units",
    )

    def __init__(
        self, request: EngineRequest, queue_key: tuple[int, int], arrived_at: float
    ) -> None:
        self.request = request
        self.queue_key = queue_key
        """Queue key: the smallest runs first and is preempted last."""
        self.emitted = 0
        """Output tokens when it last joined or left the decoding requests."""
        self.computed = 0
        """Tokens in the cache while the input is being computed."""
        self.base_token_clock = 0
        """While decoding: the token clock at which its output had 0 tokens."""
        self.preemptions = 0
        self.shared_units = 0
        """Shared prefixes that it references, or referenced when it was preempted."""
        self.full_blocks = 0
        """Full blocks that it had when it was preempted."""
        self.cached: int | None = None
        """Prompt tokens found in the prefix cache; None before the first admission."""
        self.arrived_at = arrived_at
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        """Moment of its first token."""

    @property
    def input_tokens(self) -> int:
        """Return the tokens to compute before the next: after a preemption the output as well."""
        return self.request.prompt_tokens + self.emitted

    @property
    def last_token_clock(self) -> int:
        """Return the tick of its last token, while decoding."""
        return self.base_token_clock + self.request.output_tokens

    def to_finished(self, reason: FinishReason) -> FinishedRequest:
        return FinishedRequest(
            request=self.request,
            reason=reason,
            output_tokens=self.emitted,
            preemptions=self.preemptions,
            cached_tokens=self.cached or 0,
        )
