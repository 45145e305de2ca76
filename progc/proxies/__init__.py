"""Zero-shot proxies by name: scores of a network before it is trained. The table is explicit and lazy.

Packages outside add proxies through the entry point group `progc.proxies` (`name = "module:Class"`). A proxy is a class
whose instances meet `progc.proxies.base.Proxy`; its options are fields with defaults. docs/proxies.md says what each
one measures.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.passes import merge
from progc.suggestions import did_you_mean

if TYPE_CHECKING:
    from progc.proxies.base import Proxy

PROXIES: Mapping[str, str] = {
    "ntk": "progc.proxies.ntk:NTK",
    "zico": "progc.proxies.zico:ZiCo",
    "synflow": "progc.proxies.synflow:SynFlow",
    "gradnorm": "progc.proxies.gradnorm:GradNorm",
    "jacobian-covariance": "progc.proxies.jacobian_covariance:JacobianCovariance",
    "naswot": "progc.proxies.naswot:NASWOT",
}

ENTRY_POINTS = "progc.proxies"


def names() -> list[str]:
    """Names of all proxies, ours first, then those of installed packages.

    Raises:
        InputError: two proxies have the same name.
    """
    return list(_table())


def load_proxy(name: str) -> type[Proxy]:
    """The proxy class called `name`; imports its module. Every option of it has a default.

    Raises:
        InputError: no such proxy (with a suggestion), a duplicate name, or a proxy that cannot be imported.
    """
    table = _table()
    if name not in table:
        hint = did_you_mean(name, table) or f"; proxies are {', '.join(table)}"
        raise InputError(f"there is no proxy `{name}`{hint}")
    module, _, attribute = table[name].partition(":")
    try:
        found: type[Proxy] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a package of somebody's fails when it is imported
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {error}"
        raise InputError(f"proxy `{name}` cannot be loaded from {table[name]}: {reason}") from error
    lacking = [part for part in ("name", "higher_is_better", "score") if not hasattr(found, part)]
    if not isinstance(found, type) or lacking:
        raise InputError(
            f"proxy `{name}` loads {table[name]}, which lacks {', '.join(lacking) or 'a class'}; "
            "see progc.proxies.base.Proxy"
        )
    if found.name != name:
        raise InputError(f"proxy `{name}` loads {table[name]}, which calls itself `{found.name}`; use one name")
    return found


@functools.cache
def _table() -> Mapping[str, str]:
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    try:
        return merge(PROXIES, ((point.name, point.value) for point in points))
    except InputError as error:
        raise InputError(str(error).replace("two passes", "two proxies")) from error
