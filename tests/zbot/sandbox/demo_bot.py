"""A small bot with the real discord.py that uses everything an interaction bot uses."""

import asyncio
import contextlib
import io
import re
import warnings

import aiohttp
import yarl
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # discord.py's voice part imports audioop
    import discord
    from discord import app_commands
    from discord.ext import commands


def png(width: int = 4, height: int = 3) -> bytes:
    """Return a small picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 80, 20)).save(file, "PNG")
    return file.getvalue()


PNG = png()


class Again(discord.ui.DynamicItem[discord.ui.Button], template=r"demo:again:(?P<number>\d+)"):
    def __init__(self, number: int) -> None:
        super().__init__(discord.ui.Button(label="Again", custom_id=f"demo:again:{number}"))
        self.number = number

    @classmethod
    async def from_custom_id(cls, interaction, item, match: re.Match[str]):
        return cls(int(match["number"]))

    async def callback(self, interaction: discord.Interaction) -> None:
        await interaction.response.defer()
        await interaction.edit_original_response(content=f"again {self.number}", view=None)


class Ask(discord.ui.Modal, title="Say more"):
    prompt = discord.ui.TextInput(label="Prompt", default="a fox", custom_id="prompt", max_length=200)
    how = discord.ui.Label(
        text="How",
        component=discord.ui.Select(
            custom_id="how",
            options=[
                discord.SelectOption(label="Fast", value="fast"),
                discord.SelectOption(label="Slow", value="slow"),
            ],
        ),
    )

    async def on_submit(self, interaction: discord.Interaction) -> None:
        await interaction.response.send_message(
            f"{self.prompt.value} {self.how.component.values}", ephemeral=True
        )


class Panel(discord.ui.View):
    @discord.ui.button(label="Open", custom_id="demo:open")
    async def open(self, interaction: discord.Interaction, _button: discord.ui.Button) -> None:
        await interaction.response.send_modal(Ask())

    @discord.ui.select(
        custom_id="demo:pick", options=[discord.SelectOption(label=x) for x in ("red", "blue")]
    )
    async def pick(self, interaction: discord.Interaction, select: discord.ui.Select) -> None:
        await interaction.response.edit_message(content=f"picked {select.values[0]}", view=None)


class DemoBot(commands.Bot):
    def __init__(self, *, intents: discord.Intents | None = None) -> None:
        super().__init__(
            command_prefix=(),
            intents=intents or discord.Intents(guilds=True, guild_messages=True, dm_messages=True),
            allowed_mentions=discord.AllowedMentions.none(),
            guild_ready_timeout=0.05,
        )
        self.seen: list[int] = []
        self.events: list[str] = []
        self.errors: list[BaseException] = []
        self.hold = asyncio.Event()
        self.resumed = asyncio.Event()
        self.was_ready = asyncio.Event()
        self.sync_global = True
        add_commands(self)

    async def setup_hook(self) -> None:
        self.add_dynamic_items(Again)
        self.add_view(Panel(timeout=None))
        if self.sync_global:
            await self.tree.sync()

    async def on_ready(self) -> None:
        self.was_ready.set()

    async def on_resumed(self) -> None:
        self.resumed.set()

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        self.seen.append(interaction.id)

    async def on_socket_event_type(self, name: str) -> None:
        self.events.append(name)


def add_commands(bot: DemoBot) -> None:
    tree = bot.tree

    @tree.error
    async def on_error(_interaction: discord.Interaction, error: app_commands.AppCommandError) -> None:
        bot.errors.append(error.__cause__ or error)

    @tree.command(description="Draw a picture")
    @app_commands.describe(prompt="What to draw")
    @app_commands.choices(aspect=[app_commands.Choice(name=a, value=a) for a in ("1:1", "16:9")])
    async def imagine(
        interaction: discord.Interaction,
        prompt: app_commands.Range[str, 1, 100],
        count: app_commands.Range[int, 1, 4] = 1,
        aspect: str = "1:1",
        reference: discord.Attachment | None = None,
        person: discord.Member | None = None,
    ) -> None:
        await interaction.response.defer()
        size = len(await reference.read()) if reference else 0
        view = discord.ui.View(timeout=None)
        view.add_item(Again(count))
        await interaction.edit_original_response(
            content=f"{prompt} {count} {aspect} {size} {person and person.display_name}",
            embed=discord.Embed(title="Recipe").set_image(url="attachment://fox.png"),
            attachments=[discord.File(io.BytesIO(PNG), "fox.png", description="a fox")],
            view=view,
        )

    @tree.command(description="Speak twice")
    async def twice(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("one")
        await interaction.followup.send("two", file=discord.File(io.BytesIO(PNG), "two.png"))
        original = await interaction.original_response()
        await original.edit(content="one, edited")

    @tree.command(description="Defer, then follow up")
    async def fills(interaction: discord.Interaction) -> None:
        await interaction.response.defer(ephemeral=True)
        first = await interaction.followup.send("filled", wait=True)
        second = await interaction.followup.send("new", wait=True)
        bot.result = (first.id, second.id)

    @tree.command(description="A whisper")
    async def whisper(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("only you", ephemeral=True)

    @tree.command(description="Wait until told")
    async def slow(interaction: discord.Interaction) -> None:
        await bot.hold.wait()
        await interaction.response.send_message("late")

    @tree.command(description="Answer twice")
    async def doubled(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("first")
        interaction.response._response_type = None
        await interaction.response.send_message("second")

    @tree.command(description="Open the panel")
    async def panel(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("panel", view=Panel(timeout=None))

    @tree.command(description="Send this many bytes")
    async def heavy(interaction: discord.Interaction, size: int) -> None:
        await interaction.response.defer()
        await interaction.followup.send(file=discord.File(io.BytesIO(bytes(size)), "heavy.bin"))

    @tree.command(description="Edit many times")
    async def busy(interaction: discord.Interaction, edits: int) -> None:
        await interaction.response.send_message("0")
        for number in range(edits):
            await interaction.edit_original_response(content=str(number + 1))

    @tree.command(description="Wait, then edit")
    async def later(interaction: discord.Interaction) -> None:
        await interaction.response.defer()
        await bot.hold.wait()
        await interaction.edit_original_response(content="done")

    @tree.command(description="Find a job")
    async def find(interaction: discord.Interaction, job: str) -> None:
        await interaction.response.send_message(f"job {job}")

    @find.autocomplete("job")
    async def complete(_interaction: discord.Interaction, current: str) -> list[app_commands.Choice[str]]:
        return [app_commands.Choice(name=f"Job {n}", value=n) for n in ("17", "18", "27") if current in n]

    @tree.command(description="New components")
    async def modern(interaction: discord.Interaction) -> None:
        view = discord.ui.LayoutView(timeout=None)
        gallery = discord.ui.MediaGallery(discord.MediaGalleryItem("attachment://v2.png"))
        row = discord.ui.ActionRow(discord.ui.Button(label="Go", custom_id="go"))
        view.add_item(discord.ui.Container(discord.ui.TextDisplay("# Picture"), gallery, row))
        await interaction.response.send_message(view=view, file=discord.File(io.BytesIO(PNG), "v2.png"))

    class Jobs(app_commands.Group):
        @app_commands.command(description="Show one")
        async def show(self, interaction: discord.Interaction, number: int) -> None:
            await interaction.response.send_message(f"shown {number}")

    tree.add_command(Jobs(name="jobs", description="Jobs"))

    @tree.command(description="Only in a guild")
    @app_commands.guild_only()
    @app_commands.default_permissions(manage_messages=True)
    async def moderate(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("moderated", ephemeral=True)


@contextlib.asynccontextmanager
async def running(sandbox, *, token: str = "sandbox-token", bot: DemoBot | None = None):
    """Run a demo bot against the sandbox; yields it when the gateway has greeted it."""
    discord.http.Route.BASE = sandbox.api_url
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(sandbox.gateway_url)
    bot = bot or DemoBot()
    async with bot:
        task = asyncio.create_task(bot.start(token))
        waiting = asyncio.create_task(bot.was_ready.wait())
        try:
            await asyncio.wait({task, waiting}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield bot
        finally:
            waiting.cancel()
            await bot.close()
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
                await asyncio.wait({task}, timeout=5)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
