"""The buttons under a job's answer; they carry only the job's id, so they work after every restart."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Self

import discord

from cogs._errors import report
from zbot.job import Job, JobId
from zbot.text import say

_LOOK = {
    "reroll": (discord.ButtonStyle.primary, "🎲"),
    "edit": (discord.ButtonStyle.secondary, "✏️"),
    "details": (discord.ButtonStyle.secondary, "🔎"),
    "delete": (discord.ButtonStyle.danger, "🗑️"),
    "cancel": (discord.ButtonStyle.danger, "✖️"),
}

Action = Callable[[discord.Interaction[Any], JobId], Awaitable[None]]
ACTIONS: dict[str, Action] = {}  # filled by _actions.py: what is drawn need not know what it does


def action(function: Action) -> Action:
    """Make a function the action of the button that has its name."""
    ACTIONS[function.__name__] = function
    return function


class JobButton(
    discord.ui.DynamicItem[discord.ui.Button[Any]],
    template=r"zbot:(?P<action>reroll|edit|details|delete|cancel):(?P<job>[0-9]{1,18})(?::(?P<index>[0-9]))?",
):
    """One button of one job; who may press it is asked from the job's row, never from the button."""

    def __init__(self, action: str, job_id: int, locale: str) -> None:
        style, emoji = _LOOK[action]
        super().__init__(
            discord.ui.Button(
                style=style,
                emoji=emoji,
                label=say(f"button.{action}", locale),
                custom_id=f"zbot:{action}:{job_id}",
            )
        )
        self._action = action
        self._job_id = JobId(job_id)

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Build the pressed button again from its id."""
        return cls(match["action"], int(match["job"]), interaction.locale.value)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Do what the button says."""
        try:
            await ACTIONS[self._action](interaction, self._job_id)
        except Exception as error:
            await report(interaction, error)


def result_view(job: Job) -> discord.ui.View:
    """Return the buttons under a finished job."""
    return _view(job, "reroll", "edit", "details", "delete")


def cancel_view(job: Job) -> discord.ui.View:
    """Return the button under a waiting or running job."""
    return _view(job, "cancel")


def _view(job: Job, *actions: str) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    for action in actions:
        view.add_item(JobButton(action, job.id, job.origin.locale))
    return view
