"""What a message of a runner may say of its batch: what the object and its checked input allow."""

from collections.abc import Iterator
from dataclasses import dataclass

from tessera.api.text import counted
from tessera.domain.charge.batch_rows import BLOCK_ROWS, BatchMessage
from tessera.domain.observed.batches import Batch
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN

# A prompt is sent again when its answer was cut, each time for four times as many tokens.
_MOST_CUTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedBatch:
    """A BatchInference whose rows an attempt may pay for."""

    attempt: int
    """The current one."""
    model: str
    """The name under which its engines serve the model."""
    rows: int
    answers: int
    """What all rows ask for; 0 where an earlier version checked the input."""
    max_model_len: int
    """Tokens of a prompt and its answer that an engine takes."""

    def fault(self, message: BatchMessage) -> str | None:
        """Return what a message says that cannot be of this batch."""
        if message.attempt > self.attempt:
            return f"attempt {message.attempt} is not current: {self.attempt} is"
        if message.model != self.model:
            return f"model {message.model} is not that of the batch, {self.model}"
        for block in message.blocks:
            rows = min(BLOCK_ROWS, self.rows - block.number * BLOCK_ROWS)
            last = max((row for row, _, _ in block.rows), default=0)
            if last >= rows:
                row = block.number * BLOCK_ROWS + last
                size = counted(self.rows, "row")
                return f"block {block.number} has row {row}, and the batch has {size}"
        most = self.answers * self.max_model_len
        # Each of the other rows has an answer at least.
        of_row = (self.answers - self.rows + 1) * self.max_model_len
        largest = max((max(row[1:]) for block in message.blocks for row in block.rows), default=0)
        if most and largest > of_row:
            count = counted(largest, "token")
            return f"{count} of a row are more than the input allows: {of_row}"
        for name, tokens, times in _tokens(message):
            if most and tokens > times * most:
                count = counted(tokens, "token")
                return f"{count} of {name} are more than the input allows: {times * most}"
        return None


def _tokens(message: BatchMessage) -> Iterator[tuple[str, int, int]]:
    """Yield sums of tokens, each with how often the answers of the input may have them."""
    rows = [row for block in message.blocks for row in block.rows]
    yield "prompts", sum(prompt for _, prompt, _ in rows), 1
    yield "answers", sum(answer for _, _, answer in rows), 1
    yield "prompts of cut answers", sum(each.cut_input for each in message.blocks), _MOST_CUTS
    yield "cut answers", sum(each.cut_output for each in message.blocks), 1


def charged_batch(batch: Batch) -> ChargedBatch | None:
    """Return what is charged of a batch; None before its input is checked and an attempt began."""
    spec, check, attempt = batch.spec, batch.status.check, batch.status.attempt
    if spec is None or check is None or attempt is None:
        return None
    pinned = check.settings
    context = spec.context if pinned is None else pinned.context
    model = spec.model if pinned is None else pinned.model
    name = (model and model.served_name) or spec.service or batch.ref.name
    return ChargedBatch(
        attempt=attempt.number,
        model=name,
        rows=check.rows,
        answers=check.answers,
        max_model_len=context.max_model_len or DEFAULT_MAX_MODEL_LEN,
    )
