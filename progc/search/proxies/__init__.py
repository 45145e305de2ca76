"""Zero-shot proxies by name: scores of a network that need no training. Modules are imported when a proxy is loaded.

Other packages add proxies with the entry point group `progc.proxies` (`name = "module:Class"`). A proxy is a class that
implements `progc.search.proxies.base.Proxy`; its options are fields with defaults. docs/proxies.md describes each one.
May import `schedule` and below, but nothing else of `search`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from progc.errors import InputError
from progc.pipeline.registry import NamedClasses

if TYPE_CHECKING:
    from progc.search.proxies.base import Proxy

PROXIES: Mapping[str, str] = {
    "ntk": "progc.search.proxies.ntk:NTK",
    "zico": "progc.search.proxies.zico:ZiCo",
    "synflow": "progc.search.proxies.synflow:SynFlow",
    "gradnorm": "progc.search.proxies.gradnorm:GradNorm",
    "jacobian-covariance": "progc.search.proxies.jacobian_covariance:JacobianCovariance",
    "naswot": "progc.search.proxies.naswot:NASWOT",
}

ENTRY_POINTS = "progc.proxies"
_CLASSES = NamedClasses("proxy", "proxies", PROXIES, ENTRY_POINTS)


def names() -> list[str]:
    """Returns the names of all proxies, ours first, followed by those of installed packages.

    Raises:
        InputError: two proxies have the same name.
    """
    return list(_CLASSES.table)


def load_proxy(name: str) -> type[Proxy]:
    """Returns the proxy class of a name; imports its module. Every option of a proxy has a default.

    Raises:
        InputError: there is no such proxy (the message suggests one), a name is used twice, or the proxy cannot be
            imported.
    """
    found: Any = _CLASSES.load(name)
    lacking = [part for part in ("name", "higher_is_better", "score") if not hasattr(found, part)]
    if not isinstance(found, type) or lacking:
        raise InputError(
            f"proxy `{name}` loads {_CLASSES.table[name]}, which lacks {', '.join(lacking) or 'a class'}; "
            "see progc.search.proxies.base.Proxy"
        )
    proxy: Any = found
    _CLASSES.check_name(name, proxy.name)
    return proxy
