"""Our pages of the hub in the language of who reads them.

JupyterHub makes its template environments once for everybody. `gettext` and its kin, put there, look at each
call for whom the page is made: JupyterHub gives `static_url` to every page, a bound method of the request's
handler.
"""

from collections.abc import Callable
from typing import Any

import jinja2
from jinja2.runtime import Context
from tornado import web

from qemuspawner.languages import Language, choose_language, load_languages

_ENVIRONMENTS = ("jinja2_env", "jinja2_env_sync")


def speak_languages(settings: dict[str, Any]) -> None:
    """Let the hub's templates say `_("...")`; harmless when done already."""
    for name in _ENVIRONMENTS:
        environment: jinja2.Environment = settings[name]
        if "find_language" in environment.globals:
            continue
        environment.add_extension("jinja2.ext.i18n")
        environment.install_gettext_callables(  # type: ignore[attr-defined]
            _by_language("gettext"),
            _by_language("ngettext"),
            newstyle=True,
            pgettext=_by_language("pgettext"),
            npgettext=_by_language("npgettext"),
        )
        environment.globals["find_language"] = jinja2.pass_context(_find_language)


def _by_language(function: str) -> Callable[..., str]:
    @jinja2.pass_context
    def say(context: Context, *arguments: Any) -> str:
        said: str = getattr(_find_language(context), function)(*arguments)
        return said

    return say


def _find_language(context: Context) -> Language:
    """English where nobody is known to read, as in a macro that was imported without its page's context."""
    handler = getattr(context.get("static_url"), "__self__", None)
    if isinstance(handler, web.RequestHandler):
        return choose_language(handler.request)
    return load_languages()["en"]
