"""What rules of a route cost at 95 % of the better model's quality: `make bench-routes`.

Prompts are those of RouteLLM's MMLU and GSM8K, whose models get the price ratios 0.06 and 0.25 for
each request, and of RouterArena with its tokens and prices. Without `--data` they are generated.
Prompts are split in two by their digest, 100 times: one half chooses the bound of a rule, the
cheapest of which keeps 95 % of the better model's quality there, and the other half says what it
costs, relative to the better model for all, and whether the promise is kept. The oracle knows the
answers. Presets are the rules as they are often given, with bounds of their own; `first` is the
cheaper model for all, beside the dearer one. `month` is how many times less a month of chats costs,
on simulated replicas of whole fleets, where a share of the requests goes to the small model;
`blend` is what the prices alone promise. `routed` is the same of a small fleet, request by request:
rules choose for each one, of which a share is trivial, in an hour that is as a day, and the plan of
the operator scales both targets, each of which keeps a replica. `rules_us` is the CPU time in which
a gateway chooses the target of a body of 4 KiB. The last line is `BENCH {json}`.
"""

import gzip
import json
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from figures import benchmark
from tessera.api.model_route import MAX_RULE_NUMBER, MAX_SCORE, ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.routes.opening import RequestOpening
from tessera.domain.routes.order import TargetOrder, target_order
from tessera.domain.routes.savings import router_blend, saved_share
from tessera.gateway.bodies.opening import read_opening
from tessera.gateway.bodies.parsing import RequestFields, parse
from tessera.gateway.paths import PATHS
from tessera_lab.fleet.capacity_mix import MONTH_HOURS
from tessera_lab.fleet.generators import situation
from tessera_lab.fleet.policies.product import WholeGpuPool
from tessera_lab.fleet.routes import TargetFleet, play_route, trivial_openings
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId
from tessera_lab.levers.month import Measure, month
from tessera_lab.levers.published import MODELS, gpu_prices, service_case
from tessera_lab.levers.replica_rate import replica_rate

_DATA = Path("../shared/data")
_PROMISE = 0.95
_RATIOS = (0.06, 0.25)
_SMALL_SHARES = (0.5, 0.6, 0.85, 0.9, 0.95)
_WEIGHT = 1000
# A saving below it is none.
_LEAST_SAVING = 0.01
_CHEAP, _DEAR = "gemini-2.0-flash-001", "claude-3-haiku-20240307"
_PER_MILLION = "{}_token_price_per_million"


class Answer(NamedTuple):
    """What a model's answer to a prompt is worth, and costs."""

    score: float
    cost: float


class Prompt(NamedTuple):
    """A prompt with the answers of both targets of a route, the cheaper one first."""

    text: str
    first: Answer
    last: Answer


class Outcome(NamedTuple):
    """What a rule comes to on the half that did not choose its bound."""

    cost: float
    """Relative to the better model for all."""
    quality: float
    """Relative to the better model."""


def _spec(select: str = "Rules", first: Mapping[str, Any] | None = None, last: int = 1) -> Any:
    targets = [{"service": "first", **(first or {})}, {"service": "last", "weight": last}]
    return ModelRouteSpec.model_validate({"select": select, "targets": targets})


# The routes of each rule by their bound: the higher it is, the more requests the first target gets.
RULES: Mapping[str, tuple[range, Callable[[int], ModelRouteSpec]]] = {
    "weights": (
        range(_WEIGHT + 1),
        lambda bound: _spec("Weights", {"weight": bound}, _WEIGHT - bound),
    ),
    "characters": (
        range(MAX_RULE_NUMBER + 1),
        lambda bound: _spec(first={"when": {"maxCharacters": bound}}),
    ),
    "score": (range(1, MAX_SCORE + 1), lambda bound: _spec(first={"when": {"maxScore": bound}})),
    "words": (
        range(MAX_RULE_NUMBER + 1),
        lambda bound: _spec(first={"when": {"maxWords": bound}}),
    ),
}
# S151: two signals, a score of 3, go to the large model. S152: fewer than 50 words to the small.
PRESETS = {"score": 2, "words": 49}


def least_bounds(rule: str, prompts: Sequence[Prompt]) -> list[int]:
    """Return the least bound with which each prompt goes to the first target."""
    bounds, spec_of = RULES[rule]
    cached = cache(spec_of)

    def is_first(bound: int, opening: RequestOpening) -> bool:
        return target_order(cached(bound), opening).targets[0].service == "first"

    least = []
    for prompt in prompts:
        session = blake2b(prompt.text.encode(), digest_size=16).digest()
        opening = RequestOpening(text=prompt.text, session=session)
        least.append(bisect_left(bounds, 1, key=partial(is_first, opening=opening)))
    return [bounds[place] if place < len(bounds) else bounds[-1] + 1 for place in least]


