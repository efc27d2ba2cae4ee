"""Bad bodies that Discord refuses: each is refused by the server's own checks, and good ones are not."""

import copy

import aiohttp
import pytest

from tests import openapi
from zbot.sandbox import Sandbox
from zbot.sandbox.limits import cross_field_errors

SEND = ("POST", "/channels/1/messages")
EDIT = ("PATCH", "/webhooks/1/tok/messages/@original")
ANSWER = ("POST", "/interactions/1/tok/callback")
COMMANDS = ("PUT", "/applications/1/commands")
V2 = 1 << 15


def button(**changes):
    return {"type": 2, "style": 1, "label": "Go", "custom_id": "go"} | changes


def row(*children):
    return {"type": 1, "components": list(children)}


def rows(*children):
    return {"content": "x", "components": [row(*children)]}


def select(**changes):
    return {"type": 3, "custom_id": "s", "options": [{"label": "a", "value": "a"}]} | changes


def modal(*components, **changes):
    return {"type": 9, "data": {"title": "T", "custom_id": "m", "components": list(components)} | changes}


def field(custom_id="a", **changes):
    return {"type": 18, "label": "L", "component": {"type": 4, "style": 1, "custom_id": custom_id} | changes}


def command(**changes):
    return {"name": "imagine", "description": "Draw", "type": 1} | changes


def option(**changes):
    return {"type": 3, "name": "prompt", "description": "What"} | changes


def choices(count):
    return [{"name": f"c{n}", "value": f"v{n}"} for n in range(count)]


def text(content="x"):
    return {"type": 10, "content": content}


