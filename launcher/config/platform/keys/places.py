"""Rows of the table: what the run is called, where model and data come from, and where the result goes."""

from __future__ import annotations

from .key import Key
from .values import Choice, Text

SOURCE_TYPES = Choice(
    {"git": "git", "hub": "hub", "local": "local", "s3": "s3", "gs": "gs"},
    remedy="give `git`, `hub`, `local`, `s3` or `gs`; copy what lies elsewhere to the head node and name its folder",
)
RESULT_TYPES = Choice(
    {"git": "git", "hub": "hub", "local": "local", "s3": "s3", "gs": "gs"},
    remedy="give `git`, `hub`, `local`, `s3` or `gs`; a local result can be copied on",
)
SFT_ONLY = "gemfleet does supervised fine-tuning only; set it to `sft`, or run this request on the platform itself"

PLACE_KEYS = (
    Key(
        "experiment_name",
        "what the run is called",
        "name",
        Text("a name of letters, digits, `.`, `_` and `-`"),
        "begins the run's id, and names the branch, or the folder of an object store, that the result goes to",
        how="together",
    ),
    Key(
        "trainer",
        "kind of training",
        "",
        Choice({"sft": "sft", "sfttrainer": "sft"}, remedy=SFT_ONLY),
        "`sft` alone; preference training, rewards and full pre-training are refused",
        how="checked",
        default="sft",
    ),
    Key(
        "save_model.type",
        "where the result goes",
        "output.deliver.type",
        RESULT_TYPES,
        "`git` pushes a commit, `hub`, `s3` and `gs` upload, `local` leaves it on the head node",
        how="together",
        default="local",
    ),
    Key(
        "save_model.model_repository",
        "repository of the result",
        "output.deliver.repository",
        Text("the address of a repository or of an object store"),
        "is pushed or uploaded to; needed for all but `local`",
        how="together",
    ),
    Key(
        "dataset.type",
        "where the data comes from",
        "train.data.train",
        SOURCE_TYPES,
        "decides how repository and path are read",
        how="together",
        default="git",
    ),
    Key(
        "dataset.dataset_repository",
        "repository or hub id of the data",
        "train.data.train",
        Text("the address of a repository or object store, or a hub id"),
        "cloned or copied once to the head node, unless `dataset_path` is there",
        how="together",
    ),
    Key(
        "dataset.dataset_branch",
        "branch of that repository",
        "train.data.train",
        Text("the name of a branch"),
        "cloned in place of the default branch",
        how="together",
    ),
    Key(
        "dataset.dataset_path",
        "folder that holds the data already",
        "train.data.train",
        Text("a path"),
        "used in place of the repository where it exists; never written",
        how="together",
    ),
    Key(
        "model.type",
        "where the base model comes from",
        "train.model",
        SOURCE_TYPES,
        "decides how repository and path are read",
        how="together",
        default="git",
    ),
    Key(
        "model.model_repository",
        "repository or hub id of the base model",
        "train.model",
        Text("the address of a repository or object store, or a hub id"),
        "cloned or copied once to the head node, unless `model_path` is there",
        how="together",
    ),
    Key(
        "model.model_branch",
        "branch of that repository",
        "train.model",
        Text("the name of a branch"),
        "cloned in place of the default branch",
        how="together",
    ),
    Key(
        "model.model_path",
        "folder that holds the base model already",
        "train.model",
        Text("a path"),
        "used in place of the repository where it exists; never written",
        how="together",
    ),
)
