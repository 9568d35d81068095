"""Tiny pooling models of random weights: the shapes of published ones, and the tokenizer of
another tiny model.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_XLM_ROBERTA = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "position_embedding_type": "absolute",
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CLASSIFIER = {**_XLM_ROBERTA, "architectures": ["XLMRobertaForSequenceClassification"]}


def _modules(pooling: str) -> Mapping[str, Any]:
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    modes = {"word_embedding_dimension": 128, f"pooling_mode_{pooling}": True}
    return {"modules.json": modules, "1_Pooling/config.json": modes}


# The configuration and the other files of each, by the published model of that shape.
MODELS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "bge-m3": (
        _XLM_ROBERTA,
        {**_modules("cls_token"), "sentence_bert_config.json": {"max_seq_length": 256}},
    ),
    "bge-reranker-v2-m3": ({**_CLASSIFIER, "id2label": {"0": "LABEL_0"}}, {}),
    "classifier": ({**_CLASSIFIER, "id2label": {"0": "a", "1": "b", "2": "c"}}, {}),
    "Qwen3-Embedding": (_QWEN3, _modules("lasttoken")),
}


def make(name: str, tiny: Path, folder: Path) -> Path:
    """Write the files of a model into a folder, with the tokenizer of the `tiny` one."""
    config, files = MODELS[name]
    shutil.copytree(tiny, folder)
    vocabulary = json.loads((tiny / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    contents = {"config.json": {**config, "vocab_size": vocabulary, "torch_dtype": "bfloat16"}}
    for path, content in {**contents, **files}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(content), encoding="utf-8")
    return folder
