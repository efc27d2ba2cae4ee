"""`/imagine`: a prompt becomes pictures."""

from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._phrases import phrase
from cogs._submit import submit
from zbot.flags import parse_flags
from zbot.request import ASPECTS, MAX_IMAGES, MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_STEPS, build_request
from zbot.services import Services

_ASPECT_CHOICES = [app_commands.Choice(name=name, value=name) for name in ASPECTS]


class Imagine(commands.Cog):
    """The way in."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(name="imagine", description=phrase("imagine"))
    @app_commands.describe(
        prompt=phrase("imagine_prompt"),
        aspect=phrase("imagine_aspect"),
        seed=phrase("imagine_seed"),
        count=phrase("imagine_count"),
        steps=phrase("imagine_steps"),
    )
    @app_commands.choices(aspect=_ASPECT_CHOICES)
    @app_commands.guild_only()
    async def imagine(
        self,
        interaction: discord.Interaction[Any],
        prompt: app_commands.Range[str, 1, MAX_PROMPT_CHARACTERS],
        aspect: str | None = None,
        seed: app_commands.Range[int, 0, MAX_SEED] | None = None,
        count: app_commands.Range[int, 1, MAX_IMAGES] | None = None,
        steps: app_commands.Range[int, 1, MAX_STEPS] | None = None,
    ) -> None:
        """Read the flags in the prompt, which win over the options, and submit."""
        flags = parse_flags(prompt)
        request = build_request(
            prompt=flags.prompt,
            native_size=self._services.native_size,
            aspect=flags.aspect or aspect,
            seed=seed if flags.seed is None else flags.seed,
            steps=steps if flags.steps is None else flags.steps,
            num_images=count if flags.num_images is None else flags.num_images,
        )
        await submit(interaction, self._services, request)


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Imagine(bot.services))  # pyright: ignore[reportAttributeAccessIssue] ZBot has it
