"""Discord's permission bits and the rule that says which of them a member holds in a channel."""

from collections.abc import Iterable
from typing import Protocol

ADD_REACTIONS = 1 << 6
VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
MANAGE_MESSAGES = 1 << 13
EMBED_LINKS = 1 << 14
ATTACH_FILES = 1 << 15
READ_MESSAGE_HISTORY = 1 << 16
USE_EXTERNAL_EMOJIS = 1 << 18
ADMINISTRATOR = 1 << 3
USE_APPLICATION_COMMANDS = 1 << 31
SEND_MESSAGES_IN_THREADS = 1 << 38

ALL = (1 << 53) - 1
EVERYONE = (
    ADD_REACTIONS
    | VIEW_CHANNEL
    | SEND_MESSAGES
    | EMBED_LINKS
    | ATTACH_FILES
    | READ_MESSAGE_HISTORY
    | USE_EXTERNAL_EMOJIS
    | USE_APPLICATION_COMMANDS
    | SEND_MESSAGES_IN_THREADS
)
DIRECT = EVERYONE & ~SEND_MESSAGES_IN_THREADS
"""What a bot may do in a direct message; there are no roles there."""


class Grant(Protocol):
    """A permission overwrite of a channel, for a role (`kind` 0) or a member (`kind` 1)."""

    target_id: int
    kind: int
    allow: int
    deny: int


def in_channel(*, guild_id: int, member_id: int, roles: dict[int, int], overwrites: Iterable[Grant]) -> int:
    """Return the bits a member holds in a channel.

    `roles` maps the ids of the member's roles, the @everyone role (id = guild id) among them, to their bits. The order
    is the one Discord documents: roles, then the overwrites for @everyone, for the other roles together, for the member.
    """
    bits = 0
    for granted in roles.values():
        bits |= granted
    if bits & ADMINISTRATOR:
        return ALL
    mine = [
        o
        for o in overwrites
        if (o.kind == 0 and o.target_id in roles) or (o.kind == 1 and o.target_id == member_id)
    ]
    for overwrite in mine:
        if overwrite.kind == 0 and overwrite.target_id == guild_id:
            bits = bits & ~overwrite.deny | overwrite.allow
    of_roles = [o for o in mine if o.kind == 0 and o.target_id != guild_id]
    for overwrite in of_roles:
        bits &= ~overwrite.deny
    for overwrite in of_roles:
        bits |= overwrite.allow
    for overwrite in mine:
        if overwrite.kind == 1:
            bits = bits & ~overwrite.deny | overwrite.allow
    if not bits & VIEW_CHANNEL:
        return 0
    if not bits & SEND_MESSAGES:
        bits &= ~(EMBED_LINKS | ATTACH_FILES)
    return bits
