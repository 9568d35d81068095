"""What a model returns of a text, as vLLM 0.32 decides it from the files of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.api.model_files import PoolingTask

# Ends of the names of architectures, in the order in which the engine tries them.
_TASK_BY_SUFFIX: Sequence[tuple[str, PoolingTask | None]] = (
    ("ForCausalLM", None),
    ("ForConditionalGeneration", None),
    ("ChatModel", None),
    ("ChatGLMModel", None),
    ("LMHeadModel", None),
    ("ColBERT", "Tokens"),
    ("ForTextEncoding", "Embed"),
    ("EmbeddingModel", "Embed"),
    ("ForMaskedLM", "Embed"),
    ("ForSequenceClassification", "Classify"),
    ("ForTokenClassification", "Tokens"),
    ("ClassificationModel", "Classify"),
    ("ForRewardModeling", "Tokens"),
    ("RewardModel", "Tokens"),
    ("Model", "Embed"),
)
# Classes of a configuration that does not say how many it has.
_DEFAULT_LABELS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformersFiles:
    """The files of sentence-transformers beside a `config.json`; None where one is absent."""

    modules: object = None
    """`modules.json`."""
    settings: object = None
    """`sentence_bert_config.json`."""

    @property
    def has_pooling(self) -> bool:
        """Return whether the last layer is pooled, which makes any architecture an embedder."""
        modules = self.modules if isinstance(self.modules, list) else ()
        types = (str(module.get("type", "")) for module in modules if isinstance(module, Mapping))
        return any(name.rpartition(".")[2] == "Pooling" for name in types)

    @property
    def max_tokens(self) -> int | None:
        """Return the longest text, in tokens, to which the engine limits the model."""
        settings = self.settings if isinstance(self.settings, Mapping) else {}
        tokens = settings.get("max_seq_length")
        return tokens if isinstance(tokens, int) and tokens > 0 else None


NO_SENTENCE_FILES = SentenceTransformersFiles()


def pooling_task(
    config: Mapping[str, Any], files: SentenceTransformersFiles = NO_SENTENCE_FILES
) -> PoolingTask | None:
    """Return what the model returns of a text; None if it generates text."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else ()
    tasks = (task for name in names for task in _tasks_of(str(name)))
    task = next(tasks, None)
    if task is None and files.has_pooling:
        return "Embed"
    return "Score" if task == "Classify" and labels_of(config) == 1 else task


def _tasks_of(architecture: str) -> Sequence[PoolingTask | None]:
    """Return the task of the first suffix that fits; empty if none does."""
    return [task for suffix, task in _TASK_BY_SUFFIX if architecture.endswith(suffix)][:1]


def labels_of(config: Mapping[str, Any]) -> int:
    """Return the classes of a classifier; 1 of a model that scores."""
    tokens = config.get("classifier_from_token")
    if isinstance(tokens, list) and tokens:
        # Of two tokens the engine returns the share of the second one.
        return 1 if len(tokens) == 2 else len(tokens)
    labels = config.get("num_labels")
    if isinstance(labels, int) and not isinstance(labels, bool):
        return labels
    names = config.get("id2label")
    return len(names) if isinstance(names, Mapping) else _DEFAULT_LABELS
