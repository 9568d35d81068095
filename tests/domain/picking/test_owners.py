"""The replica that owns a conversation."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.prefixes import PromptBlocks, PromptTurns
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.owners import Owners, Ownership
from tessera.domain.picking.pick import PickReason, pick
from tessera.domain.picking.prediction import RequestMeans
from tessera.domain.picking.prefix_record import PrefixRecords
from tessera.domain.picking.replica_state import ReplicaState

STEP = StepTime(weights=0.01, token=1e-4, kv_token=1e-8)
NOW, UTC_NOW = 10_000.0, datetime(2026, 11, 28, tzinfo=UTC)
KEYS = [random.Random(number).getrandbits(64) for number in range(2000)]  # noqa: S311
MEANS = RequestMeans(output_tokens=200.0, going_on=0.8)


def a_state(
    number: int, ready_for: float = 3600.0, step: StepTime = STEP, leaving: bool = False
) -> ReplicaState:
    replica = EngineReplica(
        pod=Ref("team-a", f"chat-{number}"),
        uid=f"3f0c7a52-0000-4000-8000-{number:012}",
        address="",
        ready_since=UTC_NOW - timedelta(seconds=ready_for),
        leaving=leaving,
        max_num_seqs=64,
        step_time=step,
    )
    return ReplicaState.create(replica, now=NOW, utc_now=UTC_NOW)


def owners_of(*states: ReplicaState) -> list[str]:
    owners = Owners(states)
    states_by_key = [owners.find(key) for key in KEYS]
    return [state.replica.uid if state is not None else "" for state in states_by_key]


def a_prompt(
    *,
    tokens: int = 3000,
    beginning: int = 500,
    opening: int = 1000,
    earlier: int = 0,
    hashes: range = range(0),
    key: int = KEYS[0],
) -> PromptBlocks:
    return PromptBlocks(
        owner="team-a",
        hashes=hashes,
        tokens_per_block=100.0,
        prompt_tokens=tokens,
        turns=PromptTurns(
            key=key,
            beginning_key=KEYS[1],
            beginning_tokens=beginning,
            opening_tokens=opening,
            earlier_tokens=earlier,
        ),
    )


def expect(
    prompt: PromptBlocks, records: PrefixRecords | None = None, gateways: int = 2
) -> Ownership | None:
    owners = Owners([a_state(number) for number in range(4)])
    return owners.ownership(prompt, records or PrefixRecords(), MEANS, gateways)


def test_owners_are_the_same_whatever_the_order_of_the_directory() -> None:
    states = [a_state(number) for number in range(5)]
    assert owners_of(*states) == owners_of(*reversed(states))
    counts = Counter(owners_of(*states))
    assert min(counts.values()) > 0.8 * len(KEYS) / 5


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_replica_that_comes_or_goes_moves_its_own_share_alone(count: int) -> None:
    states = [a_state(number) for number in range(count + 1)]
    before, after = owners_of(*states[:-1]), owners_of(*states)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {states[-1].replica.uid}
    assert len(moved) == pytest.approx(len(KEYS) / (count + 1), rel=0.15)


def test_a_replica_owns_as_much_as_it_carries() -> None:
    fast = StepTime(weights=0.0025, token=2.5e-5, kv_token=2.5e-9)
    states = [a_state(0), a_state(1), a_state(2, step=fast)]
    counts = Counter(owners_of(*states))
    shares = [counts[state.replica.uid] / len(KEYS) for state in states]
    assert shares == pytest.approx([1 / 6, 1 / 6, 4 / 6], abs=0.03)
    alone = [a_state(0), a_state(1)]
    for two, three in zip(owners_of(*alone), owners_of(*states), strict=True):
        assert three in (two, states[2].replica.uid)


def test_a_replica_that_leaves_owns_nothing_and_a_new_one_its_share_at_once() -> None:
    states = [a_state(0), a_state(1, ready_for=0.0), a_state(2, leaving=True)]
    old, new, _ = (state.replica.uid for state in states)
    counts = Counter(owners_of(*states))
    assert {*counts} == {old, new}
    assert min(counts.values()) > 0.4 * len(KEYS)


def test_a_later_turn_is_expected_at_a_new_owner() -> None:
    later = a_prompt(earlier=2800)
    owned = Owners([a_state(0, ready_for=0.0), a_state(1, ready_for=0.0)]).ownership(
        later, PrefixRecords(), MEANS, 2
    )
    assert owned is not None
    assert owned.expected_tokens == 2800


def test_a_gateway_that_is_alone_expects_nothing_of_an_owner() -> None:
    assert expect(a_prompt(earlier=2800), gateways=1) is None


def test_an_owner_is_expected_to_hold_all_before_the_last_user_message() -> None:
    owned = expect(a_prompt(earlier=2800))
    assert owned is not None
    assert (owned.promised_tokens, owned.expected_tokens) == (2800, 2800)


def test_the_own_record_knows_better_once_it_has_more_than_the_first_turn() -> None:
    records = PrefixRecords()
    records.replica("other").send(a_prompt(hashes=range(9)))
    uid = a_state(0).replica.uid
    records.replica(uid).send(a_prompt(hashes=range(10)))
    prompt = a_prompt(earlier=2800, hashes=range(30))
    assert expect(prompt, records) is not None
    records.replica(uid).send(a_prompt(hashes=range(11)))
    assert expect(prompt, records) is None


@pytest.mark.parametrize(("gateways", "share"), [(2, 0.8 / 1.2), (4, 2.4 / 3.2)])
def test_a_first_turn_at_its_owner_spares_later_turns_elsewhere(
    gateways: int, share: float
) -> None:
    owned = expect(a_prompt(tokens=1000), gateways=gateways)
    assert owned is not None
    assert owned.expected_tokens == 0
    # The prompt and five answers, if any later turn comes to another gateway.
    assert owned.saved_tokens == pytest.approx(share * 2000)


@pytest.mark.parametrize(
    ("cached", "trust"), [(2800, 1.0), (3000, 1.0), (0, 15 / 16), (1400, 31 / 32)]
)
def test_answers_confirm_what_an_owner_was_to_hold(cached: int, trust: float) -> None:
    records, prompt = PrefixRecords(), a_prompt(earlier=2800)
    owned = expect(prompt, records)
    assert owned is not None
    sent = records.replica(owned.uid).send(prompt, owned.promised_tokens)
    records.complete(owned.uid, sent, 10, cached / 3000)
    again = expect(prompt, records)
    assert again is not None
    assert records.trust(owned.uid, prompt.owner) == pytest.approx(trust)
    assert again.expected_tokens == pytest.approx(2800 * trust, abs=1)
    assert again.saved_tokens == pytest.approx(trust * 2 / 3 * (4000 - 2800 * trust), abs=1)


def test_prompts_of_one_tenant_move_no_trust_of_another() -> None:
    records, prompt = PrefixRecords(), a_prompt(earlier=2800)
    first = expect(prompt, records)
    assert first is not None
    hostile, record = replace(prompt, owner="hostile"), records.replica(first.uid)
    for _ in range(200):
        record.complete(record.send(hostile, first.promised_tokens), 10, 0.0)
    assert expect(prompt, records) == first


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e300, float("nan")]), max_size=60))
def test_whatever_an_engine_says_the_trust_is_a_share(shares: list[float]) -> None:
    records, prompt = PrefixRecords(), a_prompt(earlier=2800)
    for share in shares:
        record = records.replica("uid")
        record.complete(record.send(prompt, 2800), 10, share)
    assert 0.0 <= records.trust("uid", prompt.owner) <= 1.0


def test_a_document_has_an_owner_until_a_replica_has_it() -> None:
    document = a_prompt(beginning=2500, opening=3000)
    other = a_prompt(beginning=2500, opening=3000, key=KEYS[2])
    records = PrefixRecords()
    first, second = expect(document, records), expect(other, records)
    assert first is not None
    assert second is not None
    assert first.is_of_beginning
    assert (first.uid, first.expected_tokens) == (second.uid, 2500)
    records.replica(first.uid).send(a_prompt(hashes=range(25)))
    known = expect(a_prompt(beginning=2500, opening=3000, hashes=range(25)), records)
    assert known is not None
    assert not known.is_of_beginning


def test_a_conversation_that_made_its_beginning_known_stays_with_the_owner_of_that() -> None:
    records, first = PrefixRecords(), a_prompt(beginning=700, hashes=range(7))
    owned = expect(first, records)
    assert owned is not None
    records.replica(owned.uid).send(first)
    records.note_owner(first, owned.uid)
    later = a_prompt(beginning=700, earlier=2800, hashes=range(28))
    again = expect(later, records)
    assert again is not None
    assert (again.uid, again.is_of_beginning) == (owned.uid, True)
    elsewhere = expect(
        a_prompt(beginning=700, earlier=2800, hashes=range(28), key=KEYS[3]), records
    )
    assert elsewhere is not None
    assert not elsewhere.is_of_beginning


def test_load_alone_leads_a_first_turn_away_from_its_owner() -> None:
    states = [a_state(number) for number in range(4)]
    shape = RequestShape(model="chat", input_tokens=1000, max_output_tokens=200)
    owned = expect(a_prompt(tokens=1000))
    assert owned is not None
    (owner,) = [state for state in states if state.replica.uid == owned.uid]

    def choose() -> tuple[bool, PickReason]:
        choices = [pick(shape, states, NOW, turn=turn, means=MEANS, owned=owned) for turn in (0, 1)]
        assert all(choice is not None for choice in choices)
        is_owner = {choice.state is owner for choice in choices if choice is not None}
        assert len(is_owner) == 1
        return is_owner.pop(), choices[0].reason if choices[0] else PickReason.ONLY_REPLICA

    assert choose() == (True, PickReason.CONVERSATION_OWNER)
    for _ in range(2):
        owner.sent(1000, read_until=NOW)
    assert choose() == (False, PickReason.LEAST_PREDICTED_TTFT)


def test_rates_of_requests_that_go_on_follow_what_comes() -> None:
    means = [RequestMeans()]
    for _ in range(200):
        means.append(means[-1].gone_on(True))
    assert all(before.going_on <= after.going_on <= 1 for before, after in pairwise(means))
    assert means[-1].going_on > 0.99
    assert means[-1].after(10, 10).going_on == means[-1].going_on
