"""A starter suite: prompts of strata in which cheaper models lose first, drawn from a seed."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any

from tessera.api.text import counted

_Row = dict[str, Any]
_Generator = Callable[[random.Random], _Row]
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kim", "Lea")
_CITIES = ("Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Perth", "Turin", "Accra", "Hanoi", "Porto")
_WORDS = (
    *("apple", "river", "candle", "stone", "garden", "mirror", "pencil", "window", "bridge"),
    *("forest", "hammer", "island", "jacket", "kettle", "ladder", "market", "needle", "orange"),
)
_DRAWS = 100


def starter_rows(seed: int, per_stratum: int) -> Iterator[str]:
    """Yield the lines of a suite; equal seeds give equal suites.

    ValueError where a stratum has not as many different prompts.
    """
    for stratum, generators in _STRATA.items():
        # Each stratum is drawn by itself, so that more prompts of it change no other.
        draw = random.Random(f"{seed} {stratum}")  # noqa: S311 - not a secret
        questions = set[str]()
        for number in range(per_stratum):
            generate = generators[number % len(generators)]
            for _ in range(_DRAWS):
                row = generate(draw)
                if row["say"] not in questions:
                    break
            else:
                raise ValueError(f"{stratum} has only {number} different prompts")
            questions.add(row["say"])
            messages = [{"role": "user", "content": row.pop("say")}]
            head = {"id": f"{stratum}-{number + 1}", "stratum": stratum, "messages": messages}
            yield json.dumps(head | row, ensure_ascii=False)


def _number(say: str, expected: int, max_tokens: int = 64) -> _Row:
    return {"say": say, "scorer": "number", "expected": expected, "maxTokens": max_tokens}


def _text(say: str, expected: str, scorer: str = "exact", max_tokens: int = 64) -> _Row:
    return {"say": say, "scorer": scorer, "expected": expected, "maxTokens": max_tokens}


def _calculation(draw: random.Random) -> _Row:
    left, right = draw.randint(100, 9999), draw.randint(12, 999)
    sign, result = draw.choice((("+", left + right), ("-", left - right), ("*", left * right)))
    return _number(f"What is {left} {sign} {right}? Answer with the number alone.", result)


def _division(draw: random.Random) -> _Row:
    divisor, quotient = draw.randint(3, 99), draw.randint(12, 999)
    rest = draw.randint(1, divisor - 1)
    dividend = divisor * quotient + rest
    return _number(
        f"What is the remainder of {dividend} divided by {divisor}? Answer with the number alone.",
        rest,
    )


def _date_format(draw: random.Random) -> _Row:
    day = date(2001, 1, 1) + timedelta(days=draw.randint(0, 9000))
    return _text(
        f"Write the date {day:%B} {day.day}, {day.year} as YYYY-MM-DD, and nothing else.",
        day.isoformat(),
    )


def _sorted_list(draw: random.Random) -> _Row:
    words = draw.sample(_WORDS, 5)
    return _text(
        f"Sort these words alphabetically: {', '.join(words)}. Write them in one line, separated "
        "by a semicolon without spaces, and nothing else.",
        ";".join(sorted(words)),
    )


def _story(draw: random.Random) -> _Row:
    name, other = draw.sample(_NAMES, 2)
    boxes, each, given, packs, more = (draw.randint(low, 30) for low in (6, 9, 2, 2, 3))
    return _number(
        f"{name} has {boxes} boxes with {each} pens each, gives {given} pens to {other}, and then "
        f"buys {packs} packs of {more} pens. How many pens does {name} have now? Reason step by "
        "step, and end with the number alone.",
        boxes * each - given + packs * more,
        512,
    )


def _route(draw: random.Random) -> _Row:
    stops = [(draw.randint(2, 20), draw.randint(0, 9)) for _ in range(4)]
    people = 15
    text = []
    for on, off in stops:
        people += on - min(off, people)
        text.append(f"{on} people get on and {off} get off")
    return _number(
        f"A bus starts with 15 people. At its 4 stops, {', then '.join(text)}. How many people "
        "are on the bus at the end? Reason step by step, and end with the number alone.",
        people,
        512,
    )


def _python_function(draw: random.Random) -> _Row:
    word, number = draw.choice(_WORDS), draw.randint(2, 99)
    name, (verb, sign) = f"{word}_{number}", draw.choice((("adds", "+"), ("multiplies by", "*")))
    return {
        "say": f"Write a Python function {name} with one parameter x that {verb} {number} and "
        "returns the result. Reply with the code alone.",
        "scorer": "regex",
        "expected": rf"(?s)def\s+{name}\(\s*x\b[^)]*\)[^:]*:.*\breturn\b.*\b{number}\b",
        "example": f"def {name}(x):\n    return x {sign} {number}",
        "maxTokens": 200,
    }


def _query(draw: random.Random) -> _Row:
    table, first, second = draw.sample(_WORDS, 3)
    limit = draw.randint(2, 999)
    return {
        "say": f"Write one SQL query: columns {first} and {second} of table {table}, in this "
        f"order, for rows where {second} is greater than {limit}. Reply with the query alone.",
        "scorer": "regex",
        "expected": rf"(?is)\bselect\s+{first}\s*,\s*{second}\s+from\s+{table}\s+where\s+{second}"
        rf"\s*>\s*{limit}\b",
        "example": f"SELECT {first}, {second} FROM {table} WHERE {second} > {limit};",  # noqa: S608 - nothing runs it
        "maxTokens": 200,
    }


def _tool(name: str, **properties: str) -> Mapping[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


_TOOLS = (
    _tool("get_forecast", city="string", days="integer"),
    _tool("convert_amount", amount="number", source="string", target="string"),
    _tool("set_reminder", text="string", minutes="integer"),
)


def _tool_call(draw: random.Random) -> _Row:
    days, minutes, amount = draw.randint(2, 14), draw.randint(5, 600), draw.randint(10, 9999)
    source, target = draw.sample(("USD", "EUR", "JPY", "CHF", "SEK"), 2)
    word, city = draw.choice(_WORDS), draw.choice(_CITIES)
    say, name, arguments = draw.choice(
        (
            (
                f"Get the forecast of the next {days} days in {city}.",
                "get_forecast",
                {"city": city, "days": days},
            ),
            (
                f"Convert {amount} {source} to {target}.",
                "convert_amount",
                {"amount": amount, "source": source, "target": target},
            ),
            (
                f'Set a reminder in {counted(minutes, "minute")} with the text "{word}".',
                "set_reminder",
                {"text": word, "minutes": minutes},
            ),
        )
    )
    return {
        "say": say,
        "tools": _TOOLS,
        "scorer": "toolCall",
        "expected": {"name": name, "arguments": arguments},
        "maxTokens": 200,
    }


def _roman(draw: random.Random) -> _Row:
    number = rest = draw.randint(40, 3999)
    text = ""
    for value, letters in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"),
        strict=True,
    ):
        text += letters * (rest // value)
        rest %= value
    return _text(f"Write {number} as a Roman numeral, and nothing else.", text)


def _base(draw: random.Random) -> _Row:
    number = draw.randint(50, 4095)
    return _text(
        f"Write the decimal number {number} in lower-case hexadecimal with the prefix 0x, and "
        "nothing else.",
        hex(number),
    )


def _json_object(draw: random.Random) -> _Row:
    name, city, age = draw.choice(_NAMES), draw.choice(_CITIES), draw.randint(18, 90)
    return {
        "say": f"{name} is {age} years old and lives in {city}. Write this as a JSON object with "
        "the keys name, age (a number) and address, an object with the key city. Reply with JSON "
        "alone, without a code fence.",
        "scorer": "jsonSchema",
        "expected": {"const": {"name": name, "age": age, "address": {"city": city}}},
        "maxTokens": 128,
    }


def _csv_line(draw: random.Random) -> _Row:
    word, number = draw.choice(_WORDS), draw.randint(1, 999)
    return _text(
        f"Write one CSV line with three fields: the text {word}, the text a,b and the number "
        f"{number}. Quote a field with double quotes only where CSV needs it. No header, and "
        "nothing else.",
        f'{word},"a,b",{number}',
    )


def _long_list(draw: random.Random) -> _Row:
    lines = draw.randint(60, 120)
    shelves = draw.sample(range(1000, 9999), lines)
    counts = [draw.randint(10, 999) for _ in shelves]
    wanted = draw.randrange(lines)
    text = "\n".join(
        f"Shelf {shelf} has {count} boxes." for shelf, count in zip(shelves, counts, strict=True)
    )
    return _number(
        f"{text}\n\nHow many boxes has shelf {shelves[wanted]}? Answer with the number alone.",
        counts[wanted],
    )


_LANGUAGES = {
    "german": (
        "{name} hat {first} Äpfel, kauft {second} dazu und verschenkt {third}. Wie viele Äpfel hat "
        "{name} jetzt? Antworte nur mit der Zahl.",
        "Heute ist {day}. Welcher Wochentag ist in {days} Tagen? Antworte nur mit dem Namen.",
        "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    ),
    "swahili": (
        "{name} ana maembe {first}, ananunua maembe {second} na kumpa rafiki maembe {third}. "
        "{name} ana maembe mangapi sasa? Jibu kwa nambari pekee.",
        "Leo ni {day}. Siku {days} baadaye itakuwa siku gani? Jibu kwa jina la siku pekee.",
        "Jumatatu Jumanne Jumatano Alhamisi Ijumaa Jumamosi Jumapili",
    ),
    "japanese": (
        "{name}さんはりんごを{first}個持っています。{second}個買い、{third}個あげました。"
        "今、りんごは何個ありますか。数字だけで答えてください。",
        "今日は{day}です。{days}日後は何曜日ですか。曜日だけで答えてください。",
        "月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
    ),
}


def _apples(language: str) -> _Generator:
    def generate(draw: random.Random) -> _Row:
        first, second = draw.randint(50, 900), draw.randint(10, 90)
        third = draw.randint(5, 49)
        say = _LANGUAGES[language][0].format(
            name=draw.choice(_NAMES), first=first, second=second, third=third
        )
        return _number(say, first + second - third)

    return generate


def _weekday(language: str) -> _Generator:
    def generate(draw: random.Random) -> _Row:
        days, begin, after = _LANGUAGES[language][2].split(), draw.randrange(7), draw.randint(8, 99)
        say = _LANGUAGES[language][1].format(day=days[begin], days=after)
        return _text(say, days[(begin + after) % 7], "contains")

    return generate


_STRATA: Mapping[str, tuple[_Generator, ...]] = {
    "arithmetic": (_calculation, _division),
    "exact-format": (_date_format, _sorted_list),
    "multi-step": (_story, _route),
    "code": (_python_function, _query),
    "tool-calls": (_tool_call,),
    "rare-formats": (_roman, _base, _json_object, _csv_line),
    "long-input": (_long_list,),
    **{language: (_apples(language), _weekday(language)) for language in _LANGUAGES},
}
