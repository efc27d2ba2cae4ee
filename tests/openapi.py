"""Checks requests and answers against Discord's OpenAPI document, found through ZBOT_DISCORD_OPENAPI.

The document is lenient where a bot's bug hides (unknown fields pass) and ambiguous where unions have no
discriminator, so this reads it more strictly: a field that no schema names is an error, and the member of a union is
the one whose fixed `type` fits. Where it is stricter than Discord itself (snowflakes sent as integers) it gives way.
"""

import copy
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema

from zbot.sandbox.journal import BotRequest
from zbot.sandbox.limits import cross_field_errors

SETTING = "ZBOT_DISCORD_OPENAPI"
URI = "urn:discord"
UNDOCUMENTED = {
    "nsfw": re.compile(r"/commands \$\[\d+\]$"),
    "tts": re.compile(r"(/messages/\S+ \$|/callback \$\.data)$"),
    "flags": re.compile(r"\.embeds\[\d+\]$"),
    # A file that an edit keeps is sent as the whole object that came with the message.
    **dict.fromkeys(
        ("proxy_url", "size", "url", "spoiler", "height", "width", "content_type"),
        re.compile(r"\.attachments\[\d+\]$"),
    ),
}
"""Fields that discord.py sends and Discord takes although the document does not name them, and where."""
UNDOCUMENTED_ANSWERS = frozenset(("avatar_decoration_data", "summary", "is_bot_verified"))
EXTRA_SCHEMAS = {
    ("POST", "/webhooks/{webhook_id}/{webhook_token}"): "IncomingWebhookInteractionRequest",
}
"""An interaction's webhook takes its own form, which the document has but does not attach to the operation."""


def document_path() -> Path | None:
    """Return where the document is, or None: then the tests that need it are skipped."""
    path = Path(os.environ.get(SETTING, ""))
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def load() -> "SpecCheck | None":
    """Return the checker, or None where the document is absent."""
    path = document_path()
    return None if path is None else SpecCheck(json.loads(path.read_text(encoding="utf-8")))


