"""A loopback stand-in for Discord with a chat page: try the bot, and test it, without an account."""

from zbot.sandbox.options import BotOffline, ClientRefusal
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.server import DEFAULT_PORT, DEFAULT_TOKEN, Sandbox
from zbot.sandbox.world import Message

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_TOKEN",
    "BotOffline",
    "ClientRefusal",
    "Handle",
    "Message",
    "Person",
    "Sandbox",
]
