"""What a gateway believes that engines hold of earlier prompts."""

import itertools
import tracemalloc
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from tessera.domain.gateway.prefixes import BLOCK_BYTES, MAX_BLOCKS, PromptBlocks, block_hashes
from tessera.domain.picking.prefix_record import (
    BYTES_PER_BLOCK,
    BYTES_PER_OWNER,
    BYTES_PER_USE,
    PrefixRecords,
    ReplicaPrefixes,
)

TEXTS = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=8).map(
    lambda letters: b"".join(letter * BLOCK_BYTES for letter in letters)
)


def a_prompt(
    blocks: str | Sequence[int], owner: str = "team-a", rest: int = 0, weight: float = 1.0
) -> PromptBlocks:
    """Build a prompt of blocks of 100 tokens; a string has a letter for each."""
    if isinstance(blocks, str):
        text = "".join(letter * BLOCK_BYTES for letter in blocks)
        blocks = block_hashes(text.encode(), owner)
    return PromptBlocks(
        owner=owner,
        hashes=blocks,
        tokens_per_block=100.0,
        prompt_tokens=100 * len(blocks) + rest,
        weight=weight,
    )


def a_record(cache_tokens: int = 1000) -> ReplicaPrefixes:
    return PrefixRecords().replica("chat-0", cache_tokens)


def answer(
    record: ReplicaPrefixes, prompt: PromptBlocks, output: int = 0, cached: int | None = None
) -> None:
    share = None if cached is None else cached / prompt.prompt_tokens
    record.complete(record.send(prompt), output, share)