class SpecCheck:
    """Callable on a request: the sentences that say what is wrong with it, none if it is right."""

    def __init__(self, document: dict[str, Any]) -> None:
        document = copy.deepcopy(document)
        self._schemas = document["components"]["schemas"]
        self._schemas["SnowflakeType"] = {"type": ["string", "integer"], "pattern": "^(0|[1-9][0-9]*)$"}
        resource = referencing.Resource.from_contents(
            document, default_specification=referencing.jsonschema.DRAFT202012
        )
        self._registry = referencing.Registry().with_resource(URI, resource)
        self._operations: list[tuple[str, str, re.Pattern[str], dict[str, Any]]] = []
        for template, methods in document["paths"].items():
            literal = re.sub(r"\\{[^/]+?\\}", "[^/]+", re.escape(template))
            for method, operation in methods.items():
                if method != "parameters":
                    self._operations.append((method.upper(), template, re.compile(f"^{literal}$"), operation))
        # Literal paths first, as in any router: /users/@me before /users/{user_id}.
        self._operations.sort(key=lambda entry: entry[1].count("{"))

    def __call__(self, method: str, path: str, body: Any, *, v2: bool | None = None) -> list[str]:
        """Return what is wrong with a request; `path` begins after `/api/v10`."""
        found = self._operation(method, path)
        if found is None:
            return [f"{method} {path} is not in Discord's document"]
        template, operation = found
        schema = self._request_schema(method, template, operation)
        rules = cross_field_errors(method, path, body, v2=v2)
        if schema is None:
            return rules if body in (None, {}) else [f"{method} {path} takes no body"]
        errors = self._check(schema, body, "$", strict=True, path=path)
        return errors + [rule for rule in rules if rule not in errors]

    def answer(self, method: str, path: str, status: int, body: Any) -> list[str]:
        """Return what is wrong with an answer of the sandbox's."""
        found = self._operation(method, path)
        if found is None:
            return [f"{method} {path} is not in Discord's document"]
        if status >= 400:
            named = "ErrorResponse" if status != 429 else "RatelimitedResponse"
            return self._check({"$ref": f"#/components/schemas/{named}"}, body, "$", strict=False, path=path)
        told = found[1]["responses"].get(str(status))
        if told is None:
            return [f"{method} {path} never answers {status}"]
        schema = told.get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            return [] if body is None else ["an answer without content has a body"]
        return self._check(schema, body, "$", strict=True, path=path, answer=True)

    def check(self, request: BotRequest) -> list[str]:
        """Return what is wrong with a recorded request and, unless a fault was injected, with its answer.

        Where the body was never read whole (a lost connection, 413, broken JSON) only the answer is checked.
        """
        wrong: list[str] = []
        unread = request.status in (-1, 413) or request.code == 50109
        if not unread and request.route != "unknown":
            wrong += self(request.method, request.path, request.json, v2=request.v2 or None)
        if request.status > 0 and not request.faulty and request.route != "unknown":
            wrong += [
                f"answer: {w}"
                for w in self.answer(request.method, request.path, request.status, request.response)
            ]
        return [f"{request.method} {request.template}: {w}" for w in wrong]

    def _operation(self, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
        for found_method, template, pattern, operation in self._operations:
            if found_method == method and pattern.match(path):
                return template, operation
        return None

    def _request_schema(self, method: str, template: str, operation: dict[str, Any]) -> Any:
        if (method, template) in EXTRA_SCHEMAS:
            return {"$ref": "#/components/schemas/" + EXTRA_SCHEMAS[method, template]}
        content = operation.get("requestBody", {}).get("content", {})
        return content.get("application/json", {}).get("schema")

    def _check(
        self, schema: Any, value: Any, where: str, *, strict: bool, path: str, answer: bool = False
    ) -> list[str]:
        """Check one value, choosing union members by `type` so that the errors are about the right one."""
        schema = self._flat(schema)
        members = schema.get("oneOf") or schema.get("anyOf")
        if members is not None:
            member = self._member(members, value)
            if member is None:
                return [f"{where}: fits none of the allowed forms: {_short(value)}"]
            return self._check(member, value, where, strict=strict, path=path, answer=answer)
        errors = self._own(schema, value, where)
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            extra = schema.get("additionalProperties")
            for key, inner in value.items():
                here = f"{where}.{key}"
                if key in properties:
                    errors += self._check(
                        properties[key], inner, here, strict=strict, path=path, answer=answer
                    )
                elif isinstance(extra, dict):
                    errors += self._check(extra, inner, here, strict=strict, path=path, answer=answer)
                elif strict and properties and not self._tolerated(key, f"{path} {where}", answer=answer):
                    errors.append(f"{here}: no such field in Discord's document")
        elif isinstance(value, list) and "items" in schema:
            for index, inner in enumerate(value):
                here = f"{where}[{index}]"
                errors += self._check(schema["items"], inner, here, strict=strict, path=path, answer=answer)
        return errors

    def _own(self, schema: dict[str, Any], value: Any, where: str) -> list[str]:
        """Return what the value's own keywords say, its members left for the walk."""
        shallow = {
            k: v for k, v in schema.items() if k not in ("properties", "items", "additionalProperties")
        }
        shallow = json.loads(json.dumps(shallow).replace('"#/', f'"{URI}#/'))
        validator = jsonschema.Draft202012Validator(shallow, registry=self._registry)
        return [f"{where}: {error.message[:200]}" for error in validator.iter_errors(value)]

    def _flat(self, schema: Any) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rsplit("/", 1)[1]]
        if "allOf" not in schema:
            return schema
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            flat = self._flat(part)
            for key, value in flat.items():
                if key == "properties":
                    merged["properties"] = merged.get("properties", {}) | value
                elif key == "required":
                    merged["required"] = [*merged.get("required", ()), *value]
                elif key not in merged:
                    merged[key] = value
        # An `enum` beside an `allOf` of the whole enumeration: the narrower one stays.
        return (
            merged
            if "enum" not in merged
            else {k: v for k, v in merged.items() if k not in ("oneOf", "anyOf")}
        )

    def _member(self, members: list[Any], value: Any) -> Any:
        """Return the union's member for this value: by its JSON type, by a fixed `type` field, else by what fits best."""
        if all("const" in member for member in members):
            return next((member for member in members if member["const"] == value), None)
        fitting = [member for member in members if _accepts(self._flat(member), value)]
        if isinstance(value, dict) and len(fitting) > 1:
            typed = [m for m in fitting if self._type_fits(self._flat(m), value.get("type"))]
            fitting = typed or fitting
        if len(fitting) > 1:
            return min(fitting, key=lambda m: len(self._check(m, value, "$", strict=True, path="")))
        return fitting[0] if fitting else None

    def _type_fits(self, schema: dict[str, Any], kind: Any) -> bool:
        fixed = schema.get("properties", {}).get("type")
        if fixed is None:
            return kind is None
        fixed = self._flat(fixed)
        return kind in fixed.get("enum", ()) or kind == fixed.get("const", fixed)

    def _tolerated(self, key: str, place: str, *, answer: bool) -> bool:
        if answer:
            return key in UNDOCUMENTED_ANSWERS
        return key in UNDOCUMENTED and bool(UNDOCUMENTED[key].search(place))


JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _accepts(schema: dict[str, Any], value: Any) -> bool:
    """Say whether the value has a JSON type that the schema takes."""
    kinds = schema.get("type")
    if kinds is None:
        return True
    listed = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in listed
    return any(isinstance(value, JSON_TYPES[kind]) for kind in listed)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
