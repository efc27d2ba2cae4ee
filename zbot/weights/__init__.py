"""Where the model's files are; fetch through ModelScope, resume, verify, convert, move.

Only `fetch` opens a socket. Nothing heavy is imported with this package: ModelScope's client is imported
inside `fetch`, numpy inside `convert`, torch nowhere.
"""

from zbot.weights.cache import (
    CACHE_SETTING,
    MODEL_SETTING,
    TINY,
    check_cache_root,
    find_place,
    gigabytes,
    prepare_environment,
)
from zbot.weights.check import Problem
from zbot.weights.conversion import convert
from zbot.weights.download import fetch
from zbot.weights.location import ModelFiles, locate, mend_command
from zbot.weights.manifest import WeightFile, known_manifest
from zbot.weights.relocation import move
from zbot.weights.standing import Copy, Status, status
from zbot.weights.verification import OnProgress, Progress, Verification, verify

__all__ = [
    "CACHE_SETTING",
    "MODEL_SETTING",
    "TINY",
    "Copy",
    "ModelFiles",
    "OnProgress",
    "Problem",
    "Progress",
    "Status",
    "Verification",
    "WeightFile",
    "check_cache_root",
    "convert",
    "fetch",
    "find_place",
    "gigabytes",
    "known_manifest",
    "locate",
    "mend_command",
    "move",
    "prepare_environment",
    "status",
    "verify",
]
