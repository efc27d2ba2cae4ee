"""Who may use the bot, and where: asked again at every use, because Discord's own settings are only hints."""

import discord

from zbot.errors import NotAllowed
from zbot.services import Services

_NEEDED = {"send_messages": "Send Messages", "attach_files": "Attach Files", "embed_links": "Embed Links"}


def check_place(interaction: discord.Interaction, services: Services) -> None:
    """Let pass people in a channel of an allowed server where the bot can post pictures.

    The bot's rights are checked before the card works, not after.

    Raises:
        NotAllowed: a bot, a direct message, another server, or rights that are missing here.
    """
    if interaction.user.bot:
        raise NotAllowed
    if interaction.guild_id is None or not interaction.is_guild_integration():
        raise NotAllowed(code="only_in_guild")
    allowed = services.settings.guild_ids
    if allowed and interaction.guild_id not in allowed:
        raise NotAllowed(code="wrong_guild")
    rights = interaction.app_permissions
    if missing := [label for name, label in _NEEDED.items() if not getattr(rights, name)]:
        raise NotAllowed(code="missing_rights", rights=", ".join(missing))


def is_moderator(interaction: discord.Interaction) -> bool:
    """Say whether the person may manage messages in this channel."""
    return interaction.permissions.manage_messages
