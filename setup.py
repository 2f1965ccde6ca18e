"""Finds the packages: the four folders of the top level are installed below one name, `gemfleet`.

So a user's own `train.py` or `cluster/` can never be imported in their place.
"""

from setuptools import find_packages, setup

FOLDERS = ("train", "cluster", "launcher", "benchmarks")

setup(
    packages=[
        f"gemfleet.{name}" for folder in FOLDERS for name in (folder, *(f"{folder}.{p}" for p in find_packages(folder)))
    ],
    package_dir={f"gemfleet.{folder}": folder for folder in FOLDERS},
)
