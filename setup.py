"""Packages of the distribution: progc/, and passes/ and models/ as `progc.passes` and `progc.models`.

Everything else is in pyproject.toml. The list is computed so that a new sub-package needs no edit, and so
that nothing but `progc` lands in site-packages.
"""

from setuptools import find_packages, setup

MAPPED = ("passes", "models")

core = find_packages(include=["progc", "progc.*"])
mapped = find_packages(include=[pattern for name in MAPPED for pattern in (name, f"{name}.*")])

setup(
    packages=core + [f"progc.{name}" for name in mapped],
    package_dir={f"progc.{name}": name for name in MAPPED},
    package_data={"progc": ["py.typed"]},
)
