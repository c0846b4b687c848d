"""The OpenAPI document of this runtime's models."""

import copy
from typing import Any

from mlserver.rest.openapi import get_model_schema

ERROR = {
    "description": "Refused, or failed: one sentence.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "string"}},
                "required": ["error"],
            }
        }
    },
}
RANKING = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
        "required": ["label", "score"],
    },
}
PARAMETERS = {
    "top_k": {"type": "integer", "minimum": 1, "default": 5},
    "function_to_apply": {"type": "string", "enum": ["softmax", "sigmoid", "none"]},
}
QUERY = [{"name": name, "in": "query", "schema": kind} for name, kind in PARAMETERS.items()]
FILE = {"type": "string", "format": "binary"}
FORM = {"type": "object", "properties": {"file": FILE, **PARAMETERS}, "required": ["file"]}
BODIES = {
    "application/octet-stream": {"schema": FILE},
    "multipart/form-data": {"schema": FORM},
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "inputs": {"type": "string", "description": "Base64 or a data: URL."},
                "parameters": {"type": "object", "properties": PARAMETERS},
            },
            "required": ["inputs"],
        }
    },
}


def model_document(name: str, version: str | None) -> dict[str, Any]:
    """MLServer's document of a model, with /classify and what the URL of /infer may ask for."""
    document = copy.deepcopy(get_model_schema(name, version))
    for path, operations in list(document["paths"].items()):
        if path.endswith("/infer"):
            operations["post"]["parameters"] = QUERY
            described = {"parameters": operations["parameters"], "post": _classify()}
            document["paths"][path.removesuffix("infer") + "classify"] = described
    # MLServer's own names a type that JSON Schema does not have.
    document["components"]["schemas"]["TensorData"] = {"type": "array"}
    return document


def _classify() -> dict[str, Any]:
    return {
        "summary": "Labels and scores of an image file, best first.",
        "operationId": "classify",
        "parameters": QUERY,
        "requestBody": {"required": True, "content": BODIES},
        "responses": {
            "200": {
                "description": "For several files, a list of such lists.",
                "content": {
                    "application/json": {
                        "schema": {"oneOf": [RANKING, {"type": "array", "items": RANKING}]}
                    }
                },
            },
            "default": ERROR,
        },
    }
