from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import discord
import pytest

from cogs._checks import check_place, is_moderator
from zbot.errors import NotAllowed
from zbot.text import explain

ALL = discord.Permissions.all()


def services(*guild_ids: int) -> Any:
    return SimpleNamespace(settings=SimpleNamespace(guild_ids=guild_ids))


def interaction(**fields: Any) -> Any:
    mock = Mock(spec=discord.Interaction)
    mock.user.bot = False
    mock.guild_id = 7
    mock.is_guild_integration.return_value = fields.pop("is_guild_integration", True)
    mock.app_permissions = ALL
    for name, value in fields.items():
        setattr(mock, name, value)
    return mock


def refused(interaction: Any, services: Any) -> NotAllowed:
    with pytest.raises(NotAllowed) as caught:
        check_place(interaction, services)
    assert explain(caught.value, "en-US")
    return caught.value


def test_a_person_in_a_channel_of_an_allowed_server_passes():
    check_place(interaction(), services())
    check_place(interaction(), services(7, 8))


def test_other_servers_are_refused_when_some_are_named():
    assert refused(interaction(), services(8)).code == "wrong_guild"


@pytest.mark.parametrize("fields", [{"guild_id": None}, {"is_guild_integration": False}])
def test_direct_messages_and_user_installs_are_refused(fields: dict[str, Any]):
    assert refused(interaction(**fields), services()).code == "only_in_guild"


def test_bots_are_refused():
    assert refused(interaction(user=SimpleNamespace(bot=True)), services()).code == "not_allowed"


@pytest.mark.parametrize(
    ("right", "label"),
    [("send_messages", "Send Messages"), ("attach_files", "Attach Files"), ("embed_links", "Embed Links")],
)
def test_a_right_the_bot_needs_here_is_named_when_it_is_missing(right: str, label: str):
    rights = discord.Permissions(ALL.value)
    rights.update(**{right: False})
    error = refused(interaction(app_permissions=rights), services())
    assert (error.code, error.facts["rights"]) == ("missing_rights", label)


def test_whoever_may_manage_messages_here_is_a_moderator():
    assert is_moderator(interaction(permissions=discord.Permissions(manage_messages=True)))
    assert not is_moderator(interaction(permissions=discord.Permissions(send_messages=True)))
