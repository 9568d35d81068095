"""Whether a request is as a condition of a target says."""

from tessera.api.model_route import MAX_SCORE, RouteCondition, RouteScore
from tessera.domain.routes.opening import RequestOpening


def score(text: str, terms: RouteScore) -> int:
    """Return from 1 to 5 how demanding a text is: 1, and a point for each signal."""
    lowered = text.lower()
    signals = sum(word.lower() in lowered for word in terms.words)
    signals += len(text) >= terms.long_from
    signals += text.count("?") >= terms.questions_from
    return min(1 + signals, MAX_SCORE)


def holds(condition: RouteCondition, opening: RequestOpening, points: int) -> bool:
    """Return whether all holds that a condition gives, for a request of this score."""
    text = opening.text
    return (
        (condition.max_score is None or points <= condition.max_score)
        and (condition.max_characters is None or len(text) <= condition.max_characters)
        and (condition.max_words is None or _has_words(text, condition.max_words))
        and (
            condition.max_question_marks is None or text.count("?") <= condition.max_question_marks
        )
        and (condition.tools is None or opening.tools == condition.tools)
        and (condition.media is None or opening.media == condition.media)
        and all(opening.tags.get(name) == value for name, value in condition.tags.items())
    )


def _has_words(text: str, most: int) -> bool:
    # What follows the last word that counts stays one text, however many words it has.
    return len(text.split(None, most)) <= most