@given(TEXTS, TEXTS)
def test_equal_hashes_mean_an_equal_beginning(first: bytes, second: bytes) -> None:
    common = 0
    while first[common : common + 1] == second[common : common + 1] != b"":
        common += 1
    hashes = [block_hashes(text, "team-a") for text in (first, second)]
    equal = [first_hash == other for first_hash, other in zip(*hashes, strict=False)]
    assert equal.count(True) == common // BLOCK_BYTES
    assert not any(equal[common // BLOCK_BYTES :])


def test_another_salt_has_other_hashes() -> None:
    text = b"x" * 3 * BLOCK_BYTES
    assert not set(block_hashes(text, "team-a")) & set(block_hashes(text, "team-b"))


def test_a_huge_prompt_has_a_bounded_number_of_blocks() -> None:
    assert len(block_hashes(b"x" * 2**25, "")) == MAX_BLOCKS


def test_a_part_of_a_block_has_no_hash() -> None:
    assert len(block_hashes(b"x" * (2 * BLOCK_BYTES - 1), "")) == 1


def test_a_prompt_is_found_from_the_moment_it_is_sent() -> None:
    record = a_record()
    record.send(a_prompt("abc"))
    assert [record.cached_blocks(a_prompt(blocks)) for blocks in ("abcd", "abx", "x", "")] == [
        3,
        2,
        0,
        0,
    ]


def test_a_prompt_that_goes_on_where_another_ended_has_its_answer_too() -> None:
    record = a_record()
    answer(record, a_prompt("ab", rest=40), output=70)
    assert record.cached_tokens(a_prompt("abcd")) == 200 + 40 + 70
    assert record.cached_tokens(a_prompt("ab", rest=20)) == 220
    answer(record, a_prompt("abxyz"))
    # The last use of its beginning goes on otherwise.
    assert record.cached_tokens(a_prompt("abcd")) == 200


def test_a_prompt_without_an_answer_takes_only_its_own_blocks_along() -> None:
    record = a_record()
    answer(record, a_prompt("ab"))
    record.fail(record.send(a_prompt("abcd")))
    assert record.cached_blocks(a_prompt("abcd")) == 2


def test_the_end_of_the_oldest_prompt_is_evicted_first() -> None:
    record = a_record(500)
    answer(record, a_prompt("abc"))
    answer(record, a_prompt("xyz"))
    assert [record.cached_blocks(a_prompt(each)) for each in ("abc", "xyz")] == [2, 3]


def test_a_prompt_takes_the_room_that_its_engine_counts() -> None:
    record = a_record(1000)
    answer(record, a_prompt("abcd"))
    huge = a_prompt("xyz", rest=300)
    record.complete(record.send(huge), 0, 0.0, 60)
    assert record.tokens == pytest.approx(400 + 60)
    small = a_prompt("", rest=600)
    record.complete(record.send(small), 0, 0.0, 6)
    assert record.cached_blocks(a_prompt("abcd")) == 4


def test_answers_and_short_prompts_take_room() -> None:
    record = a_record(500)
    answer(record, a_prompt("abc"))
    answer(record, a_prompt("", rest=50), output=300)
    assert record.cached_blocks(a_prompt("abc")) == 1


def test_a_prompt_takes_the_room_that_its_engine_counted() -> None:
    record = a_record(500)
    record.complete(record.send(a_prompt("abc")), 0, prompt_tokens=450)
    assert (record.tokens, record.cached_blocks(a_prompt("abc"))) == (450, 3)
    answer(record, a_prompt("xyz"))
    assert [record.cached_blocks(a_prompt(each)) for each in ("abc", "xyz")] == [1, 3]


def test_an_answer_makes_room_before_the_blocks_of_its_prompt() -> None:
    record = a_record(500)
    answer(record, a_prompt("abc"), output=200)
    answer(record, a_prompt("xy"))
    assert [record.cached_blocks(a_prompt(each)) for each in ("abc", "xy")] == [3, 2]


def test_a_record_that_promised_too_much_shrinks_and_grows_with_kept_promises() -> None:
    record = a_record(1000)
    answer(record, a_prompt("abcd"))
    answer(record, a_prompt("abcd"), cached=0)
    assert record.limit == 0
    for _ in range(20):
        answer(record, a_prompt("abcd"), cached=400)
    assert record.limit == 1000
    assert record.cached_blocks(a_prompt("abcd")) == 4


def test_no_owner_alone_takes_the_record_of_others() -> None:
    record = a_record(1000)
    answer(record, a_prompt("abc", "small"))
    for _ in range(20):
        answer(record, a_prompt("xyz", "hostile"), cached=0)
    assert record.limit == 1000
    assert record.cached_blocks(a_prompt("abc", "small")) == 3
    # An engine that has less is missed by all.
    answer(record, a_prompt("abc", "small"), cached=0)
    assert record.limit < 1000


def test_a_promise_that_missed_by_a_part_of_a_block_was_kept() -> None:
    record = a_record(1000)
    answer(record, a_prompt("abcd"))
    answer(record, a_prompt("abcd"), cached=336)
    assert record.limit == 1000


def test_an_unknown_cache_grows_by_what_it_shows() -> None:
    record = PrefixRecords().replica("chat-0")
    before = record.limit
    answer(record, a_prompt("abcd"), cached=400)
    assert record.limit == before + 400


@pytest.mark.parametrize("reported", [-(2**63), -1, 2**63])
def test_an_absurd_report_moves_its_own_record_by_its_own_prompt_at_most(reported: int) -> None:
    records = PrefixRecords()
    record, other = records.replica("chat-0"), records.replica("chat-1")
    before = record.limit
    answer(record, a_prompt("abcd"), cached=reported)
    assert abs(record.limit - before) <= 400
    assert other.limit == before


def test_a_replica_that_is_gone_or_starts_again_has_nothing() -> None:
    records = PrefixRecords()
    uids = ("chat-0", "chat-1", "chat-2")
    for uid in uids:
        answer(records.replica(uid), a_prompt("abc"))
    records.forget("chat-0")
    records.replica("chat-1").clear()
    assert records.cached_tokens(a_prompt("abc"), uids) == [0, 0, 300]
    assert len(records.replica("chat-1")) == 0
    records.forget("chat-2")
    assert records.size == 0


def test_a_large_record_is_forgotten_a_part_at_a_time_and_promises_nothing_meanwhile() -> None:
    records = PrefixRecords()
    for start in range(0, 20_000, 1000):
        answer(records.replica("chat-0", 10**9), a_prompt(range(start, start + 1000)))
    records.forget("chat-0")
    sizes = [records.size]
    while sizes[-1] > BYTES_PER_OWNER + BYTES_PER_USE + BYTES_PER_BLOCK:
        assert records.cached_tokens(a_prompt(range(1000)), ("chat-0",)) == [0]
        answer(records.replica("chat-1"), a_prompt("a"))
        sizes.append(records.size)
    steps = [before - after for before, after in itertools.pairwise(sizes)]
    assert max(steps) < 7000 * BYTES_PER_BLOCK
    assert len(steps) >= 3


def test_a_large_record_shrinks_to_its_new_size_a_part_at_a_time() -> None:
    record = a_record(10**9)
    for start in range(0, 20_000, 1000):
        answer(record, a_prompt(range(start, start + 1000)))
    record.resize(1000)
    blocks = len(record)
    assert blocks > 15_000
    while blocks > 10:
        answer(record, a_prompt("a"))
        assert blocks - len(record) <= 7000
        blocks = len(record)
    assert record.tokens <= 1000


def test_short_prompts_take_no_memory_of_their_own() -> None:
    record = a_record(10**6)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(5000):
        answer(record, a_prompt("", rest=4))
        answer(record, a_prompt("a"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000
    assert record.tokens == pytest.approx(4 * 5000 + 100)


class CountedWeight(float):
    """Counts how often what an owner has is compared."""

    comparisons: ClassVar[int] = 0

    @override
    def __rtruediv__(self, size: float) -> float:
        CountedWeight.comparisons += 1
        return size / float(self)


def test_thousands_of_owners_are_compared_rarely() -> None:
    records = PrefixRecords(5_000_000)
    record = records.replica("chat-0", 10**9)
    for number in range(0, 6000, 3):
        owner = f"team-{number % 2000}"
        answer(record, a_prompt(range(number, number + 3), owner, weight=CountedWeight(1)))
    assert CountedWeight.comparisons == 0
    for number in range(6000, 30_000, 3):
        owner = f"team-{number % 2000}"
        answer(record, a_prompt(range(number, number + 3), owner, weight=CountedWeight(1)))
    assert 0 < CountedWeight.comparisons < 8000 * 400


def test_whoever_fills_the_records_gives_way_alone() -> None:
    records = PrefixRecords(100_000)
    record = records.replica("chat-0", 10**9)
    answer(record, a_prompt("abc", "small"))
    for start in range(0, 10_000, 10):
        answer(record, a_prompt(range(start, start + 10), "hostile"))
    assert record.cached_blocks(a_prompt("abc", "small")) == 3
    assert record.cached_blocks(a_prompt(range(9_990, 10_000), "hostile")) == 10
    assert record.cached_blocks(a_prompt(range(10), "hostile")) == 0
    assert records.size <= 100_000


def test_owners_take_room_by_their_weights() -> None:
    records = PrefixRecords(100_000)
    record = records.replica("chat-0", 10**9)
    for number in range(0, 10_000, 10):
        answer(record, a_prompt(range(number, number + 5), "heavy", weight=3.0))
        answer(record, a_prompt(range(number + 5, number + 10), "light"))
    blocks_by_owner = [
        sum(
            record.cached_blocks(a_prompt(range(each, each + 5)))
            for each in range(start, 10_000, 10)
        )
        for start in (0, 5)
    ]
    assert blocks_by_owner[0] / blocks_by_owner[1] == pytest.approx(3, rel=0.2)


class ExactCache:
    """The cache of an engine by blocks of its own: a prompt at a time, and no answers."""

    def __init__(self, blocks: int) -> None:
        self._size = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def serve(self, hashes: Sequence[int]) -> int:
        """Return the blocks of a prompt that it had."""
        cached_blocks = 0
        while cached_blocks < len(hashes) and hashes[cached_blocks] in self._blocks:
            cached_blocks += 1
        # The beginning is the most recent one.
        for block in reversed(hashes):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._size:
            self._blocks.popitem(last=False)
        return cached_blocks


@given(st.lists(TEXTS, max_size=30), st.integers(8, 30))
def test_a_record_knows_the_cache_of_an_engine_that_serves_its_prompts_alone(
    texts: list[bytes], blocks: int
) -> None:
    record, cache = a_record(100 * blocks), ExactCache(blocks)
    for text in texts:
        prompt = a_prompt(block_hashes(text, ""))
        sent = record.send(prompt)
        cached_blocks = cache.serve(prompt.hashes)
        assert sent.promised_blocks == cached_blocks
        record.complete(sent, 0, 100 * cached_blocks)


# A replica, a prompt by its letters, what is left of its last block, what happens, and a report.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.text("abc", max_size=6),
        st.integers(0, 99),
        st.sampled_from(["complete", "fail", "forget", "clear"]),
        st.none() | st.integers(-100, 2000),
        st.sampled_from(["team-a", "team-b"]),
    ),
    max_size=60,
)


@given(STEPS, st.integers(5_000, 40_000), st.integers(0, 2000))
def test_no_record_promises_more_than_the_prompt_and_all_stay_within_their_bytes(
    steps: list[tuple[int, str, int, str, int | None, str]], max_bytes: int, cache_tokens: int
) -> None:
    records, again = PrefixRecords(max_bytes), PrefixRecords(max_bytes)
    uids = ("0", "1", "2")
    for number, blocks, rest, event, reported, owner in steps:
        prompt = a_prompt(blocks, owner, rest)
        for each in (records, again):
            record = each.replica(str(number), cache_tokens)
            sent = record.send(prompt)
            if event == "complete":
                record.complete(sent, 30, reported)
            elif event == "fail":
                record.fail(sent)
            elif event == "forget":
                each.forget(str(number))
            else:
                record.clear()
            assert 0 <= each.size <= max_bytes
            assert record.limit >= 0
            assert not len(record) or -1e-6 <= record.tokens <= record.limit + 1e-6
        cached = records.cached_tokens(prompt, uids)
        assert all(0 <= tokens <= prompt.prompt_tokens for tokens in cached)
        assert cached == again.cached_tokens(prompt, uids)
        for uid in uids:
            record = records.replica(uid, cache_tokens)
            cached_blocks = [
                record.cached_blocks(a_prompt(blocks[:end], owner)) for end in range(7)
            ]
            assert cached_blocks == [min(cached_blocks[-1], end) for end in range(7)]
