"""zbot: pictures from chat, drawn on the team's own machine."""

__version__ = "0.1.0"