class Half:
    """Prompts of one half of a split, in the order of the least bounds of one rule."""

    def __init__(self, rows: Sequence[tuple[int, Prompt]]) -> None:
        self.rows = rows
        self.first, self.last = (
            Answer(sum(each.score for each in answers), sum(each.cost for each in answers))
            for answers in ([row.first for _, row in rows], [row.last for _, row in rows])
        )

    @property
    def is_first_better(self) -> bool:
        """Return whether the cheaper model is the better one."""
        return self.first.score > self.last.score

    def bound(self) -> int | None:
        """Return the bound that keeps the promise at the least cost; None where no prompt may go to
        the first target.
        """
        need = _PROMISE * max(self.first.score, self.last.score)
        (score, cost), best, least = self.last, None, float("inf")
        if score >= need:
            least = cost
        for place, (bound, prompt) in enumerate(self.rows):
            score += prompt.first.score - prompt.last.score
            cost += prompt.first.cost - prompt.last.cost
            ends = place + 1 == len(self.rows) or self.rows[place + 1][0] > bound
            if ends and score >= need and cost < least:
                best, least = bound, cost
        return best

    def outcome(self, bound: int | None, *, first_is_better: bool) -> Outcome:
        """Return what this half costs with a bound, beside the better model of the other half."""
        answers = [
            prompt.first if bound is not None and least <= bound else prompt.last
            for least, prompt in self.rows
        ]
        better = self.first if first_is_better else self.last
        return Outcome(
            sum(answer.cost for answer in answers) / better.cost,
            sum(answer.score for answer in answers) / better.score,
        )


def oracle_cost(prompts: Sequence[Prompt]) -> float:
    """Return what is least spent for the promise by who knows all answers."""
    better = max(
        (sum(each.score for each in answers), -sum(each.cost for each in answers))
        for answers in ([row.first for row in prompts], [row.last for row in prompts])
    )
    score = cost = 0.0
    gains = []
    for _, first, last in prompts:
        low, high = sorted((first, last), key=lambda each: each.cost)
        score, cost = score + low.score, cost + low.cost
        if high.score > low.score:
            gains.append((high.score - low.score, high.cost - low.cost))
    for gain, extra in sorted(gains, key=lambda each: each[1] / each[0]):
        if score >= _PROMISE * better[0]:
            break
        score, cost = score + gain, cost + extra
    return cost / -better[1]


def _in_first_half(prompts: Sequence[Prompt], split: int) -> list[bool]:
    """Return of each prompt whether it is in the first half; equal prompts are in the same."""
    salt = split.to_bytes(8)
    digests = (blake2b(each.text.encode(), digest_size=1, salt=salt) for each in prompts)
    return [digest.digest()[0] % 2 == 0 for digest in digests]


def measure_sample(
    prompts: Sequence[Prompt], bounds: Mapping[str, Sequence[int]], halves: Sequence[list[bool]]
) -> dict[str, float]:
    """Return for each rule its cost and the share of splits that keep the promise."""
    figures: dict[str, float] = {}
    for rule, least in bounds.items():
        order = sorted(range(len(prompts)), key=least.__getitem__)
        outcomes = []
        for in_first in halves:
            choosing, judging = (
                Half([(least[place], prompts[place]) for place in order if in_first[place] is half])
                for half in (True, False)
            )
            outcomes.append(
                judging.outcome(choosing.bound(), first_is_better=choosing.is_first_better)
            )
        figures[f"{rule}_cost"] = round(mean(each.cost for each in outcomes), 3)
        figures[f"{rule}_kept"] = round(mean(each.quality >= _PROMISE for each in outcomes), 2)
        whole = Half([(least[place], prompts[place]) for place in order])
        if rule in PRESETS:
            preset = whole.outcome(PRESETS[rule], first_is_better=whole.is_first_better)
            figures[f"{rule}_preset_cost"] = round(preset.cost, 3)
            figures[f"{rule}_preset_quality"] = round(preset.quality, 3)
    judged = (
        [prompt for prompt, is_in in zip(prompts, in_first, strict=True) if not is_in]
        for in_first in halves
    )
    figures["oracle_cost"] = round(mean(map(oracle_cost, judged)), 3)
    figures["first_quality"] = round(whole.first.score / whole.last.score, 3)
    figures["first_saved"] = round(saved_share(whole.first.cost, whole.last.cost) or 0.0, 3)
    return figures


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _routellm(path: Path, ratio: float) -> list[Prompt]:
    return [
        Prompt(row["prompt"], Answer(row["weak_ok"], ratio), Answer(row["strong_ok"], 1.0))
        for row in _rows(path)
    ]


