"""`/imagine`: a prompt becomes pictures."""

import asyncio
from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._lora import LORA_CHARACTERS, read_lora
from cogs._phrases import phrase
from cogs._submit import submit
from zbot import loras
from zbot.flags import parse_flags
from zbot.request import ASPECTS, MAX_IMAGES, MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_STEPS, build_request
from zbot.services import Services

_ASPECT_CHOICES = [app_commands.Choice(name=name, value=name) for name in ASPECTS]

CHOICES = 25  # the most that Discord takes


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
        lora=phrase("imagine_lora"),
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
        lora: app_commands.Range[str, 1, LORA_CHARACTERS] | None = None,
    ) -> None:
        """Read the flags in the prompt, which win over the options, and submit."""
        flags = parse_flags(prompt)
        style = await read_lora(flags.lora or lora, self._services.settings)
        request = build_request(
            prompt=flags.prompt,
            native_size=self._services.native_size,
            aspect=flags.aspect or aspect,
            seed=seed if flags.seed is None else flags.seed,
            steps=steps if flags.steps is None else flags.steps,
            num_images=count if flags.num_images is None else flags.num_images,
            lora=style.name,
            lora_scale=style.scale,
            known_loras=style.known,
        )
        await submit(interaction, self._services, request)

    # Always offered: the commands are synced at the start, and files come and go while the bot runs.
    @imagine.autocomplete("lora")
    async def lora_names(
        self, interaction: discord.Interaction[Any], current: str
    ) -> list[app_commands.Choice[str]]:
        """Offer the LoRA files of the directory; none while it has none."""
        wanted = current.partition(":")[0].strip().casefold()
        known = await asyncio.to_thread(loras.shelf, self._services.settings.loras)
        names = [name for name in known if wanted in name.casefold()]
        return [app_commands.Choice(name=name, value=name) for name in names[:CHOICES]]


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Imagine(bot.services))  # pyright: ignore[reportAttributeAccessIssue] ZBot has it