BAD = {
    "content of 2001": (SEND, {"content": "x" * 2001}),
    "content that is a number": (SEND, {"content": 5}),
    "an empty message": (SEND, {}),
    "a message of spaces": (SEND, {"content": "  "}),
    "eleven embeds": (SEND, {"embeds": [{"title": "t"}] * 11}),
    "embed title of 257": (SEND, {"embeds": [{"title": "x" * 257}]}),
    "embed description of 4097": (SEND, {"embeds": [{"description": "x" * 4097}]}),
    "26 fields": (SEND, {"embeds": [{"fields": [{"name": "n", "value": "v"}] * 26}]}),
    "a field without value": (SEND, {"embeds": [{"fields": [{"name": "n", "value": ""}]}]}),
    "field value of 1025": (SEND, {"embeds": [{"fields": [{"name": "n", "value": "x" * 1025}]}]}),
    "footer of 2049": (SEND, {"embeds": [{"footer": {"text": "x" * 2049}}]}),
    "author of 257": (SEND, {"embeds": [{"author": {"name": "x" * 257}}]}),
    "embeds of 6001 in all": (SEND, {"embeds": [{"description": "x" * 3000}, {"description": "x" * 3001}]}),
    "embed image by file path": (SEND, {"embeds": [{"image": {"url": "file:///etc/passwd"}}]}),
    "colour too large": (SEND, {"embeds": [{"title": "t", "color": 0x1000000}]}),
    "six rows": (SEND, {"content": "x", "components": [row(button(custom_id=str(n))) for n in range(6)]}),
    "six buttons in a row": (SEND, rows(*(button(custom_id=str(n)) for n in range(6)))),
    "an empty row": (SEND, rows()),
    "a button outside a row": (SEND, {"content": "x", "components": [button()]}),
    "a menu beside a button": (SEND, rows(select(), button())),
    "the same custom_id twice": (SEND, rows(button(), button(label="Other"))),
    "custom_id of 101": (SEND, rows(button(custom_id="x" * 101))),
    "custom_id empty": (SEND, rows(button(custom_id=""))),
    "label of 81": (SEND, rows(button(label="x" * 81))),
    "a button without a face": (SEND, rows({"type": 2, "style": 1, "custom_id": "x"})),
    "a link without address": (SEND, rows({"type": 2, "style": 5, "label": "x"})),
    "a link with custom_id": (SEND, rows(button(style=5, url="https://a.example"))),
    "a button with address": (SEND, rows(button(url="https://a.example"))),
    "a style that is not": (SEND, rows(button(style=9))),
    "a menu of 26": (SEND, rows(select(options=[{"label": str(n), "value": str(n)} for n in range(26)]))),
    "a menu of none": (SEND, rows(select(options=[]))),
    "a menu with a value twice": (SEND, rows(select(options=[{"label": "a", "value": "a"}] * 2))),
    "more least than most": (SEND, rows(select(min_values=2, max_values=1))),
    "V2 with content": (SEND, {"flags": V2, "content": "x", "components": [text()]}),
    "V2 with embeds": (SEND, {"flags": V2, "embeds": [{"title": "x"}], "components": [text()]}),
    "V2 without components": (SEND, {"flags": V2}),
    "a V2 component without the flag": (SEND, {"content": "x", "components": [text()]}),
    "41 V2 components": (SEND, {"flags": V2, "components": [text() for _ in range(41)]}),
    "41 V2 components in containers": (
        SEND,
        {"flags": V2, "components": [{"type": 17, "components": [text() for _ in range(20)]} for _ in range(2)]},
    ),
    "V2 text of 4001": (SEND, {"flags": V2, "components": [text("x" * 2000), text("x" * 2001)]}),
    "gallery of 11": (
        SEND,
        {"flags": V2, "components": [{"type": 12, "items": [{"media": {"url": "https://a.example/x"}}] * 11}]},
    ),
    "a section without accessory": (SEND, {"flags": V2, "components": [{"type": 9, "components": [text()]}]}),
    "a container in a container": (
        SEND,
        {"flags": V2, "components": [{"type": 17, "components": [{"type": 17, "components": [text()]}]}]},
    ),
    "nonce of 26": (SEND, {"content": "x", "nonce": "x" * 26}),
    "eleven attachments": (SEND, {"content": "x", "attachments": [{"id": str(n)} for n in range(11)]}),
    "alt text of 1025": (SEND, {"content": "x", "attachments": [{"id": "0", "description": "x" * 1025}]}),
    "mentions parsed and listed": (SEND, {"content": "x", "allowed_mentions": {"parse": ["users"], "users": ["1"]}}),
    "mentions of a strange kind": (SEND, {"content": "x", "allowed_mentions": {"parse": ["cats"]}}),
    "an edit to 2001": (EDIT, {"content": "x" * 2001}),
    "an empty answer": (ANSWER, {"type": 4, "data": {"flags": 64}}),
    "26 completions": (ANSWER, {"type": 8, "data": {"choices": choices(26)}}),
    "a completion of 101": (ANSWER, {"type": 8, "data": {"choices": [{"name": "x" * 101, "value": "x"}]}}),
    "six fields in a modal": (ANSWER, modal(*(field(str(n)) for n in range(6)))),
    "a modal of nothing": (ANSWER, modal()),
    "modal title of 46": (ANSWER, modal(field(), title="x" * 46)),
    "the same field twice": (ANSWER, modal(field(), field())),
    "a prefilled value over its most": (ANSWER, modal(field(value="xxxx", max_length=3))),
    "a field over 4000": (ANSWER, modal(field(max_length=4001))),
    "a button in a modal": (ANSWER, modal(row(button()))),
    "capital letters in a name": (COMMANDS, [command(name="Imagine")]),
    "a space in a name": (COMMANDS, [command(name="draw it")]),
    "a name of 33": (COMMANDS, [command(name="x" * 33)]),
    "no description": (COMMANDS, [{"name": "imagine", "type": 1}]),
    "description of 101": (COMMANDS, [command(description="x" * 101)]),
    "a description for a menu command": (COMMANDS, [command(type=3)]),
    "two of one name": (COMMANDS, [command(), command()]),
    "101 commands": (COMMANDS, [command(name=f"c{n}") for n in range(101)]),
    "26 options": (COMMANDS, [command(options=[option(name=f"o{n}") for n in range(26)])]),
    "26 choices": (COMMANDS, [command(options=[option(choices=choices(26))])]),
    "choices and autocomplete": (COMMANDS, [command(options=[option(choices=choices(1), autocomplete=True)])]),
    "required after optional": (COMMANDS, [command(options=[option(), option(name="b", required=True)])]),
    "an option twice": (COMMANDS, [command(options=[option(), option()])]),
    "least over most": (COMMANDS, [command(options=[option(type=4, min_value=5, max_value=1)])]),
    "length over 6000": (COMMANDS, [command(options=[option(max_length=6001)])]),
    "a language that is not": (COMMANDS, [command(name_localizations={"zh": "x"})]),
    "a localized name with capitals": (COMMANDS, [command(name_localizations={"de": "Malen"})]),
    "over 8000 characters": (
        COMMANDS,
        [command(options=[option(name=f"o{n}", choices=[{"name": f"{m}" * 90, "value": "v" * 90} for m in range(10, 35)])
                          for n in range(3)])],
    ),
}  # fmt: skip