def _router_arena(data: Path) -> list[Prompt]:
    prices = json.loads((data / "routerarena_model_cost.json").read_text(encoding="utf-8"))
    answers: dict[str, dict[str, Answer]] = {}
    texts: dict[str, str] = {}
    for model in (_CHEAP, _DEAR):
        of_input, of_output = (
            prices[model][_PER_MILLION.format(side)] / 1e6 for side in ("input", "output")
        )
        for row in _rows(data / f"routerarena_{model}.jsonl.gz"):
            usage = row["usage"]
            cost = usage["input_tokens"] * of_input + usage["output_tokens"] * of_output
            texts[row["id"]] = row["question"]
            answers.setdefault(row["id"], {})[model] = Answer(row["evaluation"]["score"], cost)
    return [
        Prompt(texts[each], of_models[_CHEAP], of_models[_DEAR])
        for each, of_models in sorted(answers.items())
    ]


def _generated(ratio: float, count: int) -> list[Prompt]:
    """Return prompts of which the small model misses more the longer they are."""
    rng = random.Random(0)  # noqa: S311 - the same prompts each time
    prompts = []
    for number in range(count):
        words = 5 + int(rng.expovariate(1 / 60))
        is_right = rng.random() < max(0.2, 0.95 - words / 150)
        text = f"{number} " + " ".join(rng.choices(("explain", "why", "compare", "it?"), k=words))
        prompts.append(Prompt(text, Answer(is_right, ratio), Answer(rng.random() < 0.85, 1.0)))
    return prompts


def _samples(data: Path, generated: int) -> Iterator[tuple[str, list[list[Prompt]]]]:
    """Yield each sample by its name, once for each price ratio."""
    if not (data / "routerarena_model_cost.json").exists():
        print(f"{data} has no samples, so prompts are generated")
        yield "generated", [_generated(ratio, generated) for ratio in _RATIOS]
        return
    for name in ("mmlu", "gsm8k"):
        path = data / f"routellm_{name}.jsonl.gz"
        yield name, [_routellm(path, ratio) for ratio in _RATIOS]
    yield "routerarena", [_router_arena(data)]


def month_times() -> dict[str, float]:
    """Return of each mix of two models how many times less its month costs."""
    figures = {}
    for model in ("70B", "8B"):
        case = service_case(model, "chat")
        measure = cache(partial(replica_rate, load=case.load, objectives=case.objectives))
        all_large, *mixes, all_small = (
            _month_usd(case, share, measure) for share in (0.0, *_SMALL_SHARES, 1.0)
        )
        for share, usd in zip(_SMALL_SHARES, mixes, strict=True):
            blend = router_blend(share, all_small, all_large)
            print(f"{model}, {share} to the small model: {usd:,.0f} USD, by prices {blend:,.0f}")
            figures[f"month_{model}_{share}"] = round(all_large / usd, 2)
            figures[f"blend_{model}_{share}"] = round(all_large / blend, 2)
    return figures


def _month_usd(case: ServiceCase, share: float, measure: Measure) -> float:
    """Return what the GPUs of a month cost where the small model gets a share of the requests."""
    levers = {LeverId.RIGHT_SIZE, LeverId.SCALING} | ({LeverId.ROUTING} if share else set())
    routed = replace(
        case,
        assumptions=replace(case.assumptions, small_share=share),
        min_replicas=case.min_replicas if share < 1 else 0,
    )
    return month(routed, levers, measure).gpus