GOOD = {
    "content of 2000": (SEND, {"content": "x" * 2000}),
    "embeds of 6000 in all": (SEND, {"embeds": [{"description": "x" * 3000}, {"description": "x" * 3000}]}),
    "25 buttons": (
        SEND,
        {
            "content": "x",
            "components": [row(*(button(custom_id=f"{n}{m}") for m in range(5))) for n in range(5)],
        },
    ),
    "a file alone": (SEND, {"attachments": [{"id": "0"}]}),
    "40 V2 components": (SEND, {"flags": V2, "components": [text() for _ in range(40)]}),
    "a deferral": (ANSWER, {"type": 5}),
    "an ephemeral deferral": (ANSWER, {"type": 5, "data": {"flags": 64}}),
    "an edit that clears": (EDIT, {"content": None, "embeds": [], "components": [], "attachments": []}),
    "no completions": (ANSWER, {"type": 8, "data": {"choices": []}}),
    "a modal of five": (ANSWER, modal(*(field(str(n)) for n in range(5)))),
    "Chinese names": (
        COMMANDS,
        [
            command(
                name_localizations={"zh-CN": "\u753b\u56fe"}, description_localizations={"zh-CN": "\u753b"}
            )
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_found(name):
    (method, path), body = BAD[name]
    assert cross_field_errors(method, path, body)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_body_passes_the_rules_and_discords_document(name):
    (method, path), body = GOOD[name]
    assert cross_field_errors(method, path, copy.deepcopy(body)) == []
    check = openapi.load()
    if check is not None:
        assert check(method, path, body) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "found"),
    [
        (*SEND, {"content": "x", "contnt": "y"}, "$.contnt"),
        (*ANSWER, {"type": 4, "data": {"content": "x", "components": [row(button(colour=1))]}}, ".colour"),
        (*ANSWER, {"type": 99}, "type"),
        (*COMMANDS, [command(discription="x")], "$[0].discription"),
        ("POST", "/chanels/1/messages", {}, "not in Discord's document"),
    ],
)
def test_the_document_is_read_strictly(method, path, body, found):
    check = openapi.load()
    if check is None:
        pytest.skip(f"{openapi.SETTING} is not set")
    assert any(found in sentence for sentence in check(method, path, body))


def test_an_answer_that_lacks_a_field_is_found():
    check = openapi.load()
    if check is None:
        pytest.skip(f"{openapi.SETTING} is not set")
    assert any("required" in w for w in check.answer("GET", "/users/@me", 200, {"id": "1", "username": "x"}))
    assert check.answer("GET", "/users/@me", 204, None)


async def test_a_refused_form_has_discords_shape():
    async with Sandbox(port=0) as sandbox, aiohttp.ClientSession() as session:
        url = f"{sandbox.api_url}/channels/{sandbox.channel('pictures').id}/messages"
        headers = {"Authorization": "Bot sandbox-token"}
        async with session.post(url, json={"embeds": [{"title": "x" * 257}]}, headers=headers) as response:
            assert response.status == 400 and response.headers["Content-Type"] == "application/json"
            body = await response.json()
        assert (body["code"], body["message"]) == (50035, "Invalid Form Body")
        assert body["errors"]["embeds"]["0"]["title"]["_errors"][0]["code"] == "BASE_TYPE_MAX_LENGTH"
        async with session.post(url, json={"content": ""}, headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (400, 50006)
        async with session.post(
            url, data=b"{", headers=headers | {"Content-Type": "application/json"}
        ) as response:
            assert (response.status, (await response.json())["code"]) == (400, 50109)
        async with session.post(url, json={"content": "x"}) as response:
            assert (response.status, (await response.json())["message"]) == (401, "401: Unauthorized")
        async with session.get(f"{sandbox.api_url}/nothing", headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (404, 0)