def routed_times(seconds: float, rate: float = 8.0) -> dict[str, float]:
    """Return of each share of trivial requests how many times less their route costs."""
    large = MODELS["70B"]
    fleets = {
        "small": _target_fleet(large.small, "NVIDIA-A100-SXM4-80GB"),
        "large": _target_fleet(large.name, "NVIDIA-H200"),
    }
    spec = ModelRouteSpec.model_validate(
        {"targets": [{"service": "small", "when": {"maxScore": 2}}, {"service": "large"}]}
    )
    trace = situation("wave", rate, seconds, 1)
    months, in_time = dict[float, float](), list[float]()
    for share in (0.0, *_SMALL_SHARES, 1.0):
        courses = play_route(spec, trace, trivial_openings(len(trace), share, 1), fleets)
        months[share] = MONTH_HOURS * sum(each.usd_per_hour for each in courses.values())
        in_time.append(sum(each.in_time for each in courses.values()) / len(trace))
    figures = {"routed_in_time_min": round(min(in_time), 3)}
    for share in _SMALL_SHARES:
        blend = router_blend(share, months[1.0], months[0.0])
        print(f"70B by rules, {share} trivial: {months[share]:,.0f} USD, by prices {blend:,.0f}")
        figures[f"routed_usd_{share}"] = round(months[share])
        figures[f"routed_70B_{share}"] = round(months[0.0] / months[share], 2)
    return figures


def _target_fleet(model: str, product: str) -> TargetFleet:
    prices = gpu_prices()[product]
    pool = WholeGpuPool(name="gpus", product=product, price=str(prices.on_demand), nodes=16)
    spec = {
        "model": {"uri": f"hf://{model}"},
        "class": "Standard",
        "context": {"typicalInputTokens": 1000, "typicalOutputTokens": 200, "maxModelLen": 8192},
        "scaling": {"minReplicas": 1, "maxReplicas": 64},
    }
    return TargetFleet(objects=pool.objects(Ref("team-a", "chat"), spec), prices=prices)


def _cpu_us(step: Callable[[], object], count: int) -> float:
    spent = []
    for _ in range(9):
        began = time.process_time()
        for _ in range(count):
            step()
        spent.append((time.process_time() - began) / count)
    return min(spent) * 1e6


def rule_times() -> dict[str, float]:
    """Return the CPU time of choosing a target once the fields of a body are read."""
    spec = ModelRouteSpec.model_validate(
        {"targets": [{"service": "a", "when": {"maxScore": 2, "maxWords": 50}}, {"service": "b"}]}
    )
    system = {"role": "system", "content": "Answer in short sentences. " * 15}
    text = "A sentence of a prompt, as people write it. " * 78
    bodies = {
        "rules_us": (2000, text),
        "rules_parts_us": (2000, [{"type": "text", "text": text}]),
        "rules_other_letters_us": (2000, text.replace("e", "\u00e9")[: len(text) * 9 // 10]),
        "rules_32_mib_us": (1, text * (31 * 2**20 // len(text))),
    }
    figures = {}
    for name, (count, content) in bodies.items():
        messages = [system, {"role": "user", "content": content}]
        body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()
        fields = parse(PATHS["/v1/chat/completions"].decoder, body)
        figures[name] = round(_cpu_us(partial(_choose, spec, fields), count), 1)
    return figures


def _choose(spec: ModelRouteSpec, fields: RequestFields) -> TargetOrder:
    return target_order(
        spec, read_opening(fields, {}, "team-a" if spec.select == "Weights" else None)
    )


def measure(
    data: Path = _DATA, splits: int = 100, generated: int = 4000, seconds: float = 3600.0
) -> dict[str, object]:
    """Measure all samples, print a table, and time the rules."""
    # Before the samples, among whose objects the interpreter would look for garbage.
    figures: dict[str, object] = {**rule_times()}
    for name, by_ratio in _samples(data, generated):
        bounds = {rule: least_bounds(rule, by_ratio[0]) for rule in RULES}
        halves = [_in_first_half(by_ratio[0], split) for split in range(splits)]
        for ratio, prompts in zip(_RATIOS, by_ratio, strict=False):
            label = f"{name}_{ratio}" if len(by_ratio) > 1 else name
            of_sample = measure_sample(prompts, bounds, halves)
            print(f"{label}: " + ", ".join(f"{key} {value:g}" for key, value in of_sample.items()))
            saves = any(of_sample[f"{rule}_cost"] <= 1 - _LEAST_SAVING for rule in RULES)
            if not saves:
                print(f"{label}: this route saves nothing")
            figures |= {f"{label}_{key}": value for key, value in of_sample.items()}
            figures[f"{label}_saves"] = saves
    return figures | month_times() | routed_times(seconds)


if __name__ == "__main__":
    benchmark(
        measure,
        short={"data": Path("none"), "splits": 2, "generated": 40, "seconds": 60.0},
        generated={"help": "prompts, where there are no samples"},
        seconds={"help": "of the route that is simulated request by request"},
    )
